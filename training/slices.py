"""Parts of an evaluation: by history length, by the relevant item's popularity and age, and cold items alone.

Legend: Q queries, R relevant (query, item) pairs, I items.
A slice keeps some queries (`history=`), or some relevant items: then only those count as relevant, the lists stay what they were, and
queries without any of them are left out.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from towers.columns import CREATED_AT, NO_TIME
from training import ragged
from training.queries import Queries

HISTORY_BUCKETS = ((0, 0), (1, 2), (3, 5), (6, 10), (11, 20), (21, 50), (51, None))
AGE_BUCKETS_DAYS = ((None, 1), (1, 7), (7, 30), (30, 90), (90, None))
_DAY_US = 86_400_000_000


@dataclass(frozen=True)
class Slice:
    """One slice.

    Attributes:
        name: `history=3-5`, `popularity=10`, `item_age=7-30d`, `cold` (no training event), `warm` (the others, where some are cold),
            `warm_alone` (see there).
        pairs_R: the relevant pairs that count.
    """

    name: str
    pairs_R: NDArray[np.bool_]


def all_slices(queries: Queries, train_counts_I: NDArray[np.int64]) -> list[Slice]:
    """The slices that hold any query."""
    made = [*_by_history(queries), *_by_popularity(queries, train_counts_I), *_by_age(queries)]
    return [part for part in made if part.pairs_R.any()]


def _by_history(queries: Queries) -> Iterator[Slice]:
    length_R = queries.history_Q[ragged.owners(queries.relevant)]
    for low, high in HISTORY_BUCKETS:
        name = f"{low}+" if high is None else str(low) if low == high else f"{low}-{high}"
        yield Slice(f"history={name}", (length_R >= low) & (length_R <= (np.inf if high is None else high)))


def _by_popularity(queries: Queries, train_counts_I: NDArray[np.int64]) -> Iterator[Slice]:
    decile_R = deciles(train_counts_I)[queries.relevant[1]]
    cold_R = decile_R == 0
    yield Slice("cold", cold_R)
    if cold_R.any():
        yield Slice("warm", ~cold_R)
    for decile in range(1, 11):
        yield Slice(f"popularity={decile}", decile_R == decile)


def warm_alone(slices: Sequence[Slice]) -> Slice | None:
    """The slice `warm` for lists that hold items of training alone: how well those are told apart, whatever places others take."""
    return next((Slice("warm_alone", part.pairs_R) for part in slices if part.name == "warm"), None)


def deciles(train_counts_I: NDArray[np.int64]) -> NDArray[np.int64]:
    """The popularity decile of each item: 10 = the tenth of trained items with most training events, 0 = no training event.

    Equal counts are divided by row, so that deciles are equally large.

    >>> deciles(np.array([5, 0, 7, 1, 2])).tolist()
    [8, 0, 10, 3, 5]
    """
    trained = np.flatnonzero(train_counts_I > 0)
    order = trained[np.argsort(train_counts_I[trained], kind="stable")]
    decile_I = np.zeros(len(train_counts_I), np.int64)
    decile_I[order] = -(-10 * np.arange(1, len(order) + 1) // max(1, len(order)))
    return decile_I


def _by_age(queries: Queries) -> Iterator[Slice]:
    catalog = queries.data.catalog
    if CREATED_AT not in catalog.column_names:
        return
    created_I = catalog[CREATED_AT].cast(pa.int64()).fill_null(NO_TIME).to_numpy()
    created_R = created_I[queries.relevant[1]]
    now_R = queries.now_Q[ragged.owners(queries.relevant)]
    known_R = (created_R != NO_TIME) & (now_R != NO_TIME)
    days_R = np.where(known_R, now_R - np.where(known_R, created_R, 0), 0) / _DAY_US
    for low, high in AGE_BUCKETS_DAYS:
        inside_R = (days_R >= (-np.inf if low is None else low)) & (days_R < (np.inf if high is None else high))
        yield Slice(f"item_age={low or 0}-{high}d" if high else f"item_age={low}d+", known_R & inside_R)
