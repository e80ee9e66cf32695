"""A scan of what a filter leaves, less the rows whose lists lie too far from the query.

Legend: H heads, D dimensions, C rows that a filter leaves.
"""

import numpy as np
from numpy.typing import NDArray

from serving.index.edge import tied
from serving.index.exact import ExactIndex
from serving.index.interface import SearchResult
from serving.index.rowset import Rows

FIRST = 4
"""Rows scored first, for each one wanted: their k-th score tells which others are. 2 to 8 cost the same within a tenth."""


def narrowed(
    exact: ExactIndex, query_HD: NDArray[np.float32], k: int, rows_C: Rows, centre_C: NDArray[np.float32], reach: float
) -> SearchResult | None:
    """The k best of some rows, by exact scores; None where only a scan of all can tell which of equal ones they are.

    Args:
        exact: scores them.
        rows_C: distinct; more than FIRST * k.
        centre_C: how the centre of each row's list scores.
        reach: how far a centre may lie below the k-th score, see `list_margin`.
    """
    start = len(rows_C) - FIRST * k
    floor = np.partition(centre_C, start)[start]
    found = exact.ranked(query_HD, rows_C.compress(centre_C >= floor), k + 1)
    near_C = centre_C >= found.scores[k - 1] - np.float32(reach)
    near_C &= centre_C < floor
    more = rows_C.compress(near_C)
    if len(more):
        found = exact.ranked(query_HD, np.concatenate([found.rows, more]), k + 1)
    return None if tied(found.scores, k) else SearchResult(found.rows[:k], found.scores[:k])
