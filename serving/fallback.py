"""What is shown to people of whom nothing is known."""

import numpy as np
from numpy.typing import NDArray

from serving.catalog import Catalog
from serving.selector import Candidates

MOST_POPULAR = "most_popular"


def most_popular(catalog: Catalog, count: int, excluded: NDArray[np.int64]) -> Candidates:
    """The items with the most training interactions that may be shown, ties by row.

    Args:
        excluded: rows left out besides the hidden ones.

    Returns:
        at most `count` candidates; the score is the item's share of all training interactions.
    """
    shown_I = np.ones(len(catalog), bool) if catalog.allowed_I is None else catalog.allowed_I.copy()
    shown_I[excluded] = False
    rows_C = catalog.popular_I[shown_I[catalog.popular_I]][:count]
    return Candidates(rows_C, catalog.share_I[rows_C])
