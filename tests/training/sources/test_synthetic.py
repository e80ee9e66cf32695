import time

import numpy as np
import pyarrow as pa
import pytest

from towers.errors import ConfigError
from training.data_config import SyntheticConfig
from training.sources import open_source
from training.sources.synthetic_events import EVENT_TYPES, simulate
from training.sources.synthetic_world import CHANNELS, DEVICES, START_US, build_world

SMALL = {"users": 300, "items": 150, "days": 30, "events_per_user": 15}
CONTEXT = ("hour", "device", "channel")


def concat(source):
    return pa.concat_tables(source.interactions())


def test_tables_are_complete_typed_and_linked(data_config):
    source = open_source(data_config("synthetic", synthetic=SMALL, chunk_rows=1000))
    log = concat(source)
    assert max(len(chunk) for chunk in source.interactions()) == 1000
    assert 0.6 * 4500 < len(log) < 1.4 * 4500
    assert log.schema.field("timestamp").type == pa.timestamp("us", "UTC")
    assert set(log["event_type"].to_pylist()) == set(EVENT_TYPES)
    times = log["timestamp"].cast(pa.int64()).to_numpy()
    assert (np.diff(times) >= 0).all()
    assert [t.hour for t in log["timestamp"].to_pylist()] == [int(h) for h in log["hour"].to_pylist()]
    assert source.items["item_id"].to_pylist() == sorted(source.items["item_id"].to_pylist())
    assert len(set(source.items["title"].to_pylist())) == 150
    assert set(log["item_id"].to_pylist()) <= set(source.items["item_id"].to_pylist())
    assert {"provider", "description", "minutes"} <= set(source.items.column_names)
    assert source.users.column_names == ["user_id", "preferences"]
    assert source.audit is not None and source.audit.column_names == ["user_id", "group"]
    told = {c for p in source.users["preferences"].to_pylist() for c in p}
    assert told <= {c for cs in source.items["categories"].to_pylist() for c in cs}


def test_same_seed_same_world_other_seed_other_world(data_config):
    one, same, other = (open_source(data_config("synthetic", synthetic={**SMALL, "seed": s})) for s in (3, 3, 4))
    assert concat(one).equals(concat(same)) and one.items.equals(same.items) and one.users.equals(same.users)
    assert not concat(one).equals(concat(other))


def test_nothing_happens_before_it_exists_and_repeats_are_rare():
    config = SyntheticConfig(**SMALL)
    world = build_world(config)
    events = simulate(world, config)
    created_us = START_US + world.created_I[events.item].astype(np.float64) * 86_400e6
    assert (events.time_us >= created_us - 60e6).all()  # days are float32: some seconds of rounding
    assert (world.created_I > 0).mean() > 0.15 and (world.arrival_U > 0).mean() > 0.3
    pairs = events.user * 10_000 + events.item
    assert len(np.unique(pairs)) > 0.97 * len(pairs)
    assert len(set(np.bincount(world.group_U))) == 3


def test_abandonment_follows_mismatch_and_abandoned_things_are_left_early():
    config = SyntheticConfig(**SMALL)
    world = build_world(config)
    events = simulate(world, config)
    match_N = np.einsum("nk,nk->n", world.taste_at(events.user, (events.time_us - START_US) / 86_400e6), world.topic_IK[events.item])
    abandoned = events.reaction == 0
    assert 0.05 < abandoned.mean() < 0.35
    assert match_N[abandoned].mean() + 0.15 < match_N[~abandoned].mean()
    assert np.median(events.dwell_s[abandoned]) < 0.5 * np.median(events.dwell_s[~abandoned])


def test_oracle_is_the_utility_that_choices_follow(data_config):
    source = open_source(data_config("synthetic", synthetic=SMALL))
    log, oracle = concat(source), source.oracle
    assert oracle is not None
    first = log.slice(0, 5)
    times = first["timestamp"].cast(pa.int64()).to_numpy()
    utility = oracle.utilities(first["user_id"].to_pylist(), times, {n: first[n].to_pylist() for n in CONTEXT})
    assert utility.shape == (5, 150) and utility.dtype == np.float32
    created = source.items["created_at"].cast(pa.int64()).to_numpy()
    assert np.isneginf(utility[0][created > times[0] + 1e9]).all() and np.isfinite(utility[0][created < times[0] - 1e9]).all()
    blind = oracle.utilities(["nobody"], times[:1], {})
    assert np.allclose(blind, oracle.utilities(["nobody"], times[:1], {"device": [None], "hour": ["25"]}), equal_nan=True)
    assert not np.allclose(blind[np.isfinite(blind)], utility[0][np.isfinite(utility[0])])


def test_tastes_drift():
    world = build_world(SyntheticConfig(**SMALL))
    users = np.arange(300)
    start, end = (world.taste_at(users, world.arrival_U + days) for days in (0, 30))
    cosine = (start * end).sum(1)
    assert np.allclose(np.linalg.norm(end, axis=1), 1, atol=1e-5)
    assert cosine.min() < 0.8 and 0.85 < cosine.mean() < 0.97


