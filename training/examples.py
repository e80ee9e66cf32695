"""Which examples an epoch has, and in which order: samplers over the events that training may read.

Legend: U users, E events read (of the chosen splits, user by user), N examples of an epoch, B rows, M some of them, L history length,
K blocks.
An example is one number. For `event` and `sequence` it is its `end`: the place among the E events of its (last) target, and its
history stands before it. For `user` it is the user row.
"""

from typing import NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from training.events import TrainingEvents, row_blocks
from training.interactions import Interactions
from training.shuffle import Order

EVENTS_A_BLOCK, USERS_A_BLOCK = 4096, 256
"""Examples that lie together are read together: a block's pages are touched once."""


class Sampler(Protocol):
    """Decides what an example is. `name` is the sampler's name in TrainBatch."""

    name: str

    def __len__(self) -> int:
        """Examples of an epoch."""
        ...

    def epoch(self, seed: int, epoch: int) -> Order:
        """All examples of an epoch, in training order; the same for the same (seed, epoch)."""
        ...


class EventSampler:
    """One example per target: predicted from the events of the same user strictly before it."""

    name = "event"

    def __init__(self, events: TrainingEvents) -> None:
        self._target_E = events.target_E
        starts = range(0, len(events), EVENTS_A_BLOCK)  # not reduceat: it would copy all flags as 8-byte numbers
        self._counts_K = np.array([np.count_nonzero(self._target_E[start : start + EVENTS_A_BLOCK]) for start in starts], np.int64)

    def __len__(self) -> int:
        return int(self._counts_K.sum())

    def epoch(self, seed: int, epoch: int) -> Order:
        return Order(self._counts_K, self._members, seed, epoch)

    def _members(self, block: int) -> NDArray[np.int64]:
        start = block * EVENTS_A_BLOCK
        return np.flatnonzero(self._target_E[start : start + EVENTS_A_BLOCK]) + start


