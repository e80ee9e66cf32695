"""Logs larger than memory: how fast `towers prepare` reads one, and how much memory `towers prepare` and `towers train` take.

    python scripts/bench/memory.py [--quick] [--rows N] [--folder F]

A generated log (50 million interactions in time order, a user for every 100, long-tailed items, Parquet) goes
through the public commands, each in a process of its own. What is watched, every 20 ms and children included, is

    RSS         VmRSS, mapped pages of the prepared columns included: what a container's limit and `top` see
    anonymous   RssAnon: what the process itself allocated

`rss_over_tables_mib` is the greatest RSS of either command, less the trained tables themselves (fp32 weights; their optimiser state is
not taken off).
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import threading
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from report import finish, say
from safetensors import safe_open

ROWS, QUICK_ROWS = 50_000_000, 2_000_000
GROUP_ROWS = 1 << 20
MIB = 1 << 20


@dataclass
class Watched:
    """What a command took: seconds of wall and processor, and peaks in MiB."""

    wall_s: float = 0.0
    cpu_s: float = 0.0
    rss_mib: float = 0.0
    anonymous_mib: float = 0.0
    output: str = ""


def generate(path: Path, rows: int, users: int, items: int) -> None:
    """Write the log, a row group at a time."""
    rng = np.random.default_rng(0)
    user_names = pa.array([f"customer-{u:08d}" for u in range(users)])
    item_names = pa.array([f"sku-{i:07d}" for i in rng.permutation(items)])
    schema = pa.schema([("user_id", pa.string()), ("item_id", pa.string()), ("timestamp", pa.timestamp("us", "UTC"))])
    start = 1_700_000_000_000_000
    with pq.ParquetWriter(path, schema, compression="zstd") as writer:
        for first in range(0, rows, GROUP_ROWS):
            n = min(GROUP_ROWS, rows - first)
            user = (users * rng.random(n) ** 1.5).astype(np.int64)
            item = (items * rng.random(n) ** 3).astype(np.int64)
            # users keep to a part of the catalogue, so that there is something to learn
            item = np.where(rng.random(n) < 0.5, (item + user * 7919) % items, item)
            when = start + (np.arange(first, first + n) + rng.random(n) * 1000).astype(np.int64) * 600_000
            columns = [user_names.take(pa.array(user)), item_names.take(pa.array(item)), pa.array(when, pa.timestamp("us", "UTC"))]
            writer.write_table(pa.table(columns, schema=schema))


def watch(command: list[str], environment: dict[str, str]) -> Watched:
    """Run a command to its end and watch its memory."""
    say(" ".join(command[2:]))
    seen, since = Watched(), time.perf_counter()
    before = os.times()
    with subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True) as process:
        lines: list[str] = []
        reader = threading.Thread(target=lambda: lines.extend(process.stdout or ()))
        reader.start()
        while process.poll() is None:
            sizes = [memory(pid) for pid in family(process.pid)]
            seen.rss_mib = max(seen.rss_mib, sum(rss for rss, _ in sizes))
            seen.anonymous_mib = max(seen.anonymous_mib, sum(anonymous for _, anonymous in sizes))
            time.sleep(0.02)
        reader.join()
    after = os.times()
    seen.wall_s = time.perf_counter() - since
    seen.cpu_s = after.children_user + after.children_system - before.children_user - before.children_system
    seen.output = "".join(lines)
    if process.returncode:
        raise SystemExit(f"{' '.join(command)}: exit code {process.returncode}")
    return seen


def family(pid: int) -> list[int]:
    """A process and all its descendants."""
    try:
        children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    except OSError:
        return []
    return [pid, *(member for child in children for member in family(int(child)))]


def memory(pid: int) -> tuple[float, float]:
    """VmRSS and RssAnon in MiB; 0 where the process is gone."""
    try:
        lines = dict(line.split(":", 1) for line in Path(f"/proc/{pid}/status").read_text().splitlines())
        return tuple(int(lines[name].split()[0]) / 1024 for name in ("VmRSS", "RssAnon"))  # type: ignore[return-value]
    except (OSError, KeyError):
        return 0.0, 0.0


def table_mib(run_dir: Path) -> float:
    """Size of the trained model's large tables."""
    with safe_open(run_dir / "model" / "weights.safetensors", "np") as weights:
        names = [name for name in weights.keys() if name.startswith("tables.")]  # noqa: SIM118 (no mapping)
        return sum(4 * int(np.prod(weights.get_slice(name).get_shape())) for name in names) / MIB


