"""Items that no list reaches: what an item's relevance lacks to be seen by a share of the people, computed when a catalogue is indexed.

An item that is second best for everybody is shown to nobody. For each held-out person an item lacks the distance to that person's
twentieth best item, in the units that the selector weighs in (1 from the best of 200 candidates to the last). Of an item's distances the
n-th smallest is kept, n being the share wanted of the people asked: raised by as much, the item stands in the first twenty of the n people
whom it suits best, and of no others. Nothing is learned from what these people chose.

Legend: Q queries, H heads, I items, D dimensions.
"""

import numpy as np
from numpy.typing import NDArray

from serving.catalog import Catalog
from serving.index.exact import ExactIndex
from serving.policy import LEAST_CANDIDATES
from towers.bundle import Bundle
from towers.errors import BundleError
from towers.held_out import HeldOut

REACH_FILE = "reach.npy"
FIRST = 20
"""Positions of a list that are to be reached; after them items stand where their relevance puts them."""
MOST_QUERIES = 20_000
_BLOCK_ITEMS = 512


def lacking(exact: ExactIndex, held: HeldOut, catalog: Catalog, share: float) -> NDArray[np.float32]:
    """What each item lacks, 0 where it lacks nothing: float32 [I].

    Args:
        held: of them MOST_QUERIES, evenly, are asked.
        share: of the people that each item is to reach.
    """
    asked = np.unique(np.linspace(0, len(held) - 1, min(len(held), MOST_QUERIES)).round().astype(np.int64))
    seen = [catalog.rows(held.seen[place].as_py()) for place in asked.tolist()]
    vectors_QHD = held.vectors_QHD[asked]
    twentieth_Q, span_Q = np.empty(len(asked), np.float32), np.empty(len(asked), np.float32)
    for q, rows in enumerate(seen):
        scores = exact.search(vectors_QHD[q], LEAST_CANDIDATES, None, np.concatenate([rows, catalog.hidden.rows()])).scores
        twentieth_Q[q], span_Q[q] = scores[min(FIRST, len(scores)) - 1], float(scores[0] - scores[-1]) or 1.0
    owner, flat = np.repeat(np.arange(len(asked)), [len(rows) for rows in seen]), np.concatenate(seen)
    order = np.argsort(flat, kind="stable")
    owner, flat = owner[order], flat[order]
    wanted = max(1, round(share * len(asked)))
    lacks_I = np.zeros(len(exact.item_ID), np.float32)
    for start in range(0, len(lacks_I), _BLOCK_ITEMS):
        items = exact.item_ID[start : start + _BLOCK_ITEMS]
        scores_QI = np.max([vectors_QHD[:, h] @ items.T for h in range(vectors_QHD.shape[1])], axis=0)
        lacks_QI = (twentieth_Q[:, None] - scores_QI) / span_Q[:, None]
        here = slice(*np.searchsorted(flat, (start, start + len(items))))
        lacks_QI[owner[here], flat[here] - start] = np.inf  # whoever has seen it is not to be reached
        nth_I = np.partition(lacks_QI, min(wanted, len(asked)) - 1, axis=0)[min(wanted, len(asked)) - 1]
        lacks_I[start : start + len(items)] = np.where(np.isfinite(nth_I), np.maximum(nth_I, 0.0), 0.0)
    return lacks_I


def open_reach(bundle: Bundle, size: int) -> NDArray[np.float32] | None:
    """The bundle's, mapped; None where it was indexed without.

    Raises:
        BundleError: it is of another catalogue.
    """
    if not bundle.has(REACH_FILE):
        return None
    with bundle.reading(REACH_FILE) as path:
        lacks_I: NDArray[np.float32] = np.load(path, mmap_mode="r", allow_pickle=False)
    if lacks_I.shape != (size,):
        raise BundleError(f"bundle {bundle.folder}: {REACH_FILE} is of {lacks_I.shape} items, the catalogue has {size}; index it again")
    return lacks_I
