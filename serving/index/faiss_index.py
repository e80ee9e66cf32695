"""Approximate search with FAISS: an inverted file of coded vectors, rescored exactly, that always returns k.

Legend: H heads, D dimensions, W width inside FAISS, I items, C candidates.
"""

import math
from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import Any

import faiss
import numpy as np
from numpy.typing import NDArray

from serving.index.edge import kept, tied, ties_at_the_edge
from serving.index.exact import ExactIndex, best_head
from serving.index.faiss_files import list_rows
from serving.index.interface import IndexStats, SearchResult
from serving.index.layout import Layout
from serving.index.meta import Setting
from serving.index.narrowed import FIRST, narrowed
from serving.index.refined import Refined, overfetched
from serving.index.rowset import Rows, RowSet, inside, neither

_NOTHING = np.empty(0, np.int64)

OVERFETCH_UP_TO = 100
"""Exclusions that are fetched and dropped afterwards; more of them become a bitmap inside FAISS."""

_MOST = 0.9
"""From this share of items allowed on, a search without the filter finds enough of them; what leaves out hidden items is such a filter."""

_SPARE = 8
"""Least candidates beyond k, so that half precision's rounding at the k-th place is undone by the exact scores."""

_LIST_NS, _SCORE_NS, _FILTER_NS = 500.0, (8.0, 2.5), 3.5
"""What visiting a list costs, each vector of it, of half-precision and of short codes, and telling whether a filter leaves it. One core at
59k to 1M x 64, about."""

_NARROW_NS, _UNPACK_NS = 12.0, 1.5
"""What telling whether a row's list is near costs, and making rows of a bitmap, for each row of the catalogue."""
CODE_FACTORS = (1.25, 1.5, 1.75, 2, 2.5, 3, 4, 5, 8)
"""Items rescored for each one wanted, that tuning tries where lists hold short codes."""

_LIST_BY_LIST = 11
"""FAISS' scan of short codes that visits one list after the other; what it takes by itself sorts pairs of query and list first, for one
query too. 7 % less for a search at 59k x 64, 18 % at 1M."""


