"""Intervals by resampling users: a user's queries stay together, because they are not independent of each other.

Legend: Q queries, M metrics (columns), U users with queries, S draws of a block.
The percentile bootstrap (Efron and Tibshirani, 1993, chapter 13): users are drawn with replacement, as many as there are, and the
mean over all queries of the drawn users is taken; the interval is between the 2.5th and 97.5th percentile of those means. It
tells how much the number would move with other users of the same kind; it says nothing about another training seed.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

_BLOCK_DRAWS = 50


@dataclass(frozen=True)
class Estimates:
    """Means of M metrics with their 95 % intervals.

    Attributes:
        value_M: mean over the queries that have a value; NaN where none has.
        low_M, high_M: bounds of the interval; NaN where no draw held a user with a value.
        n_M: queries with a value.
    """

    value_M: NDArray[np.float64]
    low_M: NDArray[np.float64]
    high_M: NDArray[np.float64]
    n_M: NDArray[np.int64]


def estimate(values_QM: NDArray[np.float64], user_Q: NDArray[np.integer], draws: int, seed: int) -> Estimates:
    """Means over queries and their intervals over users.

    Differences of two models come from the same function, given the per-query differences: the same seed draws the same users.

    Args:
        values_QM: a value per query and metric; NaN = the query does not count for the metric.
        user_Q: whose query it is.
        draws: bootstrap draws.
        seed: of the draws.

    >>> e = estimate(np.array([[1.0], [1.0], [1.0]]), np.array([0, 0, 1]), draws=10, seed=0)
    >>> e.value_M.tolist(), e.low_M.tolist(), e.high_M.tolist(), e.n_M.tolist()
    ([1.0], [1.0], [1.0], [3])
    """
    means = draw_means(values_QM, user_Q, draws, seed)
    n_M = (~np.isnan(values_QM)).sum(0)
    value_M = np.full(values_QM.shape[1], np.nan)
    np.divide(np.nansum(values_QM, axis=0), n_M, out=value_M, where=n_M > 0)
    low_M, high_M = value_M.copy(), value_M.copy()
    some_M = (~np.isnan(means)).any(axis=0)
    low_M[~some_M], high_M[~some_M] = np.nan, np.nan
    if some_M.any():
        low_M[some_M], high_M[some_M] = np.nanpercentile(means[:, some_M], (2.5, 97.5), axis=0)
    return Estimates(value_M, low_M, high_M, n_M)


def draw_means(values_QM: NDArray[np.float64], user_Q: NDArray[np.integer], draws: int, seed: int) -> NDArray[np.float64]:
    """The mean of each metric over the queries of the drawn users: float64 [draws, M], NaN where none of them has a value.

    Args: see `estimate`; what is made of several metrics (a gap between groups) has its interval from these.
    """
    known_QM = ~np.isnan(values_QM)
    users, user_Q = np.unique(user_Q, return_inverse=True)
    sums_UM = _by_user(np.where(known_QM, values_QM, 0.0), user_Q, len(users))
    counts_UM = _by_user(known_QM.astype(np.float64), user_Q, len(users))
    # Metrics of the same queries share their counts: one product for each set of queries instead of one a metric.
    distinct_UC, column_M = _distinct(counts_UM)
    means = np.full((draws, values_QM.shape[1]), np.nan)
    rng = np.random.default_rng(seed)
    for start in range(0, draws if len(users) else 0, _BLOCK_DRAWS):
        times_SU = _draw(rng, min(_BLOCK_DRAWS, draws - start), len(users))
        total_SM = (times_SU @ distinct_UC)[:, column_M]
        np.divide(times_SU @ sums_UM, total_SM, out=means[start : start + _BLOCK_DRAWS], where=total_SM > 0)
    return means


def _draw(rng: np.random.Generator, draws: int, users: int) -> NDArray[np.float64]:
    """How often each user is drawn: [S, U], rows sum to U."""
    chosen = rng.integers(0, users, (draws, users)) + np.arange(draws)[:, None] * users
    return np.bincount(chosen.ravel(), minlength=draws * users).reshape(draws, users).astype(np.float64)


def _by_user(values_QM: NDArray[np.float64], user_Q: NDArray[np.integer], users: int) -> NDArray[np.float64]:
    order = np.argsort(user_Q, kind="stable")
    starts = np.searchsorted(user_Q[order], np.arange(users))
    return np.add.reduceat(values_QM[order], starts, axis=0) if len(order) else np.zeros((users, values_QM.shape[1]))


def _distinct(counts_UM: NDArray[np.float64]) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
    """The distinct columns, and the place of each column among them."""
    places: dict[bytes, int] = {}
    column_M = np.array([places.setdefault(column.tobytes(), len(places)) for column in counts_UM.T], np.int64)
    _, first = np.unique(column_M, return_index=True)
    return counts_UM[:, first], column_M