class SequenceSampler:
    """Windows of L consecutive targets, each predicted from the events before it, for encoders that learn at all positions at once.

    The last window of a user ends at the user's last event, earlier ones lie before it without overlap, so every event is
    predicted once an epoch; the first one from an empty history. Windows without a target are left out.
    """

    name = "sequence"

    def __init__(self, events: TrainingEvents, length: int) -> None:
        self._events, self._length = events, length
        blocks = -(-(len(events.offsets_U1) - 1) // USERS_A_BLOCK)
        self._counts_K = np.array([len(self._members(block)) for block in range(blocks)], np.int64)

    def __len__(self) -> int:
        return int(self._counts_K.sum())

    def epoch(self, seed: int, epoch: int) -> Order:
        return Order(self._counts_K, self._members, seed, epoch)

    def _members(self, block: int) -> NDArray[np.int64]:
        length, bounds = self._length, self._events.offsets_U1[block * USERS_A_BLOCK :][: USERS_A_BLOCK + 1]
        starts_U, stops_U = bounds[:-1], bounds[1:]
        windows_U = -(-(stops_U - starts_U) // length)
        user_W = np.repeat(np.arange(len(windows_U)), windows_U)
        back_W = np.arange(len(user_W)) - np.repeat(np.cumsum(windows_U) - windows_U, windows_U)
        ends_W = stops_U[user_W] - 1 - back_W * length
        firsts_W = np.maximum(starts_U[user_W], ends_W - length + 1)
        before_E1 = np.concatenate([[0], np.cumsum(self._events.target_E[bounds[0] : bounds[-1]])])
        ends: NDArray[np.int64] = ends_W[before_E1[ends_W + 1 - bounds[0]] > before_E1[firsts_W - bounds[0]]]
        return ends


class UserSampler:
    """One example per user with a target: part of the user's events is the history, the targets among the rest are predicted all at once
    (see `user_parts`)."""

    name = "user"

    def __init__(self, events: TrainingEvents) -> None:
        self._events = events
        blocks = -(-(len(events.offsets_U1) - 1) // USERS_A_BLOCK)
        self._counts_K = np.array([len(self._members(block)) for block in range(blocks)], np.int64)

    def __len__(self) -> int:
        return int(self._counts_K.sum())

    def epoch(self, seed: int, epoch: int) -> Order:
        return Order(self._counts_K, self._members, seed, epoch)

    def _members(self, block: int) -> NDArray[np.int64]:
        bounds = self._events.offsets_U1[block * USERS_A_BLOCK :][: USERS_A_BLOCK + 1]
        before_E1 = np.concatenate([[0], np.cumsum(self._events.target_E[bounds[0] : bounds[-1]])])
        return np.flatnonzero(np.diff(before_E1[bounds - bounds[0]])) + block * USERS_A_BLOCK


def make_sampler(name: str, events: TrainingEvents, length: int) -> Sampler:
    """The sampler of that name; windows are of `length` events."""
    if name == "sequence":
        return SequenceSampler(events, length)
    return UserSampler(events) if name == "user" else EventSampler(events)


class UserParts(NamedTuple):
    """What the `user` sampler makes of B users: places among the E events, -1 = none.

    Attributes:
        history_BL: right-aligned.
        target_BT: the events to be predicted, left-aligned; column 0 is never empty, but need not be a target.
    """

    history_BL: NDArray[np.int64]
    target_BT: NDArray[np.int64]


def user_parts(
    starts_B: NDArray[np.int64],
    stops_B: NDArray[np.int64],
    length: int,
    most: int,
    shuffled: bool,
    rng: np.random.Generator,
    kept: float = 0.5,
) -> UserParts:
    """Divide each user's events into history and what is to be predicted from it.

    Data without order (`shuffled`): a random part of the events, at most L of them, is the history; of the rest, in random order, at most
    `most` are predicted. Ordered data: a cut at a random place; the L events before it are the history, the next
    `most` are predicted.

    Args:
        starts_B, stops_B: each user's events; at least one.
        kept: share of the events of data without order that is the history, rounded down.
    """
    counts_B = stops_B - starts_B
    if shuffled:
        rows_M = np.repeat(np.arange(len(counts_B)), counts_B)
        first_B = np.cumsum(counts_B) - counts_B
        order_M = np.lexsort((rng.random(len(rows_M)), rows_M)) - first_B[rows_M] + starts_B[rows_M]
        cut_B = _history_size(counts_B, length, kept)
    else:
        cut_B = np.floor(rng.random(len(counts_B)) * counts_B).astype(np.int64)
    columns = min(most, int((counts_B - cut_B).max(initial=0)))
    ranks_BL, ranks_BT = cut_B[:, None] + np.arange(-length, 0), cut_B[:, None] + np.arange(columns)
    held_BL, held_BT = ranks_BL >= 0, ranks_BT < counts_B[:, None]
    if shuffled:
        history_BL = order_M[np.where(held_BL, first_B[:, None] + ranks_BL, 0)]
        target_BT = order_M[np.where(held_BT, first_B[:, None] + ranks_BT, 0)]
    else:
        history_BL, target_BT = starts_B[:, None] + ranks_BL, starts_B[:, None] + ranks_BT
    return UserParts(np.where(held_BL, history_BL, -1), np.where(held_BT, target_BT, -1))


def user_draws(data: Interactions, events: TrainingEvents, length: int, most: int, kept: float) -> NDArray[np.float64]:
    """float64 [I]: how often an epoch of the `user` sampler has each catalogue row as a target, on average over how it may divide users.

    In data without order a user's events are all as likely to be predicted. In ordered data the k-th of n is where the cut is one of the
    `most` places up to it: of the n places that are equally likely, min(k, most).

    Args: as for `user_parts`.
    """
    drawn_I = np.zeros(data.n_items)
    for rows in row_blocks(len(events)):
        place_B = np.flatnonzero(events.target_E[rows]) + rows.start
        user_B = events.users_of(place_B)
        start_B = events.offsets_U1[user_B]
        counts_B = events.offsets_U1[user_B + 1] - start_B
        predicted_B = counts_B - _history_size(counts_B, length, kept) if data.schema.order == "set" else place_B - start_B + 1
        chance_B = np.minimum(predicted_B, most) / counts_B
        drawn_I += np.bincount(data.item[events.positions(place_B, user_B)], chance_B, minlength=data.n_items)
        data.release()
    return drawn_I


def _history_size(counts_B: NDArray[np.int64], length: int, kept: float) -> NDArray[np.int64]:
    """Events of a user's that are the history, in data without order."""
    return np.minimum((counts_B * kept).astype(np.int64), length)


def random_others(
    starts_B: NDArray[np.int64], stops_B: NDArray[np.int64], ends_B: NDArray[np.int64], length: int, rng: np.random.Generator
) -> NDArray[np.int64]:
    """Histories of data without order: up to L other events of the user, every choice of L equally likely.

    Floyd's sampling, one column at a time: column k draws from the first (others - L + k + 1) and takes the newest of them when
    the draw is already chosen.

    Returns:
        int64 [B, L] places among the events, right-aligned, -1 = padding; never the target `ends_B` itself.
    """
    others_B = stops_B - starts_B - 1
    # users with at most L others get them all
    chosen_BL = np.maximum(others_B[:, None] + np.arange(-length, 0), -1)
    many = np.flatnonzero(others_B > length)
    chosen_ML = np.full((len(many), length), -1, np.int64)
    for k in range(length if len(many) else 0):
        last_M = others_B[many] - length + k
        draw_M = np.floor(rng.random(len(many)) * (last_M + 1)).astype(np.int64)
        taken_M = (chosen_ML[:, :k] == draw_M[:, None]).any(axis=1)
        chosen_ML[:, k] = np.where(taken_M, last_M, draw_M)
    chosen_BL[many] = chosen_ML
    places_BL = starts_B[:, None] + chosen_BL
    places_BL += places_BL >= ends_B[:, None]  # step over the target
    return np.where(chosen_BL < 0, -1, places_BL)
