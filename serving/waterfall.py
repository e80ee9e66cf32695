"""Held-out queries answered with one stage of serving more each time, so that what a list loses on its way has an owner.

| stage | what is new in it |
|---|---|
| model | exact scores over the whole catalogue, nothing left out |
| index | the index that serves in place of exact scores |
| filters | hidden and blocked items are left out |
| seen | items of the person's history are left out |
| selector | the list as the deployment makes it |
"""

from collections.abc import Callable, Iterator
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from serving.index.exact import ExactIndex
from serving.index.interface import VectorIndex
from serving.index.rowset import RowSet
from serving.retriever import Retriever
from towers.held_out import HeldOut

Rows = NDArray[np.integer]


class Stage(NamedTuple):
    """A stage, and the rows of its list for each query, best first."""

    name: str
    lists: list[Rows]


def waterfall(retriever: Retriever, held: HeldOut, k: int, select: Callable[[int], Rows]) -> Iterator[Stage]:
    """The stages in order, k items a list.

    Args:
        select: the deployment's own list for a query, by its place.
    """
    exact, blocked = ExactIndex(retriever.bundle.item_vectors()), retriever.catalog.rows(retriever.chooser.blocked)
    allowed = retriever.item_filter.allowed()

    def lists(index: VectorIndex, kept: RowSet | None, excluded: Callable[[int], NDArray[np.int64]]) -> list[Rows]:
        return [index.search(vectors_HD, k, kept, excluded(place)).rows for place, vectors_HD in enumerate(held.vectors_QHD)]

    def seen(place: int) -> NDArray[np.int64]:
        return retriever.catalog.rows([*held.seen[place].as_py(), *retriever.chooser.blocked])

    nothing = np.empty(0, np.int64)
    yield Stage("model", lists(exact, None, lambda place: nothing))
    yield Stage("index", lists(retriever.index, None, lambda place: nothing))
    yield Stage("filters", lists(retriever.index, allowed, lambda place: blocked))
    yield Stage("seen", lists(retriever.index, allowed, seen))
    yield Stage("selector", [select(place) for place in range(len(held))])
