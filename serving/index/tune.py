"""Tuning: how many lists a search must visit, judged on held-out users against exact search.

Legend: Q queries, D dimensions, I items, B queries of a block.
"""

import time
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from serving.index.exact import ExactIndex
from serving.index.faiss_index import FaissIndex
from serving.index.interface import VectorIndex
from serving.index.meta import CurvePoint
from towers.errors import GateError

_BLOCK_FLOATS = 16_000_000
_EXACT_TIMINGS = 50
_ROUGH_QUERIES = 100
_FAR_BELOW = 0.05
_CURVE_TO = 0.995
"""The curve is measured up to this recall, past the floor, so that it shows what more of it would cost."""


@dataclass(frozen=True)
class Tuned:
    """The index chosen, with `nprobe` set, and what was measured on the way.

    Attributes:
        index: the fastest above the floor.
        point: as it was measured.
        curve: of that index, all settings.
    """

    index: FaissIndex
    point: CurvePoint
    curve: tuple[CurvePoint, ...]


class Judge:
    """Measures searches against the exact top k of the same queries.

    Args:
        exact: the catalogue.
        query_QD: float32 held-out user vectors.
        k: of the comparison; at most the number of items.
    """

    def __init__(self, exact: ExactIndex, query_QD: NDArray[np.float32], k: int) -> None:
        self.k = min(k, len(exact.item_ID))
        self.query_QD = query_QD
        self._kth_Q = _kth_scores(exact, query_QD, self.k)

    def point(self, index: VectorIndex, nprobe: int, most: int | None = None) -> CurvePoint:
        """Recall@k and median time of the index as it is set now, over the first `most` queries (None = all).

        recall@k = share of the k results whose score is not below the k-th exact one, a mean over queries: an item that ties with the
        k-th counts as found.
        """
        hits, seconds = 0, []
        for query_D, kth in zip(self.query_QD[:most], self._kth_Q[:most], strict=True):
            started = time.perf_counter()
            found = index.search(query_D, self.k)
            seconds.append(time.perf_counter() - started)
            hits += int(np.count_nonzero(found.scores >= kth))
        return CurvePoint(nprobe, hits / (self.k * len(seconds)), round(float(np.median(seconds)) * 1e6, 1))

    def sweep(self, index: FaissIndex, floor: float) -> tuple[CurvePoint, ...]:
        """One point for each of 1, 2, 3, 4, 6, 8, 12, ... lists, up to half of them: beyond, an exact scan is no slower.

        The settings that decide are measured on all queries; those far below the floor, and those past the first one above it, on a
        hundred.
        """
        curve: list[CurvePoint] = []
        for nprobe in _steps(max(1, index.nlist // 2)):
            index.nprobe = nprobe
            rough = self.point(index, nprobe, _ROUGH_QUERIES)
            decided = bool(curve) and curve[-1].recall >= floor
            curve.append(rough if decided or rough.recall < floor - _FAR_BELOW else self.point(index, nprobe))
            if curve[-1].recall >= max(floor, _CURVE_TO):
                break
        return tuple(curve)


def tune(judge: Judge, candidates: Sequence[FaissIndex], floor: float) -> Tuned:
    """The fastest candidate whose recall reaches the floor, each at the fewest lists that do.

    Raises:
        GateError: none reaches it; says what was reached and what to turn.
    """
    best: Tuned | None = None
    reached = CurvePoint(0, 0.0, 0.0)
    for index in candidates:
        curve = judge.sweep(index, floor)
        reached = max(reached, *curve, key=lambda point: point.recall)
        chosen = next((point for point in curve if point.recall >= floor), None)
        if chosen is not None and (best is None or chosen.search_us < best.point.search_us):
            best = Tuned(index, chosen, curve)
    if best is None:
        raise GateError(
            f"index.recall_floor: the best index found has recall@{judge.k} {reached.recall:.4f} (at nprobe={reached.nprobe}, on"
            f" {len(judge.query_QD)} held-out users), expected at least {floor}. Nothing was published. Lower index.recall_floor"
            " or index.k, or take index=exact"
        )
    best.index.nprobe = best.point.nprobe
    return best


def exact_us(exact: ExactIndex, query_QD: NDArray[np.float32], k: int) -> float:
    """Median microseconds of the exact scan; 0 without queries."""
    if not len(query_QD):
        return 0.0
    return Judge(exact, query_QD[:_EXACT_TIMINGS], k).point(exact, 0).search_us


def _kth_scores(exact: ExactIndex, query_QD: NDArray[np.float32], k: int) -> NDArray[np.float32]:
    """The k-th best exact score of each query, less the rounding of two different sums: float32 [Q]."""
    items = len(exact.item_ID)
    block = max(1, _BLOCK_FLOATS // items)
    kth_Q = np.empty(len(query_QD), np.float32)
    for start in range(0, len(query_QD), block):
        scores_BI = query_QD[start : start + block] @ exact.item_ID.T
        scores_BI.partition(items - k, axis=1)
        kth_Q[start : start + block] = scores_BI[:, items - k]
    norm_Q = np.linalg.norm(query_QD.astype(np.float64), axis=1)
    return np.asarray(kth_Q - exact.rounding * norm_Q, np.float32)


def _steps(most: int) -> list[int]:
    """1, 2, 3, 4, 6, 8, 12, 16, 24, ... up to `most`."""
    powers = [1 << exponent for exponent in range(most.bit_length())]
    return sorted({step for power in powers for step in (power, power * 3 // 2) if step <= most})
