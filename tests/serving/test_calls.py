"""What stands around every call: keys, deadlines, counters, log lines."""

import asyncio
import json
import logging
import time
from collections.abc import Mapping
from hashlib import sha256
from pathlib import Path
from typing import Any

import httpx
import pytest

from serving.api_keys import ApiKeys
from serving.app import AppOptions, Straight, build_app
from serving.engine import Engine
from serving.logs import JsonLines
from serving.metrics import BOUNDS_S, Metrics
from serving.retriever import Retriever
from serving.routes import ROUTE_NAMES
from towers.errors import ConfigError

KEYS = {"all": ["recommend", "events", "items", "metrics"], "reader": ["recommend"]}


def key_file(folder: Path, entries: Any = None) -> Path:
    path = folder / "keys.json"
    named = [{"name": name, "sha256": sha256(f"key of {name}".encode()).hexdigest(), "scopes": scopes} for name, scopes in KEYS.items()]
    path.write_text(json.dumps({"keys": named} if entries is None else entries))
    return path


def ask(app: Any, *calls: tuple[str, str, Mapping[str, Any]]) -> list[httpx.Response]:
    async def all_of_them() -> list[httpx.Response]:
        transport = httpx.ASGITransport(app, raise_app_exceptions=False)
        async with httpx.AsyncClient(transport=transport, base_url="http://test") as inside:
            return [await inside.request(method, path, **more) for method, path, more in calls]

    return asyncio.run(all_of_them())


def test_keys_open_what_they_are_for(retriever: Retriever, tmp_path: Path) -> None:
    app = build_app(Engine(retriever), AppOptions(Metrics(ROUTE_NAMES), ApiKeys.open(key_file(tmp_path))))

    def status(method: str, path: str, headers: Mapping[str, str]) -> tuple[int, str | None]:
        (reply,) = ask(app, (method, path, {"headers": headers, "json": {"k": 1}} if method == "POST" else {"headers": headers}))
        named = reply.json().get("field") if reply.headers["content-type"].startswith("application") else None
        assert reply.status_code != 401 or reply.headers["www-authenticate"] == "Bearer"
        return reply.status_code, named

    good = {"authorization": "Bearer key of all"}
    assert status("POST", "/v1/recommend", good) == status("POST", "/v1/recommend", {"x-api-key": "key of reader"}) == (200, None)
    for wrong in (
        {},
        {"authorization": "Bearer no"},
        {"authorization": "Basic key of all"},
        {"x-api-key": sha256(b"key of all").hexdigest()},
    ):
        assert status("POST", "/v1/recommend", wrong) == status("GET", "/metrics", wrong) == (401, "authorization")
    assert status("GET", "/metrics", {"x-api-key": "key of reader"}) == (403, "authorization")
    assert status("POST", "/v1/events", {"x-api-key": "key of reader"}) == (403, "authorization")
    assert status("GET", "/metrics", good)[0] == status("GET", "/metrics", {"x-api-key": "key of all \t"})[0] == 200
    for free in ("/health/live", "/health/ready", "/openapi.json", "/"):
        assert status("GET", free, {})[0] == 200


@pytest.mark.parametrize(
    "entries",
    [
        [],
        {"keys": []},
        {"keys": [{"name": "a", "sha256": "short", "scopes": ["recommend"]}]},
        {"keys": [{"name": "a", "sha256": "0" * 64, "scopes": ["everything"]}]},
        {"keys": [{"name": "a", "sha256": "0" * 64, "scopes": ["items"]}, {"name": "b", "sha256": "0" * 64, "scopes": ["events"]}]},
    ],
)
def test_a_key_file_that_does_not_fit_is_a_config_error(tmp_path: Path, entries: Any) -> None:
    with pytest.raises(ConfigError, match=r"serving\.api_keys"):
        ApiKeys.open(key_file(tmp_path, entries))
    with pytest.raises(ConfigError, match=r"serving\.api_keys"):
        ApiKeys.open(tmp_path / "missing")


def test_calls_that_go_straight_are_told_what_starlette_would_tell_them(retriever: Retriever) -> None:
    app = build_app(Engine(retriever))
    assert isinstance(app, Straight)
    calls = [("POST", "/v1/recommend"), ("POST", "/v1/recommend:batch"), ("GET", "/health/live"), ("HEAD", "/health/live"), ("GET", "/")]
    others = [("GET", "/v1/recommend"), ("POST", "/v1/recommend/"), ("POST", "/v1/Recommend"), ("DELETE", "/health/live"), ("GET", "/no")]
    asked = [(method, path, {"json": {"k": 0}} if method == "POST" else {}) for method, path in [*calls, *others]]
    straight, slow = ask(app, *asked), ask(app._app, *asked)
    assert [(one.status_code, one.headers.get("content-type")) for one in straight] == [
        (one.status_code, one.headers.get("content-type")) for one in slow
    ]
    assert [one.status_code for one in straight] == [422, 422, 200, 200, 200, 405, 404, 404, 405, 404]