def measure(folder: Path, rows: int, steps: int) -> None:
    environment = {**os.environ, "TOWERS_KEY_FILE": str(folder / "key")}
    users, items, log = max(rows // 100, 10), max(rows // 500, 10), folder / "log.parquet"
    if not log.is_file() or pq.read_metadata(log).num_rows != rows:
        say(f"generate {rows:,} interactions")
        generate(log, rows, users, items)
    run_dir = folder / "run"
    data = ["data=table", f"data.interactions={log}", f"run_dir={run_dir}"]
    towers = [sys.executable, "-m", "towers"]
    prepared = watch([*towers, "prepare", *data], environment)
    document = json.loads((run_dir / "prepare.json").read_text())["data"]
    read = float(document["rows_read"])
    trained = watch([*towers, "train", *data, f"trainer.max_steps={steps}", "trainer.patience=0"], environment)
    say(trained.output)
    tables = table_mib(run_dir)
    rate = json.loads((run_dir / "train.json").read_text())["run"]["examples_per_s"]
    over = max(prepared.rss_mib, trained.rss_mib - tables)
    finish(
        "memory",
        [
            ("what", "value"),
            ("log", f"{rows:,} interactions, {users:,} users, {items:,} items, {log.stat().st_size / MIB:.0f} MiB Parquet"),
            ("prepare", f"{read / prepared.wall_s:,.0f} rows/s, {read / prepared.cpu_s:,.0f} rows per CPU s, {prepared.wall_s:.0f} s"),
            ("prepare, peak RSS (anonymous)", f"{prepared.rss_mib:.0f} MiB ({prepared.anonymous_mib:.0f})"),
            ("train, steps", f"{steps}, {rate:,.0f} examples/s, {trained.wall_s:.0f} s with start, validation and saving"),
            ("train, peak RSS (anonymous)", f"{trained.rss_mib:.0f} MiB ({trained.anonymous_mib:.0f}), of which tables {tables:.0f}"),
            ("most RSS above the tables", f"{over:.0f} MiB"),
        ],
        {},
        {
            "rss_over_tables_mib": over,
            "prepare_rows_per_s": read / prepared.wall_s,
            "prepare_rows_per_cpu_s": read / prepared.cpu_s,
            "prepare_rss_mib": prepared.rss_mib,
            "train_rss_over_tables_mib": trained.rss_mib - tables,
            "train_anonymous_over_tables_mib": trained.anonymous_mib - tables,
            "train_examples_per_s": rate,
        },
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help=f"{QUICK_ROWS:,} rows")
    parser.add_argument("--rows", type=int, default=0)
    parser.add_argument("--steps", type=int, default=0, help="training steps; 0 = 300, or 100 with --quick")
    parser.add_argument(
        "--folder",
        type=Path,
        help="where the log and the run go and stay, and a log of that size is read again; default: a temporary folder",
    )
    given = parser.parse_args()
    rows = given.rows or (QUICK_ROWS if given.quick else ROWS)
    steps = given.steps or (100 if given.quick else 300)
    with tempfile.TemporaryDirectory() as temporary:
        folder = given.folder or Path(temporary)
        folder.mkdir(parents=True, exist_ok=True)
        measure(folder.resolve(), rows, steps)


if __name__ == "__main__":
    main()
