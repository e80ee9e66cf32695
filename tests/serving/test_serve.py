"""`towers serve` as people run it: a process of its own, where torch and training cannot be imported."""

import itertools
import json
import os
import signal
import socket
import sqlite3
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import psutil
import pytest

from serving.config import ServeConfig
from serving.impressions import OUTBOX_FILE
from serving.item_changes import ITEMS_FILE, ItemChanges
from serving.retriever import Retriever
from serving.run import histories, listen, url
from tests.announced import wait_for_announcement
from towers.bundle import Bundle, publish
from towers.encoder import Encoder, UserRow
from towers.errors import ConfigError
from towers.live_logs import EVENT_SCHEMA, EVENTS, IMPRESSION_SCHEMA, IMPRESSIONS
from towers.partitions import Reading
from towers.runtime import TorchRuntime

BLOCKED = """
import sys
class Absent:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in ("torch", "training", "pandas", "scipy", "onnx", "tensorboard"):
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)
sys.meta_path.insert(0, Absent())
"""
SERVE = BLOCKED + "from towers.cli import main\nsys.exit(main())"


def command(run_dir: Path, *overrides: str) -> list[str]:
    return [sys.executable, "-W", "error", "-c", SERVE, "serve", f"run_dir={run_dir}", *overrides]


def environment(key_file: Path) -> dict[str, str]:
    return {**os.environ, "TOWERS_KEY_FILE": str(key_file), "OMP_NUM_THREADS": "1"}


