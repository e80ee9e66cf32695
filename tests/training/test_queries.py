"""Queries: what is asked, what may be read, what is relevant, what is masked; against a loop in plain Python."""

from dataclasses import replace

import numpy as np
import pyarrow as pa
import pytest

from towers.columns import NO_TIME, TEST, TRAIN, VALID
from towers.errors import DataError
from training import ragged
from training.interactions import Interactions
from training.queries import Queries, make_queries, recommendable

CODE = {"valid": VALID, "test": TEST}


def lists(table: ragged.Csr) -> list[list[int]]:
    return [table[1][a:b].tolist() for a, b in zip(table[0][:-1], table[0][1:], strict=True)]


def shuffled_splits(data: Interactions, seed: int = 0) -> Interactions:
    """Splits drawn by row, so that held-out events stand between training events."""
    split = np.random.default_rng(seed).choice([TRAIN, TRAIN, VALID, TEST], len(data)).astype(np.uint8)
    return replace(data, split=split)


def check_against_loop(queries: Queries, data: Interactions, split: str, unit: str, split_name: str) -> None:
    ordered = data.schema.order != "set"
    expected = []
    for user in range(data.n_users):
        rows = range(data.offsets[user], data.offsets[user + 1])
        answers = [r for r in rows if data.split[r] == CODE[split] and data.weight[r] > 0]
        earlier = [r for r in rows if data.split[r] < CODE[split]]
        for row in answers if unit == "event" else answers[:1]:
            history = [r for r in rows if r < row] if ordered else earlier
            seen = {int(data.item[r]) for r in [*history, *(earlier if split_name == "given" else [])]}
            relevant = {int(data.item[r]) for r in ([row] if unit == "event" else answers)}
            expected.append((user, row, history, sorted(seen), sorted(relevant)))
    assert len(queries) == len(expected) > 0
    seen = lists(queries.seen_items(slice(0, len(queries))))
    histories = lists(queries.history.rows())
    relevant = lists(queries.relevant)
    for q, (user, row, history, masked, answers) in enumerate(expected):
        assert (queries.user_Q[q], queries.event_Q[q]) == (user, row)
        assert histories[q] == history
        assert seen[q] == masked
        assert relevant[q] == answers
        assert queries.last_Q[q] == (data.item[history[-1]] if history else -1)
        assert queries.now_Q[q] == (data.timestamp[row] if ordered else NO_TIME)


@pytest.mark.parametrize("split", ["valid", "test"])
@pytest.mark.parametrize("unit", ["user", "event"])
@pytest.mark.parametrize(("order", "split_name"), [("time", "global_temporal"), ("position", "given"), ("set", "given")])
def test_equals_a_plain_loop(make_toy, split: str, unit: str, order: str, split_name: str) -> None:
    data = shuffled_splits(make_toy(order=order))
    check_against_loop(make_queries(data, split, unit, split_name), data, split, unit, split_name)


def test_unit_auto(make_toy) -> None:
    data = shuffled_splits(make_toy())
    assert make_queries(data, "test", "auto", "global_temporal").unit == "event"
    assert make_queries(data, "test", "auto", "given").unit == "user"
    assert make_queries(shuffled_splits(make_toy(order="set")), "test", "auto", "given").unit == "user"


def test_inputs_hold_the_newest_events_strictly_before(make_toy) -> None:
    data = shuffled_splits(make_toy())
    queries = make_queries(data, "test", "event", "global_temporal")
    batch = queries.inputs(slice(3, 9), 4)
    id_rows = data.item_features["item.item_id"]
    for b, (user, row) in enumerate(zip(queries.user_Q[3:9], queries.event_Q[3:9], strict=True)):
        newest = [r for r in range(data.offsets[user], row)][-4:]
        items = [0] * (4 - len(newest)) + [int(id_rows[data.item[r]]) for r in newest]
        assert batch["history.item"][b].tolist() == items
        assert batch["context.hour"][b] == data.context["context.hour"][row]
        assert ((batch["history.age"][b] > 0) == (batch["history.item"][b] > 0)).all()


def test_inputs_without_order_leave_held_out_events_out(make_toy) -> None:
    data = shuffled_splits(make_toy(order="set"))
    queries = make_queries(data, "valid", "user", "given")
    batch = queries.inputs(slice(0, len(queries)), 5)
    id_rows = data.item_features["item.item_id"]
    for b, user in enumerate(queries.user_Q):
        train = [r for r in range(data.offsets[user], data.offsets[user + 1]) if data.split[r] == TRAIN][-5:]
        assert batch["history.item"][b].tolist() == [0] * (5 - len(train)) + [int(id_rows[data.item[r]]) for r in train]


