"""Which examples an epoch has, and in which order: samplers over the events that training may read.

Legend: U users, E events read (of the chosen splits, user by user), N examples of an epoch, B rows, L history length.
An example is one number, its `end`: the place among the E events of its (last) target. Its history stands before it.
"""

from dataclasses import dataclass
from typing import Protocol, Self

import numpy as np
from numpy.typing import NDArray

from towers.columns import SPLIT_NAMES
from towers.errors import DataError
from training.interactions import Interactions

ORDER_STREAM, LOADER_STREAM, NEGATIVES_STREAM, TORCH_STREAM = 0, 1, 2, 3
"""Independent streams of random numbers under one seed."""


def generator(seed: int, stream: int, *place: int) -> np.random.Generator:
    """Random numbers of one place in training, as `epoch` or `epoch, step`: nothing but the seed and the place decides them, so
    a resumed run draws what an uninterrupted one draws."""
    return np.random.default_rng([seed, stream, *place])


@dataclass(frozen=True)
class TrainingEvents:
    """The events that training may read.

    Attributes:
        positions_E: int64 rows of the prepared columns, ascending, so user by user in order.
        offsets_U1: int64 [U + 1]; events offsets[u] .. offsets[u + 1] belong to user u.
        target_E: bool; weight above 0, so negative event types are history and never targets.
    """

    positions_E: NDArray[np.int64]
    offsets_U1: NDArray[np.int64]
    target_E: NDArray[np.bool_]

    @classmethod
    def select(cls, data: Interactions, splits: tuple[int, ...]) -> Self:
        """The events of the given splits (columns.TRAIN; with VALID for a refit).

        Raises:
            DataError: none of them is a target.
        """
        positions_E = np.flatnonzero(np.isin(data.split, splits)).astype(np.int64)
        target_E = np.asarray(data.weight[positions_E] > 0)
        if not target_E.any():
            names = " + ".join(SPLIT_NAMES[s] for s in splits)
            raise DataError(
                f"no training example: {len(positions_E)} events in split {names}, none of them with a weight above 0."
                " Check data.event_weights, the weight column and the split, then run `towers prepare` again"
            )
        return cls(positions_E, np.searchsorted(positions_E, data.offsets).astype(np.int64), target_E)

    def __len__(self) -> int:
        return len(self.positions_E)

    def users_of(self, ends_B: NDArray[np.int64]) -> NDArray[np.int64]:
        """User row of each event."""
        return np.searchsorted(self.offsets_U1, ends_B, side="right").astype(np.int64) - 1

    def target_counts(self, data: Interactions) -> NDArray[np.int64]:
        """int64 [I]: how often each catalogue row is a target here."""
        return np.bincount(data.item[self.positions_E[self.target_E]], minlength=data.n_items)

    def items(self, data: Interactions) -> NDArray[np.int64]:
        """Catalogue rows with at least one event here, ascending: what a training loss may take as candidates."""
        return np.unique(data.item[self.positions_E]).astype(np.int64)


class Sampler(Protocol):
    """Decides what an example is. `name` is the sampler's name in TrainBatch."""

    name: str

    def __len__(self) -> int:
        """Examples of an epoch."""
        ...

    def epoch(self, seed: int, epoch: int) -> NDArray[np.int64]:
        """The ends of all examples of an epoch, in training order; the same for the same (seed, epoch)."""
        ...


class EventSampler:
    """One example per target: predicted from the events of the same user strictly before it."""

    name = "event"

    def __init__(self, events: TrainingEvents) -> None:
        self._ends_N = np.flatnonzero(events.target_E).astype(np.int64)

    def __len__(self) -> int:
        return len(self._ends_N)

    def epoch(self, seed: int, epoch: int) -> NDArray[np.int64]:
        return generator(seed, ORDER_STREAM, epoch).permutation(self._ends_N)


class SequenceSampler:
    """Windows of L consecutive targets, each predicted from the events before it, for encoders that learn at all positions at once.

    The last window of a user ends at the user's last event, earlier ones lie before it without overlap, so every event is
    predicted once an epoch; the first one from an empty history. Windows without a target are left out.
    """

    name = "sequence"

    def __init__(self, events: TrainingEvents, length: int) -> None:
        starts_U, stops_U = events.offsets_U1[:-1], events.offsets_U1[1:]
        windows_U = -(-(stops_U - starts_U) // length)
        user_W = np.repeat(np.arange(len(windows_U)), windows_U)
        back_W = np.arange(len(user_W)) - np.repeat(np.cumsum(windows_U) - windows_U, windows_U)
        ends_W = stops_U[user_W] - 1 - back_W * length
        firsts_W = np.maximum(starts_U[user_W], ends_W - length + 1)
        targets_before_E1 = np.concatenate([[0], np.cumsum(events.target_E)])
        self._ends_N = ends_W[targets_before_E1[ends_W + 1] > targets_before_E1[firsts_W]]

    def __len__(self) -> int:
        return len(self._ends_N)

    def epoch(self, seed: int, epoch: int) -> NDArray[np.int64]:
        return generator(seed, ORDER_STREAM, epoch).permutation(self._ends_N)


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
    chosen_BL = np.full((len(others_B), length), -1, np.int64)
    for k in range(length):
        last_B = others_B - length + k
        draw_B = np.where(last_B > k, np.floor(rng.random(len(others_B)) * (last_B + 1)).astype(np.int64), last_B)
        taken_B = (chosen_BL[:, :k] == draw_B[:, None]).any(axis=1)
        chosen_BL[:, k] = np.where(taken_B, last_B, draw_B)
    # Users with at most L others get them all: last_B = 0, 1, .. in the last columns, and negative before (padding).
    chosen_BL[chosen_BL < 0] = -1
    places_BL = starts_B[:, None] + chosen_BL
    places_BL += places_BL >= ends_B[:, None]  # step over the target
    return np.where(chosen_BL < 0, -1, places_BL)
