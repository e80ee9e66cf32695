"""Both rooms agree on a finished run: the same inputs, the same vectors, the same lists, whichever way one asks."""

import json
from datetime import UTC, datetime, timedelta
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from serving.decoding import decode
from serving.messages import RecommendRequest
from serving.retriever import Retriever
from serving.signals import read_signals
from serving.user_state import UserHistories
from towers.batch import HISTORY_GAP
from towers.columns import ITEM_ID, TRAIN
from towers.encoder import Encoder, UserRow
from towers.identity import UserKeys
from towers.runtime import load_runtime
from training.batches import user_inputs
from training.examples import EventSampler, TrainingEvents
from training.interactions import Interactions
from training.loader import Loader
from training.sources import open_source

CONTEXT = ("hour", "device", "channel")
ROWS = 64
MICROSECOND = timedelta(microseconds=1)


@pytest.fixture(scope="module")
def histories(spine: Any) -> UserHistories:
    return UserHistories.open(spine.run_dir / "export" / "histories.parquet")


def vectors(table: pa.Table) -> np.ndarray:
    return np.array(table.column("embedding").to_pylist(), np.float32)


def test_onnx_equals_torch(spine: Any, data: Interactions, retriever: Retriever) -> None:
    encoder = retriever.encoder
    model = load_runtime(spine.run_dir / "model", data.preprocessor)
    positions = np.random.default_rng(0).choice(len(data), ROWS, replace=False)
    context = {name: array[positions] for name, array in data.context.items()}
    batch = user_inputs(data, data.users_of(positions), positions, data.timestamp[positions], context, encoder.length)
    theirs, ours = encoder.runtime.user(batch), model.user(batch)
    np.testing.assert_allclose(theirs.vectors_BHD, ours.vectors_BHD, atol=1e-5)
    assert theirs.history_weights_BL is not None and ours.history_weights_BL is not None
    np.testing.assert_allclose(theirs.history_weights_BL, ours.history_weights_BL, atol=1e-5)
    np.testing.assert_allclose(encoder.runtime.item(data.item_features), model.item(data.item_features), atol=1e-5)
    assert spine.result("export.json")["onnx_max_difference"] <= 1e-5
    assert sorted(spine.result("train.json")["half_tables"]) == ["history_item", "item_id"], "what is compared here are rounded tables"
    assert {table.dtype.name for table in encoder.runtime._tables.values()} == {"float16"}
    assert "Rounded to half precision when training ended: `" in retriever.bundle.path("card.md").read_text()
    assert np.ptp(ours.vectors_BHD, axis=0).max() > 0.1, "users all alike would make any comparison pass"


def test_http_equals_the_retriever(spine: Any, retriever: Retriever) -> None:
    for body, reply in zip(spine.asked, spine.replies, strict=True):
        expected = retriever.recommend(**body)
        shown = [(item["item_id"], item["title"], item["categories"]) for item in reply["items"]]
        assert shown == [(item.item_id, item.title, item.categories) for item in expected.items]
        assert all(title for _, title, _ in shown)
        np.testing.assert_allclose([i["score"] for i in reply["items"]], [i.score for i in expected.items], atol=1e-6)
        assert (reply["mode"], reply["model_version"]) == (expected.mode, expected.model_version)
    assert [reply["mode"] for reply in spine.replies] == ["personalized"] * 4 + ["cold", "fallback"]
    assert spine.replies[-1]["fallback"]["reason"] == "unknown_user" and spine.replies[-1]["returned"] == 100
    assert spine.replies[0]["items"] != spine.replies[1]["items"], "the context changes nothing"
    similar = [item.item_id for item in retriever.similar_items("i0004", k=5).items]
    assert [item["item_id"] for item in spine.similar["items"]] == similar


def test_served_lists_are_the_exact_order_of_exported_vectors(spine: Any, data: Interactions, retriever: Retriever) -> None:
    """Exported user vectors are as of the end of the log and without context, so that is what is asked for here."""
    item_ID, users = vectors(spine.exported("items")), spine.exported("users")
    rows_by_id = {item: row for row, item in enumerate(data.catalog.column(ITEM_ID).to_pylist())}
    keys, now_us = users.column("user_key").to_pylist(), int(data.timestamp.max())
    for user in ("u0001", "u0044", "u0119"):
        row = keys.index(UserKeys.open(str(spine.key_file)).key(user))
        scores_I = item_ID @ vectors(users.slice(row, 1))[0]
        seen = np.unique(data.item[data.offsets[row] : data.offsets[row + 1]])
        scores_I[seen] = -np.inf
        best = np.sort(scores_I)[::-1][:20]
        items = retriever.recommend(user, k=20, now=now_us / 1e6).items
        # item by item, so that two within rounding of each other may change places
        np.testing.assert_allclose([item.score for item in items], best, atol=1e-5)
        np.testing.assert_allclose([scores_I[rows_by_id[item.item_id]] for item in items], best, atol=1e-5)
        assert len(seen) > 1 and np.ptp(best) > 1e-3


