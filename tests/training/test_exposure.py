"""Exposure and tastes of lists: numbers worked out by hand, slow references, and the edges."""

from itertools import combinations
from typing import Any

import numpy as np
import pyarrow as pa
from hypothesis import given, settings
from hypothesis import strategies as st

from training import exposure

K = 4
CATEGORIES = [["a"], ["a", "b"], ["b", "c"], None, ["c", "c"], []]
MEMBER_IG = exposure.memberships(pa.chunked_array([CATEGORIES], pa.list_(pa.string())))
one_list = st.permutations(range(6)).flatmap(lambda items: st.integers(0, K).map(lambda n: [*items[:n], *[-1] * (K - n)]))
lists = st.lists(one_list, min_size=1, max_size=8)


def of(item: int) -> set[str]:
    return set(CATEGORIES[item] or ())


def shares_of(items: list[int]) -> dict[str, float]:
    mass = {name: sum((name in of(i)) / len(of(i)) for i in items if of(i)) for name in "abc"}
    return {name: value / sum(mass.values()) for name, value in mass.items()} if any(mass.values()) else mass


@settings(max_examples=60, deadline=None)
@given(lists, st.integers(1, K))
def test_figures_equal_what_plain_python_makes_of_each_list(drawn: list[list[int]], k: int) -> None:
    rows_Qk = np.array(drawn)
    shown = [[item for item in row[:k] if item >= 0] for row in drawn]
    count_I, tail_I = np.array([9, 0, 3, 1, 7, 2]), np.array([False, True, True, False, True, False])
    close(exposure.average_popularity(rows_Qk, count_I, k), [np.mean(count_I[items]) if items else np.nan for items in shown])
    close(exposure.tail_share(rows_Qk, tail_I, k), [np.mean(tail_I[items]) if items else np.nan for items in shown])
    share_QG = exposure.list_shares(rows_Qk, MEMBER_IG, k)
    close(share_QG, [[shares_of(items)[name] for name in "abc"] for items in shown])
    logs = [[-v * np.log(v) for v in shares_of(items).values() if v] for items in shown]
    close(exposure.category_entropy(share_QG), [sum(terms) if terms else np.nan for terms in logs])
    unlike = [[1 - len(of(i) & of(j)) / np.sqrt(max(1, len(of(i)) * len(of(j)))) for i, j in combinations(items, 2)] for items in shown]
    close(exposure.ild(rows_Qk, exposure.units(MEMBER_IG), k), [np.mean(pairs) if pairs else np.nan for pairs in unlike])
    dense = exposure.units(MEMBER_IG).toarray()
    close(exposure.ild(rows_Qk, dense, k), exposure.ild(rows_Qk, exposure.units(MEMBER_IG), k))


@settings(max_examples=60, deadline=None)
@given(lists, st.lists(st.booleans(), min_size=6, max_size=6).filter(any))
def test_gini_is_half_the_mean_difference_over_the_mean(drawn: list[list[int]], allowed: list[bool]) -> None:
    rows_Qk, allowed_I = np.array(drawn), np.array(allowed)
    slots = np.array([sum(row.count(item) for row in drawn) for item in range(6)])[allowed_I]
    expected = np.abs(slots[:, None] - slots).mean() / (2 * slots.mean()) if slots.any() else np.nan
    close([exposure.gini(rows_Qk, allowed_I, K)], [expected])


def test_the_tail_is_all_but_the_most_popular_fifth_of_what_may_be_shown() -> None:
    count_I, allowed_I = np.array([1, 8, 8, 50, 2, 3]), np.array([True, True, True, False, True, True])
    assert exposure.tail(count_I, allowed_I).tolist() == [True, False, True, False, True, True]
    assert exposure.tail(count_I, np.zeros(6, bool)).any() == np.False_


def test_calibration_costs_nothing_where_shares_agree_and_most_where_nothing_can_be_counted() -> None:
    taste = np.array([[0.25, 0.75, 0.0]])
    found = exposure.miscalibration(np.repeat(taste, 3, 0), np.array([[0.25, 0.75, 0.0], [0.75, 0.25, 0.0], [0.0, 0.0, 0.0]]))
    close(found[[0, 2]], [0.0, np.log(1 / exposure.SMOOTHING)])
    by_hand = 0.25 * np.log(0.25 / (0.99 * 0.75 + 0.0025)) + 0.75 * np.log(0.75 / (0.99 * 0.25 + 0.0075))
    close(found[[1]], [by_hand])
    assert np.isnan(exposure.miscalibration(np.zeros((1, 3)), taste)).all(), "nothing is known of the person"


def test_histories_give_shares_by_event() -> None:
    close(exposure.shares((np.array([0, 3, 3]), np.array([0, 0, 2])), MEMBER_IG), [[2 / 3, 1 / 6, 1 / 6], [0, 0, 0]])


def test_providers_are_held_against_what_they_have_to_show() -> None:
    provider_I = np.array([0, 0, 1, 1, -1, 2, 3])
    allowed_I = np.array([True, True, True, True, True, True, False])
    rows_Qk = np.array([[0, 2], [0, 4], [1, -1]])
    close(exposure.provider_exposure(rows_Qk, provider_I, allowed_I, 2), [(3 / 4) / (2 / 5), (1 / 4) / (2 / 5), 0.0, np.nan])
    assert np.isnan(exposure.provider_exposure(np.full((1, 2), -1), provider_I, allowed_I, 2)).all()
    assert np.isnan(exposure.gini(np.full((1, 2), -1), allowed_I, 2))


def close(got: Any, wanted: Any) -> None:
    np.testing.assert_allclose(np.asarray(got, np.float64), np.asarray(wanted, np.float64), atol=1e-12)
