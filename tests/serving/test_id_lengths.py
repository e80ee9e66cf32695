"""One rule for the length of ids, in bodies, in paths and in logs: bytes of UTF-8, so that what can be stored can be asked for again."""

import json
from typing import Any
from urllib.parse import quote

import httpx
import msgspec
import pyarrow as pa
import pytest

from serving.decoding import decode, from_python
from serving.messages import EventsRequest, RecommendRequest
from serving.page_messages import BatchRequest, RerankRequest
from towers.columns import MAX_ID_BYTES
from towers.errors import RequestError
from training.validate_rows import id_bytes

LONGEST, TOO_LONG = "é" * 128, "é" * 127 + "日"
EVENT = {"user_id": "u", "item_id": "i", "event_id": "e"}

PLACES: list[tuple[type[msgspec.Struct], str, Any]] = [
    (RecommendRequest, "user_id", lambda text: {"user_id": text}),
    (RecommendRequest, "history[1]", lambda text: {"history": ["a", text]}),
    (RecommendRequest, "history[1].item_id", lambda text: {"history": ["a", {"item_id": text}]}),
    (RecommendRequest, "exclude[0]", lambda text: {"exclude": [text]}),
    (RecommendRequest, "less_like[0]", lambda text: {"less_like": [text]}),
    (RecommendRequest, "candidate_items[1]", lambda text: {"candidate_items": ["a", text]}),
    (RecommendRequest, "filter[0].any_of[0]", lambda text: {"filter": [{"field": "categories", "any_of": [text]}]}),
    (RecommendRequest, "policy.caps", lambda text: {"policy": {"caps": {text: 1}}}),
    (RecommendRequest, "surface", lambda text: {"surface": text}),
    (BatchRequest, "rows[0].name", lambda text: {"rows": [{"name": text}]}),
    (RerankRequest, "items[0]", lambda text: {"items": [text]}),
    (EventsRequest, "events[1].user_id", lambda text: {"events": [EVENT, {**EVENT, "user_id": text}]}),
    (EventsRequest, "events[0].item_id", lambda text: {"events": [{**EVENT, "item_id": text}]}),
    (EventsRequest, "events[0].event_id", lambda text: {"events": [{**EVENT, "event_id": text}]}),
    (EventsRequest, "events[0].session_id", lambda text: {"events": [{**EVENT, "session_id": text}]}),
    (EventsRequest, "events[0].recommendation_id", lambda text: {"events": [{**EVENT, "recommendation_id": text}]}),
]


@pytest.mark.parametrize(("kind", "field", "made"), PLACES, ids=[f"{kind.__name__}-{field}" for kind, field, _ in PLACES])
def test_ids_are_as_long_as_their_bytes(kind: type[msgspec.Struct], field: str, made: Any) -> None:
    reads = [
        lambda text: decode(json.dumps(made(text), ensure_ascii=False).encode(), kind),
        lambda text: decode(json.dumps(made(text)).encode(), kind),  # the same text in escapes
        lambda text: from_python(made(text), kind),
    ]
    for read in reads:
        assert read(LONGEST) == from_python(made(LONGEST), kind)
        for text in (TOO_LONG, "é" * 200, "x" * (MAX_ID_BYTES + 1)):
            with pytest.raises(RequestError, match="expected 1 to 256 bytes of UTF-8") as caught:
                read(text)
            assert (caught.value.field, caught.value.status) == (field, 422)


def test_text_that_is_none_is_no_id_of_a_python_caller() -> None:
    with pytest.raises(RequestError, match=r"history\[0\]"):
        from_python({"history": ["\ud800"]}, RecommendRequest)


def test_what_features_are_given_is_no_id() -> None:
    given = {"context": {"query": "ü" * 300}, "preferences": ["ü" * 300]}
    assert decode(json.dumps(given, ensure_ascii=False).encode(), RecommendRequest) == from_python(given, RecommendRequest)


def test_whoever_can_be_stored_can_be_asked_for(client: httpx.Client) -> None:
    def stored(user_id: str) -> int:
        return client.post("/v1/events", json={"events": [{**EVENT, "user_id": user_id}]}).status_code

    def shown(user_id: str) -> int:
        return client.get(f"/v1/users/{quote(user_id, safe='')}/consent").status_code

    assert stored(LONGEST) == shown(LONGEST) == 200
    for user_id in (TOO_LONG, "é" * 200):
        assert stored(user_id) == shown(user_id) == 422


def test_the_log_that_models_learn_from_is_measured_alike() -> None:
    assert (id_bytes(pa.chunked_array([[LONGEST, TOO_LONG]])) > MAX_ID_BYTES).tolist() == [False, True]
