"""Batches: named NumPy arrays, the one currency between preprocessing and the towers.

Legend: B rows, L history length, M values of a multi-valued feature, T targets of a row, W numbers of a feature.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

FeatureBatch = Mapping[str, NDArray[np.generic]]
"""Arrays by input name. Categorical inputs are int32 [B], multi-valued ones int32 [B, M] padded with 0, numeric ones
float32 [B, 2] (standardised value, 1 where missing), dense ones float32 [B, W]. In sequence batches context inputs have
one more axis after B: int32 [B, L], [B, L, M], float32 [B, L, W].

The history of a user is int32 [B, L] arrays, right-aligned (the newest event in the last column, 0 = padding):
`history.item` (rows of the `item_id` vocabulary), `history.event` (rows of the `event_type` vocabulary),
`history.age` (log2 buckets of the time between event and request), `history.gap` (the same between event and next event), and
of context that events keep `history.context.<feature>` (rows of the feature's vocabulary, 0 also where the value is unknown)."""

HISTORY_ITEM = "history.item"
HISTORY_EVENT = "history.event"
HISTORY_AGE = "history.age"
HISTORY_GAP = "history.gap"
NO_HISTORY = "no_history"


def event_context(feature: str) -> str:
    """Name of what each event keeps of a context feature."""
    return f"history.context.{feature}"


def of_history(name: str) -> bool:
    """Whether an input has a value for each event of the history."""
    return name.startswith("history.")


@dataclass(frozen=True)
class TrainBatch:
    """One training step's rows, as the loader yields them.

    Attributes:
        user: inputs of the user tower (B rows).
        targets_BT: int32 catalogue rows to be predicted, -1 = none. T = 1 for the `event` sampler; T = L for `sequence`
            (column t is predicted from the history up to and including column t of `user`); T = most targets of a user
            in the batch for `user`.
        weights_BT: float32 weight of each target, 0 where there is none.
        sampler: `event`, `sequence` or `user`.
    """

    user: FeatureBatch
    targets_BT: NDArray[np.int32]
    weights_BT: NDArray[np.float32]
    sampler: str = "event"


@dataclass(frozen=True)
class UserParts:
    """What the user vectors of a linear tower are the sums of.

    Attributes:
        parts_BSD: float32; those of the history's events, oldest first (zeros where there is no event; padding before the oldest may be
            left out), then the others.
        names: of the others: inputs (`context.device`), and NO_HISTORY of what stands for an empty history.
    """

    parts_BSD: NDArray[np.float32]
    names: tuple[str, ...]


@dataclass(frozen=True)
class UserEncoding:
    """User vectors and, for towers that are a weighted sum of their history, the weights.

    Attributes:
        vectors_BHD: float32; H = 1 for one interest. Ready for a dot product with item vectors (already normalised under
            cosine similarity, a spectral part aside).
        history_weights_BL: float32 or None: the share of each history position in the vector, for exact attribution. In a spectral part
            all events count alike, and second rows (`model.history.associations`) have shares of their own, which `parts` counts in.
        parts: where they were asked for and the tower is a weighted sum; else None.
    """

    vectors_BHD: NDArray[np.float32]
    history_weights_BL: NDArray[np.float32] | None = None
    parts: UserParts | None = None


def take(batch: FeatureBatch, rows: NDArray[np.integer] | slice) -> dict[str, NDArray[np.generic]]:
    """The chosen rows of every array."""
    return {name: array[rows] for name, array in batch.items()}
