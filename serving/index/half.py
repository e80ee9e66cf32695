"""Item vectors in half precision, which is what large catalogues are served by: half of the memory, and scores that differ by a few
ten-thousandths. All that a service does with a vector (search, similar items, reasons) takes the same rounded numbers.

Legend: H heads, B queries, D dimensions, I items, C candidates.
"""

from pathlib import Path
from typing import Any

import faiss
import numpy as np
from numpy.typing import NDArray

from serving.index.exact import ExactIndex
from serving.index.interface import SearchResult
from serving.index.rowset import Rows, RowSet, inside
from towers.bundle import Bundle
from towers.errors import BundleError

HALF_FILE = "item_vectors.half.npy"

_BLOCK_ROWS = 1024  # 256 KiB of 64 dimensions once they are float32, which stay in the cache
_SPARE, _FEW, _MOST = 32, 2000, 4096
"""Candidates besides those wanted; up to so many permitted items are scored one by one; more candidates than so many are not asked for."""

_SIGN, _UNSIGNED, _TO_SIGN, _TO_MANTISSA = np.uint32(0x8000), np.uint32(0x7FFF), np.uint32(16), np.uint32(13)
_BIAS = np.float32(2.0**112)
_NORMS = 2.0**-6, 2.0**14
"""Largest norms of catalogues whose vectors lose no more than 11 bits leave them: smaller numbers lose bits, larger ones overflow."""


class HalfIndex(ExactIndex):
    """See `ExactIndex`; vectors are float16, products are summed in float32.

    Args:
        item_ID: float16 item vectors, usually memory-mapped; kept, not copied.
        largest_norm: of the vectors that were rounded; None = computed here.
    """

    dtype = np.float16
    row_ns = 150.0  # most of it is making float32 of it
    _walk_ns = 2.5  # FAISS' walk over a row, permitted or not

    def __init__(self, item_ID: NDArray[np.float16], largest_norm: float | None = None) -> None:
        super().__init__(item_ID, None if largest_norm is None else largest_norm * (1 + 2.0**-11))
        self._in_order = np.arange(_BLOCK_ROWS)
        native: Any = faiss
        codes: Any = self.view(faiss.METRIC_INNER_PRODUCT)
        # A view that owns nothing: its owner is that of an empty index, none.
        codes.codes = native.MaybeOwnedVectorUInt8.create_view(self._pointer, self.item_ID.nbytes, codes.codes.owner)
        codes.ntotal = len(self.item_ID)
        self._codes = codes

    def scan_ns(self, count: int) -> float:
        """See `ExactIndex.scan_ns`."""
        return min(count * self.row_ns, len(self.item_ID) * self._walk_ns) if count > _FEW else count * self.row_ns

    def scan(self, query_HD: NDArray[np.float32], k: int, allowed: RowSet | None, banned: Rows) -> SearchResult:
        """See `ExactIndex.scan`: FAISS finds candidates in a tenth of the time that scores of all items take."""
        available = len(self.item_ID) - len(banned) if allowed is None else allowed.count
        fetch = min(k, available) + len(banned) + _SPARE
        if len(query_HD) == 1 and available > _FEW and fetch <= min(_MOST, available + len(banned)):
            found = self._near(query_HD, min(k, available), fetch, allowed, banned)
            if found is not None:
                return found
        return super().scan(query_HD, k, allowed, banned)

    def _near(self, query_HD: NDArray[np.float32], k: int, fetch: int, allowed: RowSet | None, banned: Rows) -> SearchResult | None:
        """The k best; None where others may lie within rounding of the k-th."""
        near_C, rows_C = np.empty(fetch, np.float32), np.empty(fetch, np.int64)
        bits = None if allowed is None else allowed.bits()
        selector = None if bits is None else faiss.IDSelectorBitmap(len(bits), faiss.swig_ptr(bits))
        into = faiss.swig_ptr(near_C), faiss.swig_ptr(rows_C)
        native: Any = faiss
        self._codes.search_c(1, faiss.swig_ptr(query_HD), fetch, *into, native.SearchParameters(sel=selector) if selector else None)
        edge = float(near_C[-1])
        if len(banned):
            left = ~inside(rows_C, banned)
            near_C, rows_C = near_C[left], rows_C[left]
        if float(near_C[k - 1]) - edge <= self.rounding * float(np.linalg.norm(query_HD)):
            return None
        return self.ranked(query_HD, rows_C, k)

    def scores(self, query_D: NDArray[np.float32], rows_C: Rows) -> NDArray[np.float32]:
        scores_C, ids = np.empty(len(rows_C), np.float32), faiss.swig_ptr(self._in_order)
        for start in range(0, len(rows_C), _BLOCK_ROWS):
            part_CD, out_C = self.vectors(rows_C[start : start + _BLOCK_ROWS]), scores_C[start : start + _BLOCK_ROWS]
            pointers = faiss.swig_ptr(out_C), faiss.swig_ptr(query_D), faiss.swig_ptr(part_CD)
            faiss.fvec_inner_products_by_idx(*pointers, ids, len(query_D), 1, len(part_CD))  # type: ignore[attr-defined]
        return scores_C

    def all_scores(self, query_BD: NDArray[np.float32]) -> NDArray[np.float32]:
        scores_BI = np.empty((len(query_BD), len(self.item_ID)), np.float32)
        for start in range(0, len(self.item_ID), _BLOCK_ROWS):
            part_CD = whole(self.item_ID[start : start + _BLOCK_ROWS])
            np.matmul(query_BD, part_CD.T, out=scores_BI[:, start : start + _BLOCK_ROWS])
        return scores_BI

    def vectors(self, rows_C: Rows) -> NDArray[np.float32]:
        return whole(self.item_ID[rows_C])

    def view(self, metric: int) -> faiss.IndexFlatCodes:
        return faiss.IndexScalarQuantizer(self.item_ID.shape[1], faiss.ScalarQuantizer.QT_fp16, metric)


