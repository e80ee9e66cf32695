import itertools

import numpy as np
import pytest

from towers.columns import TEST, TRAIN, VALID
from training.split import (
    cold_items,
    draws,
    global_temporal,
    leave_one_out,
    order_statistic,
    share_of_each_user,
    temporal_cuts,
)


@pytest.mark.parametrize("spread", [1, 7, 10**3, 10**15])
def test_order_statistic_equals_sorting(spread: int) -> None:
    rng = np.random.default_rng(spread)
    values = rng.integers(-spread, spread + 1, 1000) + 1_600_000_000_000_000
    ordered = np.sort(values)
    for rank in (0, 1, 499, 998, 999):
        assert order_statistic(lambda: iter(np.array_split(values, 7)), rank) == ordered[rank]


def test_temporal_split_keeps_ties_together_and_is_ordered() -> None:
    time_N = np.random.default_rng(0).integers(0, 50, 1000)
    cuts = temporal_cuts(lambda: iter([time_N[:300], time_N[300:]]), len(time_N), 0.1, 0.2)
    codes = global_temporal(time_N, cuts)
    for moment in range(50):
        assert len(set(codes[time_N == moment])) <= 1
    assert time_N[codes == TRAIN].max() < time_N[codes == VALID].min() <= time_N[codes == VALID].max() < time_N[codes == TEST].min()
    assert abs((codes == TEST).mean() - 0.2) < 0.03
    assert abs((codes == VALID).mean() - 0.1) < 0.03


def test_temporal_cuts_of_distinct_times_are_exact() -> None:
    time_N = np.random.default_rng(1).permutation(1000)
    cuts = temporal_cuts(lambda: iter([time_N]), 1000, 0.1, 0.1)
    assert np.bincount(global_temporal(time_N, cuts)).tolist() == [800, 100, 100]


def test_leave_one_out_by_hand() -> None:
    # user 0: four positives; user 1: two, so all train; user 2: negatives around its three positives
    weight = np.array([1, 1, 1, 1, 1, 1, 1, 0, 1, 0, 1, 0], np.float32)
    codes = leave_one_out(np.array([0, 4, 6, 12]), weight)
    assert codes.tolist() == [0, 0, 1, 2, 0, 0, 0, 0, 1, 1, 2, 2]


def test_leave_one_out_equals_a_loop_over_users() -> None:
    rng = np.random.default_rng(2)
    offsets = np.concatenate([[0], np.cumsum(rng.integers(1, 12, 200))])
    weight = (rng.random(offsets[-1]) < 0.7).astype(np.float32)
    expected = np.zeros(len(weight), np.uint8)
    for start, stop in itertools.pairwise(offsets):
        positive = [row for row in range(start, stop) if weight[row] > 0]
        if len(positive) >= 3:
            expected[positive[-2] : positive[-1]] = VALID
            expected[positive[-1] : stop] = TEST
    assert leave_one_out(offsets, weight).tolist() == expected.tolist()


def test_share_of_each_user_takes_training_rows_only_and_rounds() -> None:
    rng = np.random.default_rng(3)
    counts = np.array([1, 4, 5, 14, 15, 100])
    offsets = np.concatenate([[0], np.cumsum(counts * 2)])
    given = np.tile([TRAIN, TEST], counts.sum()).astype(np.uint8)
    codes = share_of_each_user(offsets, given, rng.random(len(given)), 0.1)
    assert (codes[given == TEST] == TEST).all()
    taken = [int((codes[a:b] == VALID).sum()) for a, b in itertools.pairwise(offsets)]
    assert taken == [0, 0, 1, 1, 2, 10]


def test_share_of_each_user_takes_the_smallest_draws() -> None:
    draw = np.array([0.9, 0.1, 0.5, 0.2, 0.8, 0.7, 0.6, 0.4, 0.3, 0.05])
    codes = share_of_each_user(np.array([0, 10]), np.zeros(10, np.uint8), draw, 0.2)
    assert np.flatnonzero(codes == VALID).tolist() == [1, 9]


def test_draws_are_uniform_seeded_and_belong_to_the_row() -> None:
    rows = np.arange(10_000)
    drawn = draws(rows, 5)
    assert np.array_equal(drawn[::-1], draws(rows[::-1], 5))
    assert not np.array_equal(drawn, draws(rows, 6))
    assert drawn.min() >= 0
    assert drawn.max() < 1
    assert np.abs(np.histogram(drawn, 10, (0, 1))[0] - 1000).max() < 150


def test_cold_items_are_disjoint_shares_and_seeded() -> None:
    codes = cold_items(1000, 0.1, 0.2, 7)
    assert np.bincount(codes).tolist() == [700, 100, 200]
    assert np.array_equal(codes, cold_items(1000, 0.1, 0.2, 7))
    assert not np.array_equal(codes, cold_items(1000, 0.1, 0.2, 8))
