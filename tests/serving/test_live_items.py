"""Items come and go while the service runs: what is shown, found and filtered equals a catalogue made anew."""

import threading
import time
from collections.abc import Callable, Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from serving.bounds import Limits
from serving.engine import Engine
from serving.item_changes import ItemChanges, check_item
from serving.retriever import Retriever
from towers.encoder import Encoder, UserRow
from towers.errors import DataError, RequestError
from towers.preprocess import Preprocessor
from towers.runtime import TorchRuntime
from towers.schema import Feature, make_schema

HIDDEN, LENGTH = "item-07", 6
Opened = Callable[[], Engine]


@pytest.fixture
def opened(world: Any, tmp_path: Path) -> Iterator[Opened]:
    """Opens another engine over the same state, as another worker would."""
    files: list[ItemChanges] = []

    def open_engine() -> Engine:
        files.append(ItemChanges(tmp_path / "items.db"))
        return Engine(Retriever.open(world.bundle, world.histories, world.key_file, Limits()), files[-1])

    yield open_engine
    for file in files:
        file.close()


def agrees(world: Any, engine: Engine, items: dict[str, list[str] | None], history: list[str]) -> bool:
    """Whether a list is the order in which the torch towers score all items; those within rounding of each other may change places."""
    encoder = Encoder(world.preprocessor, TorchRuntime(world.model), LENGTH)
    vectors = encoder.items({"item_id": list(items), "categories": list(items.values())}, len(items))
    scores = dict(zip(items, (vectors @ encoder.users([UserRow(history, now=10**15)]).vectors_BHD[0, 0]).tolist(), strict=True))
    found = [item.item_id for item in engine.retriever.recommend(history=history, k=100, now=10**9).items]
    in_order = all(scores[one] >= scores[next_one] - 1e-5 for one, next_one in pairwise(found))
    return in_order and sorted(found) == sorted(set(items) - {HIDDEN, *history}) and np.ptp(list(scores.values())) > 0.1


def catalogue(world: Any) -> dict[str, list[str] | None]:
    return {row["item_id"]: row["categories"] for row in world.catalog.to_pylist()}


def ids(engine: Engine, **asked: Any) -> list[str]:
    return [item.item_id for item in engine.retriever.recommend(**{"k": 100, "now": 10**9, **asked}).items]


def test_lists_equal_those_of_a_catalogue_made_anew(world: Any, opened: Opened) -> None:
    engine, items, rng = opened(), catalogue(world), np.random.default_rng(0)
    history = ["item-01", "item-02"]
    assert agrees(world, engine, items, history)
    for step in range(12):
        name = ["item-03", "a new one", "zz", "item-03x", "ünï/new", "item-20"][step % 6]
        if step % 4 == 3 and name in items:
            del items[name]
            engine.delete_item(name)
        else:
            items[name] = [["comedy"], ["drama", "news"], [], None][int(rng.integers(4))]
            engine.put_item(name, {"title": f"Title {step}", **({} if items[name] is None else {"categories": items[name]})})
        assert agrees(world, engine, items, history)
        assert agrees(world, engine, items, [*history, name])
    assert engine.health()["items"] == len(items)
    assert agrees(world, opened(), items, history), "after a restart"


def test_what_is_said_of_a_new_item_is_shown_found_and_filtered(opened: Opened) -> None:
    engine = opened()
    engine.put_item("new", {"title": "A new one", "categories": ["news", "unheard of"], "created_at": "2026-11-25T12:00:00Z"})
    shown = {item.item_id: item for item in engine.retriever.recommend(history=["item-01"], k=100).items}["new"]
    assert (shown.title, shown.categories) == ("A new one", ["news", "unheard of"])
    assert ids(engine, history=["item-01"], filter=[{"field": "categories", "any_of": ["unheard of"]}]) == ["new"]
    assert ids(engine, history=["item-01"], filter=[{"field": "created_at", "at_least": "2026-11-01"}]) == ["new"]
    assert "new" not in ids(engine, history=["item-01"], filter=[{"field": "categories", "any_of": ["drama"]}])
    assert "new" not in ids(engine, history=["item-01"], exclude=["new"]) and "new" not in ids(engine, history=["item-01", "new"])
    assert sorted(ids(engine, history=["item-01"], candidate_items=["new", "item-05", "who?"])) == ["item-05", "new"]
    similar = [item.item_id for item in engine.retriever.similar_items("new", 100).items]
    assert len(similar) == 39 and "new" not in similar
    assert "new" in [item.item_id for item in engine.retriever.similar_items("item-01", 100).items]