def whole(half_CD: NDArray[np.float16]) -> NDArray[np.float32]:
    """Finite numbers as float32: what `astype` gives, in a half to a fifth of the time, and faster than FAISS' codec.

    The bits of exponent and mantissa are moved to where float32 has them; what its greater bias then makes of them, small numbers
    included, is too small by a power of two.
    """
    bits_CD = half_CD.view(np.uint16).astype(np.uint32)
    sign_CD = (bits_CD & _SIGN) << _TO_SIGN
    bits_CD &= _UNSIGNED
    bits_CD <<= _TO_MANTISSA
    whole_CD: NDArray[np.float32] = bits_CD.view(np.float32)
    whole_CD *= _BIAS
    bits_CD |= sign_CD
    return whole_CD


def fits(exact: ExactIndex) -> bool:
    """Whether vectors of a catalogue lose nothing but their last bits in half precision."""
    return _NORMS[0] <= exact.largest_norm <= _NORMS[1]


def served_vectors(bundle: Bundle) -> NDArray[np.float32] | NDArray[np.float16]:
    """What a bundle's items are served by, memory-mapped, in catalogue row order.

    Raises:
        BundleError: they are unreadable, or of another catalogue.
    """
    if not bundle.has(HALF_FILE):
        return bundle.item_vectors()
    with bundle.reading(HALF_FILE) as path:
        half_ID = np.asarray(np.load(path, mmap_mode="r", allow_pickle=False))
    expected = bundle.item_vectors().shape
    if half_ID.dtype != np.float16 or half_ID.shape != expected:
        raise BundleError(f"{bundle.path(HALF_FILE)}: got {half_ID.dtype} {half_ID.shape}, expected float16 {expected}; run `towers index`")
    return half_ID


def scan_of(item_ID: NDArray[np.float32] | NDArray[np.float16], largest_norm: float | None = None) -> ExactIndex:
    """Exact search of vectors of either precision."""
    if item_ID.dtype == np.float16:
        return HalfIndex(item_ID.view(np.float16), largest_norm)
    return ExactIndex(item_ID.view(np.float32), largest_norm)


def save_half(item_ID: NDArray[np.float16], folder: Path) -> dict[str, Path]:
    """Write them; the file's name in a bundle, and where it is."""
    np.save(folder / HALF_FILE, item_ID, allow_pickle=False)
    return {HALF_FILE: folder / HALF_FILE}
