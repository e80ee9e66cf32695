"""Each gain against the formula it is named after, computed the slow way."""

from dataclasses import replace

import numpy as np
import pyarrow as pa
import pytest

from serving.attribute_files import build_attributes
from serving.gains import Calibration, Nearness, Taste
from serving.policy import Dials, Policy
from serving.traits import BundleTraits, LiveTraits
from tests.serving.selector_world import DAY_US, LABELS, NOW_US, ItemWorld, item_world, signals

HISTORY = [2, 3, 5, 8, 13, 21, 34]


def shares(world: ItemWorld, rows: list[int]) -> np.ndarray:
    """Mass of each label, by hand: an item divides its 1 among its own."""
    mass = np.zeros(len(LABELS))
    for row in rows:
        for label in world.labels(row):
            mass[LABELS.index(label)] += 1 / len(world.labels(row))
    return mass


def c_kl(p: np.ndarray, q: np.ndarray) -> float:
    smooth = 0.99 * q + 0.01 * p
    return float(sum(p[g] * np.log(p[g] / smooth[g]) for g in range(len(p)) if p[g] > 0))


def taste_of(world: ItemWorld, rows: list[int]) -> Taste:
    found = Taste.of(world.traits.codes("categories", np.array(rows)))
    assert found is not None
    return found


def test_a_taste_is_the_shares_of_a_history() -> None:
    world = item_world(60, 0)
    by_hand = shares(world, HISTORY)
    taste = taste_of(world, HISTORY)
    assert np.allclose(taste.share_G, by_hand[by_hand > 0] / by_hand.sum())
    untold = [row for row in range(60) if not world.labels(row)]
    assert Taste.of(world.traits.codes("categories", np.array(untold))) is None


@pytest.mark.parametrize("k", [1, 7])
@pytest.mark.parametrize("one_each", [False, True])
def test_calibration_is_what_the_miscalibration_of_the_whole_list_falls_by(k: int, one_each: bool) -> None:
    """Against the list completed in the taste's own shares; at the last place that is the list itself. Items that have one category each
    are looked up another way."""
    world = item_world(60, 1)
    if one_each:
        labels = [[LABELS[row % 4 if row < 30 else row % 5]] for row in range(60)]  # the taste knows four of the five
        world = replace(world, table=world.table.set_column(2, "categories", pa.array(labels)))
    assert world.traits.codes("categories", np.arange(60)).one_each == one_each
    p = shares(world, HISTORY) / shares(world, HISTORY).sum()
    rows = np.arange(30, 60)
    gain = Calibration(world.traits, "categories", taste_of(world, HISTORY), 0.5, k)
    gain.enter(rows)
    chosen: list[int] = []
    for place in range(k):
        found = gain.of()
        now = shares(world, chosen) / k + (k - place - 1) / k * p
        slow = [-0.5 * k * c_kl(p, now + shares(world, [row]) / k) for row in rows.tolist()]
        assert np.allclose(np.diff(found), np.diff(slow), atol=1e-9)
        if place == k - 2:
            gain.enter(rows)  # further candidates: what was chosen still counts
        gain.chose(3 * place)
        chosen.append(int(rows[3 * place]))


def test_diversity_takes_off_the_mean_cosine_and_near_duplicates_are_barred() -> None:
    world = item_world(40, 2)
    cosine = world.vectors_ID @ world.vectors_ID.T
    rows = np.arange(20)
    near = Nearness(world.traits, 0.7, 0.6)
    assert near.enter(rows) is None
    assert near.chose(4).tolist() == (cosine[4, :20] >= 0.6).tolist()
    near.chose(9)
    assert np.allclose(near.of(), -0.35 * (cosine[4, :20] + cosine[9, :20]), atol=1e-6)
    later = near.enter(np.arange(20, 40))
    assert later.tolist() == (np.maximum(cosine[4, 20:], cosine[9, 20:]) >= 0.6).tolist()
    assert np.allclose(near.of(), -0.35 * (cosine[4, 20:] + cosine[9, 20:]), atol=1e-6)


