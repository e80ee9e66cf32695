"""The last stage of prepare: fit preprocessing on training rows, then encode events, context, users and items by blocks."""

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from towers.columns import EVENT_TYPE, ITEM_ID, TRAIN
from towers.errors import DataError, RequestError
from towers.fitting import PreprocessorFit
from towers.preprocess import Preprocessor
from towers.schema import Feature, Schema
from training.catalogue import Catalogue
from training.divide import Division
from training.ingest import Ingested
from training.interactions import feature_file
from training.npy_stream import NpyReader, NpyWriter
from training.people import People
from training.raw_codes import ContextColumn, ContextEncoder

SIDE_ROWS = 1 << 16
"""Rows of users or items encoded in one go."""


class Encoder:
    """Fits on training rows, then writes every encoded column.

    Args:
        folder: of the final columns.
        work: of provisional ones.
        schema: declared features.
        log, items, people, division: results of the earlier stages.
    """

    def __init__(
        self, folder: Path, work: Path, schema: Schema, log: Ingested, items: Catalogue, people: People, division: Division
    ) -> None:
        self._folder, self._work, self._schema = folder, work, schema
        self._log, self._items, self._people, self._division = log, items, people, division
        self.event_counts = np.zeros(len(log.events), np.int64)
        """Rows by event code, all sides."""

    def fit(self) -> Preprocessor:
        """The preprocessor, fitted on training rows only.

        Raises:
            DataError: a value does not fit its feature's kind.
        """
        fit = PreprocessorFit(self._schema)
        try:
            self._see_events(fit)
            self._see_sides(fit)
            for column in self._log.context:
                self._see_context(fit, column)
        except RequestError as error:
            raise DataError(f"declared feature {error}") from error
        return fit.finish()

    def write(self, preprocessor: Preprocessor) -> None:
        """Save the preprocessor and encode everything.

        Raises:
            DataError: a value does not fit its feature's kind.
        """
        preprocessor.save(self._folder)
        try:
            self._encode_side(preprocessor, "item", self._items.values, self._folder / "items")
            self._encode_side(preprocessor, "user", self._people.values, self._folder / "users")
        except RequestError as error:
            raise DataError(f"declared feature {error}") from error
        rows_of_code = preprocessor.vocabularies[EVENT_TYPE].rows(self._log.events.texts)
        with NpyWriter(self._folder / "event.npy", np.int32) as writer:
            for codes_n in NpyReader(self._work / "event.npy").blocks():
                writer.append(rows_of_code[codes_n])
        (self._folder / "context").mkdir()
        for column in self._log.context:
            self._encode_context(preprocessor, column)

    def _see_events(self, fit: PreprocessorFit) -> None:
        train = np.zeros(len(self._log.events), np.int64)
        splits = NpyReader(self._folder / "split.npy").blocks()
        for codes_n, split_n in zip(NpyReader(self._work / "event.npy").blocks(), splits, strict=True):
            self.event_counts += np.bincount(codes_n, minlength=len(train))
            train += np.bincount(codes_n[split_n == TRAIN], minlength=len(train))
        fit.see_events(text for text, count in zip(self._log.events.texts, train.tolist(), strict=True) if count)

    def _see_sides(self, fit: PreprocessorFit) -> None:
        seen_I = self._division.seen_items
        fit.see("item", {ITEM_ID: _often(self._items.ids, seen_I, self._least(self._schema.feature(ITEM_ID)))})
        for owner, values, chosen in (
            ("item", self._items.values, np.flatnonzero(seen_I)),
            ("user", self._people.values, np.flatnonzero(self._division.train_users)),
        ):
            for start in range(0, len(chosen), SIDE_ROWS):
                rows = pa.array(chosen[start : start + SIDE_ROWS])
                fit.see(owner, {name: column.take(rows) for name, column in values.items() if name != ITEM_ID})

    def _see_context(self, fit: PreprocessorFit, column: ContextColumn) -> None:
        f = column.feature
        counts = np.zeros(len(column.texts), np.int64)
        splits = NpyReader(self._folder / "split.npy").blocks()
        for spilled_n, split_n in zip(NpyReader(self._work / f"{f.input_name}.npy").blocks(), splits, strict=True):
            train_n = spilled_n[split_n == TRAIN]
            if f.kind == "numeric":
                fit.see("context", {f.name: train_n})
            elif column.coded:
                counts += np.bincount(train_n[train_n >= 0], minlength=len(counts))
        if column.coded:
            fit.see("context", {f.name: _often(column.texts, counts, self._least(f))})

    def _least(self, feature: Feature) -> int:
        """The min_count of the vocabulary that a feature shares."""
        return self._schema.feature(feature.like or feature.name).min_count

    def _encode_side(self, preprocessor: Preprocessor, owner: str, values: Mapping[str, pa.ChunkedArray], folder: Path) -> None:
        folder.mkdir()
        for f in self._schema.owned_by(owner):
            column = values[f.name]
            first = preprocessor.encode_feature(f, column.slice(0, SIDE_ROWS))
            with NpyWriter(folder / feature_file(f.input_name), first.dtype, first.shape[1:]) as writer:
                writer.append(first)
                for start in range(SIDE_ROWS, len(column), SIDE_ROWS):
                    writer.append(preprocessor.encode_feature(f, column.slice(start, SIDE_ROWS)))

    def _encode_context(self, preprocessor: Preprocessor, column: ContextColumn) -> None:
        encoder = ContextEncoder(column, preprocessor)
        reader = NpyReader(self._work / f"{column.feature.input_name}.npy")
        shape = encoder.encode(reader.read(0, 1))
        with NpyWriter(self._folder / "context" / feature_file(column.feature.input_name), shape.dtype, shape.shape[1:]) as writer:
            for spilled_n in reader.blocks():
                writer.append(encoder.encode(spilled_n))


def _often(texts: list[str], counts: NDArray[np.int64], least: int) -> list[str]:
    """Each text as often as it was seen, but no more often than its vocabulary asks for."""
    times = np.minimum(counts, max(1, least)).tolist()
    return [text for text, count in zip(texts, times, strict=True) for _ in range(count)]
