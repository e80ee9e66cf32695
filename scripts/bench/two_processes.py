"""How much faster two processes on two cores train than one on one, on the same global batches, each with one thread.

    TOWERS_DATA_DIR=... python scripts/bench/two_processes.py [--quick] [--run-dir <folder with prepared/>] [key=value ...]

The demo's tower of MovieLens-1M (transformer, exact softmax) at its defaults, or the settings given over a prepared folder. A process
alone and a pair are kept ready and take turns of a few steps each through `Trainer.train_step`, loading included, so that what else the
machine does falls on both alike. Wall clock, as only that knows who waits for whom; the median over turns counts. The CPU seconds a
process spends on a step are a second witness where the cores are not ours alone.
"""

import argparse
import json
import os
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import asdict
from itertools import cycle
from pathlib import Path
from typing import NamedTuple

import torch
from omegaconf import OmegaConf
from ours import composed, prepare
from report import finish, say

from towers.batch import TrainBatch
from training.config import TrainingConfig
from training.distributed import join
from training.fit import assemble
from training.interactions import Interactions
from training.tracking import Silence
from training.trainer import Trainer

TURN_S = 1.5
"""CPU seconds of a turn of the process alone, about."""


class Turns(NamedTuple):
    """Of each turn: wall seconds of the process alone and of the pair, and the CPU seconds of the busiest process of each."""

    alone_s: list[float]
    pair_s: list[float]
    alone_cpu_s: list[float]
    pair_cpu_s: list[float]

    def ratio(self) -> float:
        return statistics.median(a / b for a, b in zip(self.alone_s, self.pair_s, strict=True))

    def cpu_ratio(self) -> float:
        return statistics.median(a / b for a, b in zip(self.alone_cpu_s, self.pair_cpu_s, strict=True))


def two_processes(config: TrainingConfig, turns: int) -> Turns:
    """Train `config` (its run_dir holds prepared/) alone and as a pair, in turns."""
    alone, pair = start(config, 1), start(config, 2)
    try:
        steps = max(1, round(TURN_S / (go(alone, 2).cpu_s / 2)))
        go(alone, steps)
        go(pair, steps)
        rounds = []
        for turn in range(turns):
            rounds.append((go(alone, steps), go(pair, steps)))
            say(f"turn {turn + 1} of {turns}, {steps} steps: {rounds[-1][0].wall_s:.2f} s alone, {rounds[-1][1].wall_s:.2f} s as a pair")
        return Turns(
            [a.wall_s for a, _ in rounds], [p.wall_s for _, p in rounds], [a.cpu_s for a, _ in rounds], [p.cpu_s for _, p in rounds]
        )
    finally:
        for process in (*alone, *pair):
            process.kill()
            process.wait()


class Turn(NamedTuple):
    wall_s: float
    cpu_s: float


def go(workers: list[subprocess.Popen[str]], steps: int) -> Turn:
    """Let the workers take some steps together."""
    since = time.perf_counter()
    for worker in workers:
        assert worker.stdin is not None
        print(steps, file=worker.stdin, flush=True)
    cpu_s = []
    for worker in workers:
        assert worker.stdout is not None
        line = worker.stdout.readline()
        if not line:
            raise SystemExit("a worker ended; its error stands above")
        cpu_s.append(float(line))
    return Turn(time.perf_counter() - since, max(cpu_s))


def start(config: TrainingConfig, size: int) -> list[subprocess.Popen[str]]:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port = listener.getsockname()[1]
    command = [sys.executable, __file__, "--worker", json.dumps(asdict(config))]
    shared = {"OMP_NUM_THREADS": "1", "WORLD_SIZE": str(size), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    return [
        subprocess.Popen(
            command,
            env={**os.environ, **shared, "RANK": str(rank), "LOCAL_RANK": str(rank)},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        for rank in range(size)
    ]


def work(settings: str) -> None:
    """One process: for every number read, so many steps, and the CPU seconds they took."""
    config = OmegaConf.to_object(OmegaConf.merge(OmegaConf.structured(TrainingConfig), json.loads(settings)))
    assert isinstance(config, TrainingConfig)
    torch.set_num_threads(1)
    device = torch.device("cpu")
    with join(device) as processes:
        parts = assemble(config, Interactions.open(Path(config.run_dir) / "prepared"), device, processes)
        trainer = Trainer(
            parts.model.train(), parts.objective, parts.optimizer, parts.loader, parts.progress, parts.checkpointer, Silence(),
            parts.validate, config.trainer, config.seed, processes,
        )  # fmt: skip
        # a short last batch would make turns unlike
        whole = cycle(range(max(1, parts.loader.steps_per_epoch - 1)))
        for line in sys.stdin:
            since = time.process_time()
            for _ in range(int(line)):
                batch: TrainBatch = parts.loader.batch(0, next(whole))
                trainer.train_step(batch)
            print(time.process_time() - since, flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="3 turns instead of 15")
    parser.add_argument("--run-dir", type=Path, help="holds prepared/; default: MovieLens-1M is prepared")
    parser.add_argument("--worker", help=argparse.SUPPRESS)
    parser.add_argument("overrides", nargs="*", default=["data=ml_1m"])
    given = parser.parse_args()
    if given.worker:
        work(given.worker)
        return
    with tempfile.TemporaryDirectory() as folder:
        run_dir = given.run_dir or Path(folder)
        if given.run_dir is None:
            say("prepare ml_1m")
            prepare(run_dir, "data=ml_1m")
        config = composed(run_dir.resolve(), *given.overrides, "trainer.device=cpu", "trainer.evaluate_every=0")
        turns = two_processes(config, 3 if given.quick else 15)
    alone, pair = statistics.median(turns.alone_s), statistics.median(turns.pair_s)
    finish(
        "two_processes",
        [("processes", "s a turn", "CPU s of the busiest"), ("1", f"{alone:.2f}", f"{statistics.median(turns.alone_cpu_s):.2f}"),
         ("2", f"{pair:.2f}", f"{statistics.median(turns.pair_cpu_s):.2f}")],
        {"x_two_processes": turns.ratio()},
        {"two_processes_by_cpu_seconds": turns.cpu_ratio()},
    )  # fmt: skip


if __name__ == "__main__":
    main()
