"""Raw values to arrays: the only preprocessing there is. NumPy in, NumPy out; fitted on training rows, kept in the bundle."""

import json
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from towers.batch import HISTORY_AGE, HISTORY_EVENT, HISTORY_GAP, HISTORY_ITEM, event_context
from towers.columns import DEFAULT_EVENT_TYPE, EVENT_TYPE, FIRST_ROW, ITEM_ID, MISSING_ROW, NO_TIME, PAD_ROW
from towers.errors import BundleError
from towers.history import ages, gaps, kept_context
from towers.model_config import InputSpec
from towers.schema import OWNERS, Feature, Schema
from towers.values import ARROW, Column, as_dense, as_lists, as_numbers, as_strings, as_times, text_buckets
from towers.vocab import Coded, Vocabulary

VOCABULARY_KINDS = ("id", "categorical", "multi_categorical", "preferences")
HOUR_ROW, WEEKDAY_ROW, TIME_ROWS = FIRST_ROW, FIRST_ROW + 24, FIRST_ROW + 24 + 7
NUMERIC_BOUND = 8.0
"""Standardised numbers are cut here: one absurd value must not own the vector."""
FEW = 64
"""Values looked up as they come; of more, each distinct one once."""

_HOUR = 3_600_000_000


class Preprocessor:
    """Fitted preprocessing of a dataset.

    Args:
        schema: the declared features.
        vocabularies: by vocabulary name; `item_id` and `event_type` are always there.
        numbers: (mean, standard deviation) by `owner.name` of numeric features.

    Attributes:
        declared: features of each owner, by name.
    """

    def __init__(self, schema: Schema, vocabularies: Mapping[str, Vocabulary], numbers: Mapping[str, tuple[float, float]]) -> None:
        self.schema = schema
        self.vocabularies = dict(vocabularies)
        self.numbers = dict(numbers)
        self.declared = {owner: {f.name: f for f in schema.owned_by(owner)} for owner in OWNERS}

    @property
    def event_rows(self) -> int:
        """Rows of the event-type vocabulary, reserved ones included."""
        return len(self.vocabularies[EVENT_TYPE])

    @property
    def inputs(self) -> tuple[InputSpec, ...]:
        """What each declared feature becomes: the towers are built from this."""
        return tuple(self._input(f) for f in self.schema.features)

    def hold(self) -> None:
        """Keep what requests are looked up in (items, and the vocabularies of user and context features) in memory: see Vocabulary.hold."""
        asked = [f.vocabulary for owner in ("user", "context") for f in self.declared[owner].values() if f.kind in VOCABULARY_KINDS]
        for name in {ITEM_ID, EVENT_TYPE, *asked}:
            self.vocabularies[name].hold()

    def encode(self, owner: str, columns: Mapping[str, Column], rows: int) -> dict[str, NDArray[np.generic]]:
        """Arrays of all features of an owner.

        Args:
            owner: `user`, `item` or `context`.
            columns: raw values by feature name; a feature without a column is missing in every row.
            rows: B.

        Returns:
            arrays by input name (see towers.batch.FeatureBatch).

        Raises:
            RequestError: a value does not fit the feature's kind; names the feature.
        """
        return {f.input_name: self.encode_feature(f, columns.get(f.name, [None] * rows)) for f in self.declared[owner].values()}

    def encode_feature(self, feature: Feature, values: Column) -> NDArray[np.generic]:
        """One feature's array; see `encode`."""
        name = feature.input_name
        if feature.kind in ("id", "categorical"):
            return self._lookup_column(feature, values)
        if feature.kind in ("multi_categorical", "preferences"):
            return self._lookup_lists(feature, values)
        if feature.kind == "text":
            return text_buckets(name, values, feature.buckets, feature.max_values)
        if feature.kind == "numeric":
            return self._standardise(name, as_numbers(name, values))
        if feature.kind == "dense":
            return as_dense(name, values, feature.width)
        return _clock(as_times(name, values))

    def history(
        self,
        items: Sequence[Sequence[str] | NDArray[np.int32]],
        events: Sequence[Sequence[str | None]],
        timestamps: Sequence[Sequence[int]],
        now_B: NDArray[np.int64],
        length: int,
        times: Collection[str] = (HISTORY_AGE, HISTORY_GAP),
        contexts: Sequence[Mapping[str, Column]] = (),
    ) -> dict[str, NDArray[np.generic]]:
        """History arrays of raw events: the newest `length` of each row, right-aligned.

        Args:
            items: item ids of each row, or their rows in the item vocabulary, oldest first.
            events: their types, or an empty sequence for the default type.
            timestamps: microseconds UTC, or an empty sequence for unknown.
            now_B: time of each request, NO_TIME where unknown.
            length: L.
            times: which of HISTORY_AGE and HISTORY_GAP are made.
            contexts: of each row, by context feature, the value of each event; a feature left out, or no rows at all: unknown.
        """
        size = len(items)
        item_BL = np.zeros((size, length), np.int32)  # PAD_ROW is 0
        event_BL = np.zeros((size, length), np.int32)
        then_BL = np.full((size, length), NO_TIME, np.int64)
        item_rows, event_rows = self.vocabularies[ITEM_ID].rows, self.vocabularies[EVENT_TYPE].rows
        for b, ids in enumerate(items):
            count = min(len(ids), length)
            if not count:
                continue
            item_BL[b, -count:] = ids[-count:] if isinstance(ids, np.ndarray) else item_rows(ids[-count:])
            event_BL[b, -count:] = event_rows(events[b][-count:] if events[b] else [DEFAULT_EVENT_TYPE] * count)
            if len(timestamps[b]):
                then_BL[b, -count:] = timestamps[b][-count:]
        mask_BL = item_BL != PAD_ROW
        timed = self.schema.order, now_B, then_BL, mask_BL
        made = {name: rows(*timed) for name, rows in ((HISTORY_AGE, ages), (HISTORY_GAP, gaps)) if name in times}
        made |= {event_context(f.name): self._kept(f, contexts, mask_BL) for f in self.schema.in_history}
        return {HISTORY_ITEM: item_BL, HISTORY_EVENT: event_BL, **made}

    def _kept(self, feature: Feature, contexts: Sequence[Mapping[str, Column]], mask_BL: NDArray[np.bool_]) -> NDArray[np.int32]:
        rows_BL = np.zeros(mask_BL.shape, np.int32)
        for b, columns in enumerate(contexts):
            values = columns.get(feature.name, ())[-mask_BL.shape[1] :]
            if len(values):
                coded = values if isinstance(values, Coded) else as_strings(feature.input_name, values)
                rows_BL[b, -len(values) :] = self.vocabularies[feature.vocabulary].rows(coded)
        return kept_context(rows_BL, mask_BL)

    def save(self, folder: Path) -> None:
        """Write schema.json, preprocess.json and vocab/."""
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "schema.json").write_text(json.dumps(self.schema.to_json(), indent=2) + "\n")
        document = {"numbers": {k: list(v) for k, v in self.numbers.items()}, "vocabularies": sorted(self.vocabularies)}
        (folder / "preprocess.json").write_text(json.dumps(document, indent=2) + "\n")
        for name, vocabulary in self.vocabularies.items():
            vocabulary.save(folder / "vocab", name)

    @classmethod
    def open(cls, folder: Path) -> "Preprocessor":
        """Read what `save` wrote; vocabularies are memory-mapped.

        Raises:
            BundleError: a file is missing or of another format.
        """
        try:
            schema = Schema.from_json(json.loads((folder / "schema.json").read_text()))
            document = json.loads((folder / "preprocess.json").read_text())
            vocabularies = {name: Vocabulary.open(folder / "vocab", name) for name in document["vocabularies"]}
            numbers = {k: (float(v[0]), float(v[1])) for k, v in document["numbers"].items()}
        except (OSError, KeyError, TypeError, ValueError) as error:
            raise BundleError(f"preprocessing in {folder} cannot be read: {error}") from error
        return cls(schema, vocabularies, numbers)

    def _input(self, f: Feature) -> InputSpec:
        if f.kind in VOCABULARY_KINDS:
            width = f.max_values if f.kind in ("multi_categorical", "preferences") else 0
            return InputSpec(f.input_name, f.kind, len(self.vocabularies[f.vocabulary]), width, f.vocabulary, in_history=f.in_history)
        rows, width = {
            "text": (f.buckets + 1, f.max_values),
            "time": (TIME_ROWS, 2),
            "numeric": (0, 2),
            "dense": (0, f.width),
        }[f.kind]
        return InputSpec(f.input_name, f.kind, rows, width, f.input_name)

    def _lookup_column(self, feature: Feature, values: Column) -> NDArray[np.int32]:
        if not isinstance(values, ARROW):
            return self._lookup(feature, as_strings(feature.input_name, values))
        # an Arrow column becomes a dictionary first: no Python object per row
        encoded = (values.combine_chunks() if isinstance(values, pa.ChunkedArray) else values).dictionary_encode()
        rows = np.append(self._lookup(feature, as_strings(feature.input_name, encoded.dictionary)), np.int32(MISSING_ROW))
        found: NDArray[np.int32] = rows[encoded.indices.fill_null(len(rows) - 1).to_numpy(zero_copy_only=False)]
        return found

    def _lookup(self, feature: Feature, values: Sequence[str | None]) -> NDArray[np.int32]:
        if len(values) <= FEW:
            return self.vocabularies[feature.vocabulary].rows(values)
        unique, inverse = _unique(values)
        return self.vocabularies[feature.vocabulary].rows(unique)[inverse]

    def _lookup_lists(self, feature: Feature, values: Column) -> NDArray[np.int32]:
        flat, lengths = as_lists(feature.input_name, values)
        width = feature.max_values
        rows_BM = np.full((len(lengths), width), PAD_ROW, np.int32)
        column = np.arange(len(flat)) - np.repeat(np.cumsum(lengths) - lengths, lengths)
        row = np.repeat(np.arange(len(lengths)), lengths)
        kept = column < width
        rows_BM[row[kept], column[kept]] = self._lookup(feature, flat)[kept]
        rows_BM[lengths == 0, 0] = MISSING_ROW
        return rows_BM

    def _standardise(self, name: str, numbers_B: NDArray[np.float64]) -> NDArray[np.float32]:
        mean, deviation = self.numbers[name]
        missing_B = ~np.isfinite(numbers_B)
        scaled_B = np.minimum(np.maximum((numbers_B - mean) / deviation, -NUMERIC_BOUND), NUMERIC_BOUND)
        scaled_B[missing_B] = 0.0
        scaled_B2 = np.empty((len(numbers_B), 2), np.float32)
        scaled_B2[:, 0], scaled_B2[:, 1] = scaled_B, missing_B
        return scaled_B2


def _unique(values: Sequence[str | None]) -> tuple[list[str | None], NDArray[np.int64]]:
    """Distinct values and each row's place among them: a lookup costs what the distinct values cost."""
    place: dict[str | None, int] = {}
    inverse = np.fromiter((place.setdefault(value, len(place)) for value in values), np.int64, len(values))
    return list(place), inverse


def _clock(times_B: NDArray[np.int64]) -> NDArray[np.int32]:
    """Hour of day and day of week (UTC, Monday first) as rows of one table: int32 [B, 2]."""
    hours_B = times_B // _HOUR
    hour_B = HOUR_ROW + hours_B % 24
    weekday_B = WEEKDAY_ROW + (hours_B // 24 + 3) % 7  # 1970-01-01 was a Thursday
    rows_B2 = np.stack([hour_B, weekday_B], axis=1)
    return np.where((times_B == NO_TIME)[:, None], MISSING_ROW, rows_B2).astype(np.int32)
