"""Tuning: which index, and how wide a search, judged on held-out users against exact search.

Legend: Q queries, D dimensions, I items, B queries of a block.
"""

import statistics
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Generic, Protocol, TypeVar

import numpy as np
from numpy.typing import NDArray

from serving.index.exact import ExactIndex
from serving.index.interface import VectorIndex
from serving.index.meta import CurvePoint, Setting
from serving.index.rowset import RowSet
from towers.errors import GateError

_BLOCK_FLOATS = 16_000_000
_ROUGH_QUERIES = 200
_CURVE_TO = 0.995
"""The curve is measured up to this recall, past the floor, so that it shows what more of it would cost."""

_GAIN = 0.001
"""A rise of recall too small to visit more lists for: what is missing was lost by the codes. Whole vectors lose nothing: their recall may
stand still and rise again, as with raw factors, whose long items are few and near every user."""

_ROUNDS = 5
_FAR_SLOWER = 1.25


class Tunable(VectorIndex, Protocol):
    """An index whose searches can be made wider.

    Attributes:
        setting: how wide they are.
        nlist: lists to visit some of; 0 where there are none.
        factors: candidates for each item wanted that are worth trying; several where what it holds of an item is not enough to rank by.
    """

    setting: Setting
    nlist: int
    factors: tuple[float, ...]


_Index = TypeVar("_Index", bound=Tunable)


@dataclass(frozen=True)
class Tuned(Generic[_Index]):
    """The index chosen, as wide as it has to be, and what was measured on the way.

    Attributes:
        index: the fastest above the floor.
        point: as it was measured.
        curve: of all indexes, all settings.
    """

    index: _Index
    point: CurvePoint
    curve: tuple[CurvePoint, ...]


