"""What is stored of users is read anew with each bundle: it is of the log that the model was exported with."""

import time
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from serving.config import ServingConfig, state_dir
from serving.engine import Engine
from serving.events import DAY_US
from serving.profiles import Profiles
from serving.rights import Rights
from serving.run import events, live, opened, users
from serving.user_state import UserHistories
from towers.bundle import Bundle, publish
from towers.columns import USER_KEY
from towers.identity import SECRET_FINGERPRINT, UserKeys


@pytest.fixture
def config(world: Any, tmp_path: Path) -> ServingConfig:
    """A run of its own, exported and indexed."""
    return world.run(tmp_path)


@pytest.fixture
def engine(config: ServingConfig) -> Iterator[Engine]:
    """What a worker of a service has."""
    settings = config.serving
    keys, known = users(settings, Path(config.run_dir))
    store = events(settings, state_dir(config), keys)
    retriever = opened(Bundle.open(Path(config.run_dir, "bundles", "v1")), settings, Profiles(keys, known, store))
    with live(config, retriever) as running:
        yield running
    store.close()


def swap(config: ServingConfig, engine: Engine, version: str, refused: bool = False) -> None:
    """Publish and wait until the service has looked at it."""
    bundles = Path(config.run_dir, "bundles")
    publish(bundles, version, {}, {}, parent=Bundle.open(bundles / "v1"))
    until = time.monotonic() + 60
    while engine.retriever.bundle.version != version and not (refused and engine.refused):
        assert time.monotonic() < until and (refused or engine.refused is None), engine.refused
        time.sleep(0.01)


def export(config: ServingConfig, users_left: list[str], keys: UserKeys, **metadata: bytes) -> None:
    """Histories as an export leaves them that knows some people alone."""
    path = Path(config.run_dir, "export", "histories.parquet")
    table = pq.read_table(path)
    kept = {keys.key(user) for user in users_left}
    table = table.filter([key in kept for key in table[USER_KEY].to_pylist()])
    told = {**(table.schema.metadata or {}), **{name.encode(): value for name, value in metadata.items()}}
    pq.write_table(table.replace_schema_metadata(told), path.with_suffix(".tmp"))
    path.with_suffix(".tmp").rename(path)


def known(engine: Engine, user: str) -> bool:
    return engine.retriever.recommend(user_id=user, k=3).mode == "personalized"


def test_histories_are_those_of_the_bundle_that_answers(world: Any, config: ServingConfig, engine: Engine) -> None:
    keys = UserKeys.open(str(world.key_file))
    engine.retriever.add_events([{"user_id": "of today", "item_id": "item-09", "event_id": "1"}])
    export(config, ["user-3"], keys)
    assert known(engine, "user-5"), "the model of the old log answers, and so do its histories"
    swap(config, engine, "v2")
    assert known(engine, "user-3") and not known(engine, "user-5") and known(engine, "of today")
    engine.put_item("new", {"categories": ["drama"]})
    engine.refresh()
    assert not known(engine, "user-5"), "what is made of the same bundle anew knows the same people"
    Path(config.run_dir, "export", "histories.parquet").unlink()
    swap(config, engine, "v3")
    assert not known(engine, "user-3") and known(engine, "of today")


def test_what_is_purged_is_of_no_use_any_more(world: Any, config: ServingConfig, engine: Engine) -> None:
    keys = UserKeys.open(str(world.key_file))
    key, old = keys.key("user-5"), keys.key("user-0")

    def items(of: bytes) -> list[str]:
        found = engine.retriever.profiles.get(of, "time", 0)[0]
        return [] if found is None else list(found.items)

    before = items(key)
    moment = sorted(engine.retriever.profiles.stored(key).timestamps)[2]  # type: ignore[union-attr]
    with closing(Rights.open(config, keys)) as rights:
        rights.subjects.purge((time.time_ns() // 1000 - moment) / DAY_US)
    until = time.monotonic() + 30
    while len(items(key)) == len(before):
        assert time.monotonic() < until
        time.sleep(0.01)
    assert items(key) == before[3:] and len(items(old)) == 1 and engine.retriever.bundle.version == "v1"
    swap(config, engine, "v2")
    assert items(key) == before[3:], "read anew with the bundle"


def test_what_was_not_written_anew_is_not_read_anew(config: ServingConfig, engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    """An index over changed items comes often; histories of many users take long to read, and workers share them."""
    monkeypatch.setattr(UserHistories, "open", None)
    swap(config, engine, "v2")
    assert known(engine, "user-5")


def test_histories_of_another_secret_are_refused_with_their_bundle(world: Any, config: ServingConfig, engine: Engine) -> None:
    export(config, ["user-3"], UserKeys.open(str(world.key_file)), **{SECRET_FINGERPRINT.decode(): bytes(32)})
    swap(config, engine, "v2", refused=True)
    assert engine.refused is not None and "keyed with" in engine.refused["reason"]
    assert engine.retriever.bundle.version == "v1" and known(engine, "user-5")
