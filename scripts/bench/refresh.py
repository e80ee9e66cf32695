"""One more day of data: what a warm start costs and reaches against training anew, through the public commands.

    python scripts/bench/refresh.py [--quick] [--users N --items N] [--choose]

A synthetic log is written as Parquet with its split marked by day. Yesterday's run trains on all days but the last two and validates on
the day after them; today's data has one day more on each side, and tests on the days that follow. From yesterday's model,
`towers train trainer=refresh trainer.init_from=<run>` is measured against `towers train` on the same prepared data: recall@50 on the same
held-out days, CPU seconds of the whole processes. `--choose` compares settings of the refresh on validation instead.
"""

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import yaml
from report import finish, say

from training.config import TrainingConfig
from training.data_config import DataConfig, FeatureConfig
from training.sources import open_source

ROOT = Path(__file__).resolve().parents[2]
TEST_DAYS = 3
METRIC = "test/recall@50"
CHOICES = [(epochs, lr) for epochs in (1, 2) for lr in (0.0003, 0.001, 0.003)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="3000 users and 1500 items")
    parser.add_argument("--users", type=int, default=10_000)
    parser.add_argument("--items", type=int, default=4000)
    parser.add_argument("--choose", action="store_true", help="compare settings on validation")
    asked = parser.parse_args()
    users, items = (3000, 1500) if asked.quick else (asked.users, asked.items)
    with tempfile.TemporaryDirectory() as folder:
        bench = Bench(Path(folder), users, items)
        if asked.choose:
            bench.choose()
            return
        measured = bench.measure(0)
    rows = [
        ("model", "recall@50 of the held-out days", "CPU s of training"),
        ("yesterday's, as it is", f"{measured['stale_recall']:.4f}", "0"),
        ("refreshed", f"{measured['refreshed_recall']:.4f}", f"{measured['refreshed_cpu_s']:.1f}"),
        ("trained anew", f"{measured['full_recall']:.4f}", f"{measured['full_cpu_s']:.1f}"),
    ]
    ratios = {
        "refresh_recall_over_full": measured["refreshed_recall"] / measured["full_recall"],
        "refresh_cpu_over_full": measured["refreshed_cpu_s"] / measured["full_cpu_s"],
        "stale_recall_over_full": measured["stale_recall"] / measured["full_recall"],
    }
    finish("refresh", rows, ratios, {**measured, "users": users, "items": items})