class FaissIndex:
    """An inverted file behind exact rescoring.

    Args:
        index: a trained and filled IVF index over `layout`'s vectors; row i of the catalogue has id i.
        exact: the same catalogue, for rescoring and for searches that a scan answers faster.
        layout: how vectors lie in `index`.
        factory: FAISS' word for the index.
        setting: how wide a plain search is, tuned for `tuned_k` items.
        tuned_k: the k at which it reached its recall.
        among: the rows that `index` holds; None = all.
        parts: indexes of the rows of one declared value each, by `RowSet.key`.
        margin: see `list_margin`; None = not known, and where lists would be searched under a filter, what it leaves is scanned.
    """

    def __init__(
        self,
        index: faiss.IndexIVF,
        exact: ExactIndex,
        layout: Layout,
        factory: str,
        setting: Setting,
        tuned_k: int,
        among: RowSet | None = None,
        parts: Mapping[str, "FaissIndex"] | None = None,
        margin: float | None = None,
    ) -> None:
        self.index = index
        self.layout = layout
        self.factory = factory
        self.setting = setting
        self.parts = dict(parts or {})
        self.margin = margin
        self._exact = exact
        self._tuned_k = tuned_k
        self._among = among
        self._rows = len(exact.item_ID) if among is None else among.count
        self.codes = "PQ" in factory
        self.factors: tuple[float, ...] = CODE_FACTORS if self.codes else (1.0,)
        native: Any = index
        if self.codes:
            native.implem = _LIST_BY_LIST
        # FAISS' own calls: those around them for Python check and copy for several microseconds
        self._find = native.search_c
        self._refined = Refined(index, layout, exact)
        self.nlist = int(index.nlist)
        self.centres_LD = layout.centres(index.quantizer.reconstruct_n(0, self.nlist))

    def stats(self) -> IndexStats:
        wide = self.setting
        return IndexStats("ivf", self._rows, self.layout.dim, self.factory, self.layout.metric, self.nlist, wide.nprobe, wide.candidates)

    @cached_property
    def list_I(self) -> NDArray[np.unsignedinteger]:
        """The list that holds each row, of an index of all rows: made when it is first asked for, 10 ms at a million."""
        list_I = np.zeros(self._rows, np.min_scalar_type(self.nlist - 1))
        for place, rows in enumerate(list_rows(self.index)):
            list_I[rows] = place
        return list_I

    def search(
        self,
        query_HD: NDArray[np.float32],
        k: int,
        allowed: RowSet | None = None,
        excluded: Rows | None = None,
    ) -> SearchResult:
        """See `VectorIndex.search`. Few permitted items and queries that score all items alike are scanned."""
        part = self.parts.get(allowed.key) if allowed is not None else None
        query, allowed, banned = self._exact.checked(query_HD, k, None if part else allowed, excluded)
        # Set for each search because OpenMP keeps the number by thread; one thread beats several for single queries.
        faiss.omp_set_num_threads(1)
        return (part or self)._search(query, k, allowed, banned)

    def search_many(self, query_BHD: NDArray[np.float32], k: int, allowed: RowSet | None, excluded: Sequence[Rows]) -> list[SearchResult]:
        """See `VectorIndex.search_many`: one by one, since FAISS' calls are all that a search costs."""
        return [self.search(query_HD, k, allowed, rows) for query_HD, rows in zip(query_BHD, excluded, strict=True)]

    def _search(self, query_HD: NDArray[np.float32], k: int, allowed: RowSet | None, banned: Rows) -> SearchResult:
        banned = self._here(banned)
        available = self._rows - len(banned) if allowed is None else allowed.count
        if allowed is not None and available >= _MOST * self._rows:
            enough = kept(self._search(query_HD, self._more(k, available), None, banned), k, allowed)
            if enough is not None:
                return enough
        nprobe = self._breadth(min(k, available), available)
        if self._probe_ns(nprobe, allowed) < self._scan_ns(k, available, allowed, nprobe):
            found = self._probe(query_HD, min(k, available), nprobe, allowed, banned)
            needed = nprobe if found is None or allowed is None else self._needed(query_HD, found)
            if needed > nprobe:
                # Where that many lists may hold better ones, scores lie too close for short codes to tell.
                wide = needed * 4 >= self.nlist or self._probe_ns(needed, allowed) >= self._scan_ns(k, available, allowed, needed)
                found = None if wide else self._probe(query_HD, min(k, available), needed, allowed, banned)
            if found is not None:
                return found
            nprobe = needed if needed > nprobe else self.nlist
        if allowed is None and self._among is not None:
            allowed, banned = self._among.without(banned), banned[:0]
        found = None if allowed is None else self._narrowed(query_HD, k, allowed, nprobe)
        return self._exact.scan(query_HD, k, allowed, banned) if found is None else found

    def _narrowed(self, query_HD: NDArray[np.float32], k: int, allowed: RowSet, nprobe: int) -> SearchResult | None:
        """What is allowed, scanned where its lists are near; None where scanning all of it costs no more, or has to tell."""
        if self._narrow_ns(k, allowed, nprobe) >= self._exact.scan_ns(allowed.count):
            return None
        rows = allowed.rows()
        centre_C = best_head(self.centres_LD, query_HD).take(self.list_I.take(rows))
        return narrowed(self._exact, query_HD, k, rows, centre_C, self._reach(query_HD))

    def _probe(self, query_HD: NDArray[np.float32], k: int, nprobe: int, allowed: RowSet | None, banned: Rows) -> SearchResult | None:
        """Search lists, more of them until k permitted items are found; None where only a scan can tell which they are."""
        if allowed is None and len(banned) > OVERFETCH_UP_TO:
            allowed = neither(RowSet(len(self._exact.item_ID), len(banned), banned, None))
        bits = None if allowed is None else allowed.bits()
        dropped = banned if bits is None else _NOTHING
        fetch = self._fetch(k, len(dropped))
        selector = None if bits is None else faiss.IDSelectorBitmap(len(bits), faiss.swig_ptr(bits))
        while True:
            found = self._refined.best(query_HD[0], k, nprobe, fetch, dropped, selector) if len(query_HD) == 1 else None
            if found is None:
                found = self._candidates(query_HD, k, nprobe, fetch, dropped, selector)
            if found is None or len(found.rows) >= k:
                return found
            wider = min(self.nlist, nprobe * 4)
            if wider == nprobe or (allowed is not None and self._probe_ns(wider, allowed) >= self._exact.scan_ns(allowed.count)):
                return None
            nprobe = wider

    def _candidates(
        self, query_HD: NDArray[np.float32], k: int, nprobe: int, fetch: int, dropped: Rows, selector: faiss.IDSelector | None
    ) -> SearchResult | None:
        """As `Refined.best`, for several heads and where scores tie at the k-th."""
        query_HW = self.layout.queries(query_HD)
        if query_HW is None:
            return None
        near_HC, found_HC = np.empty((len(query_HW), fetch), np.float32), np.empty((len(query_HW), fetch), np.int64)
        into = faiss.swig_ptr(near_HC), faiss.swig_ptr(found_HC)
        self._find(len(query_HW), faiss.swig_ptr(query_HW), fetch, *into, _parameters(nprobe, selector))
        return self._judged(query_HD, k, near_HC, found_HC, dropped)

    def _judged(
        self, query_HD: NDArray[np.float32], k: int, near_HC: NDArray[np.float32], found_HC: NDArray[np.int64], dropped: Rows
    ) -> SearchResult | None:
        """The k best of what FAISS found, by exact scores; fewer where it found fewer, None where equal ones may have been left out."""
        rows_C = found_HC[0] if len(found_HC) == 1 else np.unique(found_HC)
        if rows_C[0] < 0 or rows_C[-1] < 0:  # what is missing is -1
            rows_C = rows_C[rows_C >= 0]
        if len(dropped):
            rows_C = rows_C[~inside(rows_C, dropped)]
        if len(rows_C) < k:
            return SearchResult(rows_C[:0], near_HC[0, :0])
        found = self._exact.ranked(query_HD, rows_C, len(rows_C))
        one_edge = near_HC.shape[1] > 1 and (len(near_HC) > 1 or near_HC[0, -1] == near_HC[0, -2])
        if tied(found.scores, k) and one_edge and ties_at_the_edge(found, k, near_HC, found_HC):
            return None
        return SearchResult(found.rows[:k], found.scores[:k])

    def _here(self, banned: Rows) -> Rows:
        """Those that this index holds."""
        return banned if self._among is None or not len(banned) else banned[self._among.has(banned)]

    def _more(self, k: int, available: int) -> int:
        """Items to search for without a filter, so that k are left after one that leaves most."""
        return k + 2 * (self._rows - available) * k // self._rows + _SPARE

    def _fetch(self, k: int, dropped: int) -> int:
        """Candidates to ask FAISS for, of which some will be dropped."""
        return min(self._rows, max(k + _SPARE, -(-self.setting.candidates * k // self._tuned_k)) + overfetched(dropped))

    def _needed(self, query_HD: NDArray[np.float32], found: SearchResult) -> int:
        """Lists to visit so that a filter costs no recall: where it leaves out what is near, the best of the rest lie elsewhere."""
        if self.margin is None:
            return self.nlist
        least = float(found.scores[-1]) - self._reach(query_HD)
        return int(np.count_nonzero(best_head(self.centres_LD, query_HD) >= least))

    def _reach(self, query_HD: NDArray[np.float32]) -> float:
        """How far below the k-th score the centre of a list may lie that is needed."""
        return (self.margin or 0.0) * math.sqrt(max(float(head_D @ head_D) for head_D in query_HD))

    def _breadth(self, k: int, available: int) -> int:
        """Lists to visit for k of the items available, to keep the recall that the setting has for `tuned_k` of all items.

        A first guess, which `_needed` corrects. Measured at 60k x 64, tuned to 0.947: recall 0.985 to 0.998 at shares from 50 % to 6 %; as
        many lists as keep the number of permitted items visited cost a fifth more at 10 %, for a recall of 0.999.
        """
        nprobe = self.setting.nprobe
        if available == self._rows and k <= self._tuned_k:
            return nprobe
        if not available:
            return self.nlist
        return min(self.nlist, max(nprobe, round(nprobe * math.pow(k * self._rows / (self._tuned_k * available), 0.75))))

    def _probe_ns(self, nprobe: int, allowed: RowSet | None) -> float:
        """What visiting lists costs."""
        a_vector = _SCORE_NS[self.codes] + (0.0 if allowed is None else _FILTER_NS)
        return nprobe * (_LIST_NS + self._rows / self.nlist * a_vector)

    def _scan_ns(self, k: int, available: int, allowed: RowSet | None, nprobe: int) -> float:
        """What scanning the permitted items costs, or those of so many lists: it finds at least what visiting these would."""
        whole = self._exact.scan_ns(available)
        return whole if allowed is None else min(whole, self._narrow_ns(k, allowed, nprobe))

    def _narrow_ns(self, k: int, allowed: RowSet, nprobe: int) -> float:
        """What scanning those of the nearest lists costs; infinite where that cannot be done."""
        if self.margin is None or allowed.count <= FIRST * k:
            return math.inf
        unpacked = 0.0 if allowed.listed else self._rows * _UNPACK_NS
        scored = FIRST * k + allowed.count * nprobe / self.nlist
        return allowed.count * _NARROW_NS + unpacked + scored * self._exact.row_ns


def _parameters(nprobe: int, selector: faiss.IDSelector | None) -> faiss.IVFSearchParameters:
    wide = faiss.IVFSearchParameters()
    wide.nprobe = nprobe
    if selector is not None:
        wide.sel = selector
    return wide
