"""The events that training may read, as places in the memory-mapped columns.

Legend: U users, N prepared rows, E events read (of the chosen splits, user by user), I items, B rows of a block, V users met in a block.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Self

import numpy as np
from numpy.typing import NDArray

from towers.columns import SPLIT_NAMES
from towers.errors import DataError
from training.interactions import BLOCK_ROWS, Interactions


@dataclass(frozen=True)
class TrainingEvents:
    """The events that training may read. Of a log of E events it holds E bytes, and 4 E more where the splits are entangled.

    Attributes:
        offsets_U1: int64 [U + 1]; events offsets[u] .. offsets[u + 1] belong to user u.
        target_E: bool; weight above 0, so negative event types are history and never targets.
        shift_U: int64 [U]; a user's events lie together in the prepared columns, at their place plus this.
        positions_E: row of the prepared columns of each event, ascending, where some user's events do not lie together; else None.
    """

    offsets_U1: NDArray[np.int64]
    target_E: NDArray[np.bool_]
    shift_U: NDArray[np.int64]
    positions_E: NDArray[np.integer] | None

    @classmethod
    def select(cls, data: Interactions, splits: tuple[int, ...]) -> Self:
        """The events of the given splits (columns.TRAIN; with VALID for a refit).

        Raises:
            DataError: none of them is a target.
        """
        counts_U, first_U, together = _survey(data, splits)
        offsets_U1 = np.concatenate([[0], np.cumsum(counts_U)])
        target_E = np.empty(offsets_U1[-1], np.bool_)
        positions_E = None if together else np.empty(offsets_U1[-1], np.uint32 if len(data) < 2**32 else np.int64)
        start = 0
        for rows in row_blocks(len(data)):
            read = np.flatnonzero(np.isin(data.split[rows], splits))
            block = slice(start, start + len(read))
            target_E[block] = data.weight[rows][read] > 0
            if positions_E is not None:
                positions_E[block] = read + rows.start
            start = block.stop
            data.release()
        if not target_E.any():
            names = " + ".join(SPLIT_NAMES[s] for s in splits)
            raise DataError(
                f"no training example: {len(target_E)} events in split {names}, none of them with a weight above 0."
                " Check data.event_weights, the weight column and the split, then run `towers prepare` again"
            )
        return cls(offsets_U1, target_E, first_U - offsets_U1[:-1], positions_E)

    def __len__(self) -> int:
        return len(self.target_E)

    def users_of(self, ends_B: NDArray[np.int64]) -> NDArray[np.int64]:
        """User row of each event."""
        return np.searchsorted(self.offsets_U1, ends_B, side="right").astype(np.int64) - 1

    def positions(self, places: NDArray[np.int64], users: NDArray[np.int64]) -> NDArray[np.int64]:
        """Rows of the prepared columns of events, whose users are given (same shape, or broadcast against it)."""
        found: NDArray[np.int64] = places + self.shift_U[users] if self.positions_E is None else self.positions_E[places].astype(np.int64)
        return found

    def users_with_targets(self) -> int:
        """Users with at least one target."""
        filled_U = np.diff(self.offsets_U1) > 0
        # users without events lie between two equal offsets, and reduceat would give them the next event
        return int(np.count_nonzero(np.logical_or.reduceat(self.target_E, self.offsets_U1[:-1][filled_U])))

    def target_counts(self, data: Interactions) -> NDArray[np.int64]:
        """int64 [I]: how often each catalogue row is a target here."""
        counts_I = np.zeros(data.n_items, np.int64)
        for target_B, item_B in self._blocks(data):
            counts_I += np.bincount(item_B[target_B], minlength=data.n_items)
        return counts_I

    def items(self, data: Interactions) -> NDArray[np.int64]:
        """Catalogue rows with at least one event here, ascending: what a training loss may take as candidates."""
        met_I = np.zeros(data.n_items, np.bool_)
        for _, item_B in self._blocks(data):
            met_I[item_B] = True
        return np.flatnonzero(met_I).astype(np.int64)

    def _blocks(self, data: Interactions) -> Iterator[tuple[NDArray[np.bool_], NDArray[np.int32]]]:
        """Whether each event is a target, and its item, block by block."""
        for rows in row_blocks(len(self)):
            places_B = np.arange(rows.start, rows.stop)
            yield self.target_E[rows], data.item[self.positions(places_B, self.users_of(places_B))]
            data.release()


def row_blocks(rows: int) -> Iterator[slice]:
    """Slices of about a million rows: what is looked at in one go."""
    return (slice(start, min(start + BLOCK_ROWS, rows)) for start in range(0, rows, BLOCK_ROWS))


def _survey(data: Interactions, splits: tuple[int, ...]) -> tuple[NDArray[np.int64], NDArray[np.int64], bool]:
    """Of each user: events in the splits, and the row of the first; and whether every user's lie together."""
    counts_U, last_U = np.zeros(data.n_users, np.int64), np.full(data.n_users, -1, np.int64)
    first_U = np.array(data.offsets[:-1])
    for rows in row_blocks(len(data)):
        read_R = np.flatnonzero(np.isin(data.split[rows], splits)) + rows.start
        user_V, at_V = np.unique(data.users_of(read_R), return_index=True)
        ends_V = np.append(at_V, len(read_R))[1:]
        fresh = counts_U[user_V] == 0
        first_U[user_V[fresh]] = read_R[at_V[fresh]]
        counts_U[user_V] += ends_V - at_V
        last_U[user_V] = read_R[ends_V - 1]
        data.release()
    together = bool((last_U - first_U + 1 == counts_U)[counts_U > 0].all())
    return counts_U, first_U, together
