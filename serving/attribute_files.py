"""Turning a catalogue around into attributes, and their files in a bundle: `attributes/`, written by `towers index`.

Legend: I catalogue rows, V values, W bitmap bytes, N rows of a list.
"""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from serving.attributes import Attributes, OrderedValues, ValueLists
from serving.index.rowset import bitmap_bytes, flipped
from towers.bundle import Bundle
from towers.columns import CATEGORIES, CREATED_AT, FIRST_ROW, IS_HIDDEN, NO_TIME
from towers.errors import BundleError
from towers.schema import Schema
from towers.values import as_lists, as_numbers, as_times
from towers.vocab import Vocabulary

FOLDER = "attributes"
CONTENTS = "attributes.json"

_FREQUENT = 1 / 64
"""Values of at least this share of the items have a bitmap: it takes twice the bytes of their rows at most."""

_STEPS = 128
"""Bitmaps kept of an ordered attribute; a range then turns over 1/512 of the items at either end, as a mean."""


def build_attributes(catalog: pa.Table, schema: Schema) -> Attributes:
    """All that a filter may name: `categories`, `created_at`, and declared item features that are values, numbers or times.

    Hidden items are in no list of values. Sensitive features are left out.
    """
    kinds = {CATEGORIES: "multi_categorical", CREATED_AT: "time"}
    kinds |= {f.name: f.kind for f in schema.owned_by("item") if not f.sensitive}
    shown = np.flatnonzero(~catalog.column(IS_HIDDEN).fill_null(False).to_numpy()).astype(np.int32)
    built: dict[str, ValueLists | OrderedValues] = {}
    for name, kind in kinds.items():
        if name not in catalog.column_names:
            continue
        if kind in ("numeric", "time"):
            built[name] = ordered_values(catalog.column(name), kind == "time", name)
        elif kind in ("categorical", "multi_categorical"):
            built[name] = value_lists(name, catalog.column(name), shown)
    return built


def value_lists(name: str, column: Any, shown: NDArray[np.int32]) -> ValueLists:
    """Rows by value, of the rows shown (ascending)."""
    size = len(column)
    flat, lengths = as_lists(name, column)
    place: dict[str, int] = {}
    code_N = np.fromiter((place.setdefault(str(value), len(place)) for value in flat), np.int64, len(flat))
    vocabulary = Vocabulary.fit(place)
    code_N = (vocabulary.rows(list(place)).astype(np.int64) - FIRST_ROW)[code_N] if len(place) else code_N
    row_N = np.repeat(np.arange(size, dtype=np.int64), lengths)
    keep = np.zeros(size, np.bool_)
    keep[shown] = True
    pair_N = np.unique((code_N * size + row_N)[keep[row_N]])  # a value named twice by one item counts once
    rows_N = (pair_N % max(1, size)).astype(np.int32)
    offsets_V = np.searchsorted(pair_N, np.arange(len(place) + 1) * size)
    frequent = np.flatnonzero(np.diff(offsets_V) >= max(1, size * _FREQUENT))
    place_V = np.full(len(place), -1, np.int32)
    place_V[frequent] = np.arange(len(frequent))
    bits_BW = np.zeros((len(frequent), bitmap_bytes(size)), np.uint8)
    for bits_W, v in zip(bits_BW, frequent.tolist(), strict=True):
        flipped(bits_W, rows_N[offsets_V[v] : offsets_V[v + 1]])
    return ValueLists(name, size, vocabulary, offsets_V, rows_N, place_V, bits_BW)


def ordered_values(column: Any, is_time: bool, name: str) -> OrderedValues:
    """Rows by number or time; missing values and NaN are left out."""
    if is_time:
        times = as_times(name, column)
        values = np.where(times == NO_TIME, np.nan, times.astype(np.float64))
    else:
        values = as_numbers(name, column)
    order = np.argsort(values, kind="stable")  # NaN comes last
    rows_N = order[: np.count_nonzero(~np.isnan(values))].astype(np.int32)
    step = max(1, -(-len(rows_N) // _STEPS))
    marks = range(0, len(rows_N) + 1, step)
    bits_CW = np.zeros((len(marks), bitmap_bytes(len(values))), np.uint8)
    for c in range(1, len(marks)):
        bits_CW[c] = bits_CW[c - 1]
        flipped(bits_CW[c], rows_N[marks[c - 1] : marks[c]])
    return OrderedValues(len(values), is_time, values[rows_N], rows_N, step, bits_CW)


def open_attributes(bundle: Bundle, size: int) -> Attributes:
    """The bundle's attributes by name, mapped; made of the catalogue where it was not indexed.

    Args:
        size: I.

    Raises:
        BundleError: they are unreadable, or of another catalogue.
    """
    if not bundle.has(f"{FOLDER}/{CONTENTS}"):
        with bundle.reading("schema.json") as path:
            schema = Schema.from_json(json.loads(path.read_text()))
        with bundle.reading("catalog.parquet"):
            return build_attributes(bundle.catalog(), schema)
    with bundle.reading(f"{FOLDER}/{CONTENTS}") as path:
        contents = json.loads(path.read_text())
        if contents["rows"] != size:
            raise BundleError(f"{path} is of {contents['rows']} items, the catalogue has {size}; run `towers index` again")
        opened: dict[str, ValueLists | OrderedValues] = {}
        for name, facts in contents["attributes"].items():
            if facts["ordered"]:
                values, rows, bits = (_mapped(bundle, name, part) for part in ("values", "rows", "bits"))
                opened[name] = OrderedValues(size, facts["is_time"], values, rows, facts["step"], bits)
            else:
                offsets, rows, place, bits = (_mapped(bundle, name, part) for part in ("offsets", "rows", "place", "bits"))
                opened[name] = ValueLists(name, size, Vocabulary.open(path.parent, name), offsets, rows, place, bits)
        return opened


def save_attributes(attributes: Attributes, size: int, folder: Path) -> dict[str, Path | bytes]:
    """Write what `open_attributes` maps under a folder; returns the bundle's files."""
    folder.mkdir(parents=True)
    facts: dict[str, dict[str, object]] = {}
    for name, attribute in attributes.items():
        if isinstance(attribute, OrderedValues):
            facts[name] = {"ordered": True, "is_time": attribute.is_time, "step": attribute.step}
            parts: dict[str, NDArray[Any]] = {"values": attribute.values_N, "rows": attribute.rows_N, "bits": attribute.bits_CW}
        else:
            facts[name] = {"ordered": False}
            attribute.vocabulary.save(folder, name)
            parts = {"offsets": attribute.offsets_V, "rows": attribute.rows_N, "place": attribute.place_V, "bits": attribute.bits_BW}
        for part, array in parts.items():
            np.save(folder / f"{name}.{part}.npy", array, allow_pickle=False)
    (folder / CONTENTS).write_text(json.dumps({"rows": size, "attributes": facts}, indent=2) + "\n")
    return {f"{FOLDER}/{path.name}": path for path in sorted(folder.iterdir())}


def _mapped(bundle: Bundle, name: str, part: str) -> Any:
    # as a plain array: each slice of a memmap, and all that comes of it, is dressed as one again, for a microsecond a time
    return np.asarray(np.load(bundle.path(f"{FOLDER}/{name}.{part}.npy"), mmap_mode="r", allow_pickle=False))
