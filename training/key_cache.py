"""User keys while a log streams by: each user's key is computed once, not once a chunk."""

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from towers.identity import KEY_BYTES, UserKeys
from training.raw_codes import Seen

MOST_USERS = 1 << 20
"""Users remembered, some 50 MB; the keys of those who come later are computed each time they are met."""


class KeyCache:
    """`UserKeys.keys` that remembers.

    Args:
        keys: makes the keys.
        most: users remembered.
    """

    def __init__(self, keys: UserKeys, most: int = MOST_USERS) -> None:
        self._keys, self._most = keys, most
        self._seen = Seen()
        self._held_U = np.empty((0, KEY_BYTES), np.uint8)

    def keys(self, user_ids: pa.Array) -> NDArray[np.uint8]:
        """Keys of users, each id (text or a whole number) at most once: uint8 [n, 16]."""
        texts = user_ids if pa.types.is_string(user_ids.type) else user_ids.cast(pa.string())
        place_n = self._seen.places(texts)
        known, fresh = np.flatnonzero(place_n >= 0), np.flatnonzero(place_n < 0)
        made = np.empty((len(texts), KEY_BYTES), np.uint8)
        made[known] = self._held_U[place_n[known]]
        made[fresh] = self._keys.keys(texts.take(pa.array(fresh)).to_pylist())
        kept = fresh[: self._most - len(self._seen)]
        self._seen.add(texts.take(pa.array(kept)))
        self._held_U = np.concatenate([self._held_U, made[kept]])
        return made
