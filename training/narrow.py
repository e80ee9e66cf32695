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
from towers.errors import DataError
from towers.lookups import SPECTRAL_HISTORY, SPECTRAL_ITEM
from towers.model import TwoTower
from towers.runtime import TorchRuntime
from training.interactions import Interactions
from training.narrow_fit import FIT, Floats, Maps, fit_maps
from training.queries import Queries, Spans
from training.rank_queries import encode_items, encode_users

MOST_USERS, BLOCK_USERS = 20_000, 2_000
"""Drawn for their second moment; encoded at a time."""
LEAST_SHARE, _RAISES = 1e-6, 6
"""Of the mean variance, added to each number's: vectors may lie in fewer dimensions than they have numbers; times ten how often."""


@dataclass(frozen=True)
class WideVectors:
    """Wide vectors of users with their training rows and of the catalogue, float32, the spectral part's weight being 1; and their second
    moments, [W, W]."""

    user_QW: NDArray[np.float32]
    item_IW: NDArray[np.float32]
    user_WW: Floats
    item_WW: Floats
    learned: int

    @classmethod
    def of(cls, wide: TwoTower, data: Interactions, seed: int) -> Self:
        """Of at most MOST_USERS users."""
        runtime, length = TorchRuntime(wide, next(wide.parameters()).device), wide.config.history.length
        user_QW = np.concatenate([encode_users(runtime, users, length)[:, 0] for users in training_users(data, seed)])
        user_QW *= _scale(wide.config.dim, wide.config.width, 1 / wide.config.spectral.weight)
        item_IW = encode_items(runtime, data)
        user_WW, item_WW = ((vectors.T @ vectors).astype(np.float64) for vectors in (user_QW, item_IW))
        return cls(user_QW, item_IW, user_WW, item_WW, wide.config.dim)

    def closed(self, weight: float, width: int) -> Maps:
        """The best maps for all scores alike, for a weight of the spectral part; see the top of this file."""
        scale_W = _scale(self.learned, len(self.user_WW), weight)
        user_L, item_L = _factor(self.user_WW * np.outer(scale_W, scale_W)), _factor(self.item_WW)
        first_WN = np.linalg.svd(user_L.T @ item_L)[0][:, :width]
        return Maps(np.linalg.solve(user_L.T, first_WN), user_L @ first_WN)

    def maps(self, weight: float, width: int, seed: int, fitted: bool) -> Maps:
        """The closed maps, or with `fitted` those trained further from there on."""
        start = self.closed(weight, width)
        if not fitted:
            return start
        return fit_maps(start, self.user_QW * _scale(self.learned, len(self.user_WW), weight), self.item_IW, seed, FIT)


def narrowed(wide: TwoTower, maps: Maps, data: Interactions) -> TwoTower:
    """The towers with vectors of as many numbers as maps make."""
    learned = wide.config.dim
    user_WN, item_WN = turned(maps, learned)
    config = replace(wide.config, spectral=replace(wide.config.spectral, narrow_to=user_WN.shape[1]))
    model = TwoTower(config, data.preprocessor.inputs, data.preprocessor.event_rows)
    state = wide.state_dict()
    device = next(wide.parameters()).device
    for name, map_WN in ((SPECTRAL_HISTORY, user_WN), (SPECTRAL_ITEM, item_WN)):
        key = f"tables.{name}.weight"
        state[key] = state[key] @ torch.from_numpy(map_WN[learned:].astype(np.float32)).to(device)
    model.load_state_dict({**state, "item_map_DK": torch.from_numpy(item_WN[:learned].astype(np.float32))})
    return model.to(device).eval()


def turned(maps: Maps, learned: int) -> Maps:
    """Maps of the same scores that leave a user's learned part as it is, followed by zeros."""
    user_WN, item_WN = maps
    _, _, right_NN = np.linalg.svd(user_WN[:learned])
    rest_NX = right_NN[learned:].T
    turn_NN = np.hstack([np.linalg.pinv(user_WN[:learned]), rest_NX])
    return Maps(user_WN @ turn_NN, item_WN @ np.hstack([user_WN[:learned].T, rest_NX]))


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


def _scale(learned: int, width: int, weight: float) -> NDArray[np.float32]:
    return np.repeat(np.array([1, weight], np.float32), [learned, width - learned])


def _factor(moment_WW: Floats) -> Floats:
    least = LEAST_SHARE * np.trace(moment_WW) / len(moment_WW)
    for _ in range(_RAISES):  # of few or alike items hardly any direction is taken, and rounding may leave one below 0
        try:
            return np.linalg.cholesky(moment_WW + least * np.eye(len(moment_WW)))
        except np.linalg.LinAlgError:
            least *= 10
    raise DataError("model.spectral.narrow_to: vectors of items or users are no numbers, or all alike. Leave it out (0)")
