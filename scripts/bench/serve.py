"""A whole request, on the path that users run: `towers serve` with stored histories, exclude_seen, live state and metrics on.

    .venv/bin/python scripts/bench/serve.py [--quick] [--items 1000000] [--run-dir FOLDER]

1M items x 64, the mean tower over 50 events, six context features, index tuned to recall@100 of at least 0.95, k = 100, 16
connections. CPU is the server's (user and system, from the kernel), per request: what shares the machine disturbs it less than wall time.
The obvious stack (obvious_server.py) answers the same requests over the same index, in turns with ours. So does a floor (floor_server.py):
no service, but the same tower and search with nothing around them, which tells how fast the machine was. Every answer of ours has left its
row in the log of impressions, which is counted at the end.

Stages are the server's own, from /metrics, while it answered; what is around them in a call (headers, JSON) and the web, which is what an
answer of the same size costs without any work, are told apart. The server tells seconds, in which others had their turn as well: its parts
are scaled so that all of them add up to the CPU of a request. `overhead_share` is state, selection and the writing of the impression row in
all that. `first_answer_s` is the median of five starts of two workers. `towers recommend` makes the lists of the same users for files:
`loop_over_batch` is what it saves against asking for each.
"""

import argparse
import asyncio
import json
import os
import re
import shutil
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path

import psutil
import pyarrow.dataset as ds

sys.path.insert(0, str(Path(__file__).resolve().parent))
from clocks import cpu_rounds, ratio
from load import Answered, load
from report import finish, say
from serving_world import NOW_US, make_run, requests

from serving.config import ServingConfig
from serving.decoding import decode
from serving.impressions import Outbox
from serving.messages import RecommendRequest
from serving.metrics import STAGES
from serving.profiles import Profiles
from serving.recommend_job import lists
from serving.retriever import Retriever
from serving.run import events, users
from towers.bundle import Bundle, current
from towers.live_logs import IMPRESSIONS

CONNECTIONS, K, USERS, BLOCK, STARTS = 16, 100, 50_000, 1024, 5
HERE = Path(__file__).resolve().parent


@dataclass(frozen=True)
class Measured:
    """A load, and the server's CPU microseconds for each answer of it."""

    answered: Answered
    cpu_us: float


ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1", "OMP_WAIT_POLICY": "PASSIVE"}


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("--quick", action="store_true", help="20,000 items and few requests: under a minute on a free core")
    arguments.add_argument("--items", type=int, default=1_000_000)
    arguments.add_argument("--run-dir", type=Path, help="where the drawn run is kept for the next time")
    told = arguments.parse_args()
    items, people, count, rounds = (20_000, 2000, 300, 3) if told.quick else (told.items, USERS, 3000, 5)
    with tempfile.TemporaryDirectory() as scratch:
        run_dir = make_run(told.run_dir or Path(scratch), items, people)
        measure(run_dir, people, count, rounds)


def measure(run_dir: Path, people: int, count: int, rounds: int) -> None:
    bodies = [json.dumps(body).encode() for body in requests(5, people, count * (rounds + 1), K)]
    parts = [bodies[start : start + count] for start in range(0, len(bodies), count)]
    seen: dict[str, list[Measured]] = {"ours": [], "floor": [], "obvious": []}
    with ours(run_dir, 1) as (one, _), peer(run_dir, "floor", f"--users={people}") as least, peer(run_dir, "obvious") as other:
        for number, part in enumerate(parts):
            for name, (process, port) in (("ours", one), ("floor", least), ("obvious", other)):
                found = measured(process, port, part)
                if number:  # the first round warms up
                    seen[name].append(found)
            if not number:
                before = told_seconds(one[1])
        stages = stages_us(before, told_seconds(one[1]), len(bodies) - count)
    check_impressions(run_dir, len(bodies) + 1)  # one more told that the server answers
    with ours(run_dir, 2) as ((process, port), _):
        asyncio.run(load("127.0.0.1", port, "/v1/recommend", bodies, CONNECTIONS, 120))
        pss = sum(member.memory_full_info().pss for member in (process, *process.children())) / 2**20
    check_impressions(run_dir, len(bodies) + 1)
    starts = []
    for _ in range(STARTS):
        with ours(run_dir, 2) as (_, since):
            starts.append(since)
    web = web_us(int(statistics.median(seen["ours"][0].answered.sizes)), parts[1])
    row_us, batch_us = alone_us(run_dir, bodies[:count])
    inside = statistics.median(one.cpu_us for one in seen["ours"]) - web - row_us
    stages = {name: value * inside / sum(stages.values()) for name, value in stages.items()} | {"web": web, "impression_row": row_us}
    figures = {
        **{f"{name}_us": value for name, value in stages.items()},
        "pss_mib": pss,
        "first_answer_s": statistics.median(starts),
        "index_recall": json.loads((run_dir / "index.json").read_text())["recall"],
        "recommend_job_us": batch_us,
    }
    report(seen, stages, figures)


