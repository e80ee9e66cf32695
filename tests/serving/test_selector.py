"""The loop that makes a list: the identity costs nothing, masks hold and lists are still filled, and each logged probability is the one
that the draw had."""

import itertools
from collections import Counter
from dataclasses import replace

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from serving.policy import Dials, Policy
from serving.selector import Candidates, select
from tests.serving.selector_world import ALL_ON, ItemWorld, item_world, with_clones

HISTORY = [f"i{i:05d}" for i in range(0, 40, 3)]


@pytest.mark.parametrize(("k", "found"), [(1, 1), (3, 3), (9, 5)])
def test_the_identity_keeps_the_k_best_in_order(k: int, found: int) -> None:
    candidates = Candidates(np.array([4, 2, 9, 0, 7]), np.array([5, 4, 3, 2, 1], np.float32))
    chosen = select(candidates, Policy(k))
    assert chosen.rows_k.tolist() == [4, 2, 9, 0, 7][:found]
    assert chosen.scores_k.tolist() == [5, 4, 3, 2, 1][:found]
    assert chosen.propensities_k.tolist() == [1.0] * found
    assert chosen.considered is candidates and chosen.shortage == ("items" if k > 5 else "")


def test_no_candidates_give_an_empty_list() -> None:
    nothing = Candidates(np.empty(0, np.int64), np.empty(0, np.float32))
    world = item_world(5, 0)
    for chosen in (select(nothing, Policy(5)), select(nothing, Policy(5, ALL_ON), world.parts(Policy(5, ALL_ON), HISTORY))):
        assert len(chosen.rows_k) == len(chosen.scores_k) == len(chosen.propensities_k) == 0
        assert chosen.shortage == "items"


@pytest.mark.parametrize("dials", [ALL_ON, Dials(temperature=0.5), replace(ALL_ON, temperature=0.03, caps={"categories": 1})])
def test_the_probabilities_of_all_lists_sum_to_1(dials: Dials) -> None:
    """Six candidates, lists of three: each list's probability is the product of its positions'."""
    world, policy, whole = item_world(40, 1), Policy(3, dials), 0.0
    rows = world.search(6, np.empty(0, np.int64)).rows_C.tolist()
    for length in range(1, 4):
        for told in itertools.permutations(rows, length):
            probability = world.likelihood(replace(policy, k=length), list(told), 6, HISTORY).prod()
            ended = length == 3 or not any(
                world.likelihood(replace(policy, k=length + 1), [*told, row], 6, HISTORY).prod() for row in rows if row not in told
            )
            whole += probability if ended else 0.0
    assert abs(whole - 1) < 1e-9


def test_draws_come_as_often_as_their_probabilities_say() -> None:
    """Chi-square over all lists of two among five candidates, by 4,000 seeds; 0.1 % critical value."""
    world, policy, draws = item_world(40, 2), Policy(2, replace(ALL_ON, caps={}, near_duplicates=None)), 4000
    found = world.search(5, np.empty(0, np.int64))
    seen = Counter(tuple(select(found, replace(policy, seed=seed), world.parts(policy, HISTORY)).rows_k.tolist()) for seed in range(draws))
    expected = {
        told: draws * world.likelihood(policy, list(told), 5, HISTORY).prod() for told in itertools.permutations(found.rows_C.tolist(), 2)
    }
    often = {told: count for told, count in expected.items() if count >= 5}
    rest = draws - sum(often.values())
    statistic = sum((seen[told] - count) ** 2 / count for told, count in often.items())
    statistic += (draws - sum(seen[told] for told in often) - rest) ** 2 / rest if rest > 0 else 0.0
    assert len(often) >= 8 and statistic < {n: c for n, c in zip(range(8, 21), CRITICAL, strict=True)}[len(often)]


CRITICAL = [26.1, 27.9, 29.6, 31.3, 32.9, 34.5, 36.1, 37.7, 39.3, 40.8, 42.3, 43.8, 45.3]
"""0.1 % of chi-square with 8, 9, ... 20 degrees of freedom."""


@pytest.mark.parametrize("temperature", [0.2, 0.002])
def test_what_is_logged_is_what_another_reader_computes(temperature: float) -> None:
    """At the lower temperature values are hundreds of temperatures apart."""
    world, dials = item_world(300, 3), replace(ALL_ON, temperature=temperature)
    for seed in range(20):
        policy = Policy(10, dials, seed)
        chosen = world.choose(policy, HISTORY)
        again = world.choose(Policy.from_row(policy.to_row()), HISTORY)
        assert again.rows_k.tolist() == chosen.rows_k.tolist() and again.propensities_k.tolist() == chosen.propensities_k.tolist()
        known = world.likelihood(policy, chosen.rows_k.tolist(), policy.candidates, HISTORY)
        assert np.allclose(known, chosen.propensities_k, rtol=1e-12) and (known > 0).all()
    if temperature == 0.2:
        assert len({tuple(world.choose(Policy(10, dials, seed), HISTORY).rows_k) for seed in range(20)}) > 15


def test_a_policy_gives_no_chance_to_what_it_cannot_choose() -> None:
    world = item_world(40, 4)
    best = world.choose(Policy(3, Dials(diversity=0.5)), count=20).rows_k.tolist()
    plain = Policy(3, Dials(diversity=0.5))
    assert world.likelihood(plain, best, 20, []).tolist() == [1.0, 1.0, 1.0]
    assert world.likelihood(plain, [best[0], best[2], best[1]], 20, []).tolist() == [1.0, 0.0, 0.0]
    assert world.likelihood(replace(plain, dials=Dials(temperature=0.1)), [best[0], best[0], best[1]], 20, []).tolist()[1:] == [0.0, 0.0]


