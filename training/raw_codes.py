"""Raw values as small fixed-size codes while a log streams by: each distinct value is looked at once a chunk, never once a row.

Legend: n rows of a chunk, M values kept of a multi-valued feature, W numbers of a dense one.
"""

from dataclasses import replace
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from towers.preprocess import Preprocessor
from towers.schema import Feature
from towers.values import as_strings, text_buckets
from training.validate_rows import microseconds

MISSING = -1
"""The code of a missing value."""


class Seen:
    """Distinct texts in the order they were added, looked up by Arrow: no Python runs for a text met again."""

    def __init__(self) -> None:
        self._texts = pa.array([], pa.string())

    def __len__(self) -> int:
        return len(self._texts)

    def places(self, texts: pa.Array) -> NDArray[np.int64]:
        """Place of each text, -1 where it was not added or is null: int64 [n]."""
        found: NDArray[np.int64] = pc.index_in(texts, value_set=self._texts).fill_null(-1).to_numpy(zero_copy_only=False).astype(np.int64)
        return found

    def add(self, texts: pa.Array) -> None:
        """Texts that are not there yet, each once."""
        self._texts = pa.concat_arrays([self._texts, texts])


class Codes:
    """Distinct texts in the order first seen; grows with the number of distinct values, not of rows."""

    def __init__(self, name: str) -> None:
        self.name = name
        self._places: dict[str, int] = {}
        self._seen = Seen()

    def __len__(self) -> int:
        return len(self._places)

    @property
    def texts(self) -> list[str]:
        """The text of every code."""
        return list(self._places)

    def of(self, column: pa.ChunkedArray | pa.Array) -> NDArray[np.int32]:
        """The code of every row, MISSING where null, NaN or empty: int32 [n]."""
        place_n, unique = distinct(column)
        places, known = self._places, len(self._places)
        # a text met before is itself; other types may write one value in several ways
        codes = self._seen.places(unique) if pa.types.is_string(unique.type) else np.full(len(unique), MISSING, np.int64)
        fresh = np.flatnonzero(codes == MISSING)
        texts = as_strings(self.name, unique.take(pa.array(fresh)))
        codes[fresh] = [MISSING if text is None else places.setdefault(text, len(places)) for text in texts]
        new = dict.fromkeys(text for text in texts if text is not None and places[text] >= known)
        self._seen.add(pa.array(new, pa.string()))
        codes_n: NDArray[np.int32] = np.append(codes, MISSING).astype(np.int32)[place_n]
        return codes_n


class ContextColumn:
    """One declared context feature on its way from the log to its final column.

    `collect` turns a chunk's raw values into an array that is spilled with the row. Once preprocessing is fitted on training rows,
    a ContextEncoder turns spilled blocks into what the towers read.
    """

    def __init__(self, feature: Feature) -> None:
        self.feature = feature
        self.missing = 0
        self._codes = Codes(feature.input_name)
        dtype, tail = {
            "numeric": ("<f8", ()),
            "time": ("<i8", ()),
            "text": ("<i4", (feature.max_values,)),
            "dense": ("<f4", (feature.width,)),
            "multi_categorical": ("<i4", (feature.max_values,)),
        }.get(feature.kind, ("<i4", ()))
        self.dtype, self.tail = np.dtype(dtype), tail

    def collect(self, column: pa.ChunkedArray) -> NDArray[Any]:
        """Raw values [n] to the spilled form [n, *tail]."""
        self.missing += column.null_count
        kind, f = self.feature.kind, self.feature
        if kind == "numeric":
            numbers_n: NDArray[np.float64] = column.cast(pa.float64()).fill_null(np.nan).to_numpy()
            self.missing += int(np.count_nonzero(np.isnan(numbers_n))) - column.null_count
            return numbers_n
        if kind == "time":
            return microseconds(column)[0] if len(column) else np.empty(0, np.int64)
        if kind == "text":
            place_n, unique = distinct(column)
            buckets_n: NDArray[np.int32] = text_buckets(f.input_name, [*unique.to_pylist(), None], f.buckets, f.max_values)[place_n]
            return buckets_n
        if kind == "dense":
            return _vectors(column, f.width)
        if kind == "multi_categorical":
            return self._lists(column)
        return self._codes.of(column)

    @property
    def coded(self) -> bool:
        """Whether what is spilled are codes of texts."""
        return self.feature.kind in ("id", "categorical", "multi_categorical")

    @property
    def texts(self) -> list[str]:
        """The text of every code."""
        return self._codes.texts

    def _lists(self, column: pa.ChunkedArray) -> NDArray[np.int32]:
        """The first M values of every row as codes, MISSING after them: int32 [n, M]."""
        spilled_nM = np.full((len(column), self.feature.max_values), MISSING, np.int32)
        row_v, codes_v = self._flat(column)
        row_v, codes_v = row_v[codes_v != MISSING], codes_v[codes_v != MISSING]
        first_v = np.searchsorted(row_v, row_v)
        place_v = np.arange(len(row_v)) - first_v
        kept_v = place_v < self.feature.max_values
        spilled_nM[row_v[kept_v], place_v[kept_v]] = codes_v[kept_v]
        return spilled_nM

    def _flat(self, column: pa.ChunkedArray) -> tuple[NDArray[np.int64], NDArray[np.int32]]:
        if not (pa.types.is_list(column.type) or pa.types.is_large_list(column.type)):
            return np.arange(len(column)), self._codes.of(column)
        array = column.combine_chunks()
        return pc.list_parent_indices(array).to_numpy(zero_copy_only=False), self._codes.of(pc.list_flatten(array))


