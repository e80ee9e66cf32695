"""Reasons: their parts make up the score, and say what takes part in it."""

from pathlib import Path
from typing import Any

import httpx
import msgspec
import numpy as np
import pytest

from serving.attribution import Carried, by_item
from serving.best_reasons import MOST_EVENTS, MOST_OTHERS
from serving.engine import Engine
from serving.explain import _said
from serving.item_changes import ItemChanges
from serving.messages import Item
from serving.retriever import Retriever
from serving.wording import GONE, POPULAR
from towers.bundle import Bundle
from towers.encoder import UserRow
from towers.runtime import to_tensors
from towers.schema import Feature

NOW_S = 20_000 * 86_400
ASKED: list[dict[str, Any]] = [
    {"user_id": "user-11", "context": {"hour": 7, "budget": 30}},
    {"user_id": "user-3", "less_like": ["item-02", "item-20", "no such"]},
    {"user_id": "likes-only"},
    {"user_id": "user-9", "policy": {"popularity": -0.2, "calibration": 0.2}},
    {"history": ["item-03"], "preferences": ["comedy", "news"], "context": {"hour": 7}},
    {
        "history": [
            {"item_id": f"item-{i:02d}", "event_type": ("play", "skip")[i % 2], "timestamp": NOW_S - 9000 * (20 - i)} for i in range(14)
        ]
    },
    {"history": ["who?", "item-05"], "context": {"hour": "no such", "budget": -5}},
]


def total(item: Item) -> float:
    assert item.explanation is not None
    return sum(reason.part for reason in item.explanation.reasons) + item.explanation.rest


@pytest.fixture(scope="module", params=["world", "half_world"])
def summing(request: pytest.FixtureRequest) -> Any:
    """A world whose user vectors are sums; rows of its tables may be of half precision."""
    return request.getfixturevalue(request.param)


@pytest.fixture(scope="module", params=["onnx", "torch"])
def pooled(request: pytest.FixtureRequest, summing: Any) -> Retriever:
    return Retriever.open(summing.bundle, summing.histories, summing.key_file, runtime=request.param)


@pytest.fixture(scope="module", params=["onnx", "torch"])
def transformer(request: pytest.FixtureRequest, transformer_world: Any) -> Retriever:
    world = transformer_world
    return Retriever.open(world.bundle, world.histories, world.key_file, runtime=request.param)


@pytest.mark.parametrize("asked", ASKED)
def test_parts_of_a_pooled_tower_sum_to_the_score(pooled: Retriever, asked: dict[str, Any]) -> None:
    reply = pooled.recommend(**asked, k=40, now=NOW_S, explain=True)
    assert reply.mode in ("personalized", "cold") and len(reply.items) > 20
    for item in reply.items:
        found = item.explanation
        assert found is not None and not found.approximate
        assert abs(total(item) - item.score) <= 1e-5
        parts = [reason.part for reason in found.reasons]
        assert parts == sorted(parts, reverse=True) and len(parts) <= MOST_EVENTS + MOST_OTHERS and all(part > 0 for part in parts)
        assert sum(reason.share for reason in found.reasons) <= 1 + 1e-6
        assert found.text.startswith("because ")


def test_a_part_is_its_row_times_its_weight(pooled: Retriever, summing: Any) -> None:
    """Against the model's tables, multiplied out by hand."""
    world = summing
    history = [f"item-{i:02d}" for i in (3, 11, 20)]
    times = [NOW_S - 3600 * hours for hours in (50, 5, 1)]
    asked = [{"item_id": i, "event_type": "play", "timestamp": t} for i, t in zip(history, times, strict=True)]
    reply = pooled.recommend(history=asked, k=40, now=NOW_S, explain=True)
    row = UserRow(history, ["play"] * 3, [t * 1_000_000 for t in times], NOW_S * 1_000_000)
    encoding = pooled.encoder.users([row])
    assert encoding.history_weights_BL is not None
    rows = world.model.tables["history_item"].weight.detach().numpy()[world.preprocessor.vocabularies["item_id"].rows(history)]
    features = world.model.user_features.part
    gathered = world.model.lookup_user(to_tensors(pooled.encoder.user_batch([row])))
    sums = (encoding.history_weights_BL[0, -3:, None] * rows).sum(0)
    for spec in world.model.plan.user_specs:
        sums = sums + features(spec, gathered, world.model.small_tables).detach().numpy()[0]
    vectors = dict(zip(world.catalog["item_id"].to_pylist(), pooled.stock.vectors_ID, strict=True))
    seen = 0
    for item in reply.items:
        assert item.explanation is not None
        for reason in item.explanation.reasons:
            place = history.index(reason.item_id or "")
            expected = encoding.history_weights_BL[0, place - 3] * rows[place] @ vectors[item.item_id] / np.linalg.norm(sums)
            assert reason.part == pytest.approx(expected, abs=1e-6)
            assert (reason.kind, reason.event_type, reason.name) == ("history", "play", None)
            seen += 1
    assert seen > 20