def test_default_world_is_learnable_and_not_trivial():
    """Popularity at least 3x random, the oracle far above it, context and taste each worth a lot: on the last tenth of events."""
    started = time.process_time()
    config = SyntheticConfig()
    world = build_world(config)
    events = simulate(world, config)
    assert time.process_time() - started < 10
    n, n_items = len(events.user), config.items
    assert 70_000 < n < 90_000
    past = int(0.9 * n)
    wanted = events.reaction > 0
    had: dict[int, list[int]] = {}
    queries, seen_rows = [], []
    for row in range(n):
        if row >= past and wanted[row] and row % 4 == 0:
            queries.append(row)
            seen_rows.append(list(had.get(int(events.user[row]), [])))
        had.setdefault(int(events.user[row]), []).append(int(events.item[row]))
    q = np.array(queries)
    context = {
        "hour": [str(h) for h in events.hour[q]],
        "device": [DEVICES[d] for d in events.device[q]],
        "channel": [CHANNELS[c] for c in events.channel[q]],
    }
    users = [world.user_ids[u] for u in events.user[q]]

    def ndcg(score):
        score = np.array(np.broadcast_to(score, (len(q), n_items)), np.float32)
        for row, items in enumerate(seen_rows):
            score[row, [i for i in items if i != events.item[q[row]]]] = -np.inf
        rank = (score > score[np.arange(len(q)), events.item[q]][:, None]).sum(1)
        return float(np.where(rank < 20, 1 / np.log2(2 + rank), 0).mean())

    popularity = ndcg(np.bincount(events.item[:past][wanted[:past]], minlength=n_items))
    chance = ndcg(np.random.default_rng(0).random((len(q), n_items)))
    oracle = ndcg(world.utilities(users, events.time_us[q], context))
    assert popularity > 3 * chance
    assert 0.03 < popularity < 0.08
    assert 0.25 < oracle < 0.5
    assert ndcg(world.utilities(users, events.time_us[q], {})) < 0.75 * oracle
    assert ndcg(world.utilities(["nobody"] * len(q), events.time_us[q], context)) < 0.5 * oracle


@pytest.mark.parametrize(("key", "value"), [("users", 1), ("items", 5), ("days", 0), ("events_per_user", 0.5), ("events_per_user", 1000)])
def test_impossible_sizes_name_the_setting(data_config, key, value):
    with pytest.raises(ConfigError, match=f"data.synthetic.{key}: got {value}"):
        open_source(data_config("synthetic", synthetic={**SMALL, key: value}))


def test_a_tiny_world_works(data_config):
    source = open_source(data_config("synthetic", synthetic={"users": 2, "items": 12, "days": 1, "events_per_user": 3}))
    assert 2 <= len(concat(source)) <= 24


def test_who_is_tired_of_a_category_abandons_what_is_sent_of_it_and_no_longer_chooses_it():
    config = SyntheticConfig(**SMALL, pushed=0.5, tired=0.5)
    world = build_world(config)
    events = simulate(world, config)
    tired = np.isfinite(world.tired_U)
    assert 0.4 < tired.mean() < 0.6
    assert (world.tired_U >= world.arrival_U).all()
    main_QC = world.topic_IK @ world.favourite_UK.T  # [I, U]: how much an item is of what each user liked most
    of_it = main_QC[events.item, events.user] > 0.6
    after = (events.time_us - START_US) / 86_400e6 >= world.tired_U[events.user]
    abandoned = events.reaction == EVENT_TYPES.index("abandon")
    mine = tired[events.user]
    assert abandoned[of_it & mine & after].mean() > 0.9 > 0.3 > abandoned[of_it & mine & ~after].mean()
    assert of_it[mine & after].mean() < of_it[mine & ~after].mean()
    # the oracle knows: the same user, an hour before and after
    user = int(np.flatnonzero(tired)[0])
    turn_us = START_US + int(world.tired_U[user] * 86_400e6)
    before_I, after_I = world.utilities([world.user_ids[user]] * 2, [turn_us - 3_600_000_000, turn_us + 3_600_000_000], {})
    there = np.isfinite(before_I)
    assert np.corrcoef(after_I[there] - before_I[there], main_QC[there, user])[0, 1] < -0.99


def test_a_world_without_tired_users_and_pushed_items_is_what_it_was():
    plain, none = SyntheticConfig(**SMALL), SyntheticConfig(**SMALL, pushed=0.0, tired=1.0)
    one, other = build_world(plain), build_world(none)
    assert not np.isfinite(one.tired_U).any() and np.isfinite(other.tired_U).all()
    assert np.array_equal(one.taste_UK, other.taste_UK) and np.array_equal(one.quality_I, other.quality_I)
