"""A whole request, on the path that users run: `towers serve` with stored histories, exclude_seen, live state and metrics on.

    .venv/bin/python scripts/bench/serve.py [--quick] [--items 1000000] [--run-dir FOLDER]

1M items x 64, the mean tower over 50 events, six context features, index tuned to recall@100 of at least 0.95, k = 100, 16
connections. CPU is the server's (user and system, from the kernel), per request: what shares the machine disturbs it less than wall time.
The obvious stack (obvious_server.py) answers the same requests over the same index, in turns with ours. Every answer of ours has left its
row in the log of impressions, which is counted at the end. The share of state and selection is the whole, the impression row included, less
encoding, search and JSON, each measured alone on the same bundle and requests; the web is what an answer of the same size costs without any
work. `towers recommend` makes the lists of the same users for files: `loop_over_batch` is what it saves against asking for each.
"""

import argparse
import asyncio
import json
import os
import shutil
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import msgspec
import psutil
import pyarrow.dataset as ds

sys.path.insert(0, str(Path(__file__).resolve().parent))
from clocks import Form, cpu_rounds
from load import Answered, load
from report import finish, say
from serving_world import NOW_US, make_run, requests

from serving.config import ServingConfig
from serving.decoding import decode
from serving.impressions import Outbox
from serving.item_texts import as_json
from serving.messages import RecommendRequest
from serving.profiles import Profiles
from serving.recommend_job import lists
from serving.retriever import Retriever
from serving.run import events, users
from serving.signals import read_signals
from towers.bundle import Bundle, current
from towers.live_logs import IMPRESSIONS

CONNECTIONS, K, USERS, BLOCK = 16, 100, 50_000, 256
HERE = Path(__file__).resolve().parent
ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1", "OMP_WAIT_POLICY": "PASSIVE"}


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument(
        "--quick", action="store_true", help="20,000 items, scanned exactly, and few requests: under a minute on a free core"
    )
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
    recall = json.loads((run_dir / "index.json").read_text())["recall"]
    cost: dict[str, list[float]] = {"ours": [], "obvious": []}
    rates: dict[str, list[float]] = {"ours": [], "obvious": []}
    latency: dict[str, list[float]] = {"ours": [], "obvious": []}
    with ours(run_dir, 1) as (one, since), obvious(run_dir) as other:
        first_s = since
        for number, part in enumerate(parts):
            for name, (process, port) in (("ours", one), ("obvious", other)):
                seen, cpu_us = cpu_of(process, port, part)
                if number:  # the first round warms up
                    cost[name].append(cpu_us)
                    rates[name].append(len(seen.seconds) / seen.wall_s)
                    latency[name] += seen.seconds
        size = int(statistics.median(seen.sizes))
    check_impressions(run_dir, len(bodies) + 1)  # one more told that the server answers
    with ours(run_dir, 2) as ((process, port), _):
        asyncio.run(load("127.0.0.1", port, "/v1/recommend", bodies, CONNECTIONS, 120))
        pss = sum(member.memory_full_info().pss for member in (process, *process.children())) / 2**20
    check_impressions(run_dir, len(bodies) + 1)
    stages = {"web": web_us(size, parts[1]), **stages_us(run_dir, bodies[:count])}
    report(recall, cost, rates, latency, stages, pss, first_s)


def report(
    recall: float,
    cost: dict[str, list[float]],
    rates: dict[str, list[float]],
    latency: dict[str, list[float]],
    stages: dict[str, float],
    pss: float,
    first_s: float,
) -> None:
    """The table and the JSON document."""
    request = statistics.median(cost["ours"])
    over = statistics.median(b / a for a, b in zip(cost["ours"], cost["obvious"], strict=True))
    rows = [["what", "CPU us a request", "requests/s", "p50 ms", "p99 ms"]]
    for name in ("ours", "obvious"):
        ordered = sorted(latency[name])
        p50, p99 = (1e3 * ordered[int(share * (len(ordered) - 1))] for share in (0.5, 0.99))
        rows.append([name, f"{statistics.median(cost[name]):.0f}", f"{statistics.median(rates[name]):.0f}", f"{p50:.2f}", f"{p99:.2f}"])
    batch = stages.pop("recommend_job")
    rows += [[f"  {name}, alone", f"{value:.0f}", "", "", ""] for name, value in stages.items()]
    rows.append(["towers recommend, a list", f"{batch:.0f}", "", "", ""])
    rows.append([f"two workers {pss:.0f} MiB; first answer after {first_s:.2f} s; recall {recall:.3f}", "", "", "", ""])
    figures = {
        "request_cpu_us": request,
        "obvious_cpu_us": statistics.median(cost["obvious"]),
        "requests_per_s": statistics.median(rates["ours"]),
        "pss_mib": pss,
        "first_answer_s": first_s,
        "index_recall": recall,
        "recommend_job_us": batch,
        **{f"{name}_us": value for name, value in stages.items()},
    }
    ratios = {"obvious_over_ours": over, "overhead_share": stages["state_and_selection"] / sum(stages.values())}
    finish("serve", rows, {**ratios, "loop_over_batch": request / batch}, figures)


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
    (run_dir / "serve.json").unlink(missing_ok=True)
    shutil.rmtree(run_dir / "state", ignore_errors=True)
    command = [sys.executable, "-m", "towers", "serve", f"run_dir={run_dir}", f"serving.port={port}", f"serving.workers={workers}"]
    with server([*command, f"serving.key_file={run_dir / 'key'}"], port) as (process, since):
        yield (process, port), since


