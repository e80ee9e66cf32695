"""From user keys under one secret to those under another, by the raw ids that both are made of."""

from collections.abc import Sequence
from functools import cached_property
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from towers.identity import KEY_BYTES, UserKeys, mark


class Found(NamedTuple):
    """New keys uint8 [n, 16], and bool [n]: whether there is one; zeros where there is none."""

    keys_n: NDArray[np.uint8]
    known_n: NDArray[np.bool_]


class KeyMap:
    """A key tells nothing of the id behind it, so only people who are named here can be followed.

    Args:
        user_ids: everybody who may be met.
        old, new: the secrets.
    """

    def __init__(self, user_ids: Sequence[str], old: UserKeys, new: UserKeys) -> None:
        self.old, self.new = old, new
        old_n, new_n = old.keys(user_ids), new.keys(user_ids)
        # new keys lead to themselves: a file without a fingerprint may have been written under the new secret
        before_n, after_n = np.concatenate([old_n, new_n]), np.concatenate([new_n, new_n])
        order = np.argsort(_sortable(before_n), kind="stable")
        self._before_n, self._after_n = before_n[order], after_n[order]
        self._sorted_n = _sortable(self._before_n)

    def find(self, keys_n: NDArray[np.uint8]) -> Found:
        """New keys of many users: uint8 [n, 16]."""
        asked_n = _sortable(keys_n)
        if not len(self._sorted_n):
            return Found(np.zeros((len(asked_n), KEY_BYTES), np.uint8), np.zeros(len(asked_n), bool))
        place_n = np.minimum(np.searchsorted(self._sorted_n, asked_n), len(self._sorted_n) - 1)
        known_n = self._sorted_n[place_n] == asked_n
        return Found(np.where(known_n[:, None], self._after_n[place_n], np.uint8(0)), known_n)

    def key(self, user_key: bytes) -> bytes | None:
        """The new key of one user; None where nobody of that key is named."""
        found = self.find(np.frombuffer(user_key, np.uint8).reshape(-1, KEY_BYTES))
        return found.keys_n.tobytes() if found.known_n[0] else None

    def mark(self, of: bytes) -> bytes | None:
        """The same for the mark of a key."""
        return self._marks.get(of)

    @cached_property
    def _marks(self) -> dict[bytes, bytes]:
        pairs = zip(self._before_n, self._after_n, strict=True)
        return {mark(before.tobytes()): mark(after.tobytes()) for before, after in pairs}


def _sortable(keys_n: NDArray[np.uint8]) -> NDArray[np.bytes_]:
    return np.ascontiguousarray(keys_n, np.uint8).reshape(-1, KEY_BYTES).view(f"S{KEY_BYTES}").reshape(-1)