class Bench:
    """The two days' data, prepared, in a folder of their own."""

    def __init__(self, folder: Path, users: int, items: int) -> None:
        self._folder = folder
        (folder / "conf" / "data").mkdir(parents=True)
        self._environment = {**os.environ, "TOWERS_KEY_FILE": str(folder / "key"), "OMP_NUM_THREADS": "1"}
        declared = yaml.safe_load((ROOT / "conf" / "data" / "synthetic.yaml").read_text())["data"]
        data = DataConfig(features=[FeatureConfig(**f) for f in declared["features"]], event_weights=declared["event_weights"])
        data.synthetic.users, data.synthetic.items = users, items
        source = open_source(TrainingConfig(data=data).data)
        log = pa.concat_tables(source.interactions())
        for name, newest in (("yesterday", 1), ("today", 0)):
            (folder / name).mkdir()
            pq.write_table(marked(log, newest), folder / name / "log.parquet")
            pq.write_table(source.items, folder / name / "items.parquet")
            pq.write_table(source.users, folder / name / "users.parquet")
            document = {**declared, "name": "table", "path": str(folder / name)}
            document |= {"interactions": "log.parquet", "items": "items.parquet", "users": "users.parquet"}
            head = "# @package _global_\ndefaults:\n  - override /split: given\n"
            (folder / "conf" / "data" / f"{name}.yaml").write_text(head + yaml.safe_dump({"data": document}))
            self.run("prepare", name, name)

    def run(self, job: str, data: str, run: str, *overrides: str) -> float:
        """A job as a process; returns its CPU seconds."""
        if not (self._folder / run).exists() or not (self._folder / run / "prepared").exists():
            (self._folder / run).mkdir(exist_ok=True)
            if job != "prepare":
                (self._folder / run / "prepared").symlink_to(self._folder / data / "prepared")
        command = [sys.executable, "-m", "towers", job, "--config-dir", str(self._folder / "conf"), f"data={data}"]
        say(f"{run}: towers {job} {' '.join(overrides)}")
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        done = subprocess.run(
            [*command, f"run_dir={self._folder / run}", "trainer.threads=1", "evaluate.unit=event", *overrides],
            env=self._environment,
            capture_output=True,
            text=True,
        )
        if done.returncode:
            sys.exit(done.stderr)
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime

    def measure(self, seed: int) -> dict[str, float]:
        """Yesterday's model as it is, refreshed, and one trained anew, on today's held-out days."""
        runs = {name: f"{name}-{seed}" for name in ("base", "refreshed", "full")}
        self.run("train", "yesterday", runs["base"], f"seed={seed}")
        start = f"trainer.init_from={self._folder / runs['base']}"
        full = self.run("train", "today", runs["full"], f"seed={seed}")
        refreshed = self.run("train", "today", runs["refreshed"], f"seed={seed}", "trainer=refresh", start)
        # no training at all: one step at a rate of nothing puts yesterday's rows on today's ids
        still = ("trainer.max_steps=1", "optim.lr=1e-12", "trainer.evaluate_every=0")
        self.run("train", "today", f"stale-{seed}", f"seed={seed}", start, *still)
        return {
            "stale_recall": self.recall(f"stale-{seed}"),
            "refreshed_recall": self.recall(runs["refreshed"]),
            "full_recall": self.recall(runs["full"]),
            "refreshed_cpu_s": refreshed,
            "full_cpu_s": full,
        }

    def recall(self, run: str) -> float:
        quick = ("evaluate.baselines=[]", "evaluate.slices=false", "evaluate.draws=20")
        self.run("evaluate", "today", run, *quick)
        metrics = json.loads((self._folder / run / "metrics.json").read_text())["metrics"]
        return float(metrics[METRIC]["value"])

    def choose(self) -> None:
        """The refresh's settings, by validation."""
        self.run("train", "yesterday", "base")
        full = self.run("train", "today", "full")
        print(f"trained anew: {self.validation('full')}, {full:.1f} CPU s")
        start = f"trainer.init_from={self._folder / 'base'}"
        for epochs, lr in CHOICES:
            run = f"refreshed-{epochs}-{lr}"
            spent = self.run("train", "today", run, start, f"trainer.epochs={epochs}", f"optim.lr={lr}")
            print(f"epochs {epochs}, lr {lr}: {self.validation(run)}, {spent:.1f} CPU s", flush=True)

    def validation(self, run: str) -> str:
        valid = json.loads((self._folder / run / "train.json").read_text())["valid"]
        return ", ".join(f"{name} {valid[f'valid/{name}']:.4f}" for name in ("recall@50", "ndcg@20"))


def marked(log: pa.Table, back: int) -> pa.Table:
    """The log as it stood `back` days before the last: the newest TEST_DAYS test, the day before validates, the rest trains."""
    day_us = 86_400_000_000
    time = pc.cast(pc.cast(log["timestamp"], pa.timestamp("us", "UTC")), pa.int64())
    last = pc.max(time).as_py() - back * day_us
    log = log.filter(pc.less_equal(time, last))
    age = pc.subtract(pa.scalar(last), pc.cast(log["timestamp"], pa.int64()))
    split = pc.if_else(pc.less(age, TEST_DAYS * day_us), "test", pc.if_else(pc.less(age, (TEST_DAYS + 1) * day_us), "valid", "train"))
    return log.append_column("split", split)


if __name__ == "__main__":
    main()
