"""What a training step costs on one core: ours, plain torch's, the best of torch's own parts, and the matrix products alone.

    TOWERS_DATA_DIR=... python scripts/bench/train_step.py [--quick]

Process CPU time, one thread, forms in turns; a ratio is the median over rounds of the ratio within a round. Ours is the Trainer's step on
the parts that `towers train` assembles, with the logQ correction and accidental hits removed; peers do neither. Batches are loaded before
the clock starts, for all alike; `train_over_step` is what loading, checkpoints, tracking and validation cost besides.
Where there is a GPU, its examples a second over 1M items and their share of its own bf16 products are kept too (scripts/bench/on_gpu.py).
Ids are generated, with the popularity of the Gowalla split. Without TOWERS_DATA_DIR the rows of MovieLens-1M are left out.
"""

import argparse
import os
import statistics
import tempfile
import time
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from clocks import Form, cpu_rounds, ratio
from on_gpu import gpu_figures
from ours import OurStep, composed, id_config, prepare
from peers import FLOOR_ROWS, Floor, Naive, Stock
from report import finish, say
from two_processes import two_processes
from worlds import id_world

from towers.model import TwoTower
from training.config import TrainingConfig
from training.facts import Stopwatch
from training.fit import Outcome, assemble, fit, write_results
from training.interactions import Interactions

B = 4096
TARGETS = {
    "x_naive_41k_d64": ("3.5 (5)", "naive torch, 30k x 41k ids, d64"),
    "x_naive_41k_d128": ("3 (4)", "the same, d128"),
    "x_naive_1m_d64": ("12 (20)", "the same, 1M x 1M ids, d64"),
    "x_stock_ml1m": ("1.8 (2.5)", "torch's fused AdamW, bf16 or fp32, on the MovieLens-1M tower"),
    "x_user_grouped": ("2 (3)", "positives/s: exact softmax by user over 41k items, against in-batch by event"),
    "share_bf16_floor_41k_d64": ("0.60 (0.80)", "the three products alone over the whole step, bf16, 4,096 x the candidates of a step"),
    "share_fp32_floor_41k_d64": ("0.85 (0.95)", "the same, fp32"),
    "x_two_processes": (
        "1.7 (1.9)",
        "two processes on two cores against one on one, the MovieLens-1M tower; by the wall clock, so only on idle cores",
    ),
    "train_over_step": ("0.85 (0.95)", "examples/s of `towers train` on MovieLens-1M, whole, over those of its step"),
}
"""Ratios by key: the target, the ambitious one, and what it is."""


class Results(NamedTuple):
    ratios: dict[str, float]
    figures: dict[str, float]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="fewer rounds, and 20 steps of MovieLens-1M")
    quick = parser.parse_args().quick
    torch.set_num_threads(1)
    results = Results({}, {})
    with tempfile.TemporaryDirectory() as folder:
        ids(Path(folder), results, quick)
        if torch.cuda.is_available():
            results.figures.update(gpu_figures(Path(folder) / "large", 10 if quick else 50))
        if os.environ.get("TOWERS_DATA_DIR"):
            movielens(Path(folder) / "ml_1m", results, quick)
        else:
            say("TOWERS_DATA_DIR is not set: no MovieLens-1M, so no x_stock_ml1m, x_two_processes and train_over_step")
    rows = [(key, f"{results.ratios[key]:.2f}", *about) for key, about in TARGETS.items() if key in results.ratios]
    finish("train_step", [("ratio", "value", "target (ambitious)", "against"), *rows], results.ratios, results.figures)


def ids(folder: Path, results: Results, quick: bool) -> None:
    """Two id towers on generated ids: naive torch, floors, and the exact softmax grouped by user."""
    rounds = 3 if quick else 15
    small, large = (30_000, 41_000), (1_000_000, 1_000_000)
    say(f"generate {small} and {large} ids")
    id_world(folder / "small" / "prepared", *small, events=810_000)
    id_world(folder / "large" / "prepared", *large, events=1_200_000)
    for name, sizes, dim in (("41k_d64", small, 64), ("41k_d128", small, 128), ("1m_d64", large, 64)):
        say(f"{name}: ours and naive torch")
        run_dir = folder / ("large" if sizes is large else "small")
        ours = OurStep(id_config(run_dir, dim, B))
        forms: dict[str, Form] = {"ours": ours, "naive": Naive(*sizes, dim, plain_batches(ours, sizes))}
        if name == "41k_d64":
            forms["fp32"] = OurStep(id_config(run_dir, dim, B, precision="fp32"))
            columns = round(statistics.mean(len(np.unique(batch.targets_BT)) for batch in ours.batches))
            forms |= floors(columns, dim)
            results.figures["candidates_a_step_41k"] = columns
        seconds = cpu_rounds(forms, rounds)
        results.ratios[f"x_naive_{name}"] = ratio(seconds["naive"], seconds["ours"])
        for form in ("ours", "naive", "fp32"):
            if form in seconds:
                results.figures[f"{form}_{name}_examples_per_s"] = B / statistics.median(seconds[form])
        if "fp32" in seconds:
            for kind, form in (("bf16", "ours"), ("fp32", "fp32")):
                floor = [min(turn) for turn in zip(*(seconds[f"{kind}_{rows}"] for rows in FLOOR_ROWS), strict=True)]
                results.ratios[f"share_{kind}_floor_41k_d64"] = ratio(floor, seconds[form])
                results.figures[f"floor_{kind}_41k_d64_examples_per_s"] = B / statistics.median(floor)
    grouped(folder / "small", results, rounds)


