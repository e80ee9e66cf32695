"""From examples to TrainBatch: NumPy gathers from memory-mapped columns, no Python per row.

Legend: B rows, L history length, E events read. Places are counted among the E events, positions among the prepared rows.
"""

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from towers import history
from towers.batch import TrainBatch
from training.batches import user_inputs
from training.examples import LOADER_STREAM, Sampler, TrainingEvents, generator, random_others
from training.interactions import Interactions

Arrays = dict[str, NDArray[np.generic]]


class Loader:
    """Batches of an epoch, from wherever the run stands: iterating yields the rest of the current epoch.

    What a batch holds depends on (seed, epoch, step) alone. The last batch of an epoch holds what is left, so data smaller than
    a batch is one smaller batch.

    Args:
        data: the prepared interactions.
        events: those that training may read; histories and targets come from nowhere else.
        sampler: what an example is.
        length: history events the user tower takes.
        batch_size: examples per batch (windows, under the `sequence` sampler).
        seed: of the order, and of the histories of data without order.
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
    ) -> None:
        self._data = data
        self._events = events
        self._sampler = sampler
        self._length = length
        self._batch_size = batch_size
        self._seed = seed
        self._missing = data.preprocessor.encode("context", {}, 1)
        self._order: tuple[int, NDArray[np.int64]] = (-1, np.empty(0, np.int64))
        self.epoch = 0
        self.step = 0

    @property
    def steps_per_epoch(self) -> int:
        return -(-len(self._sampler) // self._batch_size)

    def __iter__(self) -> Iterator[TrainBatch]:
        while self.step < self.steps_per_epoch:
            batch = self.batch(self.epoch, self.step)
            self.step += 1  # before the yield: a state taken while the batch is in hand continues after it
            yield batch

    def end_epoch(self) -> None:
        """Move to the start of the next epoch."""
        self.epoch, self.step = self.epoch + 1, 0

    def state_dict(self) -> dict[str, int]:
        return {"epoch": self.epoch, "step": self.step}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.epoch, self.step = state["epoch"], state["step"]

    def batch(self, epoch: int, step: int) -> TrainBatch:
        """The batch of one step: a pure function of its arguments."""
        if self._order[0] != epoch:
            self._order = (epoch, self._sampler.epoch(self._seed, epoch))
        ends_B = self._order[1][step * self._batch_size : (step + 1) * self._batch_size]
        if self._sampler.name == "sequence":
            return self._sequence_batch(ends_B)
        return self._event_batch(ends_B, generator(self._seed, LOADER_STREAM, epoch, step))

    def _event_batch(self, ends_B: NDArray[np.int64], rng: np.random.Generator) -> TrainBatch:
        data, events = self._data, self._events
        users_B = events.users_of(ends_B)
        target_B = events.positions_E[ends_B]
        starts_B = events.offsets_U1[users_B]
        if data.schema.order == "set":
            places_BL = random_others(starts_B, events.offsets_U1[users_B + 1], ends_B, self._length, rng)
        else:
            places_BL = _places_before(starts_B, ends_B, self._length)
        context = {name: array[target_B] for name, array in data.context.items()}
        user = self._inputs(users_B, target_B, places_BL, context)
        return TrainBatch(user, data.item[target_B][:, None], data.weight[target_B][:, None], "event")

    def _sequence_batch(self, ends_B: NDArray[np.int64]) -> TrainBatch:
        data, events = self._data, self._events
        users_B = events.users_of(ends_B)
        places_BL = _places_before(events.offsets_U1[users_B], ends_B, self._length)
        next_BL = ends_B[:, None] + np.arange(1 - self._length, 1)
        # The last padding column predicts the user's first event: what the tower makes of an empty history is learned there.
        mask_BL = next_BL >= events.offsets_U1[users_B][:, None]
        next_BL = np.where(mask_BL, next_BL, 0)
        positions_BL = events.positions_E[next_BL]
        target_BL = mask_BL & events.target_E[next_BL]
        # A position's context is that of the event it predicts: what would be known when the recommendation is asked for.
        context = {name: _replace(data.context[name][positions_BL], ~mask_BL, row[0]) for name, row in self._missing.items()}
        user = self._inputs(users_B, events.positions_E[ends_B], places_BL, context)
        targets_BL = np.where(target_BL, data.item[positions_BL], -1).astype(np.int32)
        weights_BL = np.where(target_BL, data.weight[positions_BL], 0).astype(np.float32)
        return TrainBatch(user, targets_BL, weights_BL, "sequence")

    def _inputs(self, users_B: NDArray[np.int64], target_B: NDArray[np.int64], places_BL: NDArray[np.int64], context: Arrays) -> Arrays:
        index_BL = np.where(places_BL >= 0, self._events.positions_E[np.maximum(places_BL, 0)], -1)
        now_B = self._data.timestamp[target_B]
        return user_inputs(self._data, users_B, target_B, now_B, context, self._length, index_BL)


def _places_before(starts_B: NDArray[np.int64], ends_B: NDArray[np.int64], length: int) -> NDArray[np.int64]:
    index_BL, mask_BL = history.gather(starts_B, ends_B, length)
    return np.where(mask_BL, index_BL, -1)


def _replace(array: NDArray[np.generic], where: NDArray[np.bool_], row: NDArray[np.generic]) -> NDArray[np.generic]:
    replaced = np.array(array)
    replaced[where] = row
    return replaced
