"""Sets of catalogue rows, as the sorted rows or the bitmap that a plan needs.

Legend: I rows of the catalogue, N rows of a set, W bitmap bytes.
"""

from collections.abc import Iterable

import numpy as np
from numpy.typing import NDArray

Rows = NDArray[np.integer]
Bits = NDArray[np.uint8]


class RowSet:
    """Some of the rows 0 .. size - 1. Neither form may be written to: it may be a mapped file, or the caller's own.

    Args:
        size: I.
        count: N.
        rows: distinct, ascending, or None; at least one of the two is given, the other is made when asked for.
        bits: bitmap, lowest bit first, in whole 8-byte words, 0 past the last row.
        key: name of the declared value that these are all rows of, where there is one: an index may hold a list of its own for it.
    """

    __slots__ = ("_bits", "_rows", "count", "key", "size")

    def __init__(self, size: int, count: int, rows: Rows | None, bits: Bits | None, key: str = "") -> None:
        self.size, self.count, self.key = size, count, key
        self._rows, self._bits = rows, bits

    @classmethod
    def of_rows(cls, size: int, rows: Rows) -> "RowSet":
        """Rows in any order, repeated or not.

        Raises:
            ValueError: a row outside the catalogue (NumPy would read -1 as the last one).
        """
        rows = checked(size, rows)
        return cls(size, len(rows), rows, None)

    @classmethod
    def of_mask(cls, mask_I: NDArray[np.bool_]) -> "RowSet":
        """Rows where bool [I] is True."""
        bits = np.zeros(bitmap_bytes(len(mask_I)), np.uint8)
        packed = np.packbits(mask_I, bitorder="little")
        bits[: len(packed)] = packed
        return cls.of_bits(len(mask_I), bits)

    @classmethod
    def of_bits(cls, size: int, bits: Bits) -> "RowSet":
        return cls(size, int(np.bitwise_count(bits.view(np.uint64)).sum(dtype=np.int64)), None, bits)

    @property
    def listed(self) -> bool:
        """Whether its rows are there, so that asking for them costs nothing."""
        return self._rows is not None

    def rows(self) -> Rows:
        """Distinct, ascending."""
        if self._rows is None:
            bits = self.bits()
            byte = np.flatnonzero(bits)  # most bytes of a small set are 0: only the others are unpacked
            found = np.flatnonzero(np.unpackbits(bits[byte], bitorder="little").view(np.bool_))
            self._rows = (byte[found >> 3] << 3) + (found & 7)
        return self._rows

    def bits(self) -> Bits:
        """The bitmap."""
        if self._bits is None:
            self._bits = flipped(np.zeros(bitmap_bytes(self.size), np.uint8), self.rows())
        return self._bits

    def has(self, rows: Rows) -> NDArray[np.bool_]:
        """Whether each row is in the set: a search for small sets that have no bitmap yet, one bit read otherwise."""
        if self._bits is None and self.count < self.size // 64:
            return inside(rows, self.rows())
        return np.asarray((self.bits()[rows >> 3] >> (rows & 7).astype(np.uint8)) & 1, np.bool_)

    def without(self, rows: Rows) -> "RowSet":
        """The set less some distinct rows."""
        gone = rows[self.has(rows)]
        if not len(gone):
            return self
        if self._bits is None or self.count < self.size // 64:
            mine = self.rows()
            return RowSet(self.size, self.count - len(gone), np.delete(mine, np.searchsorted(mine, gone)), None)
        return RowSet(self.size, self.count - len(gone), None, flipped(self._bits.copy(), gone))


def both(sets: Iterable[RowSet]) -> RowSet:
    """Rows that are in all of some sets (at least one): the smallest is filtered by the others, or bitmaps are joined."""
    smallest, *others = sorted(sets, key=lambda one: one.count)
    if not others:
        return smallest
    if smallest.count < smallest.size // 64:
        rows = smallest.rows()
        for other in others:
            rows = rows[other.has(rows)]
        return RowSet(smallest.size, len(rows), rows, None)
    bits = smallest.bits()
    for other in others:
        bits = bits & other.bits()
    return RowSet.of_bits(smallest.size, bits)


def either(sets: Iterable[RowSet], size: int) -> RowSet:
    """Rows that are in any of some sets."""
    chosen = [one for one in sets if one.count]
    if len(chosen) < 2:
        return chosen[0] if chosen else RowSet(size, 0, np.empty(0, np.int64), None)
    if sum(one.count for one in chosen) < size // 64:
        return RowSet.of_rows(size, np.concatenate([one.rows() for one in chosen]))
    bits = chosen[0].bits()
    for other in chosen[1:]:
        bits = bits | other.bits()
    return RowSet.of_bits(size, bits)


def neither(one: RowSet) -> RowSet:
    """Rows that are not in a set."""
    bits = np.bitwise_not(one.bits())
    bits[one.size >> 3 :] = 0
    if one.size & 7:
        bits[one.size >> 3] = ~one.bits()[one.size >> 3] & np.uint8((1 << (one.size & 7)) - 1)
    return RowSet(one.size, one.size - one.count, None, bits)


def bitmap_bytes(size: int) -> int:
    """Bytes of a bitmap of so many rows, whole words of 8."""
    return -(-size // 64) * 8


def flipped(bits: Bits, rows: Rows) -> Bits:
    """The bitmap with the bits of some rows turned over, in place; of a row named twice, turned back."""
    np.bitwise_xor.at(bits, rows >> 3, np.left_shift(1, rows & 7).astype(np.uint8))
    return bits


def inside(rows: Rows, ordered: Rows) -> NDArray[np.bool_]:
    """Whether each row is among some distinct, ascending ones."""
    if not len(ordered):
        return np.zeros(len(rows), np.bool_)
    return np.asarray(ordered[np.minimum(np.searchsorted(ordered, rows), len(ordered) - 1)] == rows)


def distinct(rows: Rows) -> Rows:
    """Ascending, each once; np.unique does the same in ten times the time for a few hundred rows."""
    if np.count_nonzero(rows[1:] <= rows[:-1]) == 0:  # a third of what `any` takes
        return rows
    ordered = rows.copy()
    ordered.sort()
    first = np.ones(len(ordered), np.bool_)
    np.not_equal(ordered[1:], ordered[:-1], out=first[1:])
    return ordered if np.count_nonzero(first) == len(ordered) else ordered[first]


def checked(size: int, rows: Rows) -> Rows:
    """Distinct rows of a catalogue, ascending.

    Raises:
        ValueError: one lies outside.
    """
    rows = distinct(rows)
    if len(rows) and (rows[0] < 0 or rows[-1] >= size):
        raise ValueError(f"rows reach from {rows[0]} to {rows[-1]}, expected 0 to {size - 1}")
    return rows