def test_a_training_row_equals_the_request_for_the_same_moment(
    spine: Any, data: Interactions, retriever: Retriever, histories: UserHistories
) -> None:
    """The loader's arrays against the encoder's, made from the raw log: history, events, ages, context, user features."""
    encoder, keys = retriever.encoder, UserKeys.open(str(spine.key_file))
    log = pa.concat_tables(open_source(spine.config().data).interactions()).to_pylist()
    raw = {(keys.key(row["user_id"]), row["item_id"], row["timestamp"]): row for row in log}
    events = TrainingEvents.select(data, (TRAIN,))
    sampler = EventSampler(events)
    batch = Loader(data, events, sampler, length=encoder.length, batch_size=ROWS, seed=0).batch(epoch=0, step=0)
    ends_B = sampler.epoch(seed=0, epoch=0)[:ROWS]
    positions_B = events.positions(ends_B, events.users_of(ends_B))
    users_B = data.users_of(positions_B)
    rows = []
    for user, position in zip(users_B.tolist(), positions_B.tolist(), strict=True):
        key, place = data.user_keys[user].tobytes(), position - int(data.offsets[user])
        known = histories.get(key)
        assert known is not None
        event = raw[key, known.items[place], datetime.fromtimestamp(0, UTC) + known.timestamps[place] * MICROSECOND]
        context = {name: event[name] for name in CONTEXT}
        past = slice(max(0, place - encoder.length), place)
        rows.append(
            UserRow(known.items[past], known.events[past], known.timestamps[past], known.timestamps[place], context, known.features)
        )
    served = Encoder(encoder.preprocessor, encoder.runtime, encoder.length).user_batch(rows)
    assert set(served) == set(batch.user)
    read = encoder.user_batch(rows)  # what this tower does not read is not made for a request
    assert set(served) - set(read) == {HISTORY_GAP} and all(np.array_equal(read[name], served[name]) for name in read)
    for name, array in batch.user.items():
        np.testing.assert_array_equal(served[name], array, err_msg=name)
        assert served[name].dtype == array.dtype
        assert np.unique(array).size > 2, f"{name} is the same everywhere: nothing would notice a difference"


def test_a_request_for_a_stored_user_equals_the_prepared_row(
    spine: Any, data: Interactions, retriever: Retriever, histories: UserHistories
) -> None:
    """The same through the request path: what the retriever gives the encoder, one user at a time, is one row of the batch."""
    encoder, keys = retriever.encoder, UserKeys.open(str(spine.key_file))
    now_us = int(data.timestamp.max()) + 1
    asked = {"hour": "21", "device": "tv"}  # no channel: it is missing on both sides
    users = np.arange(0, data.n_users, 7)
    context = data.preprocessor.encode("context", {name: [value] * len(users) for name, value in asked.items()}, len(users))
    batch = user_inputs(data, users, data.offsets[users + 1], np.full(len(users), now_us), context, encoder.length)
    names = {keys.key(user): user for user in spine.user_ids()}
    for place, user in enumerate(users):
        key = data.user_keys[user].tobytes()
        request = RecommendRequest(user_id=names[key], context=asked)
        signals = read_signals(request, histories.get(key), True, encoder.preprocessor, encoder.length, now_us)
        for name, array in encoder.user_batch([signals.row]).items():
            np.testing.assert_array_equal(array[0], batch[name][place], err_msg=name)


@pytest.mark.parametrize("place", [0, 1])
def test_a_logged_request_replayed_through_training_gives_the_vector_that_was_searched_with(
    spine: Any, data: Interactions, retriever: Retriever, monkeypatch: pytest.MonkeyPatch, place: int
) -> None:
    """From the JSON that was sent over HTTP: the served vector, and the trained model on the rows that training's code makes."""
    logged = json.dumps(spine.asked[place])
    searched: list[np.ndarray] = []
    search = retriever.index.search

    def spied(query_HD: np.ndarray, *rest: Any) -> Any:
        searched.append(query_HD)
        return search(query_HD, *rest)

    monkeypatch.setattr(retriever.index, "search", spied)
    reply = retriever.answer(decode(logged.encode(), RecommendRequest))
    assert [item.item_id for item in reply.items] == [item["item_id"] for item in spine.replies[place]["items"]]
    asked = json.loads(logged)
    key = UserKeys.open(str(spine.key_file)).key(asked["user_id"])
    user = [row.tobytes() for row in data.user_keys].index(key)
    now_us = asked["now"] * 1_000_000
    begin, end = int(data.offsets[user]), int(data.offsets[user + 1])
    known = begin + int(np.count_nonzero(data.timestamp[begin:end] < now_us))
    context = data.preprocessor.encode("context", {name: [value] for name, value in asked.get("context", {}).items()}, 1)
    batch = user_inputs(data, np.array([user]), np.array([known]), np.array([now_us]), context, retriever.encoder.length)
    model = load_runtime(spine.run_dir / "model", data.preprocessor)
    np.testing.assert_allclose(searched[0], model.user(batch).vectors_BHD[0], atol=1e-5, rtol=0)
    assert known - begin > 1 and np.linalg.norm(searched[0]) > 0.5