def report(seen: dict[str, list[Measured]], stages: dict[str, float], figures: dict[str, float]) -> None:
    """The table and the JSON document."""
    cost = {name: [one.cpu_us for one in rounds] for name, rounds in seen.items()}
    rate = {name: statistics.median(len(one.answered.seconds) / one.answered.wall_s for one in rounds) for name, rounds in seen.items()}
    rows = [["what", "CPU us a request", "requests/s", "p50 ms", "p99 ms"]]
    for name, rounds in seen.items():
        ordered = sorted(second for one in rounds for second in one.answered.seconds)
        p50, p99 = (1e3 * ordered[int(share * (len(ordered) - 1))] for share in (0.5, 0.99))
        rows.append([name, f"{statistics.median(cost[name]):.0f}", f"{rate[name]:.0f}", f"{p50:.2f}", f"{p99:.2f}"])
    rows += [[f"  {name}", f"{value:.0f}", "", "", ""] for name, value in stages.items()]
    rows.append(["towers recommend, a list", f"{figures['recommend_job_us']:.0f}", "", "", ""])
    facts = f"two workers {figures['pss_mib']:.0f} MiB; first answer after {figures['first_answer_s']:.2f} s"
    rows.append([f"{facts}; index recall {figures['index_recall']:.3f}", "", "", "", ""])
    request = statistics.median(cost["ours"])
    ratios = {
        "obvious_over_ours": ratio(cost["obvious"], cost["ours"]),
        "ours_over_floor": ratio(cost["ours"], cost["floor"]),
        "overhead_share": sum(stages[name] for name in ("state", "select", "impression_row")) / sum(stages.values()),
        "loop_over_batch": request / figures["recommend_job_us"],
    }
    whole = {"request_cpu_us": request, "requests_per_s": rate["ours"]}
    whole |= {f"{name}_cpu_us": statistics.median(cost[name]) for name in ("floor", "obvious")}
    finish("serve", rows, ratios, {**whole, **figures})


def check_impressions(run_dir: Path, answered: int) -> None:
    """Every answer of a server that has ended left a row."""
    logged = ds.dataset(run_dir / "state" / IMPRESSIONS, format="parquet").to_table(columns=["recommendation_id", "item_id"])
    distinct = len(logged.column("recommendation_id").unique())
    if not distinct == len(logged) == answered or any(len(items) != K for items in logged.column("item_id")):
        raise RuntimeError(f"{answered} lists were answered and {len(logged)} logged, {distinct} of them different")


@contextmanager
def ours(run_dir: Path, workers: int) -> Iterator[tuple[tuple[psutil.Process, int], float]]:
    """`towers serve`, and the seconds from its start to its first answer."""
    port = free_port()
    shutil.rmtree(run_dir / "state", ignore_errors=True)
    command = [sys.executable, "-m", "towers", "serve", f"run_dir={run_dir}", f"serving.port={port}", f"serving.workers={workers}"]
    with server([*command, f"serving.key_file={run_dir / 'key'}"], port) as (process, since):
        yield (process, port), since


@contextmanager
def peer(run_dir: Path, name: str, *options: str) -> Iterator[tuple[psutil.Process, int]]:
    port = free_port()
    paths = [current(run_dir / "bundles"), run_dir / "export" / "histories.parquet", run_dir / "key"]
    command = [sys.executable, str(HERE / f"{name}_server.py"), *map(str, paths), f"--port={port}", f"--now-us={NOW_US}", *options]
    with server(command, port) as (process, _):
        yield process, port