@contextmanager
def served(world: Any, run_dir: Path, *overrides: str) -> Iterator[tuple[subprocess.Popen[str], dict[str, Any]]]:
    """A running server and its announcement."""
    server = subprocess.Popen(
        command(run_dir, "serving.port=0", *overrides),
        env=environment(world.key_file),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        yield server, wait_for_announcement(server, run_dir)
    finally:
        if server.poll() is None:
            server.kill()
        server.communicate(timeout=10)


@pytest.mark.parametrize("stop", [signal.SIGTERM, signal.SIGINT])
def test_a_run_is_served_without_torch_and_stops_in_good_order(world: Any, retriever: Retriever, stop: signal.Signals) -> None:
    run_dir = world.bundle.parent.parent
    body = {"user_id": "user-9", "history": ["item-03"], "context": {"hour": 5}, "k": 8, "now": 1_728_000_000}
    with served(world, run_dir) as (server, announced):
        assert set(announced) == {"url", "pid", "state"}, "which bundle answers may change while it serves"
        assert announced["state"] == "listening"
        with httpx.Client(base_url=announced["url"], timeout=10, trust_env=False) as client:
            reply = client.post("/v1/recommend", json=body)
            assert reply.status_code == 200, reply.text
            expected = retriever.recommend(**body)
            assert [item["item_id"] for item in reply.json()["items"]] == [item.item_id for item in expected.items]
            scores = [item["score"] for item in reply.json()["items"]]
            np.testing.assert_allclose(scores, [item.score for item in expected.items], atol=1e-5)
            with socket.create_connection((client.base_url.host, client.base_url.port or 80), timeout=10) as odd:
                odd.sendall(b"no HTTP\r\n\r\n")
                assert odd.recv(1000).startswith(b"HTTP/1.1 400")
        server.send_signal(stop)
        out, err = server.communicate(timeout=20)
    assert [json.loads(line)["logger"] for line in err.splitlines()] == ["uvicorn.error"], "a log in which all is JSON"
    assert server.returncode == 0, err
    assert f"serving on {announced['url']}" in out
    assert out.strip().splitlines()[-1] == f"serve: done -> {run_dir / 'serve.json'}"
    assert json.loads((run_dir / "serve.json").read_text())["state"] == "stopped"


def test_how_long_it_waits_for_a_request_is_a_setting(world: Any) -> None:
    head = b"POST /v1/recommend HTTP/1.1\r\nhost: x\r\ncontent-length: 9\r\n\r\n"
    with served(world, world.bundle.parent.parent, "serving.read_timeout_s=0.05") as (_, announced):
        address = httpx.URL(announced["url"])

        def told(sent: bytes) -> bytes:
            with socket.create_connection((address.host, address.port or 80), timeout=10) as slow:
                slow.sendall(sent)
                return slow.recv(12)

        assert told(b"") == b""
        # a machine that is busy may take too long for the head already
        assert next(filter(None, (told(head) for _ in range(100)))) == b"HTTP/1.1 408"


def test_vectors_without_torch_equal_torchs(world: Any, tmp_path: Path) -> None:
    """The same row through the torch-free install and through torch."""
    code = f"""{BLOCKED}
import numpy as np
from serving.retriever import Retriever
from towers.encoder import UserRow
retriever = Retriever.open({str(world.bundle)!r})
context, features = {{"hour": 3, "budget": 2}}, {{"likes": ["drama"]}}
row = UserRow(["item-01", "item-02"], ["play", "skip"], [10**15, 2 * 10**15], 3 * 10**15, context, features)
np.save({str(tmp_path / "v.npy")!r}, retriever.encoder.users([row]).vectors_BHD)
assert "torch" not in sys.modules
"""
    subprocess.run([sys.executable, "-W", "error", "-c", code], check=True, timeout=60)
    context, features = {"hour": 3, "budget": 2}, {"likes": ["drama"]}
    row = UserRow(["item-01", "item-02"], ["play", "skip"], [10**15, 2 * 10**15], 3 * 10**15, context, features)
    wanted = Encoder(world.preprocessor, TorchRuntime(world.model), 6).users([row]).vectors_BHD
    np.testing.assert_allclose(np.load(tmp_path / "v.npy"), wanted, atol=1e-5, rtol=0)


def test_a_taken_port_is_a_config_error(world: Any) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        run_dir = world.bundle.parent.parent
        (run_dir / "serve.json").write_text('{"pid": 0, "url": "of one that ended"}')
        done = subprocess.run(
            command(run_dir, f"serving.port={port}"), env=environment(world.key_file), capture_output=True, text=True, timeout=60
        )
    assert done.returncode == 2, done.stderr
    assert "serving.port" in done.stderr and str(port) in done.stderr and "serving.port=0" in done.stderr
    assert (run_dir / "serve.json").read_text() == '{"pid": 0, "url": "of one that ended"}'


@pytest.mark.parametrize("workers", [1, 2])
def test_a_run_is_served_once_and_its_announcement_is_its_servers(world: Any, workers: int) -> None:
    run_dir = world.bundle.parent.parent
    place = run_dir / "serve.json"
    with served(world, run_dir, f"serving.workers={workers}") as (server, announced):
        second = subprocess.run(
            command(run_dir, "serving.port=0"), env=environment(world.key_file), capture_output=True, text=True, timeout=60
        )
        assert second.returncode == 2, second.stderr
        assert f"served already, by process {server.pid} at {announced['url']}." in second.stderr
        assert json.loads(place.read_text()) == announced
        assert httpx.get(f"{announced['url']}/health/ready", trust_env=False).status_code == 200
        server.kill()
        server.communicate(timeout=20)
    assert json.loads(place.read_text()) == announced, "nobody was left to take it back"
    with served(world, run_dir) as (_, anew):
        assert anew["pid"] != announced["pid"], "a dead one is in nobody's way"


@pytest.mark.parametrize("workers", [1, 2])
def test_the_items_announced_are_those_that_can_be_shown(world: Any, tmp_path: Path, workers: int) -> None:
    """Those of the bundle, less what went, with what came since."""
    changes = ItemChanges(tmp_path / ITEMS_FILE)
    for item_id, attributes in {"new": {}, "newer": {}, "came and went": None, "item-03": {"title": "Changed"}, "item-05": None}.items():
        changes.put(item_id, attributes)
    changes.close()
    run_dir = world.bundle.parent.parent
    blocked = "serving.selector.blocked=[nope,new,came and went,item-03]"
    with served(world, run_dir, f"serving.workers={workers}", f"serving.state_dir={tmp_path}", blocked) as (server, announced):
        items = httpx.get(f"{announced['url']}/health/ready", trust_env=False).json()["items"]
        server.send_signal(signal.SIGTERM)
        out, err = server.communicate(timeout=20)
    assert server.returncode == 0, err
    assert items == len(world.catalog) + 1 and f", {items} items)" in out
    assert err.count("serving.selector.blocked: 2 of 4 ids") == 1 and "'nope'" in err and "'came and went'" in err


@pytest.mark.skipif(sys.platform != "linux", reason="tells which files a process has mapped")
def test_what_a_new_bundle_replaces_is_let_go(world: Any, tmp_path: Path) -> None:
    """The first one too, which was opened before there was an engine, and with it the histories that were read then."""
    bundles = Path(world.run(tmp_path).run_dir) / "bundles"
    first = Bundle.open(bundles / "v1")

    def mapped() -> set[str]:
        paths = (Path(mapping.path) for mapping in psutil.Process(server.pid).memory_maps(grouped=True))
        return {path.relative_to(bundles).parts[0] for path in paths if path.is_relative_to(bundles)}

    with served(world, tmp_path) as (server, told):
        assert mapped() == {"v1"}
        publish(bundles, "v2", {name: first.folder / name for name in first.manifest["files"]}, {})
        until = time.monotonic() + 20
        while mapped() != {"v2"} and time.monotonic() < until:
            time.sleep(0.1)
        assert mapped() == {"v2"}
        with httpx.Client(base_url=told["url"], trust_env=False) as client:
            assert client.post("/v1/recommend", json={"user_id": "user-5", "k": 3}).json()["index_version"] == "v2"
            time.sleep(0.3)
        server.send_signal(signal.SIGTERM)
        assert "keeping up to date failed" not in server.communicate(timeout=20)[1]


def test_a_run_without_a_bundle_says_what_to_do(world: Any, tmp_path: Path) -> None:
    done = subprocess.run(command(tmp_path), env=environment(world.key_file), capture_output=True, text=True, timeout=60)
    assert done.returncode == 3 and "towers export" in done.stderr


def test_an_unknown_key_is_a_config_error(world: Any, tmp_path: Path) -> None:
    done = subprocess.run(command(tmp_path, "serving.prot=1"), env=environment(world.key_file), capture_output=True, text=True, timeout=60)
    assert done.returncode == 2 and "prot" in done.stderr


def test_addresses() -> None:
    with listen("127.0.0.1", 0) as listener:
        port = listener.getsockname()[1]
        assert url("127.0.0.1", listener) == f"http://127.0.0.1:{port}"
        assert url("0.0.0.0", listener) == f"http://127.0.0.1:{port}"
        assert url("::", listener) == f"http://[::1]:{port}"
    for host in ("not a host", "203.0.113.7"):
        with pytest.raises(ConfigError, match=r"serving\.host"):
            listen(host, 0)


def test_histories_are_the_runs_unless_others_are_named(tmp_path: Path) -> None:
    assert histories(ServeConfig(), tmp_path) is None
    (tmp_path / "export").mkdir()
    (tmp_path / "export" / "histories.parquet").touch()
    assert histories(ServeConfig(), tmp_path) == tmp_path / "export" / "histories.parquet"
    assert histories(ServeConfig(history="elsewhere.parquet"), tmp_path) == Path("elsewhere.parquet")


def wait_for_lists(outbox: Path, count: int) -> None:
    """Until so many lists are on disk."""
    deadline = time.monotonic() + 60
    with closing(sqlite3.connect(f"file:{outbox}?mode=ro", uri=True, timeout=10)) as database:
        while (found := database.execute("SELECT count(*) FROM waiting").fetchone()[0]) < count:
            assert time.monotonic() < deadline, f"{found} of {count}"
            time.sleep(0.02)


def test_workers_share_what_was_read_and_are_replaced_when_they_die(world: Any, tmp_path: Path) -> None:
    run_dir = world.bundle.parent.parent
    with served(world, run_dir, "serving.workers=2", f"serving.state_dir={tmp_path}") as (server, announced):
        children = {child.pid for child in psutil.Process(server.pid).children()}
        assert len(children) == 2
        body = {"user_id": "user-9", "k": 3}
        event = {"user_id": "one of two", "item_id": "item-03", "event_type": "play", "event_id": "e1"}

        number = itertools.count()

        def ask(path: str, document: dict[str, Any]) -> dict[str, Any]:
            """On a connection of its own, so that either worker may take it."""
            headers = {"x-request-id": f"request-{next(number)}"}
            reply = httpx.post(announced["url"] + path, json=document, headers=headers, timeout=10, trust_env=False)
            assert reply.status_code == 200, reply.text
            found: dict[str, Any] = reply.json()
            return found

        assert ask("/v1/events", {"events": [event]})["added"] == 1
        assert {ask("/v1/recommend", {"user_id": "one of two", "k": 3})["mode"] for _ in range(20)} == {"personalized"}
        total = 20 + sum(ask("/v1/recommend", body)["returned"] == 3 for _ in range(20))
        counted = {
            httpx.get(announced["url"] + "/metrics", trust_env=False).text.partition('mode="personalized"} ')[2].split()[0]
            for _ in range(6)
        }
        assert counted == {str(total)}, "whichever worker is asked counts for all"
        wait_for_lists(tmp_path / OUTBOX_FILE, 40)  # a killed process loses those of its last moments
        victim = children.pop()
        os.kill(victim, signal.SIGKILL)
        deadline = time.monotonic() + 20
        while len(alive := {child.pid for child in psutil.Process(server.pid).children()} - {victim}) < 2:
            assert time.monotonic() < deadline
            time.sleep(0.05)
        assert {ask("/v1/recommend", body)["returned"] for _ in range(20)} == {3}
        server.send_signal(signal.SIGTERM)
        _, err = server.communicate(timeout=20)
        assert server.returncode == 0, err
    assert not any(psutil.pid_exists(pid) for pid in alive)
    lists = [row for table in Reading(tmp_path / IMPRESSIONS, IMPRESSION_SCHEMA) for row in table.to_pylist()]
    assert {row["request_id"] for row in lists} == {f"request-{n}" for n in range(1, 61)} and len(lists) == 60
    (told,) = [row for table in Reading(tmp_path / EVENTS, EVENT_SCHEMA) for row in table.to_pylist()]
    assert (told["item_id"], told["event_id"]) == ("item-03", "e1") and told["user_key"] in {row["user_key"] for row in lists}


def test_workers_end_with_their_parent(world: Any) -> None:
    with served(world, world.bundle.parent.parent, "serving.workers=2") as (server, _):
        children = psutil.Process(server.pid).children()
        assert len(children) == 2
        server.kill()
        _, alive = psutil.wait_procs(children, timeout=20)
        assert alive == []
