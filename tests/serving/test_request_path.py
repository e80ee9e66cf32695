"""What a request runs through stays small enough to be read in one sitting."""

import asyncio
import sys
from pathlib import Path
from types import CodeType, FrameType

import httpx

from serving.app import build_app
from serving.engine import Engine
from serving.retriever import Retriever

ROOT = Path(__file__).resolve().parent.parent.parent
MOST_LINES = 1500


def test_the_code_that_a_request_visits_is_short(retriever: Retriever) -> None:
    """Every function of ours that ran for one POST /v1/recommend, found by watching it run, in lines of its source."""
    visited: set[CodeType] = set()

    def watch(frame: FrameType, event: str, _: object) -> None:
        if event == "call" and frame.f_code.co_filename.startswith((f"{ROOT}/serving/", f"{ROOT}/towers/")):
            visited.add(frame.f_code)

    async def ask() -> httpx.Response:
        async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://test") as inside:
            body = {"user_id": "user-5", "context": {"hour": 5, "budget": 3}, "exclude": ["item-01"], "k": 7}
            return await inside.post("/v1/recommend", json={**body, "filter": [{"field": "categories", "any_of": ["drama"]}]})

    app = build_app(Engine(retriever))
    sys.setprofile(watch)
    try:
        reply = asyncio.run(ask())
    finally:
        sys.setprofile(None)
    assert reply.status_code == 200 and reply.json()["mode"] == "personalized"
    lines: dict[str, set[int]] = {}
    for code in visited:
        numbers = [line for _, _, line in code.co_lines() if line]
        lines.setdefault(code.co_filename.removeprefix(f"{ROOT}/"), set()).update(range(code.co_firstlineno, max(numbers) + 1))
    count = {name: len(numbers) for name, numbers in sorted(lines.items())}
    assert {"serving/calls.py", "serving/handlers.py", "serving/retriever.py", "towers/encoder.py", "towers/preprocess.py"} <= set(count)
    assert sum(count.values()) <= MOST_LINES, count
