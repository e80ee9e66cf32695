"""less_like: what is near to the named items gives way, in every mode."""

from typing import Any

import httpx
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from serving.retriever import Retriever
from serving.steering import NEAREST, directions, without

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


def test_popular_items_near_to_the_named_are_left_out(retriever: Retriever) -> None:
    before = [item.item_id for item in retriever.recommend(k=40).items]
    after = [item.item_id for item in retriever.recommend(k=40, less_like=[before[0]]).items]
    gone = set(before) - set(after)
    vectors_ID = retriever.stock.vectors_ID
    order = np.argsort(-vectors_ID @ vectors_ID[retriever.catalog.rows([before[0]])[0]])[: NEAREST + 1]
    assert gone == {*retriever.catalog.ids(order)}.intersection(before) and after == [item_id for item_id in before if item_id not in gone]


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
