"""Point-in-time windows and ages, against the obvious loop."""

import numpy as np
import pytest

from towers.columns import FIRST_ROW, NO_TIME, OOV_ROW, PAD_ROW
from towers.history import AGE_ROWS, REPEAT_ROWS, ages, gaps, gather, kept_context, repeats


def test_windows_hold_the_newest_events_before_each_end() -> None:
    index, mask = gather(np.array([0, 10, 10]), np.array([2, 17, 10]), 4)
    assert index[mask].tolist() == [0, 1, 13, 14, 15, 16]
    assert mask.tolist() == [[False, False, True, True], [True] * 4, [False] * 4]
    assert index[~mask].tolist() == [0] * 6


def test_ages_by_time_follow_the_formula() -> None:
    minute = 60_000_000
    now = np.array([1000 * minute, NO_TIME])
    then = np.array([[0, 999 * minute, 1001 * minute, NO_TIME]] * 2)
    mask = np.array([[True] * 4, [True, True, True, False]])
    expected = [[2 + int(np.log2(1001)), 3, 2, 1], [1, 1, 1, 0]]
    assert ages("time", now, then, mask).tolist() == expected


@pytest.mark.parametrize(("order", "expected"), [("position", [0, 3, 3, 2]), ("set", [0, 1, 1, 1])])
def test_ages_without_time(order: str, expected: list[int]) -> None:
    mask = np.array([[False, True, True, True]])
    assert ages(order, np.array([NO_TIME]), np.full((1, 4), NO_TIME), mask).tolist() == [expected]


def test_ages_stay_inside_their_table() -> None:
    mask = np.ones((1, 1), bool)
    assert ages("time", np.array([2**62]), np.array([[0]]), mask).max() < AGE_ROWS


def test_ages_change_at_powers_of_two_minutes_and_the_future_is_now() -> None:
    minute = 60_000_000
    minutes = np.array([0, 1, 2, 3, 6, 7, 8, 1022, 1023, 2**29 - 2, 2**29 - 1, 2**36, -1, -(2**30)])
    expected = np.minimum(2 + np.floor(np.log2(1.0 + np.maximum(minutes, 0))), AGE_ROWS - 1)
    now = np.array([2**62])
    for spare in (0, minute - 1):  # a part of a minute counts for nothing
        then = now[:, None] - np.where(minutes < 0, minutes * minute, minutes * minute + spare)
        assert ages("time", now, then, np.ones_like(then, bool))[0].tolist() == expected.tolist()


def test_gaps_are_the_ages_of_each_prefix_at_the_next_event() -> None:
    minute = 60_000_000
    then = np.array([[0, 3, 3, 500, 501]]) * minute
    now = np.array([100_000 * minute])
    mask = np.array([[False, True, True, True, True]])
    got = gaps("time", now, then, mask)
    expected = [0]
    for t in range(1, 5):
        asked = then[:, t + 1] if t < 4 else now
        expected.append(int(ages("time", asked, then[:, : t + 1], mask[:, : t + 1])[0, -1]))
        assert gaps("time", asked, then[:, : t + 1], mask[:, : t + 1])[0].tolist() == got[0, : t + 1].tolist(), "a prefix says the same"
    assert got[0].tolist() == expected == [0, 2, 10, 3, 18]


def test_gaps_without_times_are_unknown() -> None:
    mask = np.array([[False, True, True]])
    nowhere = np.full((1, 3), NO_TIME)
    assert gaps("time", np.array([NO_TIME]), nowhere, mask).tolist() == [[0, 1, 1]]
    assert gaps("position", np.array([5]), np.array([[1, 2, 3]]), mask).tolist() == [[0, 1, 1]]


def test_repeats_are_counted_in_each_history() -> None:
    rng = np.random.default_rng(0)
    item = rng.integers(FIRST_ROW, FIRST_ROW + 8, (40, 30)) * (rng.random((40, 30)) < 0.8)
    expected = [[1 + int(np.log2((row == entry).sum())) if entry else 0 for entry in row] for row in item]
    assert repeats(item.astype(np.int32)).tolist() == expected
    assert repeats(np.zeros((2, 0), np.int32)).shape == (2, 0) and not repeats(np.zeros((2, 3), np.int32)).any()
    assert repeats(np.full((1, 5000), 7)).max() == REPEAT_ROWS - 1


def test_unknown_items_are_no_repeats_of_one_another() -> None:
    """They share a row, and nothing says that they are the same."""
    assert repeats(np.array([[OOV_ROW] * 3, [PAD_ROW, OOV_ROW, 7]])).tolist() == [[1, 1, 1], [0, 1, 1]]
    assert repeats(np.array([[7, OOV_ROW, 7, OOV_ROW]])).tolist() == [[2, 1, 2, 1]]


def test_what_events_keep_is_a_known_value_or_nothing() -> None:
    rows = np.array([[5, 1, 2, 3, 4]])  # 1 and 2 stand for values that are unknown
    assert kept_context(rows, np.array([[False, True, True, True, True]])).tolist() == [[0, 0, 0, 3, 4]]
