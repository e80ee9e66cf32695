"""Which items a search may return, in the form that each plan needs.

Legend: I items, E exclusions.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True, slots=True)
class Filter:
    """The permitted items of one search.

    Attributes:
        rows: items of the catalogue.
        available: items permitted.
        mask: bool [I]; None where only `banned` restricts. May be the caller's own array: not to be written to.
        banned: distinct excluded rows, ascending, where `mask` is None; empty where the mask holds them already.
    """

    rows: int
    available: int
    mask: NDArray[np.bool_] | None
    banned: NDArray[np.integer]

    @classmethod
    def of(cls, rows: int, allowed: NDArray[np.bool_] | None, excluded: NDArray[np.integer] | None) -> "Filter":
        """Combine both filters of `VectorIndex.search`.

        Raises:
            ValueError: a mask of another length or type, or a row outside the catalogue (NumPy would read -1 as the last item).
        """
        if allowed is not None and (allowed.shape != (rows,) or allowed.dtype != np.bool_):
            raise ValueError(f"allowed: got {allowed.dtype} {allowed.shape}, expected bool ({rows},)")
        banned = _distinct(np.empty(0, np.int64) if excluded is None else excluded)
        if len(banned) and (banned[0] < 0 or banned[-1] >= rows):
            raise ValueError(f"excluded: rows reach from {banned[0]} to {banned[-1]}, expected 0 to {rows - 1}")
        if allowed is None:
            return cls(rows, rows - len(banned), None, banned)
        if len(banned):
            allowed = allowed.copy()
            allowed[banned] = False
        return cls(rows, int(np.count_nonzero(allowed)), allowed, banned[:0])

    def as_mask(self) -> NDArray[np.bool_] | None:
        """bool [I], or None where every item is permitted."""
        if self.mask is not None or not len(self.banned):
            return self.mask
        mask = np.ones(self.rows, np.bool_)
        mask[self.banned] = False
        return mask

    def as_bits(self) -> NDArray[np.uint8] | None:
        """The mask as a bitmap, lowest bit first, or None where every item is permitted."""
        if self.mask is not None:
            return np.packbits(self.mask, bitorder="little")
        if not len(self.banned):
            return None
        bits = np.full(-(-self.rows // 8), 255, np.uint8)
        np.bitwise_and.at(bits, self.banned >> 3, np.bitwise_not(np.left_shift(1, self.banned & 7)).astype(np.uint8))
        return bits

    def without_banned(self, rows_C: NDArray[np.int64]) -> NDArray[np.int64]:
        """The rows that are not in `banned`."""
        if not len(self.banned) or not len(rows_C):
            return rows_C
        place_C = np.minimum(np.searchsorted(self.banned, rows_C), len(self.banned) - 1)
        return np.asarray(rows_C[self.banned[place_C] != rows_C])


def _distinct(rows_E: NDArray[np.integer]) -> NDArray[np.integer]:
    """Ascending, each once; np.unique does the same in ten times the time for a few hundred rows."""
    if len(rows_E) < 2:
        return rows_E
    ordered_E = np.sort(rows_E)
    return ordered_E[np.concatenate(([True], ordered_E[1:] != ordered_E[:-1]))]