def test_work_that_nobody_waits_for_is_not_begun(retriever: Retriever, monkeypatch: pytest.MonkeyPatch) -> None:
    app = build_app(Engine(retriever))
    reply, late_in_time = ask(
        app,
        ("POST", "/v1/recommend", {"json": {"k": 1}, "headers": {"x-request-timeout-ms": "600000"}}),
        ("GET", "/health/live", {"headers": {"x-request-timeout-ms": "1000 ", "x-request-id": "mine "}}),
    )
    assert reply.status_code == late_in_time.status_code == 200 and late_in_time.headers["x-request-id"] == "mine"

    (wide,) = ask(app, ("POST", "/v1/recommend", {"json": {"k": 1}, "headers": {"x-request-timeout-ms": "0000000001" + "9" * 400}}))
    assert (wide.status_code, wide.json()["field"]) == (422, "x-request-timeout-ms")

    async def slowly() -> Any:
        yield b'{"k"'
        await asyncio.sleep(0.05)
        yield b": 1}"

    (late,) = ask(app, ("POST", "/v1/recommend", {"content": slowly(), "headers": {"x-request-timeout-ms": "10"}}))
    assert (late.status_code, late.json()["field"]) == (408, "x-request-timeout-ms")
    slow = retriever.candidates

    def slower(*given: Any, **named: Any) -> Any:
        time.sleep(0.03)
        return slow(*given, **named)

    monkeypatch.setattr(retriever, "candidates", slower)
    rows = {"json": {"rows": [{"k": 1}] * 10}, "headers": {"x-request-timeout-ms": "50"}}
    (late,) = ask(app, ("POST", "/v1/recommend:batch", rows))
    assert late.status_code == 408


def test_others_are_answered_between_the_rows_of_a_page(retriever: Retriever, monkeypatch: pytest.MonkeyPatch) -> None:
    app, done = build_app(Engine(retriever)), []
    found = retriever.candidates

    def noted(*given: Any, **named: Any) -> Any:
        done.append("row")
        return found(*given, **named)

    async def both() -> None:
        async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://test") as inside:

            async def live() -> None:
                while "row" not in done:
                    await asyncio.sleep(0)
                assert (await inside.get("/health/live")).status_code == 200
                done.append("live")

            page = inside.post("/v1/recommend:batch", json={"rows": [{"k": 1}] * 50})
            reply, _ = await asyncio.gather(page, live())
            assert [row["returned"] for row in reply.json()["rows"]][:2] == [1, 1]

    monkeypatch.setattr(retriever, "candidates", noted)
    asyncio.run(both())
    assert done.count("row") == 50 and done.index("live") < 49


@pytest.mark.parametrize("given", ["0", "-1", "1.5", "soon", "600001", "9" * 400])
def test_a_deadline_that_is_none(retriever: Retriever, given: str) -> None:
    (reply,) = ask(build_app(Engine(retriever)), ("GET", "/health/live", {"headers": {"x-request-timeout-ms": given}}))
    assert (reply.status_code, reply.json()["field"]) == (422, "x-request-timeout-ms")


def series(text: str) -> dict[str, float]:
    lines = [line for line in text.splitlines() if not line.startswith("#")]
    found = {name: float(value) for name, value in (line.rsplit(" ", 1) for line in lines)}
    assert len(found) == len(lines)
    return found


def test_metrics_count_what_happened(retriever: Retriever) -> None:
    app = build_app(Engine(retriever))
    asked = {"user_id": "user-5", "k": 3}
    replies = ask(
        app,
        *[("POST", "/v1/recommend", {"json": asked})] * 3,
        ("POST", "/v1/recommend", {"json": {"k": 1}}),
        ("POST", "/v1/recommend", {"json": {"k": 0}}),
        ("POST", "/v1/recommned", {"json": asked}),
        ("PATCH", "/v1/items/x", {}),
        ("GET", "/metrics", {}),
    )
    text = replies[-1].text
    found = series(text)
    assert replies[-1].headers["content-type"].startswith("text/plain; version=0.0.4")
    assert found['towers_requests_total{route="recommend",status="200"}'] == 4
    assert found['towers_requests_total{route="recommend",status="422"}'] == 1
    assert [found[f'towers_requests_total{{route="other",status="{status}"}}'] for status in (404, 405)] == [1, 1]
    assert found['towers_recommendations_total{mode="personalized"}'] == 3
    assert found['towers_fallbacks_total{reason="no_history"}'] == 1 and found["towers_fallback_ratio"] == 0.25
    for stage in ("state", "encode", "search", "reply"):
        assert found[f'towers_stage_seconds_count{{stage="{stage}"}}'] == 4
        assert 0 < found[f'towers_stage_seconds_sum{{stage="{stage}"}}'] < 10
    buckets = [found[f'towers_request_seconds_bucket{{route="recommend",le="{bound}"}}'] for bound in (*BOUNDS_S, "+Inf")]
    assert buckets == sorted(buckets) and buckets[-1] == found['towers_request_seconds_count{route="recommend"}'] == 5
    assert found["towers_index_age_seconds"] >= 0 and found["towers_items"] == 40
    assert found['towers_info{model_version="v1",index_version="v1"}'] == 1


