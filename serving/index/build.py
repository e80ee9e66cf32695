"""Building an index: which kind for which catalogue, and filling it.

Legend: I items, D dimensions.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import faiss
import numpy as np
from numpy.typing import NDArray

from serving.index.exact import ExactIndex
from serving.index.faiss_index import FaissIndex
from serving.index.layout import Layout
from serving.index.meta import Setting
from serving.index.rowset import RowSet
from towers.errors import DataError

POINTS_PER_LIST = 39
"""Least items for each list, and the number that k-means reads: FAISS' own lower bound, as good as more of them here."""

THREADS = faiss.omp_get_max_threads()
"""What OpenMP offers at start; searching sets the calling thread's number to 1, building sets it back."""

CODE_WORDS = 16
"""Of codes of 4 bits: they are learned from at least so many items."""

_KMEANS_ROUNDS = 4
BLOCK_ROWS = 65_536
_CODE_SAMPLE = 20_000
_UNIT_TOLERANCE = 1e-3


def choose_kind(name: str, rows: int, exact_up_to: int) -> str:
    """One of `kinds.KINDS` for index.name and a catalogue of so many items; `auto` is `exact` or `ivf`."""
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
        float(np.linalg.norm(exact.item_ID[start : start + BLOCK_ROWS], axis=1).min()) for start in range(0, len(exact.item_ID), BLOCK_ROWS)
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


@dataclass(frozen=True)
class Candidate:
    """A kind of index worth trying.

    Attributes:
        lists: of the inverted file.
        codec: `SQfp16`, or `PQ<m>x4fsr`: residuals of m parts, 4 bits each, scanned 32 vectors at a time in registers (Andre et al.,
            Quicker ADC, 2019), turned by a random rotation first.
        metric: one of `layout.METRICS`.
    """

    lists: int
    codec: str
    metric: str

    @property
    def factory(self) -> str:
        return f"IVF{self.lists},{self.codec}"


def candidates_for(rows: int, dim: int, metrics: Sequence[str]) -> list[Candidate]:
    """What tuning compares. Short codes are scanned so fast that a third as many lists, longer ones, are as good and faster to choose from.

    Codes of distances need tables for every list visited, so codes are tried with the inner product alone.
    """
    many, width = lists_for(rows), Layout(dim, "inner_product", 1.0).width
    parts = (width, width // 2) if rows >= CODE_WORDS else ()
    codes = [Candidate(max(1, many // 3), f"PQ{m}x4fsr", "inner_product") for m in parts]
    return [*(Candidate(many, "SQfp16", metric) for metric in metrics), *codes]


def build_ivf(
    exact: ExactIndex, candidate: Candidate, seed: int, tuned_k: int, progress: Callable[[str], None], among: RowSet | None = None
) -> FaissIndex:
    """An inverted file over the items; it visits one list until it is tuned. Deterministic in `seed`.

    Lists are made by distance whatever the metric: with the inner product the longest centres would draw all items. Lists are then chosen
    by the metric.

    Args:
        exact: the catalogue.
        candidate: what to build.
        seed: of the rotation, the k-means sample and its start.
        tuned_k: see `FaissIndex`.
        progress: told what happens next.
        among: rows to index; None = all.

    Raises:
        DataError: there are fewer items than codes are learned from.
    """
    item_ID = exact.item_ID
    rows = np.arange(len(item_ID)) if among is None else np.asarray(among.rows(), np.int64)
    codes = candidate.codec.startswith("PQ")
    if codes and len(rows) < CODE_WORDS:
        raise DataError(f"{candidate.factory}: codes are learned from at least {CODE_WORDS} items, and there are {len(rows)}")
    plain = Layout(item_ID.shape[1], candidate.metric, exact.largest_norm)
    layout = replace(plain, rotation_WW=rotation(plain.width, seed)) if codes else plain
    rng = np.random.default_rng(seed)
    coarse = faiss.IndexFlat(layout.width, faiss.METRIC_L2)
    index = _empty(coarse, candidate, layout)
    faiss.omp_set_num_threads(THREADS)
    index.cp.niter, index.cp.seed = _KMEANS_ROUNDS, seed
    index.cp.spherical = False  # FAISS gives an inner-product index centres of unit norm, far from items of any other
    index.cp.min_points_per_centroid = 1
    sample = rng.choice(rows, min(len(rows), max(POINTS_PER_LIST * candidate.lists, _CODE_SAMPLE if codes else 0)), replace=False)
    progress(f"{candidate.factory} {candidate.metric}: k-means on {len(sample):,} vectors, then {len(rows):,} are added")
    index.train(layout.items(item_ID[np.sort(sample)]))
    for start in range(0, len(rows), BLOCK_ROWS):
        block = rows[start : start + BLOCK_ROWS]
        index.add_with_ids(layout.items(item_ID[block]), block)
    if not layout.augmented:
        coarse.metric_type = faiss.METRIC_INNER_PRODUCT
    return FaissIndex(index, exact, layout, candidate.factory, Setting(1, tuned_k), tuned_k, among)


def rotation(width: int, seed: int) -> NDArray[np.float32]:
    """A random orthogonal matrix [W, W]: the same for every index of codes in a bundle."""
    q_WW, r_WW = np.linalg.qr(np.random.default_rng(seed).standard_normal((width, width)))
    return (q_WW * np.sign(np.diag(r_WW))).astype(np.float32)


def _empty(coarse: faiss.IndexFlat, candidate: Candidate, layout: Layout) -> faiss.IndexIVF:
    metric = faiss.METRIC_L2 if layout.augmented else faiss.METRIC_INNER_PRODUCT
    if candidate.codec == "SQfp16":
        return faiss.IndexIVFScalarQuantizer(coarse, layout.width, candidate.lists, faiss.ScalarQuantizer.QT_fp16, metric, False)
    parts = int(candidate.codec.removeprefix("PQ").removesuffix("x4fsr"))
    index = faiss.IndexIVFPQFastScan(coarse, layout.width, candidate.lists, parts, 4, metric)
    index.by_residual = True
    index.pq.cp.min_points_per_centroid = 1
    return index