def plain_batches(ours: OurStep, sizes: tuple[int, int]) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """The same targets for plain towers, with users drawn at random: user and item rows of each batch."""
    rng = np.random.default_rng(0)
    return [
        (torch.from_numpy(rng.integers(sizes[0], size=len(batch.targets_BT))), torch.from_numpy(batch.targets_BT[:, 0].astype(np.int64)))
        for batch in ours.batches
    ]


def floors(columns: int, dim: int) -> dict[str, Form]:
    kinds = {"bf16": torch.bfloat16, "fp32": torch.float32}
    return {f"{name}_{rows}": Floor(B, columns, dim, kind, rows) for name, kind in kinds.items() for rows in FLOOR_ROWS}


def grouped(run_dir: Path, results: Results, rounds: int) -> None:
    """Histories of 50, the same tower: all of a user's targets against every item at once, and one event against those of the batch."""
    say("exact softmax by user against in-batch by event")
    by_event = OurStep(id_config(run_dir, 64, B, length=50))
    config = id_config(run_dir, 64, 0, length=50)
    config.loss.name, config.trainer.sampler = "full_softmax", "user"
    by_user = OurStep(config)
    seconds = cpu_rounds({"event": by_event, "user": by_user}, rounds)
    rates = {name: step.examples / statistics.median(seconds[name]) for name, step in (("event", by_event), ("user", by_user))}
    results.ratios["x_user_grouped"] = ratio(seconds["event"], seconds["user"]) * by_user.examples / by_event.examples
    results.figures.update({f"by_{name}_41k_d64_positives_per_s": rate for name, rate in rates.items()})


def movielens(run_dir: Path, results: Results, quick: bool) -> None:
    """The demo's tower on MovieLens-1M: its step, torch's own, and the whole of `towers train`."""
    say("MovieLens-1M: prepare")
    run_dir.mkdir()
    prepare(run_dir, "data=ml_1m")
    config = composed(run_dir, "data=ml_1m", "trainer.threads=1", "trainer.device=cpu", "trainer.epochs=2")
    if quick:
        config.trainer.max_steps, config.evaluate.max_queries = 20, 500
    ours = OurStep(config, batches=4)
    say(f"MovieLens-1M: ours ({ours.why}) and torch's own parts")
    forms: dict[str, Form] = {"ours": ours}
    for half in (False, True):
        other = OurStep(config, batches=4)
        forms["stock bf16" if half else "stock fp32"] = Stock(other.trainer.model, other.trainer.objective.items, other.batches, half)
    seconds = cpu_rounds(forms, 2 if quick else 8, warm=1)
    stock = min(seconds["stock fp32"], seconds["stock bf16"], key=statistics.median)
    results.ratios["x_stock_ml1m"] = ratio(stock, seconds["ours"])
    for name, values in seconds.items():
        results.figures[f"{name.replace(' ', '_')}_ml1m_examples_per_s"] = ours.examples / statistics.median(values)
    say("MovieLens-1M: two processes and one")
    turns = two_processes(config, 3 if quick else 9)
    results.ratios["x_two_processes"] = turns.ratio()
    results.figures["two_processes_by_cpu_seconds"] = turns.cpu_ratio()
    whole(config, ours, results)


def whole(config: TrainingConfig, ours: OurStep, results: Results) -> None:
    """`towers train` from opening the data to writing the model, all in, against the step alone before and after it."""
    say("MovieLens-1M: towers train")
    bare = cpu_rounds({"step": ours}, 6, warm=1)["step"]
    validation = 0.0
    watch, since = Stopwatch(), time.process_time()
    data = Interactions.open(Path(config.run_dir) / "prepared")
    parts = assemble(config, data, torch.device("cpu"))
    validate = parts.validate

    def timed(model: TwoTower) -> Mapping[str, float]:
        nonlocal validation
        started = time.process_time()
        metrics = validate(model)
        validation += time.process_time() - started
        return metrics

    parts = replace(parts, validate=timed)
    fit(config, data, parts)
    write_results(config, data, parts, torch.device("cpu"), watch, Outcome(parts.progress, parts.targets))
    seconds = time.process_time() - since
    bare += cpu_rounds({"step": ours}, 6, warm=1)["step"]
    rate = ours.examples / statistics.median(bare)
    results.ratios["train_over_step"] = parts.progress.examples / seconds / rate
    results.figures["train_over_step_without_validation"] = parts.progress.examples / (seconds - validation) / rate


if __name__ == "__main__":
    main()