def test_popularity_and_freshness_are_added_to_relevance() -> None:
    world = item_world(50, 3)
    standing = world.parts(Policy(5, Dials(popularity=-0.4, freshness=0.3, fresh_days=20.0)), []).standing(np.arange(50))
    age = np.array([(NOW_US - world.traits.created(np.array([row]))[0]) / DAY_US for row in range(50)])
    popular = np.log(1 + world.counts_I) / np.log(1 + world.counts_I.max())
    assert np.allclose(standing, -0.4 * popular + 0.3 * 0.5 ** (age / 20), atol=1e-6)
    without = replace(world, table=world.table.drop_columns(["created_at"]))
    assert without.parts(Policy(5, Dials(freshness=0.3)), []).standing(np.arange(50)).tolist() == [0.0] * 50


def test_dials_move_what_they_are_named_after() -> None:
    world = item_world(2000, 4)
    ids = [f"i{row:05d}" for row in HISTORY]
    p = shares(world, HISTORY) / shares(world, HISTORY).sum()

    def of(dials: Dials | None) -> tuple[float, float, float, float]:
        rows = world.choose(Policy(20, dials), ids).rows_k if dials else world.search(20, np.empty(0, np.int64)).rows_C
        inner = world.vectors_ID[rows] @ world.vectors_ID[rows].T
        shown = shares(world, rows.tolist())
        return (
            float(world.counts_I[rows].mean()),
            c_kl(p, shown / shown.sum()),
            float((inner.sum() - 20) / 380),
            float(world.traits.created(rows).mean()),
        )

    plain = of(None)
    assert of(Dials(popularity=-0.5))[0] < plain[0] < of(Dials(popularity=0.5))[0]
    assert of(Dials(calibration=0.5))[1] < 0.5 * plain[1]
    assert of(Dials(diversity=1.0))[2] < plain[2]
    assert of(Dials(freshness=1.0))[3] > plain[3]


def test_what_an_event_speaks_against_is_no_taste() -> None:
    world = item_world(60, 5)
    ids = [f"i{row:05d}" for row in HISTORY]
    policy = Policy(10, Dials(calibration=0.5))
    skipped = world.chooser().parts(policy, signals(ids, ["interaction", None, "skip", *[None] * 4]), NOW_US)
    fewer = world.chooser().parts(policy, signals([ids[0], ids[1], *ids[3:]]), NOW_US)
    assert skipped is not None and fewer is not None
    for one in (skipped.page[0], fewer.page[0]):
        one.enter(np.arange(60))
    assert skipped.page[0].of().tolist() == fewer.page[0].of().tolist()


def test_items_that_came_are_told_with_the_same_codes() -> None:
    whole = item_world(40, 6)
    base = replace(whole, table=whole.table.slice(0, 30), vectors_ID=whole.vectors_ID[:30])
    came_traits = BundleTraits(build_attributes(whole.table.slice(30, 10), whole.schema), whole.vectors_ID[30:])
    traits = LiveTraits(base.traits, came_traits, 64)
    rows, live = np.array([5, 33, 2, 39, 30]), np.array([5, 67, 2, 73, 64])
    for attribute in traits.valued():
        found, true = traits.codes(attribute, live), whole.traits.codes(attribute, rows)
        assert found.count_C.tolist() == true.count_C.tolist()
        same = [len({a for a, b in zip(found.codes_E, true.codes_E, strict=True) if b == code}) for code in set(true.codes_E.tolist())]
        assert set(same) == {1} and len(set(found.codes_E.tolist())) == len(set(true.codes_E.tolist()))
    assert traits.created(live).tolist() == whole.traits.created(rows).tolist()
    assert np.array_equal(traits.unit_vectors(live), whole.traits.unit_vectors(rows))
