"""What a deployment sets and a request may turn, through the parts that answer: recommend, pages, rerank, the job, changed items."""

from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import msgspec
import pytest

from serving.config import ServingConfig, validate
from serving.impressions import Outbox
from serving.item_changes import ItemChanges
from serving.live_items import LiveItems
from serving.messages import RecommendRequest
from serving.page_messages import BatchRequest, RerankRequest
from serving.policy import MostSettings, SelectorSettings
from serving.recommend_job import lists
from serving.recompute import recompute
from serving.retriever import Retriever
from serving.rolling import impression_table
from serving.shelves import answer_rerank, answer_rows
from towers.errors import ConfigError, RequestError

NOW_S = 20_000 * 86_400


@pytest.fixture
def steered(world: Any, tmp_path: Path) -> Iterator[Retriever]:
    """A retriever of its own, whose settings a test may change."""
    retriever = Retriever.open(world.bundle, world.histories, world.key_file)
    retriever.outbox = Outbox(tmp_path / "impressions.db", "settings", candidate_share=1.0)
    yield retriever
    retriever.outbox.close()


def rows(retriever: Retriever) -> list[dict[str, Any]]:
    assert retriever.outbox is not None
    retriever.outbox.flush()
    return impression_table(retriever.outbox.waiting(1000, 1 << 30).rows).to_pylist()


def ids(reply: Any) -> list[str]:
    return [item.item_id for item in reply.items]


@pytest.mark.parametrize(
    ("policy", "field"),
    [
        ({"popularity": -0.6}, "policy.popularity"),
        ({"popularity": float("nan")}, "policy.popularity"),
        ({"calibration": -0.1}, "policy.calibration"),
        ({"calibration": 0.3}, "policy.calibration"),
        ({"temperature": 1e9}, "policy.temperature"),
        ({"temperature": 1e-310}, "policy.temperature"),
        ({"diversity": "much"}, "policy.diversity"),
        ({"near_duplicates": 0}, "policy.near_duplicates"),
        ({"caps": {"brand": 2}}, "policy.caps.brand"),
        ({"caps": {"created_at": 2}}, "policy.caps.created_at"),
        ({"caps": {"categories": 0}}, "policy.caps.categories"),
        ({"caps": {"": 2}}, "policy.caps"),
        ({"caps": {"x" * 300: 2}}, "policy.caps"),
        ({"seed": -1}, "policy.seed"),
        ({"novelty": 1}, "policy.novelty"),
    ],
)
def test_what_is_out_of_bounds_is_refused_with_its_name(steered: Retriever, policy: dict[str, Any], field: str) -> None:
    steered.steer(SelectorSettings(most=MostSettings(popularity=0.5, calibration=0.0)))
    with pytest.raises(RequestError) as caught:
        steered.recommend(history=["item-01"], policy=policy)
    assert caught.value.field == field and caught.value.status == 422
    if field in ("policy.popularity", "policy.calibration"):
        assert "0.5" in caught.value.message or "expected 0 to 0," in caught.value.message


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (SelectorSettings(temperature=-1), r"serving\.selector\.temperature: got -1"),
        (SelectorSettings(popularity=float("nan")), r"serving\.selector\.popularity"),
        (SelectorSettings(near_duplicates=2.0), r"serving\.selector\.near_duplicates"),
        (SelectorSettings(caps={"categories": 0}), r"serving\.selector\.caps\.categories"),
        (SelectorSettings(fresh_days=0), r"serving\.selector\.fresh_days"),
        (SelectorSettings(most=MostSettings(diversity=-1)), r"serving\.selector\.most\.diversity"),
    ],
)
def test_settings_out_of_bounds_stop_the_job(settings: SelectorSettings, message: str) -> None:
    config = ServingConfig(run_dir="run")
    config.serving.selector = settings
    with pytest.raises(ConfigError, match=message):
        validate(config)


def test_an_attribute_that_items_lack_is_told_with_those_they_have(steered: Retriever) -> None:
    for settings in (SelectorSettings(calibration=0.1, calibrate_on="genre"), SelectorSettings(caps={"genre": 3})):
        with pytest.raises(ConfigError, match=r"no item has a value of 'genre'; attributes that items have: categories"):
            steered.steer(settings)
    steered.steer(SelectorSettings(calibrate_on="genre"))  # nobody is calibrated: nothing is wrong until one asks
    with pytest.raises(RequestError, match="genre") as caught:
        steered.recommend(history=["item-01"], policy={"calibration": 0.1})
    assert caught.value.field == "policy.calibration"


