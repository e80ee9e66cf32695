"""The demo: runs the public jobs as a person would, one process each, and asks the server that they lead to over HTTP."""

import json
import os
import shlex
import shutil
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from towers.errors import DataError, TowersError
from towers.interrupts import STARTED_BY
from towers.job import config_dirs, overrides, write_json
from training.config import TrainingConfig
from training.demo_asks import Ask, asks, show_reply
from training.demo_table import show_metrics

JOBS = ("prepare", "train", "evaluate", "export", "index")
SERVER_START_S = 60.0


class JobFailed(TowersError):
    """A job of the demo ended with an error, which it has printed; the demo ends with its exit code."""

    def __init__(self, job: str, code: int) -> None:
        super().__init__(f"demo: `towers {job}` ended with exit code {code}; its own message stands above")
        self.exit_code = code


def run(config: TrainingConfig) -> Path:
    """Run all jobs, serve, ask, stop the server; returns the path of demo.json."""
    started = time.monotonic()
    run_dir = Path(config.run_dir)
    typed = [o for o in overrides() if not o.startswith(("run_dir=", "demo."))]
    shared = [f"run_dir={run_dir}"]
    for number, job in enumerate(JOBS, start=1):
        # options before settings: Hydra's parser takes settings from one place only
        training = [*config_dirs(), *shared, *typed, "identity.keep_raw_ids=true"]
        _run_job(f"{number}/{len(JOBS) + 1}", job, training if job != "index" else shared)
    print(f"\n== {len(JOBS) + 1}/{len(JOBS) + 1} towers serve", flush=True)
    with _server(run_dir, config) as url:
        replies = [_ask(url, ask) for ask in asks(run_dir, config.demo.k)]
    show_metrics(run_dir)
    for reply in replies:
        show_reply(reply)
    _show_places(run_dir, config, time.monotonic() - started)
    document = {"run": {"wall_s": round(time.monotonic() - started, 1), "data": config.data.name}, "requests": replies}
    return write_json(run_dir / "demo.json", document)


def _run_job(step: str, job: str, arguments: list[str]) -> None:
    print(f"\n== {step} towers {job}", flush=True)
    began = time.monotonic()
    code = subprocess.run([sys.executable, "-m", "towers", job, *arguments], env=_environment(), check=False).returncode
    if code:
        raise JobFailed(job, code)
    print(f"   ({time.monotonic() - began:.1f} s)", flush=True)


def _environment() -> dict[str, str]:
    """Of the jobs, which end with the demo even where it is killed."""
    return {**os.environ, STARTED_BY: str(os.getpid())}


@contextmanager
def _server(run_dir: Path, config: TrainingConfig) -> Iterator[str]:
    """A `towers serve` process on this machine's loopback; yields its URL and stops it."""
    command = [sys.executable, "-m", "towers", "serve", f"run_dir={run_dir}", f"serving.port={config.demo.port}"]
    environment = _environment()
    if config.identity.key_file:
        environment["TOWERS_KEY_FILE"] = config.identity.key_file
    server = subprocess.Popen(command, env=environment)
    try:
        yield _wait_until_ready(server, run_dir / "serve.json")
    finally:
        server.send_signal(signal.SIGTERM)
        try:
            server.wait(10)
        except subprocess.TimeoutExpired:
            server.kill()
            server.wait()


def _wait_until_ready(server: subprocess.Popen[bytes], ready: Path) -> str:
    deadline = time.monotonic() + SERVER_START_S
    while time.monotonic() < deadline:
        if server.poll() is not None:
            raise JobFailed("serve", server.returncode)
        try:
            told = json.loads(ready.read_text())
        except FileNotFoundError:  # not asked first: this server takes a former one's away at any moment
            told = {}
        if told.get("pid") == server.pid and _get(f"{told['url']}/health/ready"):
            return str(told["url"])
        time.sleep(0.05)
    raise DataError(f"demo: the server was not ready within {SERVER_START_S:.0f} s")


def _get(url: str) -> bool:
    try:
        with urllib.request.urlopen(url, timeout=5) as reply:
            return bool(reply.status == 200)
    except (urllib.error.URLError, OSError):
        return False


def _ask(url: str, ask: Ask) -> dict[str, Any]:
    request = urllib.request.Request(
        f"{url}/v1/recommend", json.dumps(ask.body).encode(), {"content-type": "application/json"}, method="POST"
    )
    began = time.perf_counter()
    try:
        with urllib.request.urlopen(request, timeout=30) as reply:
            answer = json.load(reply)
    except urllib.error.HTTPError as error:
        said = error.read().decode(errors="replace")
        raise DataError(f"demo: the server refused the request {json.dumps(ask.body)}: {said}") from error
    latency_ms = 1e3 * (time.perf_counter() - began)
    kept = {name: value for name, value in ask.body.items() if name != "user_id"}  # demo.json is no place for a raw id
    return {"who": ask.who, "known": ask.known, "request": kept, "latency_ms": round(latency_ms, 2), "reply": answer}


def _show_places(run_dir: Path, config: TrainingConfig, seconds: float) -> None:
    model = "pooled" if config.model.history.name == "transformer" else "transformer"
    # `make demo` activates nothing, so the command may be known by its path only
    towers = "towers" if shutil.which("towers") else os.path.relpath(Path(sys.executable).with_name("towers"))
    folder = towers.removesuffix("towers")
    typed = shlex.join([*config_dirs(), *(o for o in overrides() if not o.startswith(("run_dir=", "model=")))])
    places = {
        "metrics.json": "the measurements above, with intervals, baselines and slices",
        "prepared/data_card.md": "what was read, refused and split",
        "export/": "item and user embeddings as Parquet",
        "bundles/": "what the server reads; CURRENT names the version in use",
        "tensorboard/": f"{folder}tensorboard --logdir {run_dir}/tensorboard",
    }
    steps = {
        f"{towers} serve run_dir={run_dir}": "ask it yourself: open its address in a browser",
        f"{towers} demo {typed} model={model} run_dir=runs/{model}".replace("  ", " "): "the same with the other tower",
        f"{towers} demo data=table data.path=<folder> ...": 'your own log: "Your own data" in the README',
    }
    print("\nWhere it all lies")
    _columns({f"{run_dir}/{name}": what for name, what in places.items()})
    print("\nWhat to try next")
    _columns(steps)
    print(f"({seconds:.0f} s in all)", flush=True)


def _columns(rows: dict[str, str]) -> None:
    width = max(map(len, rows))
    for left, right in rows.items():
        print(f"  {left:<{width}}  {right}")