@pytest.mark.parametrize("temperature", [0.0, 0.1])
def test_a_flood_of_clones_takes_one_slot(temperature: float) -> None:
    world = with_clones(item_world(100, 5), 1000)
    chosen = world.choose(Policy(50, Dials(near_duplicates=0.999, temperature=temperature), seed=1))
    likeness = world.vectors_ID[chosen.rows_k] @ world.vectors_ID[chosen.rows_k].T - 2 * np.eye(50)
    assert len(chosen.rows_k) == 50 and likeness.max() < 0.999 and chosen.shortage == ""


@pytest.mark.parametrize("dials", [Dials(near_duplicates=0.999), Dials(caps={"provider": 2})])
def test_what_is_not_barred_is_found_however_deep_it_lies(dials: Dials) -> None:
    """Clones of the best item past all that searches for more candidates come to."""
    world = item_world(100, 5)
    provider = np.array(world.table["provider"].to_pylist(), object)
    provider[world.search(1, np.empty(0, np.int64)).rows_C] = "flood"
    world = replace(world, table=world.table.set_column(3, "provider", pa.array(provider.tolist())))
    flooded = with_clones(world, 60_000)
    chosen, without = flooded.choose(Policy(10, dials)), world.choose(Policy(10, dials))
    assert len(chosen.rows_k) == 10 and chosen.shortage == "" and legal(flooded, chosen.rows_k.tolist(), dials)
    others = [row for row in chosen.rows_k.tolist() if row < 100]
    assert [row for row in without.rows_k.tolist() if row in others] == others and len(others) >= 8
    assert len(chosen.considered.rows_C) < 1000, "what the list bars already is looked at once, not at each position"
    everything = flooded.choose(Policy(300, Dials(near_duplicates=0.999)))
    assert everything.shortage == "policy" and set(everything.rows_k.tolist()) >= set(range(100)) - set(chosen.rows_k[:1].tolist())


def test_caps_are_kept_and_the_list_is_still_filled() -> None:
    """The best 200 are of one provider: a cap of two needs a deeper search, which finds what a search of everything would."""
    world = item_world(900, 6)
    best = world.search(200, np.empty(0, np.int64)).rows_C
    provider = np.array(world.table["provider"].to_pylist(), object)
    provider[best] = "flood"
    world = replace(world, table=world.table.set_column(3, "provider", pa.array(provider.tolist())))
    policy = Policy(10, Dials(caps={"provider": 2}))
    chosen, all_at_once = world.choose(policy), world.choose(policy, count=900)
    assert chosen.rows_k.tolist() == all_at_once.rows_k.tolist() and len(chosen.rows_k) == 10
    held = Counter(provider[chosen.rows_k])
    assert max(count for name, count in held.items() if name is not None) == 2


def test_a_list_that_caps_make_impossible_is_shorter_and_says_so() -> None:
    world = item_world(300, 7)
    chosen = world.choose(Policy(200, Dials(caps={"categories": 3, "provider": 4})))
    none = [row for row in range(300) if not world.labels(row) and world.table["provider"][row].as_py() is None]
    assert set(none) <= set(chosen.rows_k.tolist()) and len(chosen.rows_k) < 40 and len(chosen.considered.rows_C) == 300
    assert chosen.shortage == "policy"
    assert world.choose(Policy(400, Dials(diversity=0.1))).shortage == "items"


def legal(world: ItemWorld, rows: list[int], dials: Dials) -> bool:
    for name, most in dials.caps.items():
        values = [world.table[name][row].as_py() for row in rows]
        flat = [one for value in values if value is not None for one in (value if isinstance(value, list) else [value])]
        if max(Counter(flat).values(), default=0) > most:
            return False
    near = world.vectors_ID[rows] @ world.vectors_ID[rows].T - 3 * np.eye(len(rows))
    return dials.near_duplicates is None or len(rows) < 2 or float(near.max()) < dials.near_duplicates + 1e-5


WEIGHT = st.sampled_from([0.0, 0.1, 1.0, 50.0])
DIALS = st.builds(
    Dials,
    popularity=st.sampled_from([-1.0, 0.0, 0.3]),
    calibration=WEIGHT,
    diversity=WEIGHT,
    freshness=WEIGHT,
    temperature=st.sampled_from([0.0, 1e-6, 0.05, 10.0]),
    near_duplicates=st.sampled_from([None, 0.2, 0.9, 1.0]),
    caps=st.dictionaries(st.sampled_from(["categories", "provider"]), st.integers(1, 5)),
)


@settings(max_examples=60, deadline=None, derandomize=True)
@given(DIALS, st.integers(1, 30), st.integers(1, 120), st.integers(0, 5))
def test_every_list_is_legal_whatever_is_turned(dials: Dials, k: int, items: int, seed: int) -> None:
    world = item_world(items, seed)
    chosen = world.choose(Policy(k, dials, seed), HISTORY)
    rows = chosen.rows_k.tolist()
    assert len(rows) == len(set(rows)) <= k and legal(world, rows, dials)
    assert ((chosen.propensities_k > 0) & (chosen.propensities_k <= 1)).all()
    if len(rows) < k:  # nothing that is left would be legal
        assert not any(legal(world, [*rows, row], dials) for row in range(items) if row not in rows)
    assert (chosen.shortage == "") == (len(rows) == k)