@contextmanager
def obvious(run_dir: Path) -> Iterator[tuple[psutil.Process, int]]:
    port = free_port()
    paths = [current(run_dir / "bundles"), run_dir / "export" / "histories.parquet", run_dir / "key"]
    command = [sys.executable, str(HERE / "obvious_server.py"), *map(str, paths), f"--port={port}", f"--now-us={NOW_US}"]
    with server(command, port) as (process, _):
        yield process, port


@contextmanager
def server(command: list[str], port: int) -> Iterator[tuple[psutil.Process, float]]:
    """A process that answers on a port, and how long it took to."""
    say(" ".join(command))
    started = time.perf_counter()
    body = json.dumps({"user_id": "u1", "k": K}).encode()
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


def cpu_of(process: psutil.Process, port: int, bodies: list[bytes]) -> tuple[Answered, float]:
    """A load, and the server's CPU microseconds for each answer."""
    before = process.cpu_times()
    seen = asyncio.run(load("127.0.0.1", port, "/v1/recommend", bodies, CONNECTIONS, 60))
    after = process.cpu_times()
    if seen.failures or not seen.seconds:
        raise RuntimeError(f"{seen.failures} of {len(seen.seconds)} answers were no lists")
    return seen, 1e6 * (after.user + after.system - before.user - before.system) / len(seen.seconds)


def stages_us(run_dir: Path, bodies: list[bytes]) -> dict[str, float]:
    """CPU of each part of a request in this process, the others left out; what is left of the whole is state and selection."""
    settings = ServingConfig(run_dir=str(run_dir)).serving
    settings.key_file = str(run_dir / "key")
    keys, known = users(settings, run_dir)
    retriever = Retriever.load(Bundle.open(current(run_dir / "bundles")), Profiles(keys, known))
    state = run_dir / "state" / "alone"
    retriever.profiles = Profiles(keys, known, events(settings, state, keys), settings.user_events)
    retriever.outbox = Outbox(state / "impressions.db", "settings")
    order, length = retriever.encoder.preprocessor.schema.order, retriever.encoder.length
    asks = [decode(body, RecommendRequest) for body in bodies]
    asked = [retriever.ask(ask) for ask in asks]
    found = [retriever.candidates(one, K, None) for one in asked]
    replies = [retriever.answer(ask) for ask in asks]
    now = time.time_ns() // 1000
    rows = []
    for ask in asks:
        stored = retriever.profiles.get(keys.key(str(ask.user_id)), order, now)[0]
        rows.append(read_signals(ask, stored, True, retriever.encoder.preprocessor, length, now).row)
    encoder = msgspec.json.Encoder(enc_hook=as_json)

    def whole() -> None:
        for body in bodies:
            encoder.encode(retriever.answer(decode(body, RecommendRequest)))
        retriever.outbox.flush()

    def texts() -> None:
        for body, reply, list_ in zip(bodies, replies, found, strict=True):
            decode(body, RecommendRequest)
            encoder.encode(msgspec.structs.replace(reply, items=retriever.catalog.items(list_.rows_C, list_.scores_C)))

    block = [keys.key(str(ask.user_id)) for ask in asks[:BLOCK]]
    request = RecommendRequest(k=K)
    forms: dict[str, Form] = {
        "whole": whole,
        "encode": lambda: [retriever.encoder.users([row]) for row in rows],
        "search": lambda: [retriever.candidates(one, K, None) for one in asked],
        "json": texts,
        "recommend_job": lambda: lists(retriever, block, request, now),
    }
    seconds = cpu_rounds(forms, 5, warm=1)
    taken = {
        name: 1e6 * statistics.median(each) / (len(block) if name == "recommend_job" else len(bodies)) for name, each in seconds.items()
    }
    taken["state_and_selection"] = taken["whole"] - taken["encode"] - taken["search"] - taken["json"]
    del taken["whole"]
    return taken


def web_us(size: int, bodies: list[bytes]) -> float:
    """CPU of a request whose answer is ready: the same server, routes and body reading, and a stored reply of the same size."""
    port = free_port()
    code = f"""
import socket
from starlette.applications import Starlette
from starlette.routing import Route
from serving.app import serve
from serving.calls import Endpoint, Front, Reply
from serving.metrics import Metrics
reply = Reply(b"x" * {size}, b"application/json")
endpoint = Endpoint(Front(Metrics(["recommend"])), "recommend", lambda call: reply, takes_body=True)
serve(Starlette(routes=[Route("/v1/recommend", endpoint, methods=["POST"])]), socket.create_server(("127.0.0.1", {port})), lambda: None)
"""
    with server([sys.executable, "-c", code], port) as (process, _):
        cpu_of(process, port, bodies)
        return statistics.median(cpu_of(process, port, bodies)[1] for _ in range(3))


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


if __name__ == "__main__":
    main()
