"""What a model must beat: rankings that need no training, counted on training rows and ranked under the model's own masks.

Legend: Q queries, B queries of a block, I items, N prepared rows.
A ranking is a `Fill`: it writes the scores of a block of queries into a buffer. Ties go to the lower item row, as everywhere.
"""

from collections.abc import Sequence

import numpy as np
import scipy.sparse as sp
import torch
from numpy.typing import NDArray
from torch import Tensor

from towers.columns import FIRST_ROW, ITEM_ID, NO_TIME, TRAIN
from towers.errors import DataError
from towers.topk import Fill
from training.interactions import Interactions
from training.queries import Queries
from training.sources.base import Oracle

_DAY_US = 86_400_000_000


def same_for_all(scores_I: NDArray[np.generic]) -> Fill:
    """One list for everybody."""
    scores = torch.as_tensor(np.asarray(scores_I, np.float32))

    def fill(queries: slice, out_BI: Tensor) -> None:
        out_BI.copy_(scores.expand_as(out_BI))

    return fill


def most_popular(data: Interactions) -> Fill:
    """Items by how often they are a target in training."""
    return same_for_all(data.train_counts())


def own_history(data: Interactions, queries: Queries) -> Fill:
    """What the user had before, most often first; then the most popular. Where seen items are masked that is the most popular alone.

    Score of item i = times in the query's history + popularity(i) / (1 + greatest popularity).
    """
    popularity = torch.as_tensor(_below_one(data.train_counts()))

    def fill(block: slice, out_BI: Tensor) -> None:
        out_BI.copy_(popularity.expand_as(out_BI))
        offsets, rows = queries.history.take(block).rows()
        where = (
            torch.as_tensor(np.repeat(np.arange(len(offsets) - 1), np.diff(offsets))),
            torch.as_tensor(data.item[rows].astype(np.int64)),
        )
        out_BI.index_put_(where, torch.ones(len(rows)), accumulate=True)

    return fill


def recent_popular(data: Interactions, days: int) -> Fill:
    """Items by how often they are a target in the last `days` days before the last training event.

    Counts of all of training break the ties, so that items outside the window still have an order.
    """
    train = np.flatnonzero((data.split == TRAIN) & (data.weight > 0))
    times = data.timestamp[train]
    newest = int(times.max(initial=NO_TIME))
    recent = np.bincount(data.item[train[times > newest - days * _DAY_US]], minlength=data.n_items)
    return same_for_all(recent + _below_one(data.train_counts()))


def markov(data: Interactions, queries: Queries) -> Fill:
    """First-order Markov chain: how often the item followed the newest item of the history, in training.

    Score of item j after item i = count(i -> j) + popularity(j) / (1 + greatest popularity): the second term is below one, so it only
    orders items of equal counts, those never seen after i among them. An empty history gets popularity. Only consecutive training
    events of one user count as a step, and only steps to an event that may be a target.
    """
    train = np.flatnonzero(data.split == TRAIN)
    user = data.users_of(train)
    step = (user[1:] == user[:-1]) & (data.weight[train[1:]] > 0)
    before, after = data.item[train[:-1][step]], data.item[train[1:][step]]
    counts_II = sp.csr_matrix((np.ones(len(before), np.float32), (before, after)), shape=(data.n_items, data.n_items))
    counts_II.sum_duplicates()
    popularity = torch.as_tensor(_below_one(data.train_counts()))
    last_Q = queries.last_Q

    def fill(block: slice, out_BI: Tensor) -> None:
        out_BI.copy_(popularity.expand_as(out_BI))
        known = np.flatnonzero(last_Q[block] >= 0)
        rows = counts_II[last_Q[block][known]].tocoo()
        where = (torch.as_tensor(known[rows.row]), torch.as_tensor(rows.col.astype(np.int64)))
        out_BI.index_put_(where, torch.as_tensor(rows.data), accumulate=True)

    return fill


def random_order(seed: int) -> Fill:
    """An order drawn for each query."""

    def fill(queries: slice, out_BI: Tensor) -> None:
        for row, query in enumerate(range(queries.start, queries.stop)):
            torch.rand(out_BI.shape[1], generator=torch.Generator().manual_seed(seed * 1_000_003 + query), out=out_BI[row])

    return fill


def oracle(truth: Oracle, item_ids: Sequence[str], user_ids: Sequence[str], user_keys: NDArray[np.uint8], queries: Queries) -> Fill:
    """The simulator's true utilities: what no model can beat on average.

    Args:
        truth: the world's utilities, for its items in ascending item_id order.
        item_ids: all items of the world.
        user_ids: all users of the world.
        user_keys: their keys under this run's secret, uint8 [n, 16].
        queries: what is asked.

    Raises:
        DataError: the world is not the one that was prepared.
    """
    data = queries.data
    place = {item: column for column, item in enumerate(sorted(item_ids))}
    by_key = {bytes(key): user for user, key in zip(user_ids, user_keys, strict=True)}
    try:
        columns_I = torch.as_tensor([place[item] for item in data.catalog[ITEM_ID].to_pylist()])
        users_Q = [by_key[bytes(data.user_keys[user])] for user in queries.user_Q]
    except KeyError as error:
        raise DataError(
            f"the source does not know {error.args[0]!r}, which is in the prepared data: data.* or identity.key_file changed since"
            " `towers prepare`. Prepare again, or evaluate with the settings of then"
        ) from error
    context = {f.source_column: _values(data, f.name, queries.event_Q) for f in data.schema.owned_by("context") if f.kind == "categorical"}
    now_Q = queries.now_Q

    def fill(block: slice, out_BI: Tensor) -> None:
        here = {name: values[block] for name, values in context.items()}
        utilities_BI = torch.as_tensor(truth.utilities(users_Q[block], now_Q[block], here))
        out_BI.copy_(utilities_BI[:, columns_I])

    return fill


def _values(data: Interactions, feature: str, events: NDArray[np.int64]) -> list[str | None]:
    """Raw values of an encoded categorical context feature."""
    known = data.preprocessor.vocabularies[data.schema.feature(feature).vocabulary].values().to_pylist()
    names = np.array([None] * FIRST_ROW + known, dtype=object)
    return list(names[np.asarray(data.context[f"context.{feature}"][events])])


def _below_one(counts_I: NDArray[np.int64]) -> NDArray[np.float32]:
    return np.asarray(counts_I / (counts_I.max(initial=0) + 1), np.float32)
