"""Intervals: users stay together, coverage of the truth, pairs, and what has no value."""

import time

import numpy as np
import pytest

from training.bootstrap import estimate
from training.measure import estimates


def test_mean_over_queries_and_interval_over_users() -> None:
    rng = np.random.default_rng(0)
    user = np.repeat(np.arange(400), 5)
    values = (rng.random(400)[user] + 0.01 * rng.random(2000))[:, None]  # a user's queries are alike
    found = estimate(values, user, 1000, seed=1)
    assert found.value_M[0] == pytest.approx(values.mean())
    assert found.n_M.tolist() == [2000]
    error = values.reshape(400, 5).mean(1).std() / 20  # of a mean over 400 independent users
    width = found.high_M[0] - found.low_M[0]
    assert width == pytest.approx(2 * 1.96 * error, rel=0.12), "queries were drawn as if they were independent"


def test_contains_the_truth_about_95_times_in_100() -> None:
    rng = np.random.default_rng(3)
    inside = 0
    for trial in range(100):
        user = rng.integers(0, 80, 200)
        values = (rng.random(80)[user] < 0.3).astype(float)[:, None]
        found = estimate(values, user, 200, seed=trial)
        inside += found.low_M[0] <= 0.3 <= found.high_M[0]
    assert 86 <= inside <= 100


def test_equal_for_any_order_of_queries_and_for_the_same_seed() -> None:
    rng = np.random.default_rng(0)
    user, values = rng.integers(0, 30, 100), rng.random((100, 3))
    order = rng.permutation(100)
    one, other = estimate(values, user, 100, 5), estimate(values[order], user[order], 100, 5)
    np.testing.assert_allclose(one.low_M, other.low_M)
    assert estimate(values, user, 100, 6).low_M.tolist() != one.low_M.tolist()


def test_pairs_are_narrower_than_the_two_apart() -> None:
    rng = np.random.default_rng(0)
    base = rng.random(500)
    both = np.stack([base + 0.02 + 0.01 * rng.random(500), base], axis=1)
    paired = estimate(both[:, :1] - both[:, 1:], np.arange(500), 500, 0)
    apart = estimate(both, np.arange(500), 500, 0)
    assert paired.low_M[0] > 0, "the difference is certain where pairs are kept"
    assert apart.low_M[0] < apart.high_M[1], "and is not from the two intervals alone"


def test_queries_without_a_value_do_not_count() -> None:
    values = np.array([[1.0, np.nan, np.nan], [0.0, 0.5, np.nan], [np.nan, 0.5, np.nan]])
    found = estimate(values, np.array([0, 1, 2]), 100, 0)
    assert found.n_M.tolist() == [2, 2, 0]
    assert found.value_M[:2].tolist() == [0.5, 0.5]
    assert (found.low_M[1], found.high_M[1]) == (0.5, 0.5)
    assert np.isnan(found.value_M[2]) and np.isnan(found.low_M[2])


def test_one_user_has_a_point_and_none_has_nothing() -> None:
    found = estimate(np.array([[0.25], [0.75]]), np.array([7, 7]), 50, 0)
    assert (found.low_M[0], found.value_M[0], found.high_M[0]) == (0.5, 0.5, 0.5)
    assert estimate(np.empty((0, 2)), np.empty(0, np.int64), 50, 0).n_M.tolist() == [0, 0]


@pytest.mark.long
def test_thirty_thousand_users_take_two_seconds() -> None:
    values = np.random.default_rng(0).random((30_000, 18))
    start = time.process_time()
    estimate(values, np.arange(30_000), 1000, 0)
    assert time.process_time() - start < 2


def test_a_user_in_no_draw_leaves_no_interval() -> None:
    values = np.full((50, 2), np.nan)
    values[:, 0], values[7, 1] = 0.5, 1.0
    found = estimate(values, np.arange(50), draws=1, seed=0)
    assert (found.value_M[1], found.n_M[1]) == (1.0, 1)
    assert np.isnan(found.low_M[1]) and np.isnan(found.high_M[1])
    assert found.low_M[0] == 0.5
    written = estimates({"test/recall@5": values[:, 0], "test/cold/recall@5": values[:, 1]}, np.arange(50), 1, 0)
    assert written["test/cold/recall@5"] == {"value": 1.0, "ci95": None, "n": 1}, "NaN is no JSON"
