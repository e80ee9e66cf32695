"""Sets of rows: rows, bitmap and every operation against Python's sets."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from serving.index.rowset import RowSet, bitmap_bytes, both, distinct, either, neither


@st.composite
def families(draw: st.DrawFn) -> tuple[int, list[set[int]], list[RowSet]]:
    """A catalogue's size and some sets in it, small and large, in either form."""
    size = draw(st.sampled_from([1, 7, 8, 63, 64, 65, 200, 1000, 6500]))
    rng = np.random.default_rng(draw(st.integers(0, 1000)))
    plain, made = [], []
    for share in draw(st.lists(st.sampled_from([0.0, 0.002, 0.05, 0.5, 1.0]), min_size=1, max_size=4)):
        mask = rng.random(size) < share
        plain.append(set(np.flatnonzero(mask).tolist()))
        made.append(RowSet.of_mask(mask) if draw(st.booleans()) else RowSet.of_rows(size, np.flatnonzero(mask)))
    return size, plain, made


def check(found: RowSet, expected: set[int], size: int) -> None:
    bits = np.unpackbits(found.bits(), bitorder="little").astype(bool)
    assert found.count == len(expected) and found.size == size
    assert found.rows().tolist() == sorted(expected)
    assert np.flatnonzero(bits).tolist() == sorted(expected)
    assert len(found.bits()) == bitmap_bytes(size) and len(found.bits()) % 8 == 0
    assert found.has(np.arange(size)).tolist() == [row in expected for row in range(size)]


@settings(max_examples=120, deadline=None)
@given(families())
def test_operations_equal_those_of_plain_sets(family: tuple[int, list[set[int]], list[RowSet]]) -> None:
    size, plain, made = family
    before = [one.rows().copy() for one in made]
    check(both(made), set.intersection(*plain), size)
    check(either(made, size), set.union(*plain), size)
    check(neither(made[0]), set(range(size)) - plain[0], size)
    gone = np.array(sorted(plain[-1]), np.int64)
    for form in (made[0], RowSet.of_bits(size, made[0].bits()), RowSet.of_rows(size, made[0].rows())):
        check(form.without(gone), plain[0] - plain[-1], size)
    for one, rows in zip(made, before, strict=True):
        assert one.rows().tolist() == rows.tolist(), "an operation wrote to its argument"


def test_rows_in_any_order_repeated() -> None:
    assert RowSet.of_rows(100, np.array([5, 3, 99, 3, 0])).rows().tolist() == [0, 3, 5, 99]
    assert distinct(np.array([1, 2, 2])).tolist() == [1, 2]


@pytest.mark.parametrize("row", [-1, 100])
def test_rows_of_another_catalogue(row: int) -> None:
    with pytest.raises(ValueError, match="expected 0 to 99"):
        RowSet.of_rows(100, np.array([5, row]))


def test_no_sets_at_all() -> None:
    assert either([], 10).count == 0
