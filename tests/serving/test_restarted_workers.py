"""A worker that is started in place of one that died goes by what its sisters go by now, not by what the service began with."""

import os
import shutil
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import psutil

from serving.handed_on import HandedOn
from tests.serving.test_serve import served
from towers.bundle import Bundle, publish

USER = "user-4"
ROWS = f"user_id,purpose,granted,timestamp\n{USER},personalize,true,2026-01-01T00:00:00Z\n"


def kill_workers(parent: int) -> None:
    """All of them, and wait for as many others that answer."""
    before = {child.pid for child in psutil.Process(parent).children()}
    for worker in before:
        os.kill(worker, signal.SIGKILL)
    wait_for(lambda: len({child.pid for child in psutil.Process(parent).children()} - before) == len(before))


def wait_for(happened: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 30
    while not happened():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def answers(url: str, name: str) -> set[Any]:
    """What many requests are told, each over a connection of its own, so that both workers are asked."""
    body = {"user_id": USER, "k": 3}
    return {httpx.post(f"{url}/v1/recommend", json=body, trust_env=False, timeout=30).json()[name] for _ in range(16)}


def run_of(world: Any, folder: Path) -> Path:
    world.run(folder / "run")
    return folder / "run"


def test_a_withdrawal_outlives_the_workers_that_read_it(world: Any, tmp_path: Path) -> None:
    table, run_dir = tmp_path / "consent.csv", run_of(world, tmp_path)
    table.write_text(ROWS)
    with served(world, run_dir, "serving.workers=2", f"serving.consent={table}") as (server, announced):
        url = announced["url"]
        assert answers(url, "profile") == {"used"}
        table.write_text(ROWS + f"{USER},personalize,false,2026-02-01T00:00:00Z\n")
        wait_for(lambda: answers(url, "profile") == {"no_consent"})
        table.write_text("garbage\n")
        wait_for(lambda: "consent" in httpx.get(f"{url}/health/ready", trust_env=False).json())
        assert answers(url, "profile") == {"no_consent"}
        for _ in range(2):
            kill_workers(server.pid)
            assert answers(url, "profile") == {"no_consent"}
        table.write_text(ROWS)
        wait_for(lambda: answers(url, "profile") == {"used"})


def test_a_worker_that_is_started_later_answers_with_the_bundle_of_the_others(world: Any, tmp_path: Path) -> None:
    run_dir = run_of(world, tmp_path)
    bundles = run_dir / "bundles"
    with served(world, run_dir, "serving.workers=2") as (server, announced):
        url = announced["url"]
        assert answers(url, "index_version") == {"v1"}
        publish(bundles, "v2", {}, {}, parent=Bundle.open(bundles / "v1"))
        wait_for(lambda: answers(url, "index_version") == {"v2"})
        publish(bundles, "v3", {}, {}, parent=Bundle.open(bundles / "v2"))
        wait_for(lambda: answers(url, "index_version") == {"v3"})
        shutil.copytree(bundles / "v3", bundles / "bad")
        (bundles / "bad" / "manifest.json").write_text("{")
        (bundles / "CURRENT").write_text("bad")
        wait_for(lambda: "refused" in httpx.get(f"{url}/health/ready", trust_env=False).json())
        kill_workers(server.pid)
        assert answers(url, "index_version") == {"v3"}


def test_what_is_handed_on_is_replaced_whole() -> None:
    handed = HandedOn()
    with handed.alone():
        assert handed.get() is None
        for content in (b"first", b"a longer second", b"3"):
            handed.put(content)
            assert handed.get() == content
        child = os.fork()
        if not child:
            handed.put(b"of another process")
            os._exit(0)
        assert os.waitpid(child, 0)[1] == 0 and handed.get() == b"of another process"