def test_counters_of_all_workers_add_up() -> None:
    metrics = Metrics(["a"], workers=3)
    for worker in range(3):
        metrics.count_in(worker)
        metrics.request("a", 200, 10.0**-worker)
    metrics.request("a", 418, 0.0)
    found = series(metrics.text({}, {}))
    assert found['towers_requests_total{route="a",status="200"}'] == 3 and found['towers_requests_total{route="a",status="other"}'] == 1
    assert found['towers_request_seconds_sum{route="a"}'] == pytest.approx(1.11)


def test_the_log_says_how_it_went_and_nothing_of_whom(
    retriever: Retriever, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    app = build_app(Engine(retriever))
    caplog.set_level(logging.INFO, "towers.serving")
    secret = "somebody@example.org"
    headers = {"x-request-id": "r1"}
    calls = [
        ("POST", "/v1/recommend", {"json": {"user_id": secret, "k": 0}, "headers": headers}),
        ("GET", f"/v1/items/{secret}/similar", {}),
        ("POST", "/v1/recommend", {"json": {"user_id": secret}}),
    ]
    ask(app, *calls)

    def broken(request: Any) -> None:
        raise KeyError(request.user_id)

    monkeypatch.setattr(retriever, "answer", broken)
    ask(app, calls[2])
    lines = [json.loads(JsonLines().format(record)) for record in caplog.records if record.name == "towers.serving"]
    assert [(line.get("route"), line.get("status"), line.get("field")) for line in lines if line["event"] == "call"] == [
        ("recommend", 422, "k"), ("similar", 404, "id"), ("recommend", 500, "KeyError")
    ]  # fmt: skip
    assert lines[0]["request_id"] == "r1" and lines[0]["ms"] > 0 and lines[0]["level"] == "info" and lines[-1]["level"] == "error"
    assert any("broken" in frame for line in lines for frame in line.get("trace", ()))
    assert secret not in json.dumps(lines)


def test_names_that_callers_make_up_are_told_to_them_and_not_to_the_log(retriever: Retriever, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "towers.serving")
    secret = "4111111111111111"
    bodies: list[tuple[dict[str, Any], str, str]] = [
        ({secret: 1}, secret, "*"),
        ({f"history[{secret}]": 1}, f"history[{secret}]", "history[]"),
        ({"history": ["a", {"item_id": "b", secret: 1}]}, f"history[1].{secret}", "history[].*"),
        ({"history": ["a", {"item_id": "b", "context": {secret: 1}}]}, f"history[1].context.{secret}", "history[].context.*"),
        ({"context": {secret: 1}}, f"context.{secret}", "context.*"),
        ({"context": {secret: {}}}, f"context.{secret}", "context.*"),
        ({"preferences": {secret: ["a"]}}, f"preferences.{secret}", "preferences.*"),
        ({"filter": [{"field": "categories", secret: 1}]}, f"filter[0].{secret}", "filter[].*"),
        ({"filter": [{"field": secret, "any_of": ["a"]}]}, "filter[0].field", "filter[].field"),
    ]
    told = ask(build_app(Engine(retriever)), *[("POST", "/v1/recommend", {"json": body}) for body, _, _ in bodies])
    (query,) = ask(build_app(Engine(retriever)), ("GET", f"/v1/items/item-01/similar?{secret}=1", {}))
    assert [reply.json()["field"] for reply in [*told, query]] == [*(field for _, field, _ in bodies), secret]
    lines = [json.loads(JsonLines().format(record)) for record in caplog.records if record.name == "towers.serving"]
    assert [line["field"] for line in lines] == [*(logged for _, _, logged in bodies), "*"]
    assert secret not in json.dumps(lines)


def test_every_call_is_logged_where_that_is_asked_for(retriever: Retriever, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "towers.serving")
    app = build_app(Engine(retriever), AppOptions(Metrics(ROUTE_NAMES), access_log=True))
    ask(app, ("GET", "/health/live", {}), ("GET", "/v1/users/someone/else", {}))
    lines = [JsonLines().format(record) for record in caplog.records if record.name == "towers.serving"]
    assert [(json.loads(line)["route"], json.loads(line)["status"]) for line in lines] == [("live", 200), ("other", 404)]
    assert "someone" not in "".join(lines)
