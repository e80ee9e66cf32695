"""A published bundle answers without a restart, if it is sound; what was said and put before still counts."""

import json
import shutil
import sqlite3
import threading
import time
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from serving import index_job
from serving.bounds import Limits
from serving.config import IndexConfig, ServeConfig, ServingConfig
from serving.engine import Engine
from serving.item_changes import ITEMS_FILE, ItemChanges
from serving.policy import SelectorSettings
from serving.retriever import Retriever
from serving.run import opened
from towers.bundle import Bundle, current, publish, write_vectors
from towers.pointers import point_current

HISTORY = ["item-01", "item-02"]


@pytest.fixture
def run_dir(world: Any, tmp_path: Path) -> Path:
    """A run of its own, whose bundle tests may replace."""
    (tmp_path / "bundles").mkdir()
    shutil.copytree(world.bundle, tmp_path / "bundles" / "v1")
    point_current(tmp_path / "bundles", "v1")
    return tmp_path


@pytest.fixture
def engine(world: Any, run_dir: Path) -> Iterator[Engine]:
    changes = ItemChanges(run_dir / "state" / ITEMS_FILE)
    first = Retriever.open(run_dir / "bundles" / "v1", world.histories, world.key_file, Limits())
    made = Engine(first, changes, run_dir / "bundles", Retriever.load)
    yield made
    made.close()
    changes.close()


def scores(engine: Engine, **asked: Any) -> dict[str, float]:
    return {item.item_id: item.score for item in engine.retriever.recommend(**{"history": HISTORY, "k": 100, "now": 10**9, **asked}).items}


def published(run_dir: Path, version: str, vectors_ID: np.ndarray | None = None, **files: bytes) -> None:
    """A bundle like v1, with some of its files changed, that is in use at once."""
    made: dict[str, Path | bytes] = {name.replace("__", "/").replace("_DOT_", "."): content for name, content in files.items()}
    if vectors_ID is not None:
        write_vectors(run_dir / "vectors", vectors_ID)
        made["item_vectors.arrow"] = run_dir / "vectors"
    parent = Bundle.open(run_dir / "bundles" / "v1")
    folder = run_dir / "plain"  # without index.json, which belongs to the old vectors
    shutil.rmtree(folder, ignore_errors=True)
    shutil.copytree(parent.folder, folder)
    carried = {name: folder / name for name in parent.manifest["files"] if name != "index.json"}
    publish(run_dir / "bundles", version, {**carried, **made}, {}, make_current=False)
    point_current(run_dir / "bundles", version)