REPEATED = [("item-03", "play"), ("item-05", "play"), ("item-03", "skip"), ("who?", "play"), ("item-20", "play"), ("item-03", "play")]


@pytest.mark.parametrize("stored", [False, True])
@pytest.mark.parametrize("tower", ["world", "transformer_world"])
def test_an_item_is_named_once_for_all_that_was_done_with_it(request: pytest.FixtureRequest, tower: str, stored: bool) -> None:
    world = request.getfixturevalue(tower)
    retriever = Retriever.open(world.bundle, world.histories, world.key_file)
    events = [{"item_id": i, "event_type": kind, "timestamp": NOW_S - 4000 * (9 - n)} for n, (i, kind) in enumerate(REPEATED)]
    given: dict[str, Any] = {"history": events}
    if stored:
        given = {"user_id": f"often {tower}"}
        retriever.add_events([{**given, **event} for event in events])
    asked: dict[str, Any] = {**given, "k": 40, "now": NOW_S, "exclude_seen": False, "context": {"hour": 7}, "explain": True}
    items = retriever.recommend(**asked).items
    several = 0
    for item in items:
        assert item.explanation is not None and abs(total(item) - item.score) <= 1e-5
        named = [reason.item_id for reason in item.explanation.reasons if reason.kind == "history"]
        assert len(set(named)) == len(named), named
        assert item.explanation.text.count("Title of item-03") <= 1
        several += "item-03" in named
    assert several > 5


def test_its_part_is_the_sum_of_those_of_its_events() -> None:
    row = UserRow([i for i, _ in REPEATED], [kind for _, kind in REPEATED])
    parts_kS = np.random.default_rng(0).normal(size=(40, 9)).astype(np.float32)
    parts_kS[:, :2] = 0  # padding
    merged = by_item(Carried(parts_kS, 8, ["context.hour"]), row).parts_kS
    for name in {name for name, _ in REPEATED}:
        places = [2 + n for n, (item_id, _) in enumerate(REPEATED) if item_id == name]
        most = max(places, key=lambda place: parts_kS[:, place].sum())
        np.testing.assert_allclose(merged[:, most], parts_kS[:, places].sum(1), atol=1e-6)
        assert not merged[:, [place for place in places if place != most]].any()
    np.testing.assert_array_equal(merged[:, [0, 1, 8]], parts_kS[:, [0, 1, 8]])


def test_a_part_of_a_transformer_is_what_the_score_loses_without_the_event(transformer: Retriever) -> None:
    events = [{"item_id": f"item-{3 * i:02d}", "event_type": "play", "timestamp": NOW_S - 4000 * (9 - i)} for i in range(5)]
    asked: dict[str, Any] = {"k": 40, "now": NOW_S, "exclude_seen": False, "context": {"hour": 7}}
    reply = transformer.recommend(**asked, history=events, explain=True)
    without = {
        event["item_id"]: {i.item_id: i.score for i in transformer.recommend(**asked, history=[e for e in events if e != event]).items}
        for event in events
    }
    hourless = {i.item_id: i.score for i in transformer.recommend(**{**asked, "context": {}}, history=events).items}
    kinds = set()
    for item in reply.items:
        assert item.explanation is not None and item.explanation.approximate
        assert total(item) == pytest.approx(item.score, abs=1e-5)
        for reason in item.explanation.reasons:
            other = hourless if reason.kind == "context" else without[reason.item_id]
            assert reason.part == pytest.approx(item.score - other[item.item_id], abs=1e-5)
            kinds.add(reason.kind)
    assert kinds == {"history", "context"}


def test_a_bundle_whose_graph_tells_no_parts_is_explained_by_leaving_out(pooled: Retriever, monkeypatch: pytest.MonkeyPatch) -> None:
    """As one from before; an mlp head takes the same way."""
    runtime = pooled.encoder.runtime
    monkeypatch.setattr(pooled.encoder, "runtime", type("Old", (), {"user": lambda self, batch, parts=False: runtime.user(batch)})())
    item = pooled.recommend(user_id="user-5", k=3, now=NOW_S, explain=True).items[0]
    assert item.explanation is not None and item.explanation.approximate and item.explanation.reasons
    assert total(item) == pytest.approx(item.score, abs=1e-5)


def test_reasons_name_what_was_given_and_nothing_else(pooled: Retriever) -> None:
    def kinds(**asked: Any) -> set[tuple[str, str | None]]:
        items = pooled.recommend(**asked, k=40, now=NOW_S, explain=True).items
        return {(reason.kind, reason.name) for item in items if item.explanation for reason in item.explanation.reasons}

    assert kinds(history=["item-03"]) == {("history", None)}
    assert kinds(user_id="likes-only") == {("preference", "likes")}
    assert kinds(history=["item-03"], context={"hour": 7, "budget": None}) == {("history", None), ("context", "hour")}


