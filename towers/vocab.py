"""Vocabularies: value -> row and back, as memory-mapped files that processes share.

Rows 0, 1 and 2 are padding, unknown (OOV) and missing; values follow in ascending UTF-8 byte order, so ties by row are ties by id.
"""

import hashlib
from collections.abc import Iterable, Iterator, Sequence
from functools import cached_property
from pathlib import Path
from typing import overload

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from towers.columns import FIRST_ROW, MISSING_ROW, OOV_ROW
from towers.errors import BundleError

HELD_UP_TO = 4096
"""Values of a vocabulary that is held in memory unasked."""

HELD_AT_MOST = 131_072
"""Values of one that is held when asked: past this its dictionary (140 bytes a value) lies in no cache, and hashes are as fast."""

_BLOCK = 65_536


class Coded(Sequence[str | None]):
    """Values given by their places among distinct ones, as a dictionary-encoded column holds them; decoded only where they are read.

    Args:
        codes: integers [n].
        distinct: of all columns that share them, so that a vocabulary can look them up once: see `Vocabulary.learn`.
    """

    __slots__ = ("codes", "distinct")

    def __init__(self, codes: NDArray[np.integer], distinct: pa.StringArray) -> None:
        self.codes, self.distinct = codes, distinct

    def __len__(self) -> int:
        return len(self.codes)

    @overload
    def __getitem__(self, place: int) -> str | None: ...
    @overload
    def __getitem__(self, place: slice) -> "Coded": ...
    def __getitem__(self, place: int | slice) -> "str | Coded | None":
        if isinstance(place, slice):
            return Coded(self.codes[place], self.distinct)
        value: str | None = self.distinct[int(self.codes[place])].as_py()
        return value

    def __iter__(self) -> Iterator[str | None]:
        return iter(self.distinct.take(pa.array(self.codes)).to_pylist())

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Sequence) and list(self) == list(other)