def test_a_new_bundle_answers_and_what_came_before_still_counts(run_dir: Path, engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    released: list[str] = []
    monkeypatch.setattr("serving.engine.release", lambda: released.append(engine.retriever.bundle.version))
    engine.put_item("new", {"categories": ["drama"]})
    engine.delete_item("item-05")
    engine.retriever.add_events([{"user_id": "me", "item_id": "item-09", "event_id": "1"}])
    before, mine = scores(engine), scores(engine, user_id="me", history=[])
    engine.follow()
    assert engine.retriever.bundle.version == "v1", "nothing new: nothing happens"
    vectors_ID = engine.retriever.stock.vectors_ID
    published(run_dir, "v2", -vectors_ID)
    engine.follow()
    after = scores(engine)
    assert engine.health() == {"model_version": "v2", "index_version": "v2", "items": len(vectors_ID)} and engine.refused is None
    assert released == ["v2"], "memory of the other is given back once this one answers"
    assert set(after) == set(before) and "new" in after and "item-05" not in after
    known = [item for item in after if item != "new"]
    np.testing.assert_allclose([after[item] for item in known], [-before[item] for item in known], atol=1e-6)
    assert after["new"] == before["new"], "encoded by the item tower, which is the same"
    assert set(scores(engine, user_id="me", history=[])) == set(mine) and engine.retriever.recommend(user_id="me").mode == "personalized"
    point_current(run_dir / "bundles", "v1")
    engine.follow()
    assert engine.retriever.bundle.version == "v1" and scores(engine) == before, "and back again"


def test_a_new_bundle_is_taken_where_lists_are_steered_and_its_lists_are_steered_alike(run_dir: Path, engine: Engine) -> None:
    steered = SelectorSettings(popularity=-0.5, temperature=0.1, caps={"categories": 1}, blocked=["item-03"])
    settings = ServeConfig(selector=steered)
    first = opened(engine.retriever.bundle, settings, engine.retriever.profiles)
    following = Engine(first, None, run_dir / "bundles", lambda bundle, profiles: opened(bundle, settings, profiles))
    ask = {"policy": {"temperature": 0, "popularity": 0}, "exclude_seen": False}
    before = scores(following, **ask)
    assert 0 < len(before) < len(first.catalog) - 1 and "item-03" not in before, "the cap makes lists short"
    published(run_dir, "v2")
    following.follow()
    assert following.refused is None and following.retriever.bundle.version == "v2"
    assert scores(following, **ask) == before


@pytest.mark.parametrize("damage", ["a byte", "no file", "not finite", "wrong index", "other dim", "unknown items", "pointer"])
def test_a_bad_bundle_is_refused_with_its_reason_and_the_old_serves_on(
    run_dir: Path, engine: Engine, damage: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    before, vectors_ID = scores(engine), np.array(engine.retriever.stock.vectors_ID)
    if damage == "not finite":
        vectors_ID[:, 0] = np.nan
    if damage == "other dim":
        vectors_ID = np.ones((len(vectors_ID), 5), np.float32)
    extra = {"index_DOT_json": (run_dir / "bundles" / "v1" / "index.json").read_bytes()} if damage == "wrong index" else {}
    if damage == "unknown items":
        names = json.dumps({"numbers": {"context.budget": [10.0, 5.0]}, "vocabularies": ["item_id"]}).encode()
        extra = {"preprocess_DOT_json": names}
    published(run_dir, "v2", -vectors_ID if damage == "wrong index" else vectors_ID, **extra)
    broken = run_dir / "bundles" / "v2" / "catalog.parquet"
    if damage == "a byte":
        content = bytearray(broken.read_bytes())
        content[len(content) // 2] ^= 1
        broken.write_bytes(content)
    if damage == "no file":
        broken.unlink()
    if damage == "pointer":
        (run_dir / "bundles" / "CURRENT").write_text("v3\n")
    engine.follow()
    assert engine.retriever.bundle.version == "v1" and scores(engine) == before
    assert engine.refused is not None and engine.health()["refused"] == engine.refused
    assert "consent" not in engine.health()
    monkeypatch.setattr(type(engine.retriever.profiles.standing), "refused", "a bad row")
    assert engine.health()["consent"] == {"refused": "a bad row"}
    reason = {
        "a byte": "checksum", "no file": "missing", "not finite": "NaN", "wrong index": "do not belong together", "other dim": "expected",
        "unknown items": "", "pointer": "not a bundle",
    }[damage]  # fmt: skip
    assert reason in engine.refused["reason"] and engine.refused["reason"]
    published(run_dir, "v4")
    engine.follow()
    assert engine.retriever.bundle.version == "v4" and engine.refused is None


def test_requests_meet_one_bundle_or_the_other(run_dir: Path, engine: Engine) -> None:
    """Asked all the while from another thread, during swaps: every list is wholly of one version."""
    lists: dict[str, set[tuple[tuple[str, float], ...]]] = {}
    stop, failures = threading.Event(), list[Exception]()

    def ask() -> None:
        while not stop.is_set():
            try:
                reply = engine.retriever.recommend(history=HISTORY, k=10, now=10**9)
                lists.setdefault(reply.index_version, set()).add(tuple((item.item_id, item.score) for item in reply.items))
            except Exception as error:
                failures.append(error)

    vectors_ID = engine.retriever.stock.vectors_ID
    published(run_dir, "v2", -vectors_ID)
    with engine:
        thread = threading.Thread(target=ask)
        thread.start()
        for version in ("v1", "v2", "v1", "v2"):
            point_current(run_dir / "bundles", version)
            deadline = time.monotonic() + 20
            while engine.retriever.bundle.version != version and time.monotonic() < deadline:
                time.sleep(0.01)
            assert engine.retriever.bundle.version == version
            time.sleep(0.1)
        stop.set()
        thread.join()
    assert failures == [] and {version: len(found) for version, found in lists.items()} == {"v1": 1, "v2": 1}


def test_an_export_waits_until_it_has_its_index(run_dir: Path, engine: Engine, caplog: pytest.LogCaptureFixture) -> None:
    """A service that searches an index must not scan everything meanwhile, nor one that starts anew then."""
    caplog.set_level("INFO", "towers.serving")
    config = ServingConfig(run_dir=str(run_dir), index=IndexConfig(name="exact"))
    first = Bundle.open(run_dir / "bundles" / "v1")
    core: dict[str, Path | bytes] = {name: first.path(name) for name in first.manifest["files"] if name != "index.json"}
    publish(run_dir / "bundles", "v2", core, {})
    for _ in range(2):
        engine.follow()
    assert engine.health()["index_version"] == current(run_dir / "bundles").name == "v1" and engine.refused is None
    assert engine.health()["waiting"] == {"bundle": "v2", "reason": "it has no index yet: run `towers index`"}
    assert [(record.message, record.bundle) for record in caplog.records] == [("bundle waits for its index", "v2")]  # type: ignore[attr-defined]
    publish(run_dir / "bundles", "v3", core, {})
    index_job.run(config)
    engine.follow()
    assert engine.health() == {"model_version": "v3", "index_version": "v3-i1", "items": 40}, "the newest one got it, and nothing waits"
    point_current(run_dir / "bundles", "v2")
    index_job.run(config)
    assert current(run_dir / "bundles").name == "v2-i1", "somebody went back, and what was indexed already is not brought back"


def test_no_current_bundle_is_told_with_what_makes_one(run_dir: Path, engine: Engine, caplog: pytest.LogCaptureFixture) -> None:
    pointer = run_dir / "bundles" / "CURRENT"
    pointer.unlink()
    for _ in range(2):
        engine.follow()
    assert engine.refused is not None and set(engine.refused) == {"reason"}, "no bundle was refused"
    assert str(pointer) in engine.refused["reason"] and "`towers export`" in engine.refused["reason"]
    assert [record.message for record in caplog.records] == ["no bundle is current"]
    pointer.write_text("v1\n")
    engine.follow()
    assert engine.refused is None and engine.retriever.bundle.version == "v1"


def test_changes_are_carried_into_the_next_index(run_dir: Path, engine: Engine) -> None:
    published(run_dir, "v2")
    engine.follow()
    engine.put_item("new", {"title": "New", "categories": ["drama"]})
    engine.put_item("item-03", {"title": "Changed"})
    engine.delete_item("item-05")
    before, popular = scores(engine), engine.retriever.recommend(k=100)
    config = ServingConfig(run_dir=str(run_dir), index=IndexConfig(name="exact"), serving=ServeConfig())
    index_job.run(config)
    bundle = Bundle.open(current(run_dir / "bundles"))
    assert (bundle.version, bundle.manifest["parent"], bundle.manifest["model_version"]) == ("v2-c3-i1", "v2-c3", "v2")
    items = bundle.catalog().column("item_id").to_pylist()
    assert items == sorted(items, key=str.encode) and "new" in items and "item-05" not in items and len(items) == 40
    engine.follow()
    assert engine.health() == {"model_version": "v2", "index_version": "v2-c3-i1", "items": 40}
    assert type(engine.retriever.index).__name__ == "ExactIndex", "nothing is left to be applied"
    after = scores(engine)
    assert after.keys() == before.keys()
    np.testing.assert_allclose([after[item] for item in before], list(before.values()), atol=1e-6)
    assert [item.item_id for item in engine.retriever.recommend(k=100).items] == [item.item_id for item in popular.items]
    engine.put_item("newer", {})
    index_job.run(config)
    index_job.run(config)
    engine.follow()
    assert engine.retriever.bundle.version == "v2-c4-i2", "the second build found nothing new: another index over the same catalogue"
    assert engine.health()["items"] == 41 and "newer" in scores(engine)


def test_an_item_that_went_for_a_while_is_as_popular_as_it_was(run_dir: Path, engine: Engine) -> None:
    published(run_dir, "v2")
    engine.follow()
    config = ServingConfig(run_dir=str(run_dir), index=IndexConfig(name="exact"), serving=ServeConfig())
    popular = [item.item_id for item in engine.retriever.recommend(k=100).items]
    engine.put_item("new", {"title": "New"})
    for change in (lambda: engine.delete_item(popular[0]), lambda: engine.put_item(popular[0], {"title": "Back"})):
        change()
        index_job.run(config)
        engine.follow()
    assert [item.item_id for item in engine.retriever.recommend(k=100).items if item.item_id != "new"] == popular
    assert engine.retriever.bundle.version == "v2-c3-i1" and "new" in scores(engine)


def test_changes_of_another_file_make_another_catalogue(run_dir: Path, engine: Engine) -> None:
    """Generations of two files cannot be compared, and the first change of each has the same number."""
    config = ServingConfig(run_dir=str(run_dir), index=IndexConfig(name="exact"), serving=ServeConfig())
    published(run_dir, "v2")
    engine.put_item("old", {})
    index_job.run(config)
    point_current(run_dir / "bundles", "v2")
    for file in (run_dir / "state").iterdir():
        file.unlink()
    changes = ItemChanges(run_dir / "state" / ITEMS_FILE)
    changes.put("item-05", None)
    changes.close()
    index_job.run(config)
    items = Bundle.open(current(run_dir / "bundles")).catalog().column("item_id").to_pylist()
    assert "old" not in items and "item-05" not in items


def test_a_change_after_a_backup_was_put_back_is_found(world: Any, run_dir: Path, engine: Engine) -> None:
    """The bundle holds changes that the backup does not know; their numbers are not given again."""
    published(run_dir, "v2")
    engine.follow()
    engine.put_item("first", {})
    engine.close()
    backup = (run_dir / "state" / ITEMS_FILE, run_dir / "backup")
    with closing(sqlite3.connect(backup[0])) as source, closing(sqlite3.connect(backup[1])) as copy:
        source.backup(copy)
    engine.put_item("second", {})
    config = ServingConfig(run_dir=str(run_dir), index=IndexConfig(name="exact"), serving=ServeConfig())
    index_job.run(config)
    for file in (run_dir / "state").glob(f"{ITEMS_FILE}*"):
        file.unlink()
    backup[1].rename(backup[0])
    changes = ItemChanges(run_dir / "state" / ITEMS_FILE)
    made = Engine(
        Retriever.open(current(run_dir / "bundles"), world.histories, world.key_file), changes, run_dir / "bundles", Retriever.load
    )
    assert made.put_item("third", {}).generation == 3
    assert {"first", "second", "third"} <= set(scores(made))
    index_job.run(config)
    made.follow()
    assert {"first", "second", "third"} <= set(scores(made)) and made.retriever.bundle.version == "v2-c3-i1"
    changes.close()