def test_sentences_use_titles_and_the_datas_words(pooled: Retriever) -> None:
    titled = next(i for i in pooled.catalog.items(np.arange(40), np.zeros(40)) if i.title and i.item_id.startswith("item-0"))
    item = pooled.recommend(history=[{"item_id": titled.item_id, "event_type": "play"}], k=1, explain=True).items[0]
    assert item.explanation is not None and item.explanation.text == f"because you played “{titled.title}”"
    assert item.explanation.reasons[0].title == titled.title and item.explanation.reasons[0].item_id == titled.item_id


def test_under_a_fallback_nobody_is_the_reason(pooled: Retriever) -> None:
    reply = pooled.recommend(user_id="a stranger", k=3, explain=True)
    assert reply.mode == "fallback"
    for item in reply.items:
        assert item.explanation is not None
        assert (item.explanation.text, item.explanation.reasons, item.explanation.rest) == (POPULAR, [], item.score)


def test_nothing_is_explained_unasked(pooled: Retriever) -> None:
    plain, told = (pooled.recommend(user_id="user-5", k=9, now=NOW_S, explain=explain) for explain in (False, True))
    assert b"explanation" not in msgspec.json.encode(plain) and b"explanation" in msgspec.json.encode(told)
    assert [i.item_id for i in plain.items] == [i.item_id for i in told.items]
    # torch sums rows where they lie when nobody asks for the parts, and in another order
    assert [i.score for i in plain.items] == pytest.approx([i.score for i in told.items], abs=1e-6)


@pytest.mark.parametrize(
    ("feature", "value", "told"),
    [
        (Feature("a", "categorical", "user", sensitive=True, purposes=("personalize",)), "secret", None),
        (Feature("a", "text", "user"), "long words", None),
        (Feature("a", "id", "user"), "me", None),
        (Feature("a", "categorical", "context"), 7, "7"),
        (Feature("a", "numeric", "context"), 7.0, "7"),
        (Feature("a", "multi_categorical", "user"), ["x", 1], ["x", "1"]),
    ],
)
def test_what_may_be_said_of_a_value(feature: Feature, value: object, told: object) -> None:
    assert _said(feature, value) == told


def test_titles_of_items_that_came_and_went(world: Any, tmp_path: Path) -> None:
    changes = ItemChanges(tmp_path / "items.db")
    engine = Engine(Retriever.open(world.bundle, world.histories, world.key_file), changes)
    engine.put_item("item-03", {"title": "A new name", "categories": ["news"]})
    engine.put_item("fresh", {"title": "Fresh", "categories": ["drama"]})
    engine.delete_item("item-05")
    items = engine.retriever.recommend(history=["item-03", "item-05"], k=40, explain=True).items
    told = {(reason.item_id, reason.title) for item in items if item.explanation for reason in item.explanation.reasons}
    assert told == {("item-03", "A new name"), ("item-05", None)}
    texts = [item.explanation.text for item in items if item.explanation]
    assert any(GONE in text for text in texts) and not any("item-05" in text for text in texts), "the id of what is gone is no name"
    assert all(abs(total(item) - item.score) <= 1e-5 for item in items) and "fresh" in {item.item_id for item in items}
    changes.close()


def test_pages_and_candidates_are_explained_too(client: httpx.Client) -> None:
    body = {"user_id": "user-5", "now": NOW_S, "explain": True}
    rows = client.post("/v1/recommend:batch", json={**body, "rows": [{"k": 2}, {"k": 2, "context": {"hour": 3}}]}).json()["rows"]
    names = [{reason.get("name") for item in row["items"] for reason in item["explanation"]["reasons"]} for row in rows]
    assert names[0] == {None} and names[1] <= {None, "hour"}
    for item in (item for row in rows for item in row["items"]):
        parts = sum(reason["part"] for reason in item["explanation"]["reasons"])
        assert parts + item["explanation"]["rest"] == pytest.approx(item["score"], abs=1e-5)
    ranked = client.post("/v1/rerank", json={**body, "items": ["item-01", "item-02"]}).json()["items"]
    assert all(item["explanation"]["text"].startswith("because ") for item in ranked)


def test_a_list_that_nothing_speaks_for_has_no_reasons_and_says_so(pooled: Retriever) -> None:
    found = []
    for worst in pooled.recommend(history=["item-01"], now=NOW_S, k=100).items[-8:]:
        asked = {"history": ["item-01"], "now": NOW_S, "candidate_items": [worst.item_id], "explain": True}
        [item] = pooled.recommend(**asked).items
        assert item.explanation is not None and item.explanation.text
        found.append(item.explanation.reasons)
        assert abs(total(item) - item.score) <= 1e-5
    assert [] in found
    assert pooled.recommend(history=["item-01"], candidate_items=["no such item"], explain=True).items == []


def test_bundles_without_phrases_use_plain_words(world: Any) -> None:
    opened = Bundle.open(world.bundle)
    plain = Retriever.load(Bundle(opened.folder, {name: fact for name, fact in opened.manifest.items() if name != "phrases"}))
    item = plain.recommend(history=[{"item_id": "item-03", "event_type": "play"}], k=1, explain=True).items[0]
    assert item.explanation is not None and item.explanation.text.startswith("because of “")
