"""From examples to TrainBatch: NumPy gathers from memory-mapped columns, no Python per row.

Legend: B rows, L history length, E events read. Places are counted among the E events, positions among the prepared rows.
"""

from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from towers import history
from towers.batch import TrainBatch
from training.ahead import ahead
from training.batches import user_inputs
from training.events import TrainingEvents
from training.examples import Sampler, UserParts, random_others, user_draws, user_parts
from training.interactions import Interactions
from training.randomness import LOADER_STREAM, generator
from training.shuffle import Order

Arrays = dict[str, NDArray[np.generic]]

MOST_TARGETS = 1024
"""Targets of one user in one example, so that a user with a million events does not make a batch of a gigabyte."""
RELEASE_ROWS = 1 << 22
"""Rows of the columns read between two releases of their pages: some tens of batches."""
ALIKE_BATCHES = 16
"""Batches whose windows are sorted by length among each other: nearly all padding goes, and an epoch is still well mixed."""


class Loader:
    """Batches of an epoch, from wherever the run stands: iterating yields the rest of the current epoch.

    What a batch holds depends on (seed, epoch, step) alone. The last batch of an epoch holds what is left, so data smaller than
    a batch is one smaller batch.

    Args:
        data: the prepared interactions.
        events: those that training may read; histories and targets come from nowhere else.
        sampler: what an example is.
        length: history events the user tower takes.
        batch_size: examples per batch (windows under the `sequence` sampler, users under `user`).
        seed: of the order, of the histories of data without order, and of what the `user` sampler keeps as history.
        part: rows of a batch of n that this process reads, where several train together; all processes' rows are the batch that one
            process would have.
        history_share: share of a user's events of data without order that the `user` sampler makes the history.
        beside: gather each batch while the one before it is trained on, in a thread of its own. That pays where a GPU computes; a CPU
            has its cores in use.
    """

    def __init__(
        self,
        data: Interactions,
        events: TrainingEvents,
        sampler: Sampler,
        *,
        length: int,
        batch_size: int,
        seed: int,
        part: Callable[[int], slice] = slice,
        history_share: float = 0.5,
        beside: bool = False,
    ) -> None:
        self._data = data
        self._beside = beside
        self._part = part
        self._events = events
        self._sampler = sampler
        self._length = length
        self._batch_size = batch_size
        self._history_share = history_share
        self._seed = seed
        self._missing = data.preprocessor.encode("context", {}, 1)
        self._order: tuple[int, Order] | None = None
        self._rows_read = 0
        self.epoch = 0
        self.step = 0

    @property
    def steps_per_epoch(self) -> int:
        return -(-len(self._sampler) // self._batch_size)

    def draws(self) -> NDArray[np.float64] | None:
        """float64 [I]: how often an epoch has each catalogue row as a target, on average; None where every target comes once."""
        if self._sampler.name != "user":
            return None
        return user_draws(self._data, self._events, self._length, MOST_TARGETS, self._history_share)

    def __iter__(self) -> Iterator[TrainBatch]:
        batches = (self.batch(self.epoch, step) for step in range(self.step, self.steps_per_epoch))
        for batch in ahead(batches) if self._beside else batches:
            self.step += 1  # before the yield: a state taken while the batch is in hand continues after it
            yield batch

    def end_epoch(self) -> None:
        """Move to the start of the next epoch. What follows (validation) finds the log's pages given back."""
        self._data.release()
        self.epoch, self.step = self.epoch + 1, 0

    def state_dict(self) -> dict[str, int]:
        return {"epoch": self.epoch, "step": self.step}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.epoch, self.step = state["epoch"], state["step"]

    def batch(self, epoch: int, step: int) -> TrainBatch:
        """The batch of one step: a pure function of its arguments."""
        if self._order is None or self._order[0] != epoch:
            self._order = (epoch, self._sampler.epoch(self._seed, epoch))
        if self._sampler.name == "sequence":
            ends_B = self._alike(self._order[1], epoch, step)
            self._release_pages(len(ends_B))
            return self._sequence_batch(ends_B[self._part(len(ends_B))])
        examples_B = self._order[1][step * self._batch_size : (step + 1) * self._batch_size]
        self._release_pages(len(examples_B))
        rng = generator(self._seed, LOADER_STREAM, epoch, step)
        return self._user_batch(examples_B, rng) if self._sampler.name == "user" else self._event_batch(examples_B, rng)

    def _event_batch(self, ends_B: NDArray[np.int64], rng: np.random.Generator) -> TrainBatch:
        data, events = self._data, self._events
        part = self._part(len(ends_B))
        if data.schema.order == "set":
            # drawn for the whole batch, so that a row's history does not depend on how many processes share it
            users_B = events.users_of(ends_B)
            starts_B, stops_B = events.offsets_U1[users_B], events.offsets_U1[users_B + 1]
            length = max(1, min(self._length, int((stops_B - starts_B).max()) - 1))  # no column that is padding in every row
            places_BL = random_others(starts_B, stops_B, ends_B, length, rng)[part]
            ends_B, users_B = ends_B[part], users_B[part]
        else:
            ends_B = ends_B[part]
            users_B = events.users_of(ends_B)
            places_BL = _places_before(events.offsets_U1[users_B], ends_B, self._length)
        target_B = events.positions(ends_B, users_B)
        context = {name: array[target_B] for name, array in data.context.items()}
        user = self._inputs(users_B, target_B, places_BL, context)
        return TrainBatch(user, data.item[target_B][:, None], data.weight[target_B][:, None], "event")

    def _alike(self, order: Order, epoch: int, step: int) -> NDArray[np.int64]:
        """The windows of a step: those of several steps, sorted by length and cut so that each step has about as many targets."""
        first = step - step % ALIKE_BATCHES
        steps = min(ALIKE_BATCHES, self.steps_per_epoch - first)
        ends_N = order[first * self._batch_size : (first + steps) * self._batch_size]
        lengths_N = self._windows(ends_N)
        by_length_N = np.argsort(lengths_N, kind="stable")
        place = int(generator(self._seed, LOADER_STREAM, epoch, first).permutation(steps)[step - first])
        bounds = _cuts(lengths_N[by_length_N], steps)
        return ends_N[by_length_N[bounds[place] : bounds[place + 1]]]

    def _windows(self, ends_B: NDArray[np.int64]) -> NDArray[np.int64]:
        """Events of each window."""
        starts_B = self._events.offsets_U1[self._events.users_of(ends_B)]
        events_B: NDArray[np.int64] = np.minimum(ends_B + 1 - starts_B, self._length)
        return events_B

    def _sequence_batch(self, ends_B: NDArray[np.int64]) -> TrainBatch:
        data, events = self._data, self._events
        users_B = events.users_of(ends_B)
        length = int(self._windows(ends_B).max(initial=1))
        places_BL = _places_before(events.offsets_U1[users_B], ends_B, length)
        next_BL = ends_B[:, None] + np.arange(1 - length, 1)
        # The last padding column predicts the user's first event: what the tower makes of an empty history is learned there.
        mask_BL = next_BL >= events.offsets_U1[users_B][:, None]
        next_BL = np.where(mask_BL, next_BL, ends_B[:, None])
        positions_BL = events.positions(next_BL, users_B[:, None])
        target_BL = mask_BL & events.target_E[next_BL]
        # A position's context is that of the event it predicts: what would be known when the recommendation is asked for.
        context = {name: _replace(data.context[name][positions_BL], ~mask_BL, row[0]) for name, row in self._missing.items()}
        user = self._inputs(users_B, events.positions(ends_B, users_B), places_BL, context)
        targets_BL = np.where(target_BL, data.item[positions_BL], -1).astype(np.int32)
        weights_BL = np.where(target_BL, data.weight[positions_BL], 0).astype(np.float32)
        return TrainBatch(user, targets_BL, weights_BL, "sequence")

    def _user_batch(self, users_B: NDArray[np.int64], rng: np.random.Generator) -> TrainBatch:
        data, events = self._data, self._events
        starts_B, stops_B = events.offsets_U1[users_B], events.offsets_U1[users_B + 1]
        own = self._part(len(users_B))
        parts = user_parts(starts_B, stops_B, self._length, MOST_TARGETS, data.schema.order == "set", rng, self._history_share)
        users_B, parts = users_B[own], UserParts(parts.history_BL[own], parts.target_BT[own])
        held_BT = parts.target_BT >= 0
        places_BT = np.where(held_BT, parts.target_BT, parts.target_BT[:, :1])
        position_BT = events.positions(places_BT, users_B[:, None])
        target_BT = held_BT & events.target_E[places_BT]
        # All targets of a user are asked for at one moment: that of the first.
        now_B = position_BT[:, 0]
        user = self._inputs(users_B, now_B, parts.history_BL, {name: array[now_B] for name, array in data.context.items()})
        # A user counts by the root of his targets: neither the few with thousands nor the many with one decide alone.
        share_B1 = np.maximum(target_BT.sum(axis=1, keepdims=True), 1) ** -0.5
        targets_BT = np.where(target_BT, data.item[position_BT], -1).astype(np.int32)
        weights_BT = np.where(target_BT, data.weight[position_BT] * share_B1, 0).astype(np.float32)
        return TrainBatch(user, targets_BT, weights_BT, "user")

    def _release_pages(self, examples: int) -> None:
        self._rows_read += examples * self._length
        if self._rows_read > RELEASE_ROWS:
            self._rows_read = 0
            self._data.release()

    def _inputs(self, users_B: NDArray[np.int64], target_B: NDArray[np.int64], places_BL: NDArray[np.int64], context: Arrays) -> Arrays:
        index_BL = np.where(places_BL >= 0, self._events.positions(np.maximum(places_BL, 0), users_B[:, None]), -1)
        now_B = self._data.timestamp[target_B]
        return user_inputs(self._data, users_B, target_B, now_B, context, places_BL.shape[1], index_BL)


def _cuts(lengths_N: NDArray[np.int64], parts: int) -> NDArray[np.int64]:
    """Bounds of consecutive parts that sum to about as much each, none empty (N >= parts): int64 [parts + 1].

    >>> _cuts(np.array([1, 1, 1, 1, 4]), 2).tolist(), _cuts(np.array([1, 9, 9]), 3).tolist()
    ([0, 4, 5], [0, 1, 2, 3])
    """
    inner = np.searchsorted(np.cumsum(lengths_N), lengths_N.sum() * np.arange(1, parts) / parts, side="left") + 1
    # at least one each: a part starts after the one before, and leaves one for each that follows
    steps = np.arange(1, parts)
    inner = np.minimum(np.maximum.accumulate(np.maximum(inner, 1) - steps) + steps, len(lengths_N) - parts + steps)
    return np.concatenate([[0], inner, [len(lengths_N)]]).astype(np.int64)


def _places_before(starts_B: NDArray[np.int64], ends_B: NDArray[np.int64], length: int) -> NDArray[np.int64]:
    index_BL, mask_BL = history.gather(starts_B, ends_B, length)
    return np.where(mask_BL, index_BL, -1)


def _replace(array: NDArray[np.generic], where: NDArray[np.bool_], row: NDArray[np.generic]) -> NDArray[np.generic]:
    replaced = np.array(array)
    replaced[where] = row
    return replaced
