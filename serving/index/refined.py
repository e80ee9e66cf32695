"""Lists and exact scores as one call of FAISS: candidates of an inverted file, rescored and sorted without coming back to Python.

Legend: D dimensions of the model, W width inside the lists, I items.
"""

import math
import threading
from functools import lru_cache
from typing import Any

import faiss
import numpy as np
from numpy.typing import NDArray

from serving.index.edge import tied
from serving.index.exact import ExactIndex
from serving.index.interface import SearchResult
from serving.index.layout import Layout
from serving.index.rowset import Rows

_SMALLEST, _LARGEST = 1e-4, 1e4
"""Squares of norms between which queries are searched as they are: distances lose nothing, products neither vanish nor overflow."""

_OVERFETCH_STEP = 25


class Refined:
    """An inverted file whose candidates are scored by the model's own vectors.

    FAISS turns and widens a query as `Layout.queries` does, searches the lists, and orders what it found by the float32 products of whole
    vectors: of the same sums as `ExactIndex.ranked` takes of float32, so the numbers are the same. Safe to call from several threads.

    Args:
        index: the lists; row i of the catalogue has id i.
        layout: how vectors lie in them.
        exact: the item vectors, used where they lie.
    """

    def __init__(self, index: faiss.IndexIVF, layout: Layout, exact: ExactIndex) -> None:
        native: Any = faiss
        base: Any = index
        item_ID = exact.item_ID
        whole: Any = exact.view(index.metric_type)
        # A view that owns nothing: its owner is that of an empty index, none.
        whole.codes = native.MaybeOwnedVectorUInt8.create_view(faiss.swig_ptr(item_ID), item_ID.nbytes, whole.codes.owner)
        whole.ntotal = index.ntotal
        turn = _turn(layout)
        if turn is not None:
            base = faiss.IndexPreTransform(index)
            base.prepend_transform(turn)
        refine: Any = faiss.IndexRefine(base, whole)
        # The lists may order by distance, and hold some rows only: FAISS lets the two differ once they are joined.
        whole.ntotal = refine.ntotal = len(item_ID)
        refine.metric_type = whole.metric_type = faiss.METRIC_INNER_PRODUCT
        self._kept = (item_ID, index, turn, base, whole, refine)  # FAISS knows them by address
        self._own = _Own(len(item_ID), turn is not None)
        self._find = refine.search_c
        self._norm: Any = native.fvec_norm_L2sqr
        self._plain = lru_cache(256)(lambda nprobe, factor: _parameters(turn is not None, nprobe, factor)[0])

    def best(
        self, query_D: NDArray[np.float32], k: int, nprobe: int, fetch: int, dropped: Rows, selector: faiss.IDSelector | None
    ) -> SearchResult | None:
        """The k best by exact scores of `fetch` candidates, less those dropped; fewer where the lists hold fewer.

        None where an item equal to the k-th may have been left out, and for a zero query: both are for the caller to tell.
        """
        square = self._norm(faiss.swig_ptr(query_D), len(query_D))
        scale = 1.0
        if not _SMALLEST < square < _LARGEST:
            peak = float(np.abs(query_D).max())
            if not peak:
                return None
            scale = 2.0 ** -math.frexp(peak)[1]  # a power of two: multiplied and divided by without rounding
            query_D = query_D * np.float32(scale)
        wanted = min(fetch, k + 1 + overfetched(len(dropped)))
        scores_C, rows_C = np.empty(wanted, np.float32), np.empty(wanted, np.int64)
        factor = (fetch + 0.5) / wanted  # FAISS multiplies and rounds down
        parameters = self._plain(nprobe, factor) if selector is None else self._own.selecting(nprobe, factor, selector)
        self._find(1, faiss.swig_ptr(query_D), wanted, faiss.swig_ptr(scores_C), faiss.swig_ptr(rows_C), parameters)
        if rows_C[-1] < 0:  # what is missing is -1, and comes last
            found = int(np.count_nonzero(rows_C >= 0))
            scores_C, rows_C = scores_C[:found], rows_C[:found]
        if len(dropped):
            left = self._own.others(rows_C, dropped)
            scores_C, rows_C = scores_C[left], rows_C[left]
        if len(rows_C) < k:
            return SearchResult(rows_C[:0], scores_C[:0])
        if scale != 1:
            scores_C = scores_C / np.float32(scale)
        if scores_C[-1] <= 0:
            scores_C = scores_C + np.float32(0.0)  # -0.0 becomes 0.0
        if np.count_nonzero(scores_C[1:] == scores_C[:-1]):
            if tied(scores_C, k):
                return None
            rows_C = rows_C[np.lexsort((rows_C, -scores_C))]
        return SearchResult(rows_C[:k], scores_C[:k])


class _Own(threading.local):
    """What a thread keeps between searches, because making it anew costs more than using it.

    Marks tell rows among others in a microsecond, a fifth of what sorting and searching take: a byte for each row of the catalogue, and the
    system keeps only the pages that were written. Parameters are for searches with a selector, of which no two are alike.
    """

    def __init__(self, rows: int, turned: bool) -> None:
        self._marked_I = np.zeros(rows, np.bool_)
        self._parameters = _parameters(turned)

    def others(self, rows: Rows, marked: Rows) -> NDArray[np.bool_]:
        """Whether each of `rows` is none of those marked."""
        self._marked_I[marked] = True
        found = self._marked_I[rows]
        self._marked_I[marked] = False
        return np.logical_not(found, out=found)

    def selecting(self, nprobe: int, factor: float, selector: faiss.IDSelector) -> Any:
        """Parameters until the thread's next search; FAISS knows the selector by address."""
        refine, lists = self._parameters
        lists.nprobe, lists.sel, refine.k_factor = nprobe, selector, factor
        return refine


def _parameters(turned: bool, nprobe: int = 1, factor: float = 1.0) -> tuple[Any, Any]:
    """FAISS' for the whole, and for its lists; the first holds the second."""
    native: Any = faiss
    lists = native.SearchParametersIVF(nprobe=nprobe)
    base = native.SearchParametersPreTransform(index_params=lists) if turned else lists
    return native.IndexRefineSearchParameters(k_factor=factor, base_index_params=base), lists


def overfetched(dropped: int) -> int:
    """Candidates fetched to be dropped: whole steps, so that searches share their parameters, which cost microseconds to make."""
    return -(-dropped // _OVERFETCH_STEP) * _OVERFETCH_STEP


def _turn(layout: Layout) -> Any:
    """What `Layout.queries` does to a query, but for its length: [D] -> [W]; None where that is nothing."""
    if layout.rotation_WW is None and layout.width == layout.dim:
        return None
    matrix_WW = np.eye(layout.width, dtype=np.float32) if layout.rotation_WW is None else layout.rotation_WW
    turn: Any = faiss.LinearTransform(layout.dim, layout.width, False)
    faiss.copy_array_to_vector(np.ascontiguousarray(matrix_WW[: layout.dim].T).ravel(), turn.A)
    turn.is_trained = True
    return turn
