"""How much figures of all lists together (coverage, Gini) would move with other people of the same kind.

Such a figure is no mean over queries: it falls with the number of different people alone, of whom a draw with replacement has 63 %. So an
interval here is the spread of the draws about their own median, laid around what was measured.

Legend: Q queries, k ranks, I items, U users, S draws.
"""

from typing import NamedTuple

import numpy as np
import scipy.sparse as sp
from numpy.typing import NDArray

Values = NDArray[np.float64]


class Drawn(NamedTuple):
    """Figures of drawn people: [S] each."""

    coverage_S: Values
    gini_S: Values


def draw(rows_Qk: NDArray[np.integer], user_Q: NDArray[np.integer], shown_I: NDArray[np.bool_], k: int, draws: int, seed: int) -> Drawn:
    """Coverage and Gini of the first k of lists of people drawn with replacement; the same seed draws the same people.

    Args:
        rows_Qk: item rows, -1 where there is none.
        shown_I: items that may be recommended.

    >>> every = draw(np.array([[0, 1], [0, 1]]), np.array([0, 1]), np.ones(4, bool), 2, 3, 0)
    >>> every.coverage_S.tolist(), every.gini_S.tolist()
    ([0.5, 0.5, 0.5], [0.5, 0.5, 0.5])
    """
    users, user_Q = np.unique(user_Q, return_inverse=True)
    filled_Qk = rows_Qk[:, :k] >= 0
    owner = np.repeat(user_Q, filled_Qk.sum(1))
    slots_UI = sp.csr_matrix((np.ones(len(owner)), (owner, rows_Qk[:, :k][filled_Qk])), shape=(len(users), len(shown_I)))
    slots_IU, n = slots_UI[:, np.flatnonzero(shown_I)].T.tocsr(), int(shown_I.sum())
    weight_I, rng = 2.0 * np.arange(1, n + 1) - n - 1, np.random.default_rng(seed)
    coverage_S, gini_S = np.full(draws, np.nan), np.full(draws, np.nan)
    for s in range(draws if len(users) and n else 0):
        slots_I = np.sort(slots_IU @ np.bincount(rng.integers(0, len(users), len(users)), minlength=len(users)))
        coverage_S[s] = np.count_nonzero(slots_I) / n
        if slots_I[-1]:
            gini_S[s] = weight_I @ slots_I / (n * slots_I.sum())
    return Drawn(coverage_S, gini_S)


def interval(value: float, draws_S: Values) -> list[float]:
    """95 % of the draws about their median, laid around a value.

    >>> interval(2.0, np.array([1.0, 1.1, 1.2]))
    [1.905, 2.095]
    """
    low, middle, high = np.nanpercentile(draws_S, (2.5, 50, 97.5)) if not np.isnan(draws_S).all() else [np.nan] * 3
    return [round(float(value + low - middle), 12), round(float(value + high - middle), 12)]