@contextmanager
def server(command: list[str], port: int) -> Iterator[tuple[psutil.Process, float]]:
    """A process that answers on a port, and how long it took to."""
    say(" ".join(command))
    started = time.perf_counter()
    body = json.dumps(requests(0, 1, 1, K)[0]).encode()
    with subprocess.Popen(command, env=ENVIRONMENT, stdout=subprocess.DEVNULL) as child:
        try:
            while True:
                try:
                    asyncio.run(load("127.0.0.1", port, "/v1/recommend", [body], 1, 10))
                    break
                except OSError:
                    if child.poll() is not None or time.perf_counter() - started > 120:
                        raise
                    time.sleep(0.01)
            since = time.perf_counter() - started
            yield psutil.Process(child.pid), since
        finally:
            child.send_signal(signal.SIGTERM)
            try:
                child.wait(20)
            except subprocess.TimeoutExpired:
                child.kill()


def measured(process: psutil.Process, port: int, bodies: list[bytes]) -> Measured:
    """A load, and the server's CPU microseconds for each answer."""
    before = process.cpu_times()
    seen = asyncio.run(load("127.0.0.1", port, "/v1/recommend", bodies, CONNECTIONS, 60))
    after = process.cpu_times()
    if seen.failures or not seen.seconds:
        raise RuntimeError(f"{seen.failures} of {len(seen.seconds)} answers were no lists")
    return Measured(seen, 1e6 * (after.user + after.system - before.user - before.system) / len(seen.seconds))


def told_seconds(port: int) -> dict[str, float]:
    """Seconds spent so far, by stage, and in all calls of /v1/recommend (`call`)."""
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=30) as reply:
        text = reply.read().decode()
    sums = {name: re.search(rf'towers_stage_seconds_sum{{stage="{name}"}} (\S+)', text) for name in STAGES}
    sums["call"] = re.search(r'towers_request_seconds_sum{route="recommend"} (\S+)', text)
    return {name: float(found[1]) for name, found in sums.items() if found}


def stages_us(before: dict[str, float], after: dict[str, float], count: int) -> dict[str, float]:
    """Microseconds of each stage of a call; `around` is what no stage took."""
    spent = {name: 1e6 * (after[name] - before[name]) / count for name in after}
    call = spent.pop("call")
    return {**spent, "around": call - sum(spent.values())}


def alone_us(run_dir: Path, bodies: list[bytes]) -> tuple[float, float]:
    """CPU of writing the row of an answer, and of a list of `towers recommend`: neither is part of a call."""
    settings = ServingConfig(run_dir=str(run_dir)).serving
    settings.key_file = str(run_dir / "key")
    keys, known = users(settings, run_dir)
    retriever = Retriever.load(Bundle.open(current(run_dir / "bundles")), Profiles(keys, known))
    state = run_dir / "state" / "alone"
    with closing(events(settings, state, keys)) as store, closing(Outbox(state / "impressions.db", "settings")) as outbox:
        retriever.profiles, retriever.outbox = Profiles(keys, known, store, settings.user_events), outbox
        asks = [decode(body, RecommendRequest) for body in bodies]
        seconds = []
        for start in range(0, len(asks), BLOCK):
            for ask in asks[start : start + BLOCK]:
                retriever.answer(ask)
            since = time.process_time()
            outbox.flush()
            seconds.append((time.process_time() - since) / len(asks[start : start + BLOCK]))
        block, request, now = [keys.key(str(ask.user_id)) for ask in asks[:BLOCK]], RecommendRequest(k=K), time.time_ns() // 1000
        batch = cpu_rounds({"lists": lambda: lists(retriever, block, request, now)}, 5, warm=1)["lists"]
    return 1e6 * statistics.median(seconds), 1e6 * statistics.median(batch) / len(block)


def web_us(size: int, bodies: list[bytes]) -> float:
    """CPU of a request whose answer is ready: the same server, routes and body reading, and a stored reply of the same size."""
    port = free_port()
    code = f"""
import socket
from starlette.applications import Starlette
from starlette.routing import Route
from serving.app import Straight, serve
from serving.calls import Endpoint, Front, Reply
from serving.metrics import Metrics
reply = Reply(b"x" * {size}, b"application/json")
endpoint = Endpoint(Front(Metrics(["recommend"])), "recommend", lambda call: reply, takes_body=True)
routes = [Route("/v1/recommend", endpoint, methods=["POST"])]
serve(Straight(Starlette(routes=routes), routes), socket.create_server(("127.0.0.1", {port})), lambda: None)
"""
    with server([sys.executable, "-c", code], port) as (process, _):
        measured(process, port, bodies)
        return statistics.median(measured(process, port, bodies).cpu_us for _ in range(3))


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


if __name__ == "__main__":
    main()