class Vocabulary:
    """An immutable set of strings, each with a row.

    Lookups compare a 64-bit hash first and the string itself second, so an unknown value never takes a known one's row. Small
    vocabularies, and those of moderate size that are told to `hold`, are looked up in a dictionary instead.
    """

    def __init__(self, values: pa.StringArray, hashes: NDArray[np.uint64], rows: NDArray[np.int32]) -> None:
        self._values = values
        self._hashes = hashes
        self._rows = rows
        self._held: dict[str | None, int] | None = None
        self._learnt: tuple[pa.StringArray, NDArray[np.int32] | None] | None = None

    @classmethod
    def fit(cls, values: Iterable[str]) -> "Vocabulary":
        """The vocabulary of the distinct values given."""
        return cls.numbered(sorted(set(values), key=lambda value: value.encode()))

    @classmethod
    def numbered(cls, values: Sequence[str]) -> "Vocabulary":
        """The vocabulary of distinct values whose rows follow the order given."""
        hashes = _hashes(values)
        order = np.argsort(hashes, kind="stable")
        return cls(pa.array(values, pa.string()), hashes[order], (order + FIRST_ROW).astype(np.int32))

    def __len__(self) -> int:
        """Rows of a table indexed by this vocabulary, the reserved ones included."""
        return len(self._values) + FIRST_ROW

    def rows(self, values: Sequence[str | None]) -> NDArray[np.int32]:
        """The row of each value: None is MISSING_ROW, a value never seen is OOV_ROW.

        Returns:
            int32 [len(values)].
        """
        if isinstance(values, Coded) and self._learnt is not None and self._learnt[0] is values.distinct:
            found_D = self._learnt[1]
            return np.asarray(values.codes + np.int32(FIRST_ROW) if found_D is None else found_D[values.codes], np.int32)
        if self._held is None and len(self._values) <= HELD_UP_TO:
            self.hold()
        if self._held is not None:
            find = self._held.get
            return np.array([find(value, OOV_ROW) for value in values], np.int32)
        known = [value for value in values if value is not None]
        found = np.full(len(values), MISSING_ROW, np.int32)
        if not known:
            return found
        rows = self._known_rows(known)
        if len(known) == len(values):
            return rows
        found[[value is not None for value in values]] = rows
        return found

    def hold(self) -> None:
        """Be ready for a few lookups at a time for ever: at most HELD_AT_MOST values lie in a dictionary from now on."""
        if len(self._values) > HELD_AT_MOST:
            _ = self._buckets
            return
        held: dict[str | None, int] = dict(zip(self._values.to_pylist(), range(FIRST_ROW, len(self)), strict=True))
        held[None] = MISSING_ROW
        self._held = held

    def learn(self, distinct: pa.StringArray) -> None:
        """Look up the values of `Coded` sequences beforehand (4 bytes each): their rows are then read and not searched for. Nothing is held
        where the values are this vocabulary's own (`values()`)."""
        if self._learnt is None or self._learnt[0] is not distinct:
            self._learnt = distinct, None if distinct is self._values else self.rows_of(distinct)

    def rows_of(self, distinct: pa.StringArray) -> NDArray[np.int32]:
        """As `rows`, of many different values at once."""
        rows = pc.index_in(distinct, value_set=self._values).fill_null(OOV_ROW - FIRST_ROW).to_numpy(zero_copy_only=False) + FIRST_ROW
        rows[distinct.is_null().to_numpy(zero_copy_only=False)] = MISSING_ROW
        return np.asarray(rows, np.int32)

    def value(self, row: int) -> str:
        """The string of a row.

        Raises:
            IndexError: the row is reserved or past the end.
        """
        if not FIRST_ROW <= row < len(self):
            raise IndexError(f"row {row} holds no value; rows {FIRST_ROW} to {len(self) - 1} do")
        return str(self._values[row - FIRST_ROW].as_py())

    def values(self) -> pa.StringArray:
        """All values in row order; entry i is row i + FIRST_ROW."""
        return self._values

    def save(self, folder: Path, name: str) -> None:
        """Write `<name>.arrow` (strings in row order) and `<name>.npy` (sorted hashes and their rows)."""
        folder.mkdir(parents=True, exist_ok=True)
        table = pa.table({"value": self._values})
        with pa.OSFile(str(folder / f"{name}.arrow"), "wb") as sink, pa.ipc.new_file(sink, table.schema) as writer:
            writer.write_table(table, max_chunksize=max(1, len(table)))
        index = np.empty(len(self._rows), [("hash", "<u8"), ("row", "<i4")])
        index["hash"], index["row"] = self._hashes, self._rows
        np.save(folder / f"{name}.npy", index, allow_pickle=False)

    @classmethod
    def open(cls, folder: Path, name: str) -> "Vocabulary":
        """Map the files of `save`; nothing is copied but the hash index.

        Raises:
            BundleError: the two files do not belong together.
        """
        with pa.memory_map(str(folder / f"{name}.arrow")) as source:
            column = pa.ipc.open_file(source).read_all().column("value")
        values = column.chunk(0) if column.num_chunks else pa.array([], pa.string())
        index = np.load(folder / f"{name}.npy", mmap_mode="r", allow_pickle=False)
        if len(index) != len(values):
            raise BundleError(f"vocabulary {name}: {len(values)} values but {len(index)} hashes; the files are of two different runs")
        return cls(values, np.ascontiguousarray(index["hash"]), np.ascontiguousarray(index["row"]))

    def _known_rows(self, values: Sequence[str]) -> NDArray[np.int32]:
        rows = np.full(len(values), OOV_ROW, np.int32)
        if len(self._values):
            for start in range(0, len(values), _BLOCK):
                rows[start : start + _BLOCK] = self._found(values[start : start + _BLOCK])
        return rows

    def _found(self, values: Sequence[str]) -> NDArray[np.int32]:
        """Rows of a block of values. Hashes of the same first bits lie side by side: those of all values are read and compared at once."""
        starts, shift, widest = self._buckets
        wanted_N = _hashes(values)
        place_NW = starts[wanted_N >> shift][:, None] + np.arange(widest)
        np.minimum(place_NW, len(self._hashes) - 1, out=place_NW)
        same_NW = self._hashes[place_NW] == wanted_N[:, None]
        rows_N = np.where(same_NW.any(1), self._rows[place_NW[np.arange(len(values)), same_NW.argmax(1)]], OOV_ROW)
        hits = np.flatnonzero(rows_N != OOV_ROW)
        strings = self._values.take(pa.array(rows_N[hits] - FIRST_ROW)).to_pylist()
        for n, string in zip(hits.tolist(), strings, strict=True):
            if string != values[n]:  # another value of the same hash; so may the next one be
                others = (int(self._rows[place]) for place in place_NW[n][same_NW[n]])
                rows_N[n] = next((row for row in others if self._values[row - FIRST_ROW].as_py() == values[n]), OOV_ROW)
        return rows_N

    @cached_property
    def _buckets(self) -> tuple[NDArray[np.int32], np.uint64, int]:
        """Where the hashes of each first few bits start, how far those bits are from the last, and the most hashes that share them."""
        bits = max(1, len(self._hashes).bit_length() - 1)
        shift = np.uint64(64 - bits)
        counts = np.bincount((self._hashes >> shift).astype(np.int64), minlength=1 << bits)
        return (np.cumsum(counts) - counts).astype(np.int32), shift, int(counts.max())


def digest_of(values: pa.StringArray) -> bytes:
    """32 bytes that equal values in equal order share, and no others."""
    _, ends, text = values.buffers()
    end_N = np.frombuffer(ends, np.int32)[values.offset : values.offset + len(values) + 1] if len(values) else np.zeros(1, np.int32)
    made = hashlib.sha256((end_N - end_N[0]).tobytes())
    made.update(memoryview(text)[end_N[0] : end_N[-1]] if text is not None else b"")
    return made.digest()


def _hashes(values: Sequence[str]) -> NDArray[np.uint64]:
    digests = b"".join(hashlib.blake2b(value.encode("utf-8", "surrogatepass"), digest_size=8).digest() for value in values)
    return np.frombuffer(digests, "<u8").astype(np.uint64)
