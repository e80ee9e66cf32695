"""Vocabularies: value -> row and back, as memory-mapped files that processes share.

Rows 0, 1 and 2 are padding, unknown (OOV) and missing; values follow in ascending UTF-8 byte order, so ties by row are ties by id.
"""

import hashlib
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from towers.columns import FIRST_ROW, MISSING_ROW, OOV_ROW
from towers.errors import BundleError

HELD_UP_TO = 4096
"""Values of a vocabulary that is held in memory unasked."""


class Vocabulary:
    """An immutable set of strings, each with a row.

    Lookups compare a 64-bit hash first and the string itself second, so an unknown value never takes a known one's row. Small
    vocabularies, and those that are told to `hold`, are looked up in a dictionary instead: fifty values in 3 us instead of 90.
    """

    def __init__(self, values: pa.StringArray, hashes: NDArray[np.uint64], rows: NDArray[np.int32]) -> None:
        self._values = values
        self._hashes = hashes
        self._rows = rows
        self._held: dict[str | None, int] | None = None

    @classmethod
    def fit(cls, values: Iterable[str]) -> "Vocabulary":
        """The vocabulary of the distinct values given."""
        ordered = sorted(set(values), key=lambda value: value.encode())
        hashes = _hashes(ordered)
        order = np.argsort(hashes, kind="stable")
        rows = (order + FIRST_ROW).astype(np.int32)
        return cls(pa.array(ordered, pa.string()), hashes[order], rows)

    def __len__(self) -> int:
        """Rows of a table indexed by this vocabulary, the reserved ones included."""
        return len(self._values) + FIRST_ROW

    def rows(self, values: Sequence[str | None]) -> NDArray[np.int32]:
        """The row of each value: None is MISSING_ROW, a value never seen is OOV_ROW.

        Returns:
            int32 [len(values)].
        """
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
        """Keep every value in memory from now on (about 140 bytes each), for a process that looks up a few at a time for ever."""
        held: dict[str | None, int] = dict(zip(self._values.to_pylist(), range(FIRST_ROW, len(self)), strict=True))
        held[None] = MISSING_ROW
        self._held = held

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
        wanted = _hashes(values)
        at = np.searchsorted(self._hashes, wanted)
        rows = np.full(len(values), OOV_ROW, np.int32)
        for i in np.flatnonzero(at < len(self._hashes)).tolist():
            place = int(at[i])
            # two values may share a hash, so step over equal hashes until the string itself agrees
            while place < len(self._hashes) and self._hashes[place] == wanted[i]:
                row = int(self._rows[place])
                if self._values[row - FIRST_ROW].as_py() == values[i]:
                    rows[i] = row
                    break
                place += 1
        return rows


def _hashes(values: Sequence[str]) -> NDArray[np.uint64]:
    digests = b"".join(hashlib.blake2b(value.encode("utf-8", "surrogatepass"), digest_size=8).digest() for value in values)
    return np.frombuffer(digests, "<u8").astype(np.uint64)
