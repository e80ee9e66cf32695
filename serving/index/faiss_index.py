"""Approximate search with FAISS: an inverted file of half-precision vectors, rescored exactly, that always returns k.

Legend: H heads, D dimensions, W width inside FAISS, I items, C candidates.
"""

import math
from pathlib import Path

import faiss
import numpy as np
from numpy.typing import NDArray

from serving.index.exact import ExactIndex
from serving.index.interface import IndexStats, SearchResult
from serving.index.layout import Layout
from serving.index.meta import FAISS_FILE, IndexMeta, read_meta
from serving.index.rowset import Rows, RowSet, inside, neither
from towers.bundle import Bundle
from towers.errors import BundleError, DataError

OVERFETCH_UP_TO = 100
"""Exclusions that are fetched and dropped afterwards; more of them become a bitmap inside FAISS."""

_SPARE = 8
"""Candidates beyond k, so that half precision's rounding at the k-th place is undone by the exact scores."""


class FaissIndex:
    """An inverted file behind exact rescoring.

    Args:
        index: a trained and filled IVF index over `layout`'s vectors; row i of the catalogue has id i.
        exact: the same catalogue, for rescoring and for searches that a scan answers faster.
        layout: how vectors lie in `index`.
        nprobe: lists visited by a plain search of `tuned_k` items.
        tuned_k: the k at which `nprobe` reached its recall.
        factory: FAISS' word for the index.
    """

    def __init__(self, index: faiss.IndexIVF, exact: ExactIndex, layout: Layout, nprobe: int, tuned_k: int, factory: str) -> None:
        self._index = index
        self._exact = exact
        self._layout = layout
        self._tuned_k = tuned_k
        self._factory = factory
        self._rows = len(exact.item_ID)
        self.nlist = int(index.nlist)
        self.nprobe = nprobe

    @classmethod
    def open(cls, bundle: Bundle) -> "FaissIndex":
        """Map the bundle's index; its lists are shared with other processes and read when first visited.

        Raises:
            BundleError: the index is unreadable, or not the one that index.json describes.
        """
        meta = read_meta(bundle)
        layout = Layout(meta.dim, meta.metric, meta.largest_norm)
        exact = ExactIndex(bundle.item_vectors(), meta.largest_norm)
        return cls(_read(bundle, meta, layout), exact, layout, meta.nprobe, meta.k, meta.factory)

    def save(self, path: Path) -> None:
        """Write the FAISS part.

        Raises:
            DataError: the disk is full or not writable.
        """
        try:
            faiss.write_index(self._index, str(path))
        except RuntimeError as error:
            raise DataError(f"writing {path}: {str(error)[-200:]}. Free some space, then run the job again") from error

    def stats(self) -> IndexStats:
        return IndexStats("ivf", self._rows, self._layout.dim, self._factory, self._layout.metric, self.nlist, self.nprobe)

    def search(
        self,
        query_HD: NDArray[np.float32],
        k: int,
        allowed: RowSet | None = None,
        excluded: Rows | None = None,
    ) -> SearchResult:
        """See `VectorIndex.search`. Few permitted items, a k near the catalogue and queries that score all items alike are scanned."""
        query, allowed, banned = self._exact.checked(query_HD, k, allowed, excluded)
        available = self._rows - len(banned) if allowed is None else allowed.count
        nprobe = self._breadth(min(k, available), available)
        if self._scan_is_cheaper(nprobe, available) or not query.any(axis=1).all():
            return self._exact.scan(query, k, allowed, banned)
        return self._probe(query, min(k, available), nprobe, allowed, banned)

    def _probe(self, query_HD: NDArray[np.float32], k: int, nprobe: int, allowed: RowSet | None, banned: Rows) -> SearchResult:
        """Search lists, more of them until k permitted items are found."""
        if allowed is None and len(banned) > OVERFETCH_UP_TO:
            allowed = neither(RowSet(self._rows, len(banned), banned, None))
        bits = None if allowed is None else allowed.bits()
        overfetched = len(banned) if bits is None else 0
        fetch = min(self._rows, k + _SPARE + overfetched)
        query_HW = self._layout.queries(query_HD)
        settings = faiss.IVFSearchParameters()
        settings.sel = None if bits is None else faiss.IDSelectorBitmap(len(bits), faiss.swig_ptr(bits))
        while nprobe < self.nlist:
            # Set for each search because OpenMP keeps the number by thread; one thread beats several for single queries.
            faiss.omp_set_num_threads(1)
            settings.nprobe = nprobe
            found_HC = self._index.search(query_HW, fetch, params=settings)[1]
            rows_C = found_HC[0] if len(found_HC) == 1 else np.unique(found_HC)
            rows_C = rows_C[rows_C >= 0]
            if overfetched:
                rows_C = rows_C[~inside(rows_C, banned)]
            if len(rows_C) >= k:
                found = self._exact.ranked(query_HD, rows_C, len(rows_C))
                if len(rows_C) > k and found.scores[k - 1] == found.scores[-1]:
                    break  # More items than were fetched may tie for the last places, and the lowest rows are to have them.
                return SearchResult(found.rows[:k], found.scores[:k])
            nprobe *= 4
        return self._exact.scan(query_HD, k, allowed, banned)

    def _breadth(self, k: int, available: int) -> int:
        """Lists to visit for k of the items available, to keep the recall that `nprobe` has for `tuned_k` of all items.

        As many permitted items are visited for each one wanted. Measured at 200k x 64, tuned to 0.961: recall 0.962 to 0.999 at shares
        from 90 % to 10 %, chosen at random or far from the query; with the square root of this factor it fell to 0.59.
        """
        if not available:
            return self.nlist
        return min(self.nlist, max(self.nprobe, math.ceil(self.nprobe * k * self._rows / (self._tuned_k * available))))

    def _scan_is_cheaper(self, nprobe: int, available: int) -> bool:
        """Whether scanning the permitted items costs less than visiting lists.

        A scan touches each permitted vector at about 25 ns; visiting costs about 12 ns for each vector of a list and 4 ns for each list's
        centroid. Measured at 59k and 200k x 64: the two cross near 20 % permitted.
        """
        visited = nprobe * self._rows / self.nlist
        return nprobe >= self.nlist or available <= (visited + self.nlist / 3) / 2


