"""Requests: every malformed one is refused with the name of the field, none with anything else."""

import json
from datetime import UTC, datetime
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from serving.bounds import Limits
from serving.decoding import check_k, check_limits, decode, from_python, microseconds
from serving.messages import HistoryEvent, ItemRequest, RecommendRequest
from towers.errors import RequestError

DEEP, TOO_DEEP = "[" * 100 + "]" * 100, "[" * 100_000 + "]" * 100_000
"""What every Python's own JSON reader can read, and what none can: in between they differ."""
WIDE = '{"history": [' + '"a",' * 20_000 + '"a"], "context": {' + "".join(f'"k{n}": 1, ' for n in range(9_000)) + '"hour": {}}}'

BAD_BODIES = [
    ("", "body", 400),
    ("{", "body", 400),
    ("[]", "body", 422),
    ("\xff", "body", 400),
    (TOO_DEEP, "body", 422),
    ('{"k": "10"}', "k", 422),
    ('{"k": 1.5}', "k", 422),
    ('{"k": NaN}', "k", 422),
    ('{"k": null}', "k", 422),
    ('{"kk": 1}', "kk", 422),
    ('{"user_id": 42}', "user_id", 422),
    ('{"user_id": ""}', "user_id", 422),
    ('{"user_id": "' + "x" * 257 + '"}', "user_id", 422),
    ('{"user_id": "\\ud800"}', "body", 400),
    ('{"history": "item"}', "history", 422),
    ('{"history": ["a", 1]}', "history[1]", 422),
    ('{"history": [{}]}', "history[0].item_id", 422),
    ('{"history": [{"item_id": "a", "at": 1}]}', "history[0].at", 422),
    ('{"history": ["a", {"item_id": "b", "timestamp": NaN}]}', "history[1].timestamp", 422),
    ('{"history": [{"item_id": "b", "timestamp": -Infinity}]}', "history[0].timestamp", 422),
    ('{"history": [{"item_id": "b", "timestamp": 1e999}]}', "history[0].timestamp", 422),
    ('{"history": [{"item_id": "b", "timestamp": true}]}', "history[0].timestamp", 422),
    ('{"history": [{"item_id": "b", "timestamp": "yesterday"}]}', "history[0].timestamp", 422),
    ('{"history": [{"item_id": "b", "timestamp": "2026-01-01T00:00:00"}]}', "history[0].timestamp", 422),
    ('{"context": {"hour": {"a": 1}}}', "context.hour", 422),
    ('{"context": {"day": 3, "hour": NaN}}', "context.hour", 422),
    ('{"context": {"hour": ' + DEEP + "}}", "context.hour", 422),
    ('{"context": {"hour": ' + TOO_DEEP + "}}", "context", 422),
    ('{"x": ' + TOO_DEEP + "}", "x", 422),
    (WIDE, "context.hour", 422),
    ('{"preferences": {"likes": [1]}}', "preferences.likes", 422),
    ('{"preferences": 3}', "preferences", 422),
    ('{"exclude": ["a", null]}', "exclude[1]", 422),
    ('{"exclude_seen": 1}', "exclude_seen", 422),
]


@pytest.mark.parametrize(("body", "field", "status"), BAD_BODIES, ids=[body[:40] for body, _, _ in BAD_BODIES])
def test_a_bad_body_names_its_field(body: str, field: str, status: int) -> None:
    with pytest.raises(RequestError) as caught:
        decode(body.encode("latin-1"), RecommendRequest)
    assert (caught.value.field, caught.value.status) == (field, status)
    assert len(str(caught.value)) < 500