def test_a_user_without_any_history_has_an_empty_one(make_toy) -> None:
    data = make_toy(order="set")
    split = np.where(np.arange(len(data)) < data.offsets[1], TEST, data.split).astype(np.uint8)
    queries = make_queries(replace(data, split=split), "test", "user", "given")
    assert queries.history_Q[0] == 0 and queries.last_Q[0] == -1
    assert not queries.inputs(slice(0, 1), 5)["history.item"].any()
    everything_held_out = replace(data, split=np.full(len(data), TEST, np.uint8))
    queries = make_queries(everything_held_out, "test", "user", "given")
    assert (queries.last_Q == -1).all()
    assert not queries.inputs(slice(0, 3), 5)["history.item"].any()


def test_seen_answers_are_dropped_where_masked(make_toy) -> None:
    data = shuffled_splits(make_toy())
    queries = make_queries(data, "test", "event", "global_temporal")
    kept = queries.unseen()
    seen, relevant = lists(queries.seen_items(slice(0, len(queries)))), lists(queries.relevant)
    expected = [q for q in range(len(queries)) if relevant[q][0] not in seen[q]]
    assert 0 < len(expected) < len(queries)
    assert kept.event_Q.tolist() == queries.event_Q[expected].tolist()
    assert (kept.relevant_Q == 1).all()


def test_most_queries_are_drawn_by_seed(make_toy) -> None:
    data = make_toy()
    drawn = make_queries(data, "test", "event", "leave_one_out", max_queries=10, seed=3)
    again = make_queries(data, "test", "event", "leave_one_out", max_queries=10, seed=3)
    assert len(drawn) == 10 and drawn.event_Q.tolist() == again.event_Q.tolist() == sorted(drawn.event_Q)
    assert drawn.event_Q.tolist() != make_queries(data, "test", "event", "leave_one_out", max_queries=10, seed=4).event_Q.tolist()
    everything = make_queries(data, "test", "event", "leave_one_out")
    place = np.searchsorted(everything.event_Q, drawn.event_Q)
    assert lists(drawn.relevant) == [lists(everything.relevant)[p] for p in place]


@pytest.mark.parametrize("unit", ["event", "user"])
def test_queries_of_those_who_allow_it(make_toy, unit) -> None:
    """They are left out before any is drawn, so that as many are drawn as were asked for."""
    data = shuffled_splits(make_toy())
    allowed_U = np.arange(data.n_users) % 3 == 0
    everything = make_queries(data, "test", unit, "global_temporal")
    expected = everything.take(np.flatnonzero(allowed_U[everything.user_Q]))
    found = make_queries(data, "test", unit, "global_temporal", allowed_U=allowed_U)
    assert found.event_Q.tolist() == expected.event_Q.tolist() and lists(found.relevant) == lists(expected.relevant)
    drawn = make_queries(data, "test", unit, "global_temporal", max_queries=5, allowed_U=allowed_U)
    assert len(drawn) == 5 and allowed_U[drawn.user_Q].all()
    assert len(make_queries(data, "test", unit, "global_temporal", allowed_U=np.zeros(data.n_users, bool))) == 0


@pytest.mark.parametrize("unit", ["event", "user"])
def test_queries_of_people_who_are_still_new(make_toy, unit) -> None:
    data = shuffled_splits(make_toy())
    everything = make_queries(data, "test", unit, "global_temporal")
    early = make_queries(data, "test", unit, "global_temporal", max_history=5)
    expected = everything.history_Q <= 5
    assert 0 < expected.sum() < len(everything) and early.event_Q.tolist() == everything.event_Q[expected].tolist()
    assert lists(early.relevant) == [one for one, kept in zip(lists(everything.relevant), expected, strict=True) if kept]
    drawn = make_queries(data, "test", unit, "global_temporal", max_queries=4, max_history=5)
    assert len(drawn) == 4 and set(drawn.event_Q) <= set(early.event_Q)
    with pytest.raises(DataError, match=r"at most 1 events before it: raise evaluate\.max_history"):
        make_queries(make_toy(), "test", unit, "leave_one_out", max_history=1)


def test_negative_events_are_history_and_no_answer(make_toy) -> None:
    data = make_toy()
    weight = np.where(data.split == TEST, 0, data.weight).astype(np.float32)
    weight[data.offsets[1] - 1] = 1
    queries = make_queries(replace(data, weight=weight), "test", "event", "leave_one_out")
    assert queries.user_Q.tolist() == [0]
    with pytest.raises(DataError, match="no event that counts as an answer"):
        make_queries(replace(data, weight=np.zeros_like(weight)), "test", "event", "leave_one_out")


def test_hidden_items_may_not_be_recommended(make_toy) -> None:
    data = make_toy()
    assert recommendable(data).all()
    hidden = pa.array([None if i == 1 else i == 3 for i in range(data.n_items)])
    data = replace(data, catalog=data.catalog.append_column("is_hidden", hidden))
    assert np.flatnonzero(~recommendable(data)).tolist() == [3]