class Judge:
    """Measures searches against the exact top k of the same queries.

    Args:
        exact: the catalogue.
        query_QD: float32 held-out user vectors.
        k: of the comparison; at most the number of items.
        among: the rows compared; None = all.

    Attributes:
        kth_Q: the least score that counts as found, of each query.
    """

    def __init__(self, exact: ExactIndex, query_QD: NDArray[np.float32], k: int, among: RowSet | None = None) -> None:
        self.k = min(k, len(exact.item_ID) if among is None else among.count)
        self.query_QD, self._exact = query_QD, exact
        self.kth_Q = _kth_scores(exact, query_QD, self.k, among)

    def recall(self, index: VectorIndex, most: int | None = None) -> tuple[float, float]:
        """Recall@k of the index as it is set now, and microseconds a search, over the first `most` queries (None = all).

        recall@k = share of the k results whose exact score is not below the k-th one, a mean over queries: an item that ties with the
        k-th counts as found.
        """
        query_QD, hits = self.query_QD[:most], 0
        for query_D in query_QD[:3]:
            index.search(query_D, self.k)
        found = []
        started = time.process_time()
        for query_D in query_QD:
            found.append(index.search(query_D, self.k).rows)
        spent = time.process_time() - started
        for query_D, rows_k, kth in zip(query_QD, found, self.kth_Q[:most], strict=True):
            hits += int(np.count_nonzero(self._exact.scores(query_D, rows_k) >= kth))
        return hits / (self.k * len(query_QD)), round(spent / len(query_QD) * 1e6, 1)

    def sweep(self, index: Tunable, floor: float) -> list[CurvePoint]:
        """Settings from narrow to wide: 1, 2, 3, 4, 5, 6, 7, 8, 10, ... lists up to half of them, for each number of candidates, until
        that of codes rises no further; of an index without lists, the candidates alone. Measured on a few queries.
        """
        curve: list[CurvePoint] = []
        stats = index.stats()
        rows, steps = stats.rows, _steps(max(1, index.nlist // 2)) if index.nlist else [0]
        for factor in index.factors:
            before = -1.0
            for nprobe in steps:
                index.setting = Setting(nprobe, round(factor * self.k))
                recall, search_us = self.recall(index, _ROUGH_QUERIES)
                curve.append(CurvePoint(nprobe, recall, search_us, stats.factory, stats.metric, index.setting.candidates))
                full = nprobe * rows >= 4 * self.k * index.nlist  # of fewer items, lists are added anyway
                settled = len(index.factors) > 1 and full and before + _GAIN > recall
                if recall >= max(floor, _CURVE_TO) or settled:
                    break
                before = recall
            if curve[-1].recall >= max(floor, _CURVE_TO):
                break
            # More candidates need about as many lists as those with which fewer had found nearly all that they could.
            steps = steps[max(0, steps.index(curve[-1].nprobe) - 10) :]
        return curve


def tune(judge: Judge, indexes: Sequence[_Index], floor: float) -> Tuned[_Index]:
    """The fastest whose recall reaches the floor: the best setting of each index is timed once more, in turns, so that what else the
    machine does falls on all alike.

    Raises:
        GateError: none reaches it; says what was reached and what to turn.
    """
    curve: list[CurvePoint] = []
    finalists: list[tuple[_Index, CurvePoint]] = []
    for index in indexes:
        swept = judge.sweep(index, floor)
        point = _fastest(judge, index, swept, floor)
        curve.extend(swept)
        if point is not None:
            finalists.append((index, point))
    if not finalists:
        reached = max(curve, key=lambda point: point.recall)
        raise GateError(
            f"index.recall_floor: the best index found has recall@{judge.k} {reached.recall:.4f} ({reached.factory} at nprobe="
            f"{reached.nprobe} and {reached.candidates} candidates, on {len(judge.query_QD)} held-out queries), expected at least {floor}."
            " Nothing was published. Lower index.recall_floor or index.k, or take index=exact"
        )
    seconds: list[list[float]] = [[] for _ in finalists]
    for _ in range(_ROUNDS if len(finalists) > 1 else 0):
        for place, (index, _) in enumerate(finalists):
            seconds[place].append(judge.recall(index, _ROUGH_QUERIES)[1])
    best = min(range(len(finalists)), key=lambda place: statistics.median(seconds[place] or [0.0]))
    return Tuned(*finalists[best], tuple(curve))


def _fastest(judge: Judge, index: Tunable, swept: list[CurvePoint], floor: float) -> CurvePoint | None:
    """The fastest setting that is above the floor on all queries; the index is set to it, and what was measured is noted in `swept`."""
    above = [point for point in swept if point.recall >= floor]
    while above:
        rough = min((point for point in above if not any(_narrower(other, point) for other in above)), key=lambda point: point.search_us)
        above.remove(rough)
        index.setting = Setting(rough.nprobe, rough.candidates)
        recall, search_us = judge.recall(index)
        point = swept[swept.index(rough)] = replace(rough, recall=recall, search_us=search_us)
        if recall >= floor:
            return point
    return None


def _narrower(one: CurvePoint, other: CurvePoint) -> bool:
    """Whether a setting visits and rescores no more than another one: it is faster, whatever a busy machine's clock says, unless that says
    far slower, as where so few lists hold less than is wanted and more are visited in a second pass."""
    visits_less = one.nprobe <= other.nprobe and one.candidates <= other.candidates
    return one != other and visits_less and one.search_us <= _FAR_SLOWER * other.search_us


def exact_us(exact: ExactIndex, query_QD: NDArray[np.float32], k: int) -> float:
    """Microseconds of the exact scan; 0 without queries."""
    if not len(query_QD):
        return 0.0
    return Judge(exact, query_QD[:_ROUGH_QUERIES], k).recall(exact)[1]


def _kth_scores(exact: ExactIndex, query_QD: NDArray[np.float32], k: int, among: RowSet | None) -> NDArray[np.float32]:
    """The k-th best exact score of each query, less the rounding of two different sums: float32 [Q]."""
    item_ID = exact.item_ID if among is None else exact.item_ID[among.rows()]
    items = len(item_ID)
    block = max(1, _BLOCK_FLOATS // items)
    kth_Q = np.empty(len(query_QD), np.float32)
    for start in range(0, len(query_QD), block):
        scores_BI = query_QD[start : start + block] @ item_ID.T
        scores_BI.partition(items - k, axis=1)
        kth_Q[start : start + block] = scores_BI[:, items - k]
    norm_Q = np.linalg.norm(query_QD.astype(np.float64), axis=1)
    return np.asarray(kth_Q - exact.rounding * norm_Q, np.float32)


def _steps(most: int) -> list[int]:
    """1, 2, 3, 4, 5, 6, 7, 8, 10, 12, 14, 16, 20, ... up to `most`."""
    powers = [1 << exponent for exponent in range(most.bit_length())]
    return sorted({step for power in powers for step in (power, power * 5 // 4, power * 3 // 2, power * 7 // 4) if step <= most})
