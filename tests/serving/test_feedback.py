"""Feedback finds the list that it answers: on hand-made tables, and through the stores of a service."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from serving.answers import EVENT_COLUMNS, LISTS_READ, Answers
from serving.config import ServingConfig, state_dir
from serving.engine import Engine
from serving.feedback_job import run
from serving.profiles import Profiles
from serving.retriever import Retriever
from serving.run import events, live, users
from towers.bundle import Bundle
from towers.errors import DataError
from towers.live_logs import EVENT_SCHEMA, IMPRESSION_SCHEMA
from towers.partitions import parts

ANN, BOB = b"a" * 16, b"b" * 16


def events_of(*rows: tuple[str | None, str, int, str, float | None], key: bytes = ANN) -> pa.Table:
    schema = pa.schema([EVENT_SCHEMA.field(name) for name in EVENT_COLUMNS])
    return pa.Table.from_pylist([dict(zip(EVENT_COLUMNS, (*row, key), strict=True)) for row in rows], schema)


def lists_of(*rows: tuple[str, int, list[str]], key: bytes | None = ANN) -> pa.Table:
    schema = pa.schema([IMPRESSION_SCHEMA.field(name) for name in LISTS_READ])
    fixed = {"timestamp": 1, "mode": "cold", "profile": "none", "model_version": "m", "index_version": "i", "config_hash": "c"}
    made = [
        {"recommendation_id": name, "row": row, "item_id": items, "score": [0.5] * len(items), "propensity": [1.0] * len(items), **fixed}
        for name, row, items in rows
    ]
    return pa.Table.from_pylist([{**row, "user_key": key} for row in made], schema)


def test_events_stand_beside_the_slot_that_they_answer() -> None:
    told = [
        events_of(("list-1", "b", 30, "play", 0.5), (None, "a", 1, "play", None), ("list-1", "b", 20, "skip", None)),
        events_of(("list-1", "z", 5, "play", None), ("list-2", "a", 7, "skip", None), ("elsewhere", "a", 7, "play", None)),
    ]
    answers = Answers(told)
    first = answers.join(lists_of(("list-1", 0, ["a", "b"]), ("empty", 0, []))).to_pylist()
    second = answers.join(lists_of(("list-1", 1, ["c"]), ("list-2", 0, ["a"]))).to_pylist()
    slots = [(s["recommendation_id"], s["row"], s["position"], s["item_id"], s["clicked"], s["event_type"]) for s in first + second]
    assert slots == [
        ("list-1", 0, 1, "a", False, []),
        ("list-1", 0, 2, "b", True, ["skip", "play"]),
        ("list-1", 1, 1, "c", False, []),
        ("list-2", 0, 1, "a", False, ["skip"]),
    ]
    assert first[1]["value"] == [None, 0.5] and [int(1e6 * t.timestamp()) for t in first[1]["event_time"]] == [20, 30]
    counts = answers.counts
    assert (counts.events, counts.with_id, counts.joined, counts.not_in_list) == (6, 5, 3, 1)
    assert (counts.lists, counts.slots, counts.clicked) == (4, 4, 1)


def test_ids_that_run_into_each_other_are_told_apart() -> None:
    answers = Answers([events_of(("l 1", "2 b", 1, "play", None))])
    slots = answers.join(lists_of(("l", 0, ["1 2 b", "b"]), ("l 1 2", 0, ["b"]), ("l 1", 0, ["2 b"]))).to_pylist()
    assert [slot["clicked"] for slot in slots] == [False, False, False, True]


def test_to_take_an_item_out_of_the_history_is_no_click() -> None:
    answers = Answers([events_of(("l", "a", 1, "remove_from_history", None), ("l", "b", 1, "play", None))])
    assert [slot["clicked"] for slot in answers.join(lists_of(("l", 0, ["a", "b"]))).to_pylist()] == [False, True]


def test_an_event_of_somebody_else_answers_no_list() -> None:
    of_bob = events_of(("l", "a", 1, "play", None), ("l", "b", 1, "play", None), key=BOB)
    answers = Answers([of_bob, events_of(("l", "b", 2, "play", None))])
    slots = answers.join(lists_of(("l", 0, ["a", "b"]))).to_pylist()
    assert [(slot["clicked"], len(slot["event_type"])) for slot in slots] == [(False, 0), (True, 1)]
    counts = answers.counts
    assert (counts.joined, counts.of_others, counts.not_in_list, counts.clicked) == (1, 2, 0, 1)


def test_what_an_event_says_does_not_stand_in_a_list_of_nobody() -> None:
    """A removal finds rows by the list's key."""
    answers = Answers([events_of(("l", "a", 1, "play", 0.5))])
    (slot,) = answers.join(lists_of(("l", 0, ["a"]), key=None)).to_pylist()
    assert slot["clicked"] and (slot["event_type"], slot["value"], slot["event_time"]) == ([], [], [])
    assert (answers.counts.joined, answers.counts.of_others) == (1, 0)


