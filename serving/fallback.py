"""What is shown to people of whom nothing is known."""

import numpy as np
from numpy.typing import NDArray

from serving.index.rowset import RowSet, distinct, neither
from serving.live_catalog import AnyCatalog
from serving.selector import Candidates

MOST_POPULAR = "most_popular"
_NONE = np.empty(0, np.int64)


def most_popular(
    catalog: AnyCatalog, count: int, allowed: RowSet | None, excluded: NDArray[np.int64], last: NDArray[np.int64] = _NONE
) -> Candidates:
    """The items with the most training interactions that may be shown, ties by row.

    Args:
        allowed: rows that may be shown; None = all.
        excluded: rows left out besides.
        last: rows, repeated or not, that come after all others.

    Returns:
        at most `count` candidates; the score is the item's share of all training interactions.
    """
    allowed = neither(RowSet.of_rows(catalog.size, excluded)) if allowed is None else allowed.without(distinct(excluded))
    rows_C = catalog.popular_I[allowed.has(catalog.popular_I)]
    if len(last):
        late_C = RowSet.of_rows(catalog.size, last).has(rows_C)
        rows_C = np.concatenate([rows_C[~late_C], rows_C[late_C]])
    rows_C = rows_C[:count].astype(np.int64)
    return Candidates(rows_C, catalog.share_I[rows_C])