def test_a_request_tightens_masks_and_does_not_loosen_them(steered: Retriever) -> None:
    steered.steer(SelectorSettings(caps={"categories": 2}, near_duplicates=0.9))
    usual = steered.recommend(history=["item-01"], k=6)
    looser = steered.recommend(history=["item-01"], k=6, policy={"caps": {"categories": 5}, "near_duplicates": 1.0})
    stricter = steered.recommend(history=["item-01"], k=6, policy={"caps": {"categories": 1}})
    for reply, most in ((usual, 2), (looser, 2), (stricter, 1)):
        held = Counter(label for item in reply.items for label in item.categories)
        assert max(held.values()) <= most and reply.returned == 6
    assert ids(usual) == ids(looser) != ids(stricter)


@pytest.mark.parametrize(
    "asked",
    [
        {"user_id": "user-9", "policy": {"temperature": 0.2, "calibration": 0.4, "caps": {"categories": 3}}},
        {"history": ["item-01", "item-04"], "policy": {"diversity": 0.5, "popularity": -0.3, "freshness": 0.2, "near_duplicates": 0.97}},
        {"policy": {"temperature": 0.1, "seed": 5}},
    ],
)
def test_a_steered_list_can_be_computed_again_from_its_row(steered: Retriever, asked: dict[str, Any]) -> None:
    reply = steered.recommend(**asked, k=8)
    (row,) = rows(steered)
    assert row["item_id"] == ids(reply) and len(row["propensity"]) == 8 and row["candidate_count"] > 20
    drawn = "temperature" in asked["policy"]
    assert all(0 < propensity < 1 for propensity in row["propensity"]) if drawn else row["propensity"] == [1.0] * 8
    assert ("seed" in row["policy"]) == drawn and row["k"] == 8 and set(row["item_id"]) <= set(row["candidate_item_id"])
    steered.steer(SelectorSettings(popularity=1.0))  # what is set later must not change what is computed again
    again = recompute(steered, row)
    assert (again.items, again.moved) == (reply.items, ())


def test_draws_differ_and_a_seed_brings_them_back(steered: Retriever) -> None:
    drawn = [ids(steered.recommend(user_id="user-5", k=10, policy={"temperature": 0.5})) for _ in range(5)]
    assert len({tuple(one) for one in drawn}) > 1
    cold = steered.recommend(user_id="user-5", k=10, policy={"temperature": 1e-6})
    assert ids(cold) == ids(steered.recommend(user_id="user-5", k=10)), "the coldest draw is the best item"
    seeded = [ids(steered.recommend(user_id="user-5", k=10, policy={"temperature": 0.5, "seed": 3})) for _ in range(2)]
    assert seeded[0] == seeded[1]


def test_nothing_turned_is_the_list_in_score_order(steered: Retriever) -> None:
    plain = steered.recommend(history=["item-01"], k=10)
    assert steered.recommend(history=["item-01"], k=10, policy={"popularity": 0, "temperature": 0}).items == plain.items
    assert rows(steered)[-1]["policy"] == '{"k":10}'


def test_a_page_is_one_for_near_duplicates_and_each_row_has_its_caps(steered: Retriever) -> None:
    page = {"history": ["item-01"], "rows": [{"name": name, "k": 4} for name in "abc"]}
    policy = {"caps": {"categories": 1}, "near_duplicates": 0.8, "calibration": 0.3, "temperature": 0.1, "seed": 9}
    reply = answer_rows(steered, msgspec.convert({**page, "policy": policy}, BatchRequest))
    taken = [item.item_id for row in reply.rows for item in row.items]
    vectors = steered.stock.vectors_ID[[steered.catalog.row(item) for item in taken]]
    vectors = vectors / (vectors**2).sum(1, keepdims=True) ** 0.5
    near = vectors @ vectors.T
    assert max(near[i, j] for i in range(len(taken)) for j in range(i)) < 0.8
    for row in reply.rows:
        assert max(Counter(label for item in row.items for label in item.categories).values(), default=0) <= 1
        assert row.returned == 4 or row.shortage == "policy"
    for row, shown in zip(rows(steered), reply.rows, strict=True):
        assert recompute(steered, row).items == shown.items


def test_a_page_that_near_duplicates_use_up_is_searched_once(steered: Retriever, monkeypatch: pytest.MonkeyPatch) -> None:
    """To tell that nothing is left takes a look at the whole catalogue; the next rows have no more of it, unless caps were in the way."""
    searched: list[int] = []
    found = steered.candidates
    monkeypatch.setattr(steered, "candidates", lambda *given, **named: searched.append(1) or found(*given, **named))

    def page(policy: dict[str, Any]) -> tuple[list[tuple[int, str | None]], int]:
        drama = [{"field": "categories", "any_of": ["drama"]}]
        asked = {
            "history": ["item-01"],
            "policy": policy,
            "rows": [{"k": 40, "filter": drama}, {"k": 40}, {"k": 40}, {"k": 40, "filter": drama}],
        }
        searched.clear()
        reply = answer_rows(steered, msgspec.convert(asked, BatchRequest))
        return [(row.returned, row.shortage) for row in reply.rows], len(searched)

    told, searches = page({"near_duplicates": 0.3})
    assert told[0][0] > 0 and told[2:] == [(0, "policy")] * 2 and searches == 2
    told, searches = page({"near_duplicates": 0.99, "caps": {"categories": 1}})
    assert told[2][0] > 0 and searches >= 4
    shown = [recompute(steered, row).items for row in rows(steered)]
    assert [len(items) for items in shown[-4:]] == [returned for returned, _ in told]


