"""An index that items come to and go from: an immutable base, the rows of it that are gone, and a scan of what came.

Legend: B queries, I rows of the base, N items that came, H heads, D dimensions.
"""

import math
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from serving.index.exact import ExactIndex
from serving.index.interface import IndexStats, SearchResult, VectorIndex
from serving.index.rowset import Rows, RowSet, bitmap_bytes, neither

_SPARE = 8


class LiveRows(RowSet):
    """Rows of a base, and rows of what came after it, as one set.

    Args:
        base: rows 0 .. I - 1.
        came: rows 0 .. N - 1, which stand at `offset` in the set.
    """

    __slots__ = ("base", "came")

    def __init__(self, base: RowSet, came: RowSet) -> None:
        super().__init__(offset_of(base.size) + came.size, base.count + came.count, None, None)
        self.base, self.came = base, came

    def rows(self) -> Rows:
        """Distinct, ascending."""
        return np.concatenate([self.base.rows(), self.came.rows() + offset_of(self.base.size)])

    def bits(self) -> NDArray[np.uint8]:
        """The bitmap."""
        return np.concatenate([self.base.bits(), self.came.bits()])


def vectors_of(
    rows: NDArray[np.integer], base_ID: NDArray[np.float32] | NDArray[np.float16], came_ND: NDArray[np.float32]
) -> NDArray[np.float32]:
    """Vectors of rows of the whole, in the order given: a new array."""
    first = offset_of(len(base_ID))
    came = rows >= first
    found = base_ID[np.where(came, 0, rows)].astype(np.float32, copy=False)
    if came.any():
        found[came] = came_ND[rows[came] - first]
    return found


def offset_of(size: int) -> int:
    """First row of what came: the base's rows rounded up to whole words, so that bitmaps can be joined. Rows between name nothing."""
    return bitmap_bytes(size) * 8


class LiveIndex:
    """See `VectorIndex`. A row of the base is its row; the n-th item that came is row `offset_of(I) + n`.

    Args:
        base: searched as it is.
        gone: distinct rows of the base that may not be returned any more.
        came_ND: float32 vectors of items that came.
        place_N: where each of them stands among the base's rows by its id: equal scores go by it, as ids do.
    """

    def __init__(self, base: VectorIndex, gone: Rows, came_ND: NDArray[np.float32], place_N: NDArray[np.float64]) -> None:
        self._base = base
        self._size = base.stats().rows
        self._alive = neither(RowSet.of_rows(self._size, gone))
        self._came = ExactIndex(came_ND) if len(came_ND) else None
        self._place_N = place_N

    def stats(self) -> IndexStats:
        base = self._base.stats()
        return replace(base, rows=self._alive.count + len(self._place_N))

    def search(self, query_HD: NDArray[np.float32], k: int, allowed: RowSet | None = None, excluded: Rows | None = None) -> SearchResult:
        """See `VectorIndex.search`.

        Args:
            allowed: None, or rows of which those of the base are all still there.
        """
        offset = offset_of(self._size)
        excluded = np.empty(0, np.int64) if excluded is None else excluded
        here, there = self._parts(allowed)
        found = self._search_base(query_HD, k, here, excluded[excluded < offset])
        if self._came is None:
            return found
        return self._joined(found, self._came.search(query_HD, k, there, excluded[excluded >= offset] - offset), k)

    def search_many(self, query_BHD: NDArray[np.float32], k: int, allowed: RowSet | None, excluded: Sequence[Rows]) -> list[SearchResult]:
        """See `VectorIndex.search_many`, and `search` for `allowed`."""
        offset = offset_of(self._size)
        here, there = self._parts(allowed)
        found = self._search_base_many(query_BHD, k, here, [rows[rows < offset] for rows in excluded])
        if self._came is None:
            return found
        came = self._came.search_many(query_BHD, k, there, [rows[rows >= offset] - offset for rows in excluded])
        return [self._joined(one, other, k) for one, other in zip(found, came, strict=True)]

    def _parts(self, allowed: RowSet | None) -> tuple[RowSet, RowSet | None]:
        """Rows of the base, and of what came."""
        if allowed is None:
            return self._alive, None
        if isinstance(allowed, LiveRows):
            return allowed.base, allowed.came
        rows, offset = allowed.rows(), offset_of(self._size)
        cut = int(np.searchsorted(rows, offset))
        return RowSet(self._size, cut, rows[:cut], None), RowSet(len(self._place_N), len(rows) - cut, rows[cut:] - offset, None)

    def _search_base(self, query_HD: NDArray[np.float32], k: int, allowed: RowSet, excluded: Rows) -> SearchResult:
        fetch, filtered = self._plan(k, allowed)
        found = self._base.search(query_HD, fetch, filtered, excluded)
        if fetch == k:
            return found
        return self._alive_of(found, k) or self._base.search(query_HD, k, self._alive, excluded)

    def _search_base_many(self, query_BHD: NDArray[np.float32], k: int, allowed: RowSet, excluded: Sequence[Rows]) -> list[SearchResult]:
        fetch, filtered = self._plan(k, allowed)
        found = self._base.search_many(query_BHD, fetch, filtered, excluded)
        if fetch == k:
            return found
        return [
            self._alive_of(one, k) or self._base.search(query_HD, k, self._alive, rows)
            for one, query_HD, rows in zip(found, query_BHD, excluded, strict=True)
        ]

    def _plan(self, k: int, allowed: RowSet) -> tuple[int, RowSet | None]:
        """How many items to ask the base for, and the filter. Where only gone rows are not allowed, more are fetched than wanted, without
        one: a bitmap costs the search a third more."""
        if allowed.count < self._alive.count or k > self._alive.count:
            return k, allowed
        if self._alive.count == self._size:
            return k, None
        return k + _SPARE + math.ceil(2 * k * (1 - self._alive.count / self._size)), None

    def _alive_of(self, found: SearchResult, k: int) -> SearchResult | None:
        """The k best that are not gone; None where they are fewer."""
        kept = self._alive.has(found.rows)
        return SearchResult(found.rows[kept][:k], found.scores[kept][:k]) if np.count_nonzero(kept) >= k else None

    def _joined(self, base: SearchResult, came: SearchResult, k: int) -> SearchResult:
        rows = np.concatenate([base.rows, came.rows + offset_of(self._size)])
        scores = np.concatenate([base.scores, came.scores])
        place = np.concatenate([base.rows.astype(np.float64), self._place_N[came.rows]])
        order = np.lexsort((place, -scores))[:k]
        return SearchResult(rows[order], scores[order])
