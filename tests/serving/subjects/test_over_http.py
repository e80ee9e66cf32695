"""People's wishes over HTTP, before one process and before several."""

import errno
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import httpx
import pytest

from serving.app import AppOptions, build_app
from serving.client import Client
from serving.engine import Engine
from serving.metrics import Metrics
from serving.routes import ROUTE_NAMES
from serving.subjects import verify
from tests.announced import wait_for_announcement
from towers.live_consent import LiveConsent

USER, OTHER = "user-4", "user-9"
ROOT = Path(__file__).parents[3]


def full_disk(handle: int, content: bytes) -> int:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


@pytest.mark.anyio
async def test_seeing_and_forgetting(used: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    with used.served() as (retriever, rights):
        app = build_app(Engine(retriever), AppOptions(Metrics(ROUTE_NAMES), rights=rights))
        async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://test") as client:
            told = (await client.get(f"/v1/users/{USER}")).json()
            assert told["user_id"] == USER and "export/histories.parquet" in told["held"] and told["decisions"] == []
            await client.put(f"/v1/users/{USER}/consent", json={"marketing": False})
            (decision,) = (await client.get(f"/v1/users/{USER}")).json()["decisions"]
            assert (decision["purpose"], decision["granted"], decision["source"]) == ("marketing", False, "told")
            receipt = (await client.delete(f"/v1/users/{USER}")).json()
            assert receipt["found"] and receipt["hash"] == verify(used.receipts)["last_hash"]
            assert (await client.get(f"/v1/users/{USER}")).json()["held"] == {} and used.bytes_of(USER) == []
            reply = (await client.post("/v1/recommend", json={"user_id": USER})).json()
            assert reply["fallback"]["reason"] == "unknown_user"
            for method in ("GET", "DELETE"):
                refused = await client.request(method, f"/v1/users/{'x' * 300}")
                assert (refused.status_code, refused.json()["field"]) == (422, "id")
            with monkeypatch.context() as patched:
                patched.setattr(os, "write", full_disk)
                later = await client.delete(f"/v1/users/{OTHER}")
            assert later.status_code == 503 and "No space left" in later.json()["detail"] and later.headers["retry-after"] == "1"
            assert (await client.get(f"/v1/users/{OTHER}")).json()["held"] and verify(used.receipts)["receipts"] == 2
            used.receipts.write_bytes(b"not a chain\n")
            failed = await client.delete(f"/v1/users/{OTHER}")
            assert failed.status_code == 500 and OTHER not in failed.text and "line 1 is not what was written" in failed.text
            rights.standing.refresh()
            assert "shorter than it was" in (await client.get("/health/ready")).json()["receipts"]["refused"]


@pytest.mark.anyio
async def test_an_id_that_ends_like_a_route_is_that_id(used: Any) -> None:
    with used.served() as (retriever, rights):
        app = build_app(Engine(retriever), AppOptions(Metrics(ROUTE_NAMES), rights=rights))
        async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://test") as client:
            named, held = f"{USER}%2Fconsent", (await client.get(f"/v1/users/{USER}")).json()["held"]
            told = (await client.get(f"/v1/users/{named}")).json()
            assert (told["user_id"], told["held"]) == (f"{USER}/consent", {}) and held
            refused = await client.delete(f"/v1/users/{USER}/consent")
            assert (refused.status_code, refused.headers["allow"]) == (405, "GET, HEAD, PUT")
            assert (await client.delete(f"/v1/users/{named}")).json()["found"] is False
            assert (await client.get(f"/v1/users/{USER}")).json()["held"] == held, "somebody else was forgotten"


@pytest.mark.anyio
async def test_what_could_not_be_removed_stands_in_the_services_log(used: Any, caplog: pytest.LogCaptureFixture) -> None:
    part = next((used.dir / "state" / "impressions").rglob("*.parquet"))
    part.write_bytes(b"PAR1")
    with used.served() as (retriever, rights):
        app = build_app(Engine(retriever), AppOptions(Metrics(ROUTE_NAMES), rights=rights))
        async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://test") as client:
            receipt = (await client.delete(f"/v1/users/{USER}")).json()
        rights.subjects.replay()
    place = part.relative_to(used.dir).as_posix()
    told = [record.__dict__["place"] for record in caplog.records if record.getMessage() == "rows of users cannot be removed"]
    assert list(receipt["not_removed_from"]) == [place] and told == [place, place]


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


def test_a_service_of_this_process_alone_keeps_nothing(client: httpx.Client) -> None:
    for method in ("GET", "DELETE"):
        refused = client.request(method, "/v1/users/somebody")
        assert (refused.status_code, refused.json()["field"]) == (404, "id")


def test_every_worker_knows_at_its_next_request(used: Any) -> None:
    command = [sys.executable, "-m", "towers", "serve", f"run_dir={used.dir}", "serving.port=0", "serving.workers=2"]
    command += [f"serving.receipts={used.receipts}"]
    environment = {**os.environ, "TOWERS_KEY_FILE": str(used.config.serving.key_file), "OMP_NUM_THREADS": "1"}
    server = subprocess.Popen(command, cwd=ROOT, env=environment, stdout=subprocess.DEVNULL)
    try:
        url = wait_for_announcement(server, used.dir)["url"]

        def profiles(user: str) -> set[str]:
            """What many requests get, each over a connection of its own, so that both workers are asked."""
            body = {"user_id": user, "k": 3}
            return {httpx.post(f"{url}/v1/recommend", json=body, trust_env=False).json()["profile"] for _ in range(12)}

        ours = Client(url, timeout_s=20)
        assert profiles(USER) == profiles(OTHER) == {"used"}
        assert ours.decide(OTHER, personalize=False).personalize is False
        assert profiles(OTHER) == {"no_consent"}
        assert ours.decide(OTHER, personalize=True, train=False) == ours.consent(OTHER)
        assert profiles(OTHER) == {"used"}
        assert "export/histories.parquet" in ours.held(USER).held
        receipt = ours.forget(USER)
        assert receipt.found and receipt.hash == verify(used.receipts)["last_hash"] and ours.held(USER).held == {}
        ours.close()
        assert profiles(USER) == {"none"} and profiles(OTHER) == {"used"}
    finally:
        server.send_signal(signal.SIGTERM)
        assert server.wait(20) == 0
    assert len(LiveConsent.open(used.dir / "state" / "consent.parquet", used.keys)) == 1, "the training jobs know by now"
    # lists shown after the wish are of somebody new, and are kept like anybody's
    assert {name.partition("/date")[0] for name in used.bytes_of(USER)} <= {"state/impressions", "state/impressions.db"}
