import numpy as np
import pyarrow as pa
import pytest

from towers.identity import UserKeys
from training.key_cache import KeyCache


class Counted(UserKeys):
    made = 0

    def keys(self, user_ids):
        self.made += len(user_ids)
        return super().keys(user_ids)


@pytest.mark.parametrize("most", [0, 1, 7, 1000])
def test_remembered_keys_are_the_keys(most):
    secret = Counted(bytes(32))
    cache = KeyCache(secret, most)
    rng = np.random.default_rng(0)
    for _ in range(12):
        ids = [f"user-{i}" for i in rng.permutation(60)[: rng.integers(0, 40)]]
        assert (cache.keys(pa.array(ids, pa.string())) == UserKeys(bytes(32)).keys(ids)).all()
    if most >= 60:
        assert secret.made <= 60


def test_a_full_cache_goes_on():
    secret = Counted(bytes(32))
    cache = KeyCache(secret, 2)
    for _ in range(3):
        assert len(cache.keys(pa.array(["a", "b", "c"]))) == 3
    assert secret.made == 3 + 1 + 1


def test_whole_numbers_are_their_text():
    cache = KeyCache(UserKeys(bytes(32)))
    for ids in (pa.array([7, -3]), pa.array([7, -3], pa.int32()), pa.array(["7", "-3"], pa.large_string())):
        assert (cache.keys(ids) == UserKeys(bytes(32)).keys(["7", "-3"])).all()
