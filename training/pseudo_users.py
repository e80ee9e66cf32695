"""Histories that nobody had: walks over items that were chosen together, for looking at a model without looking at people.

Legend: U users, I items.
"""

import numpy as np
from numpy.typing import NDArray

from towers.columns import TRAIN
from training.interactions import Interactions
from training.ragged import Csr, group

MOST_USERS = 20_000
"""Users whose choices the walks go over, drawn by the seed."""


def pseudo_histories(data: Interactions, count: int, length: int, seed: int) -> list[list[int]]:
    """Random histories, each a list of distinct item rows, oldest first.

    A walk starts at an item drawn by popularity and goes on to another item of somebody who chose the present one. Each step goes through
    another user than the step before where there is one, and only over items that at least two users chose: a history follows
    what goes together, and is no one's.

    Args:
        count: histories.
        length: the longest; each has 1 to `length` items, drawn evenly.
        seed: of the draws.
    """
    rng = np.random.default_rng(seed)
    items_of_user, users_of_item = _shared_choices(data, rng)
    if not len(items_of_user[1]):
        return []
    return [_walk(items_of_user, users_of_item, int(rng.integers(1, length + 1)), rng) for _ in range(count)]


def _shared_choices(data: Interactions, rng: np.random.Generator) -> tuple[Csr, Csr]:
    """Items of each sampled user, and users of each item; items that one of them alone chose are left out."""
    users = np.sort(rng.permutation(data.n_users)[:MOST_USERS])
    rows = np.concatenate([np.arange(data.offsets[user], data.offsets[user + 1]) for user in users])
    rows = rows[(data.split[rows] == TRAIN) & (data.weight[rows] > 0)]
    user = np.searchsorted(users, data.users_of(rows))
    pairs = np.unique(np.stack([user, data.item[rows]]), axis=1)
    shared_I = np.bincount(pairs[1], minlength=data.n_items) > 1
    user, item = pairs[:, shared_I[pairs[1]]]
    return group(user, item, len(users)), group(item, user, data.n_items)


def _walk(items_of_user: Csr, users_of_item: Csr, length: int, rng: np.random.Generator) -> list[int]:
    item = int(rng.choice(items_of_user[1]))
    walked, last = [item], -1
    for _ in range(4 * length):  # a walk may come back to where it was
        if len(walked) == length:
            break
        user = _draw(_row(users_of_item, item), last, rng)
        item, last = int(rng.choice(_row(items_of_user, user))), user
        if item not in walked:
            walked.append(item)
    return walked


def _draw(values: NDArray[np.integer], unwanted: int, rng: np.random.Generator) -> int:
    """One of the values, another than the unwanted where there is one."""
    others = values[values != unwanted]
    return int(rng.choice(others if len(others) else values))


def _row(table: Csr, row: int) -> NDArray[np.int64]:
    return np.asarray(table[1][table[0][row] : table[0][row + 1]])