def test_a_changed_item_is_what_it_is_now(opened: Opened) -> None:
    engine = opened()
    drama = [{"field": "categories", "any_of": ["drama"]}]
    changed = ids(engine, history=["item-01"], filter=drama)[0]
    engine.put_item(changed, {"categories": ["comedy"]})
    assert changed not in ids(engine, history=["item-01"], filter=drama)
    assert changed in ids(engine, history=["item-01"], filter=[{"field": "categories", "any_of": ["comedy"]}])
    engine.put_item(changed, {"categories": ["comedy"], "is_hidden": True})
    assert changed not in ids(engine, history=["item-01"])
    engine.put_item(HIDDEN, {"categories": ["drama"]})
    assert HIDDEN in ids(engine, history=["item-01"], filter=drama), "no longer hidden"


def test_each_change_is_told_its_own_number(tmp_path: Path) -> None:
    """Several put items at once, each over a connection of its own."""
    told: list[int] = []

    def put(name: str) -> None:
        changes = ItemChanges(tmp_path / "items.db")
        told.extend(changes.put(f"{name} {number}", {}) for number in range(60))
        changes.close()

    threads = [threading.Thread(target=put, args=(name,)) for name in "abcd"]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(told) == list(range(1, 241))


def test_what_is_popular_stays_popular(world: Any, opened: Opened) -> None:
    engine = opened()
    before = engine.retriever.recommend(k=100)
    first, second = (item.item_id for item in before.items[:2])
    engine.put_item("new", {})
    engine.put_item(first, {"title": "Another title"})
    engine.delete_item(second)
    after = engine.retriever.recommend(k=100)
    assert after.mode == "fallback" and after.items[0].title == "Another title" and after.items[0].score == before.items[0].score
    # the new item has no interactions, so it stands among those without, by its id
    without = [item.item_id for item in after.items if item.score == 0]
    assert "new" in without and without == sorted(without, key=str.encode)
    rest = [item.item_id for item in after.items if item.item_id != "new"]
    assert rest == [item.item_id for item in before.items if item.item_id != second]


def test_gone_is_gone(opened: Opened) -> None:
    engine = opened()
    engine.put_item("new", {})
    for item in ("item-05", "new"):
        engine.delete_item(item)
        assert item not in ids(engine, history=["item-01"])
        for refused in (lambda item=item: engine.retriever.similar_items(item), lambda item=item: engine.delete_item(item)):
            with pytest.raises(RequestError) as caught:
                refused()
            assert (caught.value.field, caught.value.status) == ("id", 404)
    engine.put_item("item-05", {"title": "back"})
    assert "item-05" in ids(engine, history=["item-01"])


def test_other_workers_know_without_being_told(opened: Opened) -> None:
    with opened() as one, opened() as two:
        for change, there in ((lambda: one.put_item("new", {"categories": ["drama"]}), True), (lambda: one.delete_item("new"), False)):
            started = time.monotonic()
            change()
            for engine in (one, two):
                while ("new" in ids(engine, history=["item-01"])) is not there:
                    assert time.monotonic() - started < 10, "a tenth of a second where nothing else runs"
                    time.sleep(0.01)
        one.put_item("newer", {})
        two.delete_item("newer")


