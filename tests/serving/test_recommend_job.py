"""`towers recommend`: the lists are those of single requests, shards are whole, an interrupted job goes on."""

import json
import time
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from serving import recommend_job
from serving.config import ServingConfig, state_dir
from serving.events import StoredEvent
from serving.item_changes import ITEMS_FILE, ItemChanges
from serving.live_items import LiveItems
from serving.profiles import Profiles, open_histories
from serving.recommend_job import run
from serving.retriever import Retriever
from serving.rights import Rights
from serving.run import events, opened
from serving.standing import Standing
from towers.bundle import Bundle
from towers.errors import DataError
from towers.identity import UserKeys

NOW = 1_728_000_000.0


@pytest.fixture
def config(world: Any, tmp_path: Path) -> ServingConfig:
    made = world.run(tmp_path)
    made.recommend.k, made.recommend.now, made.recommend.users_per_shard, made.recommend.block_users = 6, NOW, 4, 3
    return made


def written(config: ServingConfig) -> pa.Table:
    return pa.concat_tables(pq.read_table(path) for path in sorted(Path(config.run_dir, "recommendations").glob("part-*.parquet")))


@pytest.mark.parametrize("exclude_seen", [True, False])
def test_every_users_list_is_that_of_a_request(world: Any, config: ServingConfig, retriever: Retriever, exclude_seen: bool) -> None:
    config.recommend.exclude_seen = exclude_seen
    report = json.loads(Path(run(config)).read_text())
    got = {row["user_key"]: row for row in written(config).to_pylist()}
    keys = UserKeys.open(str(world.key_file))
    assert len(got) == len(world.users) == report["users"]
    for user in world.users:
        expected = retriever.recommend(user, k=6, now=NOW, exclude_seen=exclude_seen)
        row = got[keys.key(user)]
        assert row["item_ids"] == [item.item_id for item in expected.items] and row["mode"] == expected.mode
        np.testing.assert_allclose(row["scores"], [item.score for item in expected.items], atol=1e-6)
    assert report["modes"] == {"cold": 1, "fallback": 1, "personalized": len(world.users) - 2}


def test_items_that_came_and_went_since_the_bundle_are_as_a_request_has_them(
    world: Any, config: ServingConfig, retriever: Retriever
) -> None:
    gone = retriever.recommend(k=1, now=NOW).items[0].item_id
    run(config)
    assert any(gone in ids for ids in written(config)["item_ids"].to_pylist())
    changes = ItemChanges(Path(config.run_dir) / "state" / ITEMS_FILE)
    changes.put(gone, None)
    changes.put("newcomer", {"title": "New"})
    served = LiveItems(retriever, changes).refreshed()
    changes.close()
    assert served is not None
    config.recommend.k = len(served.catalog)
    run(config)
    got = {row["user_key"]: row["item_ids"] for row in written(config).to_pylist()}
    keys = UserKeys.open(str(world.key_file))
    for user in world.users:
        assert got[keys.key(user)] == [item.item_id for item in served.recommend(user, k=config.recommend.k, now=NOW).items]
    assert not any(gone in ids for ids in got.values()) and any("newcomer" in ids for ids in got.values())


def test_people_known_from_live_events_alone_get_the_list_of_a_request(world: Any, config: ServingConfig) -> None:
    keys = UserKeys.open(str(world.key_file))
    store = events(config.serving, state_dir(config), keys)
    retriever = opened(Bundle.open(world.bundle), config.serving, Profiles(*open_histories(world.histories, str(world.key_file)), store))
    rights = Rights.open(config, keys)
    config.serving.event_days = 30.0
    days = {"newcomer": -1, "user-3": -1, "refuses": -1, "later": 1, "forgotten": -1, "came back": -1, "long ago": -31}
    moments = {user: NOW + 86_400 * day for user, day in days.items()}
    moment = round(NOW * 1e6)
    store.append([StoredEvent(keys.key(user), "1", "item-09", "play", round(then * 1e6)) for user, then in moments.items()], moment)
    rights.standing.decide(keys.key("refuses"), {"personalize": False})
    erasures = {keys.key("forgotten"): moment, keys.key("came back"): round((NOW - 2 * 86_400) * 1e6)}
    rights.close()
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(Standing, "forgotten", lambda self, key: erasures.get(key))
        report = json.loads(Path(run(config)).read_text())
    got = {row["user_key"]: row["item_ids"] for row in written(config).to_pylist()}
    assert list(got) == sorted(got) and report["users"] == len(got) == len(world.users) + 2 and report["users_not_allowed"] == 1
    for user in (*world.users, "newcomer", "came back"):
        assert got[keys.key(user)] == [item.item_id for item in retriever.recommend(user, k=6, now=NOW).items], user
    assert retriever.recommend("newcomer", now=NOW).mode == "personalized"
    store.close()


def test_who_comes_while_it_is_interrupted_does_not_start_it_anew(
    world: Any, config: ServingConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    keys = UserKeys.open(str(world.key_file))
    store = events(config.serving, state_dir(config), keys)
    real = recommend_job.lists

    def arrive(user: str) -> None:
        store.append([StoredEvent(keys.key(user), "1", "item-09", "play", round(NOW * 1e6) - 1)], round(NOW * 1e6))

    def failing(retriever: Retriever, user_keys: list[bytes], *given: Any) -> pa.Table:
        if Path(config.run_dir, "recommendations", "part-00000.parquet").exists():
            raise KeyboardInterrupt
        return real(retriever, user_keys, *given)

    arrive("first")
    with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
        patched.setattr(recommend_job, "lists", failing)
        run(config)
    before = Path(config.run_dir, "recommendations", "part-00000.parquet").stat().st_mtime_ns
    arrive("second")
    assert json.loads(Path(run(config)).read_text())["users"] == len(world.users) + 1
    assert Path(config.run_dir, "recommendations", "part-00000.parquet").stat().st_mtime_ns == before
    assert json.loads(Path(run(config)).read_text())["users"] == len(world.users) + 2, "a job of its own knows who came"
    store.close()


def test_an_interrupted_job_goes_on_with_its_moment(config: ServingConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    config.recommend.now = None
    calls: list[int] = []
    real = recommend_job.lists

    def failing(*given: Any) -> pa.Table:
        calls.append(given[3])
        if len(calls) == 4:  # in the second shard
            raise KeyboardInterrupt
        return real(*given)

    monkeypatch.setattr(recommend_job, "lists", failing)
    with pytest.raises(KeyboardInterrupt):
        run(config)
    first = Path(config.run_dir, "recommendations", "part-00000.parquet").stat()
    time.sleep(0.01)
    run(config)
    assert Path(config.run_dir, "recommendations", "part-00000.parquet").stat().st_mtime_ns == first.st_mtime_ns
    assert len(set(calls)) == 1, "one moment for all lists"
    before = written(config)
    assert len(before) == 15
    run(config)
    assert len(set(calls)) == 2, "a finished job is not continued: its lists would stay for ever"


def test_a_run_without_histories_says_what_to_do(config: ServingConfig) -> None:
    Path(config.run_dir, "export", "histories.parquet").unlink()
    with pytest.raises(DataError, match="towers export"):
        run(config)
