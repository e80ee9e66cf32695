"""One value of a request holds only so much, wherever it stands, and what holds more is refused with its name before it is read."""

from collections.abc import Callable, Iterator
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest

from serving.bounds import Limits, check_value
from serving.config import ServeConfig
from serving.decoding import from_python
from serving.engine import Engine
from serving.item_changes import ItemChanges
from serving.page_messages import BatchRequest
from serving.retriever import Retriever
from serving.run import limits
from serving.shelves import answer_rows
from towers.errors import RequestError

BOUNDS = Limits(max_values=3, max_text=8)
MANY, LONG = ["a"] * 4, "x" * 9


@pytest.fixture
def engine(world: Any, tmp_path: Path) -> Iterator[Engine]:
    changes = ItemChanges(tmp_path / "items.db")
    yield Engine(Retriever.open(world.bundle, world.histories, world.key_file, BOUNDS), changes)
    changes.close()


Ask = Callable[[Engine, Any], object]


def recommended(**given: Any) -> Ask:
    return lambda engine, value: engine.retriever.recommend(**{name: put(value) for name, put in given.items()})


def noted(engine: Engine, value: Any) -> object:
    return engine.retriever.add_events([{"user_id": "u", "item_id": "item-01", "event_id": "e", "context": {"hour": value}}])


def in_a_row(engine: Engine, value: Any) -> object:
    return answer_rows(engine.retriever, from_python({"rows": [{}, {"context": {"hour": value}}]}, BatchRequest))


def item(name: str) -> Ask:
    return lambda engine, value: engine.put_item("new", {name: value})


PLACES: list[tuple[str, Ask, list[Any], list[Any]]] = [
    ("preferences", recommended(preferences=lambda v: v), [MANY, ["a", LONG]], [MANY[:3], [LONG[:8]]]),
    ("preferences.likes", recommended(preferences=lambda v: {"likes": v}), [MANY, [LONG]], [MANY[:3]]),
    ("context.hour", recommended(context=lambda v: {"hour": v}), [MANY, LONG, [1] * 4], [LONG[:8]]),
    ("history[0].context.hour", recommended(history=lambda v: [{"item_id": "i", "context": {"hour": v}}]), [MANY, LONG], [LONG[:8]]),
    ("events[0].context.hour", noted, [MANY, LONG], [LONG[:8]]),
    ("rows[1].context.hour", in_a_row, [MANY, LONG], [LONG[:8]]),
    ("attributes.title", item("title"), [LONG], [LONG[:8]]),
    ("attributes.categories", item("categories"), [MANY, ["a", LONG]], [MANY[:3], [LONG[:8]]]),
]


@pytest.mark.parametrize(("field", "ask", "too_much", "enough"), PLACES, ids=[field for field, *_ in PLACES])
def test_what_holds_too_much_is_refused_with_its_name(engine: Engine, field: str, ask: Ask, too_much: list[Any], enough: list[Any]) -> None:
    for value in too_much:
        with pytest.raises(RequestError, match=r"got (4 values, expected at most 3|a text of 9 characters, expected at most 8)$") as caught:
            ask(engine, value)
        assert (caught.value.field, caught.value.status) == (field, 422)
    for value in enough:
        ask(engine, value)


def test_a_vector_is_as_long_as_its_feature_is_wide() -> None:
    check_value("context.seen", [0.5] * 20, BOUNDS, width=20)
    with pytest.raises(RequestError, match=r"context\.seen: got 21 values, expected at most 20"):
        check_value("context.seen", [0.5] * 21, BOUNDS, width=20)


def test_the_settings_are_the_bounds() -> None:
    names = {field.name for field in fields(Limits)}
    asked = ServeConfig(**{name: number for number, name in enumerate(sorted(names), 11)})  # type: ignore[arg-type]
    assert {name: getattr(limits(asked), name) for name in names} == {name: getattr(asked, name) for name in names}
    assert limits(ServeConfig()) == Limits()