def test_a_whole_request() -> None:
    body = {
        "user_id": "u",
        "history": [
            "a",
            {"item_id": "b", "event_type": "play", "timestamp": 5.25},
            {"item_id": "c", "timestamp": "2026-01-31T12:00:00+02:00"},
        ],
        "context": {"hour": 5, "tags": ["x", None], "none": None},
        "preferences": {"likes": ["drama"]},
        "k": 3,
        "exclude": ["z"],
        "exclude_seen": False,
        "now": 7,
    }
    request = decode(json.dumps(body).encode(), RecommendRequest)
    assert request == from_python(body, RecommendRequest)
    assert request.history[1] == HistoryEvent("b", "play", 5.25)
    assert decode(b"{}", RecommendRequest) == RecommendRequest() == from_python({}, RecommendRequest)


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
    max_leaves=12,
)
fields = st.sampled_from([*RecommendRequest.__struct_fields__, "unknown"])


@settings(max_examples=300, deadline=None)
@given(st.dictionaries(fields, json_values, max_size=4))
@example({"history": [{"item_id": "a", "timestamp": 10**400}]})
def test_any_json_is_a_request_or_refused(body: dict[str, Any]) -> None:
    for read in (lambda: decode(json.dumps(body).encode(), RecommendRequest), lambda: from_python(body, RecommendRequest)):
        try:
            request = read()
        except RequestError as error:
            assert 400 <= error.status < 500 and error.field
        else:
            assert isinstance(request, RecommendRequest)


@settings(max_examples=300, deadline=None)
@given(st.binary(max_size=60) | st.text(max_size=60).map(lambda text: ('{"k": 1, ' + text).encode()))
def test_any_bytes_are_refused_politely(body: bytes) -> None:
    try:
        decode(body, RecommendRequest)
    except RequestError as error:
        assert 400 <= error.status < 500 and error.field


@pytest.mark.parametrize(
    ("request_fields", "field"),
    [
        ({"history": ["a"] * 6}, "history"),
        ({"exclude": ["a"] * 6}, "exclude"),
    ],
)
def test_limits_name_the_field(request_fields: dict[str, Any], field: str) -> None:
    with pytest.raises(RequestError) as caught:
        check_limits(RecommendRequest(**{"k": 10, **request_fields}), Limits(max_k=10, max_history=5))
    assert caught.value.field == field and "got " in str(caught.value) and "expected " in str(caught.value)
    check_limits(RecommendRequest(k=10, history=["a"] * 5), Limits(max_k=10, max_history=5))


@pytest.mark.parametrize("k", [0, -1, 11, 10**9, 10**5000], ids=["none", "negative", "one too many", "absurd", "unprintable"])
def test_a_k_out_of_bounds_is_refused(k: int) -> None:
    with pytest.raises(RequestError, match=r"^k: got .* expected 1 to 10") as caught:
        check_k(k, Limits(max_k=10, max_history=5))
    assert caught.value.field == "k" and len(str(caught.value)) < 100
    check_k(10, Limits(max_k=10, max_history=5))


def test_moments_are_microseconds() -> None:
    assert microseconds("now", 1.5) == 1_500_000
    assert microseconds("now", datetime(1970, 1, 2, tzinfo=UTC)) == 86_400_000_000
    assert microseconds("now", 1_700_000_000) == 1_700_000_000_000_000
    for absurd in (-1, float("nan"), float("inf"), 1_700_000_000_000, 10**400):
        with pytest.raises(RequestError, match="history"):
            microseconds("history[0].timestamp", absurd)


def test_an_unknown_field_is_told_beside_those_there_are() -> None:
    with pytest.raises(RequestError) as caught:
        decode(b'{"title": "Tea"}', ItemRequest)
    assert caught.value.field == "title" and str(caught.value).endswith("unknown field `title`; expected are attributes")
    with pytest.raises(RequestError) as caught:
        from_python({"user_id": "a", "temperature": 1.0}, RecommendRequest)
    assert caught.value.field == "temperature" and " policy" in str(caught.value)
    with pytest.raises(RequestError) as caught:  # of a part, whose fields are others
        decode(b'{"policy": {"heat": 1}}', RecommendRequest)
    assert caught.value.field == "policy.heat" and "expected are" not in str(caught.value)