class ContextEncoder:
    """Spilled blocks of one context feature to final arrays: what `Preprocessor.encode_feature` makes of the raw values, asked once
    per distinct value.
    """

    def __init__(self, column: ContextColumn, preprocessor: Preprocessor) -> None:
        self._column, self._preprocessor = column, preprocessor
        if column.coded:
            alone = replace(column.feature, kind="categorical")
            # one more entry, reached by index -1: what a missing value becomes
            self._rows = preprocessor.encode_feature(alone, [*column.texts, None])

    def encode(self, spilled_n: NDArray[Any]) -> NDArray[Any]:
        """A block [n, *tail] to its final form."""
        kind = self._column.feature.kind
        if kind in ("numeric", "time"):
            return self._preprocessor.encode_feature(self._column.feature, spilled_n)
        if kind in ("text", "dense"):
            return spilled_n
        final_n: NDArray[Any] = self._rows[spilled_n]
        if kind == "multi_categorical":
            final_n[:, 1:][spilled_n[:, 1:] == MISSING] = 0
        return final_n


def distinct(column: pa.ChunkedArray | pa.Array) -> tuple[NDArray[np.int64], pa.Array]:
    """Each row's place among the distinct values (their number where null), and those values."""
    array = column.combine_chunks() if isinstance(column, pa.ChunkedArray) else column
    coded = array if pa.types.is_dictionary(array.type) else array.dictionary_encode()
    place_n = coded.indices.fill_null(len(coded.dictionary)).to_numpy(zero_copy_only=False)
    return place_n, coded.dictionary


def _vectors(column: pa.ChunkedArray, width: int) -> NDArray[np.float32]:
    """Lists of `width` numbers (checked before) to float32 [n, W]; missing ones and numbers that are not finite are 0."""
    vectors_nW = np.zeros((len(column), width), np.float32)
    array = column.combine_chunks()
    valid_n = pc.is_valid(array).to_numpy(zero_copy_only=False)
    numbers = pc.list_flatten(array).cast(pa.float32(), safe=False).fill_null(np.nan).to_numpy(zero_copy_only=False)
    vectors_nW[valid_n] = np.nan_to_num(numbers.reshape(-1, width), nan=0.0, posinf=0.0, neginf=0.0)
    return vectors_nW


def hash_ids(ids: pa.ChunkedArray) -> NDArray[np.int64]:
    """A number for each event id, 0 where missing. Compared within one user and one process only, so Python's salted hash will do."""
    hashed_n = np.fromiter(map(hash, ids.to_numpy()), np.int64, len(ids))
    hashed_n[ids.is_null().to_numpy()] = 0
    return hashed_n
