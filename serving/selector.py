"""From candidates to the list that is shown: the one place where an order is decided after the search. It keeps the search's."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True)
class Policy:
    """What the selector does. This one is the identity: the k best candidates, in score order.

    Attributes:
        k: items wanted.
    """

    k: int

    @property
    def candidates(self) -> int:
        """How many candidates to search for."""
        return self.k


@dataclass(frozen=True)
class Candidates:
    """Catalogue rows and scores, best first, no duplicates: int [C], float32 [C]."""

    rows_C: NDArray[np.integer]
    scores_C: NDArray[np.float32]


@dataclass(frozen=True)
class Selection:
    """The list: rows, scores, and the probability of each choice given those before it (1 where nothing is drawn)."""

    rows_k: NDArray[np.integer]
    scores_k: NDArray[np.float32]
    propensities_k: NDArray[np.float64]


def select(candidates: Candidates, policy: Policy) -> Selection:
    """Choose and order.

    Returns:
        at most `policy.k` rows; fewer where there are fewer candidates.
    """
    rows_k = candidates.rows_C[: policy.k]
    return Selection(rows_k, candidates.scores_C[: policy.k], np.ones(len(rows_k)))