def test_the_callers_candidates_are_steered_only_where_asked(steered: Retriever) -> None:
    steered.steer(SelectorSettings(caps={"categories": 1}))
    items = [f"item-{i:02d}" for i in range(20, 35)]
    plain = answer_rerank(steered, RerankRequest(history=["item-01"], items=items))
    assert plain.returned == 15
    asked = answer_rerank(steered, msgspec.convert({"history": ["item-01"], "items": items, "policy": {}}, RerankRequest))
    assert max(Counter(label for item in asked.items for label in item.categories).values()) == 1
    assert [recompute(steered, row).items for row in rows(steered)] == [plain.items, asked.items]


def test_blocked_items_are_in_no_list(steered: Retriever, world: Any) -> None:
    blocked = ["item-20", "item-21", "a/b c", "not in the catalogue"]
    assert set(blocked[:3]) <= set(ids(steered.recommend(history=["item-01"], k=100)))
    steered.steer(SelectorSettings(blocked=blocked))
    table = lists(steered, [key for key in steered.profiles._histories.keys(0, 15)], RecommendRequest(k=100), NOW_S * 1_000_000)  # type: ignore[union-attr]
    found = [
        ids(steered.recommend(history=["item-01"], k=100)),
        ids(steered.recommend(k=100)),
        ids(steered.similar_items("item-01", 100)),
        ids(answer_rerank(steered, RerankRequest(history=["item-01"], items=["item-20", "item-22"]))),
        [item for row in table["item_ids"].to_pylist() for item in row],
    ]
    assert all(found) and not set(blocked) & {item for one in found for item in one}


def test_blocked_ids_of_no_item_are_told(steered: Retriever, capsys: pytest.CaptureFixture[str]) -> None:
    steered.steer(SelectorSettings(blocked=["item-20", "nope", "came since"]))
    steered.chooser.warn_of_unknown(came={"came since"})
    told = capsys.readouterr().err
    assert told == (
        "warning: serving.selector.blocked: 1 of 3 ids are of no item of the catalogue; they are blocked if they come:\n  'nope'\n"
    )
    steered.steer(SelectorSettings(blocked=["item-20"]))
    steered.chooser.warn_of_unknown()
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize("dials", [{"calibration": 0.4, "caps": {"categories": 4}}, {"temperature": 0.2}])
def test_the_job_makes_the_lists_that_a_request_gets(steered: Retriever, world: Any, dials: dict[str, Any]) -> None:
    steered.steer(SelectorSettings(**dials))
    users = [*world.users]
    keys = [steered.profiles.keys.key(user) for user in users]
    request = RecommendRequest(k=9, now=NOW_S)
    table, again = (lists(steered, keys, request, NOW_S * 1_000_000) for _ in range(2))
    assert table == again
    for user, row in zip(users, table.to_pylist(), strict=True):
        policy = {**dials, "seed": None}
        if "temperature" not in dials:
            assert row["item_ids"] == ids(steered.recommend(user_id=user, k=9, now=NOW_S, policy=policy)), user
        assert len(row["item_ids"]) == len(set(row["item_ids"])) > 5


def test_items_that_come_and_go_are_masked_and_calibrated_alike(steered: Retriever, tmp_path: Path) -> None:
    changes = ItemChanges(tmp_path / "items.db")
    for number in range(30):
        changes.put(f"new-{number:02d}", {"categories": ["brand new" if number % 2 else "news"]})
    changed = LiveItems(steered, changes).refreshed()
    assert changed is not None
    policy = {"caps": {"categories": 3}, "calibration": 0.2, "diversity": 0.1, "near_duplicates": 1.0, "popularity": -0.2, "freshness": 0.1}
    reply = changed.recommend(history=["new-01", "item-01", "item-05"], k=12, policy=policy)
    held = Counter(label for item in reply.items for label in item.categories)
    assert max(held.values()) == 3 and any(item.item_id.startswith("new-") for item in reply.items)
    changes.close()


def test_over_http_with_the_field_named(client: httpx.Client) -> None:
    body = {"history": ["item-01"], "k": 5, "policy": {"caps": {"categories": 1}}}
    reply = client.post("/v1/recommend", json=body).json()
    assert max(Counter(label for item in reply["items"] for label in item["categories"]).values()) == 1
    assert reply["shortage"] is None
    refused = client.post("/v1/recommend", json={**body, "policy": {"calibration": 9}})
    assert refused.status_code == 422 and refused.json()["field"] == "policy.calibration"
