"""User keys while a log streams by: each user's key is computed once, not once a chunk."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from towers.identity import KEY_BYTES, UserKeys

MOST_USERS = 1 << 20
"""Users remembered, some 200 MB; those who come later are computed each time they are met."""


class KeyCache:
    """`UserKeys.keys` that remembers.

    Args:
        keys: makes the keys.
        most: users remembered.
    """

    def __init__(self, keys: UserKeys, most: int = MOST_USERS) -> None:
        self._keys, self._most = keys, most
        self._places: dict[str, int] = {}
        self._held_U = np.empty((0, KEY_BYTES), np.uint8)

    def keys(self, user_ids: Sequence[str]) -> NDArray[np.uint8]:
        """Keys of many users, each id at most once: uint8 [n, 16]."""
        places = self._places
        place_n = np.fromiter((places.get(user_id, -1) for user_id in user_ids), np.int64, len(user_ids))
        fresh = np.flatnonzero(place_n < 0)
        made = np.empty((len(user_ids), KEY_BYTES), np.uint8)
        known = np.flatnonzero(place_n >= 0)
        made[known] = self._held_U[place_n[known]]
        if len(fresh):
            made[fresh] = self._keys.keys([user_ids[i] for i in fresh.tolist()])
            kept = fresh[: self._most - len(places)]
            self._held_U = self._grown(len(places) + len(kept))
            self._held_U[len(places) : len(places) + len(kept)] = made[kept]
            places.update(zip((user_ids[i] for i in kept.tolist()), range(len(places), len(places) + len(kept)), strict=True))
        return made

    def _grown(self, rows: int) -> NDArray[np.uint8]:
        """Space for so many keys; doubled, so that a log of new users does not copy them all at every chunk."""
        if rows <= len(self._held_U):
            return self._held_U
        grown = np.empty((max(rows, min(2 * len(self._held_U), self._most)), KEY_BYTES), np.uint8)
        grown[: len(self._held_U)] = self._held_U
        return grown