def _read(bundle: Bundle, meta: IndexMeta, layout: Layout) -> faiss.IndexIVF:
    path = bundle.path(FAISS_FILE)
    # Whatever a file claims, faiss allocates no vector larger than the file and runs no loop longer than the lists expected.
    faiss.set_deserialization_vector_byte_limit(path.stat().st_size)
    faiss.set_deserialization_loop_limit(max(1, meta.nlist))
    try:
        index = faiss.read_index(str(path), faiss.IO_FLAG_MMAP | faiss.IO_FLAG_READ_ONLY)
    except RuntimeError as error:
        raise BundleError(f"{path} is not a readable index ({str(error)[-200:]}); build it again: towers index") from error
    if not isinstance(index, faiss.IndexIVF):
        raise BundleError(f"{path} holds a {type(index).__name__}, expected an inverted file; build it again: towers index")
    got = (index.ntotal, index.d, index.nlist, index.metric_type)
    expected = (meta.rows, layout.width, meta.nlist, faiss.METRIC_L2 if layout.augmented else faiss.METRIC_INNER_PRODUCT)
    if got != expected:
        raise BundleError(f"{path}: rows, width, lists and metric are {got}, index.json says {expected}; build it again: towers index")
    lists = None if index.invlists is None else faiss.downcast_InvertedLists(index.invlists)
    if not isinstance(lists, faiss.OnDiskInvertedLists):
        raise BundleError(f"{path} holds {type(lists).__name__}, expected lists that can be mapped; build it again: towers index")
    lists.prefetch_nthread = 0  # Its default starts 32 threads for every search: 460 us instead of 37 us at 59k x 64.
    return index
