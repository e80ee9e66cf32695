"""Building an index: which kind for which catalogue, and filling it.

Legend: I items, D dimensions.
"""

import math
from collections.abc import Callable

import faiss
import numpy as np

from serving.index.exact import ExactIndex
from serving.index.faiss_index import FaissIndex
from serving.index.layout import Layout
from towers.errors import DataError

POINTS_PER_LIST = 39
"""Least items for each list, and the number that k-means reads: FAISS' own lower bound, as good as more of them here."""

_THREADS = faiss.omp_get_max_threads()
"""What OpenMP offers at start; searching sets the calling thread's number to 1, building sets it back."""

_KMEANS_ROUNDS = 4
_BLOCK_ROWS = 65_536
_UNIT_TOLERANCE = 1e-3


def choose_kind(name: str, rows: int, exact_up_to: int) -> str:
    """`exact` or `ivf` for index.name and a catalogue of so many items."""
    if name != "auto":
        return name
    return "exact" if rows <= exact_up_to else "ivf"


def metrics_for(similarity: str, exact: ExactIndex) -> tuple[str, ...]:
    """Layouts that order items as the model does; where there are two, tuning decides.

    Unit vectors need nothing but the inner product. With dot similarity norms differ, and the augmented distance is often faster.

    Raises:
        DataError: the model says cosine, and its item vectors are not of unit norm.
    """
    if similarity != "cosine":
        return ("inner_product", "l2_augmented")
    smallest = min(
        float(np.linalg.norm(exact.item_ID[start : start + _BLOCK_ROWS], axis=1).min())
        for start in range(0, len(exact.item_ID), _BLOCK_ROWS)
    )
    if abs(smallest - 1) > _UNIT_TOLERANCE or abs(exact.largest_norm - 1) > _UNIT_TOLERANCE:
        raise DataError(
            f"item vectors have norms from {smallest:.4g} to {exact.largest_norm:.4g}, and the model's similarity is cosine: expected 1."
            " Export the model again"
        )
    return ("inner_product",)


def lists_for(rows: int) -> int:
    """About 4 * sqrt(rows) lists, each of at least POINTS_PER_LIST items."""
    return max(1, min(round(4 * math.sqrt(rows)), rows // POINTS_PER_LIST))


def build_ivf(exact: ExactIndex, metric: str, seed: int, tuned_k: int, progress: Callable[[str], None]) -> FaissIndex:
    """An inverted file of half-precision vectors over all items; `nprobe` is 1 until it is tuned. Deterministic in `seed`.

    Args:
        exact: the catalogue.
        metric: one of `layout.METRICS`.
        seed: of the k-means sample and its start.
        tuned_k: see `FaissIndex`.
        progress: told what happens next.
    """
    item_ID = exact.item_ID
    layout = Layout(item_ID.shape[1], metric, exact.largest_norm)
    lists = lists_for(len(item_ID))
    factory = f"IVF{lists},SQfp16"
    index = faiss.index_factory(layout.width, factory, faiss.METRIC_L2 if layout.augmented else faiss.METRIC_INNER_PRODUCT)
    if not isinstance(index, faiss.IndexIVF):
        raise TypeError(f"FAISS made {type(index).__name__} of {factory!r}, expected an IndexIVF")
    faiss.omp_set_num_threads(_THREADS)
    index.cp.niter = _KMEANS_ROUNDS
    index.cp.seed = seed
    sample = np.random.default_rng(seed).choice(len(item_ID), min(len(item_ID), POINTS_PER_LIST * lists), replace=False)
    progress(f"{factory} {metric}: k-means on {len(sample):,} vectors")
    index.train(layout.items(item_ID[np.sort(sample)]))
    progress(f"{factory} {metric}: adding {len(item_ID):,} vectors")
    for start in range(0, len(item_ID), _BLOCK_ROWS):
        index.add(layout.items(item_ID[start : start + _BLOCK_ROWS]))
    return FaissIndex(index, exact, layout, 1, tuned_k, factory)