def test_without_events_nothing_was_clicked() -> None:
    answers = Answers([])
    assert [slot["clicked"] for slot in answers.join(lists_of(("l", 0, ["a", "b"]))).to_pylist()] == [False, False]
    assert len(Answers([events_of()]).join(lists_of())) == 0


@pytest.fixture
def config(world: Any, tmp_path: Path) -> ServingConfig:
    made = ServingConfig(run_dir=str(tmp_path))
    made.serving.key_file, made.serving.bundle = str(world.key_file), str(world.bundle)
    return made


@pytest.fixture
def service(config: ServingConfig) -> Iterator[Engine]:
    """What answers in a service's process."""
    keys, known = users(config.serving, Path(config.run_dir))
    retriever = Retriever.load(Bundle.open(str(config.serving.bundle)))
    retriever.profiles = Profiles(keys, known, events(config.serving, state_dir(config), keys))
    with live(config, retriever) as engine:
        yield engine
    retriever.profiles.events.close()


def test_a_stream_of_feedback_is_joined_through_the_stores(config: ServingConfig, service: Engine) -> None:
    """While the service runs: lists and clicks of the last second are in the result."""
    rng, retriever, clicked = np.random.default_rng(0), service.retriever, set()
    for number in range(300):
        reply = retriever.recommend(user_id=f"person {number % 40}", history=["item-01"], k=5)
        if rng.random() < 0.4:
            place = int(rng.integers(5))
            tell(retriever, f"person {number % 40}", reply.items[place].item_id, str(number), reply.recommendation_id)
            clicked.add((reply.recommendation_id, place + 1))
    tell(retriever, "x", "item-01", "x", "of another service")
    flush(retriever)
    document = json.loads(Path(run(config)).read_text())
    slots = pa.concat_tables(pq.read_table(path) for path in sorted(Path(config.run_dir, "feedback").iterdir())).to_pylist()
    assert {(slot["recommendation_id"], slot["position"]) for slot in slots if slot["clicked"]} == clicked
    assert (document["lists"], document["slots"], document["clicked"]) == (300, 1500, len(clicked))
    assert (document["with_id"], document["joined"], document["skipped_files"]) == (len(clicked) + 1, len(clicked), {})
    assert document["joined_share"] == len(clicked) / (len(clicked) + 1)


def tell(retriever: Retriever, user: str, item: str, name: str, answers: str) -> None:
    event = {"user_id": user, "item_id": item, "event_id": name, "event_type": "play", "recommendation_id": answers}
    assert retriever.add_events([event]).added == 1


def flush(retriever: Retriever) -> None:
    """Write what the engine writes ten times a second."""
    assert retriever.outbox is not None
    retriever.outbox.flush()


def twice(config: ServingConfig, service: Engine) -> None:
    """Two files of either log: a list, and a click that answers it."""
    for name in ("a", "b"):
        reply = service.retriever.recommend(history=["item-01"], k=5)
        tell(service.retriever, "x", reply.items[0].item_id, name, reply.recommendation_id)
        flush(service.retriever)
        run(config)


def test_damaged_files_are_named_and_the_rest_is_joined(config: ServingConfig, service: Engine, capsys: pytest.CaptureFixture[str]) -> None:
    twice(config, service)
    assert capsys.readouterr().err == ""
    shown = parts(state_dir(config) / "impressions")
    assert len(shown) == 2
    shown[0].write_bytes(shown[0].read_bytes()[:100])
    document = json.loads(Path(run(config)).read_text())
    assert list(document["skipped_files"]) == [str(shown[0])] and document["lists"] == 1
    said = capsys.readouterr().err
    assert said.startswith("warning: 1 of 2 files of ") and f"\n  {shown[0]}: " in said


@pytest.mark.parametrize("log", ["impressions", "events"])
def test_where_a_whole_log_is_damaged_what_was_joined_before_stays(config: ServingConfig, service: Engine, log: str) -> None:
    twice(config, service)
    joined = {path.name: path.read_bytes() for path in Path(config.run_dir, "feedback").iterdir()}
    facts = Path(config.run_dir, "feedback.json").read_bytes()
    for path in parts(state_dir(config) / log):
        path.write_bytes(path.read_bytes()[:100])
    with pytest.raises(DataError, match=f"2 of 2 files of .*{log} cannot be read"):
        run(config)
    assert {path.name: path.read_bytes() for path in Path(config.run_dir, "feedback").iterdir()} == joined
    assert Path(config.run_dir, "feedback.json").read_bytes() == facts and not Path(config.run_dir, "feedback.tmp").exists()


def test_lists_that_are_too_old_are_not_joined(config: ServingConfig, service: Engine) -> None:
    """Though no service has deleted them."""
    twice(config, service)
    config.serving.impression_days = 0.0
    assert json.loads(Path(run(config)).read_text())["lists"] == 0


def test_where_nothing_was_shown_there_is_nothing_to_join(config: ServingConfig) -> None:
    with pytest.raises(DataError, match="impression_days"):
        run(config)
