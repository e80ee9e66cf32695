"""Where a list of candidates ends: whether enough are left, and whether equal ones stand outside.

Legend: H heads, C candidates.
"""

import numpy as np
from numpy.typing import NDArray

from serving.index.interface import SearchResult
from serving.index.rowset import RowSet


def kept(found: SearchResult, k: int, allowed: RowSet | None) -> SearchResult | None:
    """The k best of the permitted ones; None where they are fewer."""
    if allowed is not None:
        kept = allowed.has(found.rows)
        found = SearchResult(found.rows[kept][:k], found.scores[kept][:k])
    return found if len(found.rows) >= k else None


def tied(scores: NDArray[np.float32], k: int) -> bool:
    """Whether the k-th of ordered scores has an equal beside it."""
    return bool(len(scores) > k and (scores[k] == scores[k - 1] or (k > 1 and scores[k - 2] == scores[k - 1])))


def ties_at_the_edge(found: SearchResult, k: int, near_HC: NDArray[np.float32], found_HC: NDArray[np.int64]) -> bool:
    """Whether items equal to the k-th may have been left out: equal vectors are equally near, and the last ones fetched are such.

    The lowest rows of them are to be returned, and the lists return any.
    """
    edge_HC = near_HC == near_HC[:, -1:]
    if len(found.rows) <= k:
        return False
    tied = found.rows[found.scores == found.scores[k - 1]]
    return len(tied) > 1 and bool(np.isin(found_HC[edge_HC], tied).any())
