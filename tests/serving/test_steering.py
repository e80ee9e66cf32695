"""less_like: what is near to the named items gives way, in every mode."""

from typing import Any

import httpx
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from serving.decoding import from_python
from serving.page_messages import BatchRequest
from serving.retriever import Retriever
from serving.shelves import answer_rows
from serving.steering import NEAREST, directions, without
from tests.serving.conftest import HIDDEN

NOW_S = 20_000 * 86_400
FLOATS = st.floats(-1, 1, width=32).filter(lambda x: x == 0 or abs(x) > 1e-3)


def nearness(retriever: Retriever, ids: list[str], to: str) -> float:
    """Mean cosine of a list with an item."""
    found = [retriever.stock.vectors_ID[retriever.catalog.rows([item_id])[0]] for item_id in ids]
    return float(np.mean(found @ retriever.stock.vectors_ID[retriever.catalog.rows([to])[0]]))


@pytest.mark.parametrize("user", ["user-2", "user-7", "user-11", "likes-only"])
def test_lists_turn_away_from_the_named_item(retriever: Retriever, user: str) -> None:
    before = [item.item_id for item in retriever.recommend(user_id=user, k=8, now=NOW_S).items]
    named = before[0]
    after = [item.item_id for item in retriever.recommend(user_id=user, k=8, now=NOW_S, less_like=[named]).items]
    assert len(after) == 8 and named not in after
    assert nearness(retriever, after, named) < nearness(retriever, before, named) - 0.2
    again = [item.item_id for item in retriever.recommend(user_id=user, k=8, now=NOW_S).items]
    assert again == before, "it holds for the request alone"


def test_the_named_would_score_nothing_and_others_lose_by_nearness(retriever: Retriever) -> None:
    asked: dict[str, Any] = {"user_id": "user-7", "k": 40, "now": NOW_S, "exclude_seen": False}
    named = retriever.recommend(**asked).items[0].item_id
    before = {item.item_id: item.score for item in retriever.recommend(**asked).items}
    unit = retriever.stock.vectors_ID[retriever.catalog.rows([named])[0]]
    for item in retriever.recommend(**asked, less_like=[named]).items:
        shared = float(retriever.stock.vectors_ID[retriever.catalog.rows([item.item_id])[0]] @ unit)
        assert item.score == pytest.approx(before[item.item_id] - before[named] * shared, abs=1e-5)


def test_popular_items_near_to_the_named_come_last(retriever: Retriever) -> None:
    before = [item.item_id for item in retriever.recommend(k=40).items]
    after = [item.item_id for item in retriever.recommend(k=40, less_like=[before[0]]).items]
    vectors_ID = retriever.stock.vectors_ID
    order = np.argsort(-vectors_ID @ vectors_ID[retriever.catalog.rows([before[0]])[0]])[: NEAREST + 1]
    near = {*retriever.catalog.ids(order)}
    far = [item_id for item_id in before if item_id not in near]
    assert far and after == [*far, *[item_id for item_id in before[1:] if item_id in near]]


@pytest.mark.parametrize("policy", [None, {"popularity": -1.0, "freshness": 1.0}, {"temperature": 1.0, "seed": 3}, {"diversity": 1.0}])
def test_the_popular_and_near_are_returned_where_nothing_else_is_left(retriever: Retriever, policy: dict[str, Any] | None) -> None:
    named = retriever.recommend(k=1).items[0].item_id
    vectors_ID = retriever.stock.vectors_ID
    order = retriever.catalog.ids(np.argsort(-vectors_ID @ vectors_ID[retriever.catalog.rows([named])[0]]))
    near, far = (
        [item for item in order[1 : NEAREST + 1] if item != HIDDEN][:3],
        [item for item in order[NEAREST + 1 :] if item != HIDDEN][:2],
    )
    asked = {"less_like": [named], "policy": policy}
    listed = [item.item_id for item in retriever.recommend(k=6, candidate_items=[named, *near, *far], **asked).items]
    assert {*listed[:2]} == {*far} and {*listed[2:]} == {*near}
    only_near = retriever.recommend(k=4, candidate_items=[named, *near], **asked)
    assert {item.item_id for item in only_near.items} == {*near} and only_near.shortage == "items"
    page = answer_rows(retriever, from_python({"rows": [{"k": 10}, {"k": 40}], **asked}, BatchRequest))
    shown = [item.item_id for row in page.rows for item in row.items]
    near_all = {*order[1 : NEAREST + 1]} - {HIDDEN}
    assert {*shown[-len(near_all) :]} == near_all and named not in shown and len(shown) == len(order) - 2


def test_unknown_items_are_passed_over_and_many_are_refused(retriever: Retriever, client: httpx.Client) -> None:
    plain, same = (retriever.recommend(user_id="user-7", now=NOW_S, less_like=named).items for named in ([], ["no such"]))
    assert plain == same
    refused = client.post("/v1/recommend", json={"less_like": [str(i) for i in range(21)]})
    assert refused.status_code == 422 and refused.json()["field"] == "less_like"


@given(arrays(np.float32, (1, 6), elements=FLOATS), arrays(np.float32, (4, 6), elements=FLOATS))
def test_properties(user_HD: np.ndarray, named_ND: np.ndarray) -> None:
    """What is liked among the named is liked no more, clones change nothing, and nothing is taken out twice."""
    taken = directions(user_HD, named_ND)
    left = without(user_HD, taken)
    liked = (named_ND @ user_HD.T)[:, 0] > 0
    np.testing.assert_allclose((named_ND @ left.T)[liked], 0, atol=1e-3)
    clones = without(user_HD, directions(user_HD, np.concatenate([named_ND, named_ND, named_ND])))
    np.testing.assert_allclose(clones, left, atol=1e-3)
    np.testing.assert_allclose(without(left, taken), left, atol=1e-3)
    assert np.linalg.norm(left) <= np.linalg.norm(user_HD) + 1e-5
    if not liked.any():
        assert np.array_equal(left, user_HD)
