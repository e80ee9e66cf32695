"""What a request runs through stays small enough to be read in one sitting."""

import asyncio
import sys
from contextlib import closing
from pathlib import Path
from types import CodeType, FrameType
from typing import Any

import httpx

from serving.app import AppOptions, build_app
from serving.config import state_dir
from serving.metrics import Metrics
from serving.profiles import Profiles
from serving.rights import Rights, consent_table
from serving.routes import ROUTE_NAMES
from serving.run import events, live, opened, users
from towers.bundle import Bundle

ROOT = Path(__file__).resolve().parent.parent.parent
MOST_LINES = 1500


def test_the_code_that_a_request_visits_is_short(world: Any, tmp_path: Path) -> None:
    """Every function of ours that runs for one POST /v1/recommend, found by watching it run, in lines of its source.

    The service is wired as `towers serve` does it: stored and live history, consent, impressions, metrics.
    """
    visited: set[CodeType] = set()

    def watch(frame: FrameType, event: str, _: object) -> None:
        if event == "call" and frame.f_code.co_filename.startswith((f"{ROOT}/serving/", f"{ROOT}/towers/")):
            visited.add(frame.f_code)

    async def ask(app: Any) -> httpx.Response:
        async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://test") as inside:
            event = {"user_id": "user-5", "item_id": "item-02", "event_id": "1", "event_type": "play"}
            assert (await inside.post("/v1/events", json={"events": [event]})).status_code == 200
            body = {"user_id": "user-5", "context": {"hour": 5, "budget": 3}, "exclude": ["item-01"], "k": 7}
            sys.setprofile(watch)
            try:
                return await inside.post("/v1/recommend", json={**body, "filter": [{"field": "categories", "any_of": ["drama"]}]})
            finally:
                sys.setprofile(None)

    config = world.run(tmp_path)
    keys, known = users(config.serving, tmp_path)
    folder = state_dir(config)
    table = consent_table(config, keys)
    with closing(Rights.open(config, keys, table)) as rights, closing(events(config.serving, folder, keys)) as store:
        profiles = Profiles(keys, known, store, config.serving.user_events, rights.standing)
        with live(config, opened(Bundle.open(tmp_path / "bundles" / "v1"), config.serving, profiles)) as engine:
            reply = asyncio.run(ask(build_app(engine, AppOptions(Metrics(ROUTE_NAMES), rights=rights))))
    assert reply.status_code == 200 and reply.json()["mode"] == "personalized" and reply.json()["profile"] == "used"
    lines: dict[str, set[int]] = {}
    for code in visited:
        numbers = [line for _, _, line in code.co_lines() if line]
        lines.setdefault(code.co_filename.removeprefix(f"{ROOT}/"), set()).update(range(code.co_firstlineno, max(numbers) + 1))
    count = {name: len(numbers) for name, numbers in sorted(lines.items())}
    known_to_run = {"serving/calls.py", "serving/impressions.py", "serving/sqlite_events.py", "towers/encoder.py", "towers/preprocess.py"}
    assert known_to_run <= set(count)
    assert sum(count.values()) <= MOST_LINES, count
