"""Approximate search by libraries that know no filters: more is fetched, what may not be returned is dropped, the rest is scored exactly.

Legend: H heads, D dimensions, W width inside the library, C candidates.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import faiss
import numpy as np
from numpy.typing import NDArray

from serving.index.edge import tied, ties_at_the_edge
from serving.index.exact import ExactIndex
from serving.index.faiss_index import FaissIndex
from serving.index.interface import IndexStats, SearchResult
from serving.index.layout import Layout
from serving.index.meta import Setting
from serving.index.rowset import Rows, RowSet, inside

_SPARE = 8
"""Least candidates beyond k, so that rounding at the k-th place is undone by the exact scores."""

_ROW_US = 0.02
"""Of scanning a permitted row."""

_FEW_TWINS = 3
"""Equal items that each find the others. A graph may miss some of a larger group, and the lowest rows are to be returned."""


@dataclass(frozen=True)
class Near:
    """Candidates of each head, best first.

    Attributes:
        near_HC: float32, as the library measures it.
        rows_HC: int64 catalogue rows; -1 where it found no more.
    """

    near_HC: NDArray[np.float32]
    rows_HC: NDArray[np.int64]


class Finder(Protocol):
    """A library's index. Safe to call from several threads.

    Attributes:
        kind, factory: see `IndexStats`.
        layout: how vectors lie in it.
        nlist: lists that a search chooses from; 0 where there are none.
        factors: candidates for each item wanted, that tuning tries.
    """

    kind: str
    factory: str
    layout: Layout
    nlist: int
    factors: tuple[float, ...]

    def near(self, query_HW: NDArray[np.float32], fetch: int, nprobe: int) -> Near:
        """`fetch` candidates of each head, out of `nprobe` lists where it has some."""
        ...

    def search_us(self, fetch: int, nprobe: int) -> float:
        """What that costs, about: decides whether a scan of what is permitted costs less."""
        ...

    def save(self, folder: Path) -> dict[str, Path]:
        """Write its files; their names in a bundle, and where they are.

        Raises:
            DataError: the disk is full or not writable.
        """
        ...


class OverfetchIndex:
    """See `VectorIndex`.

    Args:
        finder: of all items; row i of the catalogue has id i.
        exact: the same catalogue, for rescoring, and for what is scanned.
        setting: how wide a plain search is, tuned for `tuned_k` items.
        tuned_k: the k at which it reached its recall.
        parts: indexes of the rows of one declared value each, by `RowSet.key`.
    """

    def __init__(
        self, finder: Finder, exact: ExactIndex, setting: Setting, tuned_k: int, parts: Mapping[str, FaissIndex] | None = None
    ) -> None:
        self.finder = finder
        self.setting = setting
        self.nlist, self.factors = finder.nlist, finder.factors
        self.parts = dict(parts or {})
        self._exact = exact
        self._rows = len(exact.item_ID)
        self._tuned_k = tuned_k

    def stats(self) -> IndexStats:
        finder, wide = self.finder, self.setting
        layout = finder.layout
        return IndexStats(finder.kind, self._rows, layout.dim, finder.factory, layout.metric, self.nlist, wide.nprobe, wide.candidates)

    def search(
        self,
        query_HD: NDArray[np.float32],
        k: int,
        allowed: RowSet | None = None,
        excluded: Rows | None = None,
    ) -> SearchResult:
        """See `VectorIndex.search`. Few permitted items, and queries that score all items alike, are scanned."""
        part = self.parts.get(allowed.key) if allowed is not None else None
        if part is not None:
            return part.search(query_HD, k, None, excluded)
        query_HD, allowed, banned = self._exact.checked(query_HD, k, allowed, excluded)
        # Set for each search because OpenMP keeps the number by thread; one thread beats several for single queries.
        faiss.omp_set_num_threads(1)
        available = self._rows - len(banned) if allowed is None else allowed.count
        wanted = min(k, available)
        needed = wanted if allowed is None else wanted * self._rows / max(1, available)
        # Never narrower than it was tuned: of 30,000 random directions, a graph of recall@100 0.96 found 0.28 of the single best items and
        # 0.55 of the ten best where it was searched in proportion.
        scale = max(1.0, needed / self._tuned_k)
        fetch = max(math.ceil(scale * self._tuned_k) + _SPARE, math.ceil(scale * self.setting.candidates)) + len(banned)
        nprobe = min(self.nlist, max(self.setting.nprobe, round(self.setting.nprobe * scale)))
        found = None
        if not self._scan_is_cheaper(fetch, nprobe, available, allowed is not None):
            found = self._best(query_HD, wanted, fetch, nprobe, allowed, banned)
        return self._exact.scan(query_HD, k, allowed, banned) if found is None else found

    def search_many(self, query_BHD: NDArray[np.float32], k: int, allowed: RowSet | None, excluded: Sequence[Rows]) -> list[SearchResult]:
        """See `VectorIndex.search_many`: one by one, since the library's calls are all that a search costs."""
        return [self.search(query_HD, k, allowed, rows) for query_HD, rows in zip(query_BHD, excluded, strict=True)]

    def _best(
        self, query_HD: NDArray[np.float32], k: int, fetch: int, nprobe: int, allowed: RowSet | None, banned: Rows
    ) -> SearchResult | None:
        """The k best of the permitted candidates: as good under a filter as without, since all that is nearer was fetched too.

        None where too few are permitted, or items equal to the k-th may have been left out: only a scan tells which they are.
        """
        query_HW = self.finder.layout.queries(query_HD)
        if query_HW is None:
            return None
        near = self.finder.near(query_HW, fetch, nprobe)
        while nprobe < self.nlist and near.rows_HC[:, -1].min() < 0:  # the lists visited hold fewer
            nprobe = min(self.nlist, nprobe * 4)
            near = self.finder.near(query_HW, fetch, nprobe)
        rows_C = near.rows_HC[0] if len(near.rows_HC) == 1 else np.unique(near.rows_HC)
        if rows_C.min() < 0:
            rows_C = rows_C[rows_C >= 0]
        if allowed is not None:
            rows_C = rows_C[allowed.has(rows_C)]
        elif len(banned):
            rows_C = rows_C[~inside(rows_C, banned)]
        if len(rows_C) < k:
            return None
        found = self._exact.ranked(query_HD, rows_C, len(rows_C))
        if tied(found.scores, k):
            equal = int(np.count_nonzero(found.scores == found.scores[k - 1]))
            if equal > _FEW_TWINS or ties_at_the_edge(found, k, near.near_HC, near.rows_HC):
                return None
        return SearchResult(found.rows[:k], found.scores[:k])

    def _scan_is_cheaper(self, fetch: int, nprobe: int, available: int, filtered: bool) -> bool:
        """Of a search as it was tuned never, while there is more than it fetches: its recall was judged."""
        if fetch >= self._rows or not available:
            return True
        wider = fetch > max(self.setting.candidates, self._tuned_k + _SPARE) or nprobe > self.setting.nprobe
        return (filtered or wider) and available * _ROW_US <= self.finder.search_us(fetch, nprobe)
