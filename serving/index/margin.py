"""How far from a query its best items lie: how many lists a filter needs is told by it, and it is found on held-out users.

Legend: Q queries, B queries of a block, D dimensions, I items, L lists, K items of a top.
"""

import numpy as np
from numpy.typing import NDArray

from serving.index.exact import ExactIndex
from serving.index.faiss_index import FaissIndex

_QUERIES = 200
_BLOCK_FLOATS = 16_000_000
_NEAR = 10
"""One in so many items is left by the filters tried."""


def list_margin(index: FaissIndex, exact: ExactIndex, query_QD: NDArray[np.float32], k: int, floor: float) -> float:
    """How far a list's centre may score below the k-th item, for queries of norm 1, where it holds some of the best k.

    So far that it holds for (1 + floor) / 2 of them: half of what the recall floor lets go is left to short codes. Judged on the best of
    all items and on those of the tenth that another user likes best, the greater of both: such a filter, which leaves some topics and not
    others, needs about 1.5 times the margin that one at random does. One that leaves what scores lowest needs less than either.

    Args:
        index: an inverted file of all items.
        exact: the same catalogue.
        query_QD: held-out user vectors; the first 200 are read.
        k: items wanted.
        floor: recall to reach.
    """
    query_QD, items = query_QD[:_QUERIES], len(exact.item_ID)
    list_I, block = index.list_I, max(2, _BLOCK_FLOATS // items)
    plain: list[NDArray[np.float32]] = []
    filtered: list[NDArray[np.float32]] = []
    for start in range(0, len(query_QD), block):
        query_BD = query_QD[start : start + block]
        scores_BI, centre_BL = exact.all_scores(query_BD), query_BD @ index.centres_LD.T
        longest_B = np.linalg.norm(query_BD, axis=1) + np.float32(1e-30)
        for b, longest in enumerate(longest_B):
            liked = _top(scores_BI[b - 1], np.arange(items), max(k, items // _NEAR))
            for gaps, rows in ((plain, np.arange(items)), (filtered, liked)):
                top_K = _top(scores_BI[b], rows, k)
                gaps.append((scores_BI[b, top_K].min() - centre_BL[b, list_I[top_K]]) / longest)
    return float(max(np.quantile(np.concatenate(gaps), (1 + floor) / 2) for gaps in (plain, filtered)))


def _top(scores_I: NDArray[np.float32], rows: NDArray[np.int64], count: int) -> NDArray[np.int64]:
    """Those of some rows that score highest, in any order."""
    count = min(count, len(rows))
    return rows[np.argpartition(scores_I[rows], len(rows) - count)[len(rows) - count :]]