@pytest.mark.parametrize(
    ("item_id", "attributes", "field"),
    [
        ("new", {"price": 3}, "attributes.price"),
        ("new", {"title": ["a"]}, "attributes.title"),
        ("new", {"title": 5}, "attributes.title"),
        ("new", {"title": True}, "attributes.title"),
        ("new", {"categories": "drama"}, "attributes.categories"),
        ("new", {"categories": ["drama", 5]}, "attributes.categories"),
        ("new", {"categories": ["drama", None]}, "attributes.categories"),
        ("new", {"title": "\ud800"}, "attributes.title"),
        ("new", {"categories": [["a"]]}, "attributes.categories"),
        ("new", {"categories": [{"a": 1}]}, "attributes.categories"),
        ("new", {"created_at": "yesterday"}, "attributes.created_at"),
        ("new", {"created_at": True}, "attributes.created_at"),
        ("new", {"created_at": "1764072000000"}, "attributes.created_at"),
        ("new", {"created_at": 1e300}, "attributes.created_at"),
        ("new", {"is_hidden": "no"}, "attributes.is_hidden"),
        ("new", {"is_hidden": 1}, "attributes.is_hidden"),
        ("new", {"item_id": "other"}, "attributes.item_id"),
        ("new", {"train_count": 10**6}, "attributes.train_count"),
        ("", {}, "id"),
        ("x" * 257, {}, "id"),
        ("\ud800", {}, "id"),
    ],
)
def test_what_does_not_fit_is_refused_with_its_name(opened: Opened, item_id: str, attributes: dict[str, Any], field: str) -> None:
    engine = opened()
    with pytest.raises(RequestError) as caught:
        engine.put_item(item_id, attributes)
    assert (caught.value.field, caught.value.status) == (field, 422)
    assert len(ids(engine, history=["item-01"])) == 38


def test_milliseconds_are_told_from_seconds(opened: Opened) -> None:
    engine = opened()
    with pytest.raises(RequestError, match=r"created_at: got 1764072000000, expected .*; milliseconds are to be divided by 1000$"):
        engine.put_item("new", {"created_at": 1_764_072_000_000})
    with pytest.raises(RequestError, match=r"created_at: got -5, expected Unix seconds from 1970 to 2199 or RFC 3339 text$"):
        engine.put_item("new", {"created_at": -5})
    for moment in (1_764_072_000, 1_764_072_000.0, "2025-11-25T12:00:00Z", "2025-11-25T13:00:00+01:00"):
        engine.put_item("new", {"created_at": moment})
        at = [{"field": "created_at", "at_least": 1_764_072_000, "below": 1_764_072_001}]
        assert ids(engine, history=["item-01"], filter=at) == ["new"]


FEATURES = [
    Feature("brand", "categorical", "item"),
    Feature("tags", "multi_categorical", "item"),
    Feature("price", "numeric", "item"),
    Feature("released", "time", "item"),
    Feature("blurb", "text", "item"),
    Feature("image", "dense", "item", width=2),
]


@pytest.mark.parametrize(
    ("name", "taken", "refused"),
    [
        ("brand", ["acme", 5, True], [["acme"]]),
        ("tags", [["a", 5], "a"], [[["a"]]]),
        ("price", [5, 0.5, True], ["5", [5]]),
        ("released", [1_764_072_000, "2025-11-25"], [1_764_072_000_000, "1764072000", [5], True]),
        ("blurb", ["words"], [5, ["words"], False]),
        ("image", [[1, 0.5]], [["1", "2"], [True, False], 5, [1, 2, 3], "ab"]),
    ],
)
def test_a_feature_is_given_what_it_is_of(name: str, taken: list[Any], refused: list[Any]) -> None:
    fitted = Preprocessor(make_schema(FEATURES, "time", {}), {}, {})
    for value in [*taken, None]:
        check_item("new", {name: value}, fitted)
    for value in refused:
        with pytest.raises(RequestError, match="expected") as caught:
            check_item("new", {name: value}, fitted)
        assert caught.value.field == f"attributes.{name}"


def test_a_service_that_keeps_no_changes_says_so(world: Any) -> None:
    engine = Engine(Retriever.open(world.bundle))
    for refused in (lambda: engine.put_item("new", {}), lambda: engine.delete_item("item-01")):
        with pytest.raises(RequestError, match="keeps no changes") as caught:
            refused()
        assert caught.value.status == 404


def test_a_file_that_is_none_is_refused(tmp_path: Path) -> None:
    (tmp_path / "items.db").write_text("no database " * 500)
    with pytest.raises(DataError, match="cannot be opened"):
        ItemChanges(tmp_path / "items.db")
