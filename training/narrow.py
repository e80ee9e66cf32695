"""Train wide, serve narrow: towers with a spectral part, projected to fewer numbers so that scores change least.

With U the wide vectors of users and X those of items, the scores U X^T are to be met by vectors of N numbers. By the theorem of Eckart
and Young (1936) nothing of rank N is nearer than the first N terms of their singular value decomposition, and these are linear in U and
in X, so a new user's vector is projected as well as any. It takes the second moments alone: with Cholesky factors
U^T U = L L^T, X^T X = M M^T and L^T M = A S B^T, user u becomes u L^-T A_N and item x becomes x L A_N.

The maps are then turned so that a user's learned part stays what it is and zeros follow: [user, 0] + spectral rows, which are projected in
their tables. Items carry what is left of the turn.

Legend: Q users, I items, D dim of the learned part, K of the spectral one, W = D + K, N numbers of a vector that is served, V table rows.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Self

import numpy as np
import torch
from numpy.typing import NDArray

from towers.columns import SPLIT_NAMES, TRAIN
from towers.lookups import SPECTRAL_HISTORY, SPECTRAL_ITEM
from towers.model import TwoTower
from towers.runtime import TorchRuntime
from training.interactions import Interactions
from training.queries import Queries, Spans
from training.rank_queries import encode_items, encode_users

MOST_USERS, BLOCK_USERS = 20_000, 2_000
"""Drawn for their second moment; encoded at a time."""
LEAST_SHARE = 1e-6
"""Of the mean variance, added to each number's: vectors may lie in fewer dimensions than they have numbers."""
Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Moments:
    """Second moments of wide vectors, [W, W], the spectral part's weight being 1."""

    user_WW: Floats
    item_WW: Floats
    learned: int

    @classmethod
    def of(cls, wide: TwoTower, data: Interactions, seed: int) -> Self:
        """Of users with their training rows, and of the catalogue."""
        runtime, width = TorchRuntime(wide, next(wide.parameters()).device), wide.config.width
        user_WW = np.zeros((width, width))
        for users in training_users(data, seed):
            user_QW = encode_users(runtime, users, wide.config.history.length)[:, 0]
            user_WW += user_QW.T @ user_QW
        item_IW = encode_items(runtime, data)
        scale_W = _scale(wide.config.dim, width, 1 / wide.config.spectral.weight)
        return cls(user_WW * np.outer(scale_W, scale_W), (item_IW.T @ item_IW).astype(np.float64), wide.config.dim)

    def maps(self, weight: float, width: int) -> tuple[Floats, Floats]:
        """What users and items are multiplied by, [W, N] each, for a weight of the spectral part; see the top of this file."""
        scale_W = _scale(self.learned, len(self.user_WW), weight)
        user_L, item_L = _factor(self.user_WW * np.outer(scale_W, scale_W)), _factor(self.item_WW)
        first_WN = np.linalg.svd(user_L.T @ item_L)[0][:, :width]
        user_WN, item_WN = np.linalg.solve(user_L.T, first_WN), user_L @ first_WN
        _, _, right_NN = np.linalg.svd(user_WN[: self.learned])
        rest_NX = right_NN[self.learned :].T
        turn_NN = np.hstack([np.linalg.pinv(user_WN[: self.learned]), rest_NX])
        return user_WN @ turn_NN, item_WN @ np.hstack([user_WN[: self.learned].T, rest_NX])


def narrowed(wide: TwoTower, moments: Moments, narrow_to: int, data: Interactions) -> TwoTower:
    """The towers with vectors of `narrow_to` numbers."""
    learned, spectral = wide.config.dim, wide.config.spectral
    user_WN, item_WN = moments.maps(spectral.weight, narrow_to)
    config = replace(wide.config, spectral=replace(spectral, narrow_to=narrow_to))
    model = TwoTower(config, data.preprocessor.inputs, data.preprocessor.event_rows)
    state = wide.state_dict()
    device = next(wide.parameters()).device
    for name, map_WN in ((SPECTRAL_HISTORY, user_WN), (SPECTRAL_ITEM, item_WN)):
        key = f"tables.{name}.weight"
        state[key] = state[key] @ torch.from_numpy(map_WN[learned:].astype(np.float32)).to(device)
    model.load_state_dict({**state, "item_map_DK": torch.from_numpy(item_WN[:learned].astype(np.float32))})
    return model.to(device).eval()


def training_users(data: Interactions, seed: int) -> Iterator[Queries]:
    """Users with their training rows as history, in blocks."""
    events = np.flatnonzero(data.split == TRAIN).astype(np.int64)
    bounds_U = np.searchsorted(events, data.offsets)
    user_Q = np.flatnonzero(np.diff(bounds_U))
    if len(user_Q) > MOST_USERS:
        user_Q = np.sort(np.random.default_rng(seed).choice(user_Q, MOST_USERS, replace=False))
    for start in range(0, len(user_Q), BLOCK_USERS):
        user_B = user_Q[start : start + BLOCK_USERS]
        history = Spans(bounds_U[user_B], bounds_U[user_B + 1], events)
        nothing = (np.zeros(len(user_B) + 1, np.int64), np.zeros(0, np.int64))
        yield Queries(data, SPLIT_NAMES[TRAIN], "user", user_B, events[history.end_Q - 1], history, None, nothing)


def _scale(learned: int, width: int, weight: float) -> Floats:
    return np.repeat([1.0, weight], [learned, width - learned])


def _factor(moment_WW: Floats) -> Floats:
    least = LEAST_SHARE * np.trace(moment_WW) / len(moment_WW)
    return np.linalg.cholesky(moment_WW + least * np.eye(len(moment_WW)))
