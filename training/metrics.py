"""Ranking metrics with binary relevance, as pure functions of which ranks hit.

Legend: Q queries, k ranks. All ranks count from 1. `hits_Qk[q, r - 1]` says whether the item at rank r of query q is relevant;
`relevant_Q` is the number of relevant items of each query, whether they could be found or not (items unknown in training
included). The definitions are those of trec_eval (ir-measures: R@k, nDCG@k, Success@k, RR@k, AP@k).

Edge cases, the same everywhere: a query with nothing relevant has no value (NaN) and is left out of means; ranks without an item
(row -1, where fewer than k could be recommended) are misses; k beyond the ranks given counts the ranks given.
"""

from collections.abc import Callable

import numpy as np
from numpy.typing import ArrayLike, NDArray

from training import ragged

Hits = NDArray[np.bool_]
Values = NDArray[np.float64]


def match(rows_Qk: NDArray[np.integer], relevant: ragged.Csr, n_items: int) -> NDArray[np.int64]:
    """Which relevant item each rank hits: its place among `relevant`'s values, -1 = a miss.

    Args:
        rows_Qk: recommended item rows, best first, -1 = none.
        relevant: distinct relevant item rows of each query.
        n_items: rows are below it.

    >>> match(np.array([[3, 1], [0, -1]]), (np.array([0, 2, 3]), np.array([1, 2, 2])), 4).tolist()
    [[-1, 0], [-1, -1]]
    """
    queries, k = rows_Qk.shape
    place = ragged.find(relevant, np.repeat(np.arange(queries), k), np.maximum(rows_Qk, 0).ravel(), n_items)
    return np.where(rows_Qk >= 0, place.reshape(rows_Qk.shape), -1)


def hits(rows_Qk: NDArray[np.integer], relevant: ragged.Csr, n_items: int) -> Hits:
    """Which ranks hold a relevant item: `match` without the which.

    >>> hits(np.array([[3, 1], [0, -1]]), (np.array([0, 2, 3]), np.array([1, 2, 2])), 4).tolist()
    [[False, True], [False, False]]
    """
    return match(rows_Qk, relevant, n_items) >= 0


def recall(hits_Qk: Hits, relevant_Q: NDArray[np.integer], k: int) -> Values:
    """Share of the relevant items that are in the first k: hits / relevant.

    The denominator is the number of relevant items also where it exceeds k (LightGCN's rule; others divide by min(k, relevant)).

    >>> recall(np.array([[True, False, True]]), np.array([4]), 3).tolist()
    [0.5]
    """
    return _ratio(hits_Qk[:, :k].sum(1), relevant_Q, relevant_Q)


def hit_rate(hits_Qk: Hits, relevant_Q: NDArray[np.integer], k: int) -> Values:
    """1 where any relevant item is in the first k, else 0. Equals recall where one item is relevant.

    >>> hit_rate(np.array([[False, True], [False, False]]), np.array([2, 1]), 2).tolist()
    [1.0, 0.0]
    """
    return _ratio(hits_Qk[:, :k].any(1), np.ones(len(hits_Qk)), relevant_Q)


def mrr(hits_Qk: Hits, relevant_Q: NDArray[np.integer], k: int) -> Values:
    """1 / rank of the first relevant item if it is in the first k, else 0 (Voorhees, TREC-8 1999).

    >>> mrr(np.array([[False, True, True]]), np.array([2]), 3).tolist()
    [0.5]
    """
    shown = hits_Qk[:, :k]
    return _ratio(np.where(shown.any(1), 1.0 / (1 + shown.argmax(1)) if shown.shape[1] else 0.0, 0.0), np.ones(len(shown)), relevant_Q)


def average_precision(hits_Qk: Hits, relevant_Q: NDArray[np.integer], k: int) -> Values:
    """Mean over the relevant items of the precision at their rank, 0 for those not in the first k; its mean is MAP@k.

    AP@k = (1 / relevant) * sum over r <= k of hit(r) * (hits up to r) / r. The denominator is the number of relevant items
    (trec_eval's map_cut), not min(k, relevant).

    >>> average_precision(np.array([[True, False, True]]), np.array([2]), 3).round(4).tolist()
    [0.8333]
    """
    shown = hits_Qk[:, :k]
    precision = shown.cumsum(1) / np.arange(1, shown.shape[1] + 1)
    return _ratio((precision * shown).sum(1), relevant_Q, relevant_Q)


def ndcg(hits_Qk: Hits, relevant_Q: NDArray[np.integer], k: int) -> Values:
    """Discounted gain of the first k over the greatest possible (Jarvelin and Kekalainen, 2002).

    DCG@k = sum over r <= k of hit(r) / log2(1 + r); the ideal list has min(k, relevant) hits at its top.

    >>> ndcg(np.array([[False, True, False]]), np.array([1]), 3).round(4).tolist()
    [0.6309]
    """
    discounts = 1.0 / np.log2(np.arange(2, k + 2))
    shown = hits_Qk[:, :k]
    ideal = np.concatenate([[0.0], np.cumsum(discounts)])[np.minimum(relevant_Q, k)]
    return _ratio(shown @ discounts[: shown.shape[1]], ideal, relevant_Q)


def coverage(rows_Qk: NDArray[np.integer], n_recommendable: int, k: int) -> float:
    """Share of the recommendable items that stand in the first k of at least one query. It is no mean over queries, so it has no
    interval; with few queries it is bounded by queries * k / items.

    >>> coverage(np.array([[0, 1], [1, -1]]), 4, 2)
    0.5
    """
    shown = np.unique(rows_Qk[:, :k])
    return float((shown >= 0).sum() / n_recommendable) if n_recommendable else 0.0


def exposure(rows_Qk: NDArray[np.integer], group_I: NDArray[np.bool_], n_recommendable: int, k: int) -> Values:
    """How much of the first k a group of items takes, against its share of what may be recommended: 1 = its share, 0 = never shown.

    (slots that hold one of the group / k) / (items of the group / recommendable items); slots without an item hold none.

    >>> exposure(np.array([[0, 1, 2, -1]]), np.array([True, False, False, False]), 4, 4).tolist()
    [1.0]
    """
    shown_Qk = rows_Qk[:, :k]
    slots_Q = (group_I[np.maximum(shown_Qk, 0)] & (shown_Qk >= 0)).sum(1)
    return np.asarray(slots_Q / k * n_recommendable / group_I.sum(), np.float64)


PER_QUERY: dict[str, Callable[[Hits, NDArray[np.integer], int], Values]] = {
    "recall": recall,
    "ndcg": ndcg,
    "hit_rate": hit_rate,
    "mrr": mrr,
    "map": average_precision,
}
"""Metrics that are means over queries, by the name they have in results."""


def _ratio(numerator: ArrayLike, denominator: ArrayLike, relevant_Q: NDArray[np.integer]) -> Values:
    out = np.full(len(relevant_Q), np.nan)
    np.divide(numerator, denominator, out=out, where=np.asarray(relevant_Q) > 0)
    return out
