"""Tables in half precision: half of the bytes where no number changes, and never otherwise."""

import numpy as np
import pytest

from towers import half
from towers.half import narrowest


@pytest.fixture
def rounded(monkeypatch):
    """Numbers of half precision held as float32, over several blocks."""
    monkeypatch.setattr(half, "_BLOCK", 7)
    return np.random.default_rng(0).normal(size=(20, 4)).astype(np.float16).astype(np.float32)


def test_numbers_of_half_precision_take_half_of_the_bytes(rounded):
    rounded[:3] = [[0, -0.0, 65504, -65504]] * 3
    narrow = narrowest(rounded)
    assert narrow.dtype == np.float16 and np.array_equal(narrow.astype(np.float32), rounded)


@pytest.mark.parametrize("other", [0.1, 1 + 2**-20, 70_000, 1e-9, np.inf, np.nan])
def test_one_other_number_anywhere_keeps_the_table_as_it_is(rounded, other):
    rounded[18, 2] = other
    narrow = narrowest(rounded)
    assert (narrow is rounded) is (not np.isinf(other)), "infinity is a number of either precision"


def test_a_table_without_rows_has_no_number_to_lose():
    assert narrowest(np.empty((0, 8), np.float32)).shape == (0, 8)
