"""Items that no list reaches, against counting by hand."""

from dataclasses import replace

import numpy as np
import pyarrow as pa
import pytest

from serving.messages import Steer
from serving.policy import Dials, Policy, SelectorSettings
from serving.reach import FIRST, lacking
from serving.traits import BundleTraits
from tests.serving.selector_world import ItemWorld, item_world
from towers.columns import NO_TIME
from towers.errors import ConfigError, RequestError
from towers.held_out import HeldOut, key_column

PEOPLE = 400


def asked(world: ItemWorld, people: int, seed: int) -> HeldOut:
    """People whose vectors are drawn, each with two items seen."""
    rng = np.random.default_rng(seed)
    ids = np.array(world.table["item_id"].to_pylist())
    seen = pa.array([sorted(ids[rng.choice(len(ids), 2, replace=False)]) for _ in range(people)])
    vectors_QHD = rng.standard_normal((people, 1, world.vectors_ID.shape[1])).astype(np.float32)
    keys = key_column(np.zeros((people, 16), np.uint8))
    return HeldOut(keys, vectors_QHD, np.full(people, NO_TIME), seen, seen, seen)


def far_items(seed: int) -> ItemWorld:
    """300 items, of which the first 60 are far from everybody."""
    world = item_world(300, seed)
    return replace(world, vectors_ID=world.vectors_ID * np.where(np.arange(300) < 60, np.float32(0.3), np.float32(1.0))[:, None])


def test_what_an_item_lacks_is_its_distance_to_the_twentieth_of_the_n_whom_it_suits_best() -> None:
    world = far_items(0)
    held, share = asked(world, PEOPLE, 1), 0.01
    lacks_I = lacking(world.index, held, world.catalog, share)
    rows = {item: row for row, item in enumerate(world.table["item_id"].to_pylist())}
    distance_QI = np.full((PEOPLE, 300), np.inf)
    for q in range(PEOPLE):
        scores = world.vectors_ID @ held.vectors_QHD[q, 0]
        seen = [rows[item] for item in held.seen[q].as_py()]
        left = np.sort(np.delete(scores, seen))[::-1]
        distance_QI[q] = (left[FIRST - 1] - scores) / (left[0] - left[199])
        distance_QI[q, seen] = np.inf
    by_hand = np.maximum(np.sort(distance_QI, axis=0)[3], 0)  # a hundredth of 400: the fourth
    assert np.allclose(lacks_I, by_hand, atol=1e-5) and (lacks_I > 0).any() and (lacks_I == 0).any()


def test_with_the_dial_turned_every_item_is_shown_and_the_rest_of_the_list_stays() -> None:
    """Items far from everybody are in nobody's first twenty; with reach 1 each is in those of about four of the four hundred."""
    world = far_items(2)
    held = asked(world, PEOPLE, 3)
    traits = BundleTraits(world.traits._attributes, world.vectors_ID, lacking(world.index, held, world.catalog, 0.01))
    world.__dict__["traits"] = traits
    shown = {weight: np.zeros(300, int) for weight in (0.0, 1.0)}
    for q in range(PEOPLE):
        one = replace(world, query_HD=held.vectors_QHD[q])
        one.__dict__["traits"] = traits
        lists = {weight: one.choose(Policy(50, Dials(reach=weight, diversity=1e-12))).rows_k for weight in shown}
        for weight, rows in lists.items():
            shown[weight][rows[:FIRST]] += 1
        assert len(set(lists[0.0]) & set(lists[1.0])) >= 40
    assert (shown[0.0] == 0).sum() > 40 and (shown[1.0] == 0).sum() <= 3


def test_a_bundle_without_it_says_what_to_do() -> None:
    world = item_world(20, 4)
    with pytest.raises(ConfigError, match=r"serving\.selector\.reach: .*index\.reach=0\.001"):
        world.chooser(SelectorSettings(reach=1.0))
    with pytest.raises(RequestError, match=r"index\.reach") as caught:
        world.chooser().policy(5, Steer(reach=0.5))
    assert caught.value.field == "policy.reach"


def test_each_list_of_a_page_reaches_anew() -> None:
    world = item_world(100, 5)
    world.__dict__["traits"] = BundleTraits(world.traits._attributes, world.vectors_ID, np.ones(100, np.float32))
    parts = world.parts(Policy(30, Dials(reach=0.5)), [])
    for _ in range(2):
        (reach,) = parts.each()
        reach.enter(np.arange(50))
        gains = []
        for c in range(FIRST + 2):
            gains.append(reach.of() is not None)
            reach.chose(c)
        assert gains == [True] * FIRST + [False] * 2
