"""What a training step costs on one core: ours, plain torch's, the best of torch's own parts, and the matrix products alone.

    TOWERS_DATA_DIR=... python scripts/bench/train_step.py [--quick] [--only ids ...] [--with <output of an earlier run> ...]

Process CPU time, one thread, forms in turns; a ratio is the median over rounds of the ratio within a round. Ours is the Trainer's step on
the parts that `towers train` assembles, with the logQ correction and accidental hits removed; peers do neither. Batches are loaded before
the clock starts, for all alike; `train_over_step` is what loading, checkpoints, tracking and validation cost besides.
Where there is a GPU, its examples a second over 1M items and their share of its own bf16 products are kept too (scripts/bench/on_gpu.py).
Ids are generated, with the popularity of the Gowalla split. Without TOWERS_DATA_DIR the rows of MovieLens-1M and Gowalla are left out.
`--only` runs some groups of rows, and `--with` takes the others from what earlier runs have printed, so that each can have a quiet hour.
"""

import argparse
import json
import os
import statistics
import tempfile
import time
from collections.abc import Callable, Mapping
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
from tfrs_peer import PYTHON, TfrsPeer
from two_processes import two_processes
from worlds import id_world

from towers.model import TwoTower
from training.config import TrainingConfig
from training.facts import Stopwatch
from training.fit import Outcome, assemble, fit, write_results
from training.interactions import Interactions
from training.room import keep_memory

B = 4096
CALLS = 3
"""Steps of a form in a row, as training makes them: the first after another form's finds what that has left in the cache."""
SMALL, LARGE = (30_000, 41_000), (1_000_000, 1_000_000)
"""Users and items."""
TARGETS = {
    "x_naive_41k_d64": ("3.5 (5)", "naive torch, 30k x 41k ids, d64"),
    "x_naive_41k_d128": ("3 (4)", "the same, d128"),
    "x_naive_1m_d64": ("12 (20)", "the same, 1M x 1M ids, d64"),
    "x_tfrs_41k_d64": ("3 (4.5)", "TensorFlow Recommenders, 30k x 41k ids, d64; where TOWERS_TFRS_PYTHON names a Python that has it"),
    "x_stock_ml1m": ("1.8 (2.5)", "torch's own parts at their best, on the MovieLens-1M tower"),
    "x_user_grouped": ("2 (3)", "positives/s: exact softmax by user over 41k items, against in-batch by event"),
    "x_user_grouped_gowalla": ("2 (3)", "the same on Gowalla, whose users `towers train` takes whole by default"),
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
    parser.add_argument(
        "--only", nargs="*", choices=GROUPS, default=list(GROUPS), help="groups of rows to run; none to join what --with names"
    )
    parser.add_argument("--with", nargs="+", type=Path, default=[], dest="earlier", help="outputs whose last line has the other rows")
    given = parser.parse_args()
    torch.set_num_threads(1)
    keep_memory()  # for peers, too
    results = Results({}, {})
    for path in given.earlier:
        document = json.loads(path.read_text().splitlines()[-1])
        results.ratios.update(document["ratios"])
        results.figures.update(document["figures"])
    with tempfile.TemporaryDirectory() as folder:
        for name in given.only:
            needs = "TOWERS_DATA_DIR" if name in OF_DATA else PYTHON if name == "tfrs" else ""
            if needs and not os.environ.get(needs):
                say(f"{needs} is not set: nothing of {name}")
                continue
            GROUPS[name](Path(folder), results, given.quick)
    rows = [(key, f"{results.ratios[key]:.2f}", *about) for key, about in TARGETS.items() if key in results.ratios]
    finish("train_step", [("ratio", "value", "target (ambitious)", "against"), *rows], results.ratios, results.figures)


def generated(folder: Path, sizes: tuple[int, int]) -> Path:
    """A run's folder with so many users and items, about 27 events a user where there are few."""
    run_dir = folder / f"{sizes[1]}"
    if not run_dir.exists():
        say(f"generate {sizes} ids")
        id_world(run_dir / "prepared", *sizes, events=810_000 if sizes == SMALL else 1_200_000)
    return run_dir


def ids(folder: Path, results: Results, quick: bool) -> None:
    """Two id towers on generated ids: naive torch and floors."""
    rounds = 3 if quick else 10
    for name, sizes, dim in (("41k_d64", SMALL, 64), ("41k_d128", SMALL, 128), ("1m_d64", LARGE, 64)):
        run_dir = generated(folder, sizes)
        say(f"{name}: ours and naive torch")
        ours = OurStep(id_config(run_dir, dim, B))
        forms: dict[str, Form] = {"ours": ours, "naive": Naive(*sizes, dim, plain_batches(ours, sizes))}
        if name == "41k_d64":
            forms["fp32"] = OurStep(id_config(run_dir, dim, B, precision="fp32"))
            columns = round(statistics.mean(len(np.unique(batch.targets_BT)) for batch in ours.batches))
            forms |= floors(columns, dim)
            results.figures["candidates_a_step_41k"] = columns
        seconds = cpu_rounds(forms, rounds, CALLS)
        results.ratios[f"x_naive_{name}"] = ratio(seconds["naive"], seconds["ours"])
        for form in ("ours", "naive", "fp32"):
            if form in seconds:
                results.figures[f"{form}_{name}_examples_per_s"] = B / statistics.median(seconds[form])
        if "fp32" in seconds:
            for kind, form in (("bf16", "ours"), ("fp32", "fp32")):
                floor = [min(turn) for turn in zip(*(seconds[f"{kind}_{rows}"] for rows in FLOOR_ROWS), strict=True)]
                results.ratios[f"share_{kind}_floor_41k_d64"] = ratio(floor, seconds[form])
                results.figures[f"floor_{kind}_41k_d64_examples_per_s"] = B / statistics.median(floor)


def gpu(folder: Path, results: Results, quick: bool) -> None:
    """A step on a GPU, over 1M items."""
    if not torch.cuda.is_available():
        say("no GPU here: nothing of gpu")
        return
    results.figures.update(gpu_figures(generated(folder, LARGE), 10 if quick else 50))


def tfrs(folder: Path, results: Results, quick: bool) -> None:
    """Two id towers of TensorFlow Recommenders, in another Python."""
    ours = OurStep(id_config(generated(folder, SMALL), 64, B))
    batches = [(user_B.numpy(), item_B.numpy()) for user_B, item_B in plain_batches(ours, SMALL)]
    peer = TfrsPeer(folder, *SMALL, 64, batches)
    say(f"ours and {peer.version}")
    try:
        seconds: dict[str, list[float]] = {"ours": [], "tfrs": []}
        for _ in range(3 if quick else 10):
            seconds["ours"] += cpu_rounds({"ours": ours}, 1, CALLS, warm=1)["ours"]
            seconds["tfrs"].append(peer(CALLS))
    finally:
        peer.close()
    results.ratios["x_tfrs_41k_d64"] = ratio(seconds["tfrs"], seconds["ours"])
    results.figures["tfrs_41k_d64_examples_per_s"] = B / statistics.median(seconds["tfrs"])


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


def grouped(folder: Path, results: Results, quick: bool) -> None:
    """All of a user's targets against every item at once, and one event against those of the batch: the same tower, histories of 50."""
    run_dir = generated(folder, SMALL)
    by_event, by_user = (id_config(run_dir, 64, size, length=50) for size in (B, 0))
    by_user.loss.name, by_user.trainer.sampler = "full_softmax", "user"
    _grouped("", by_event, by_user, results, quick)


def gowalla(folder: Path, results: Results, quick: bool) -> None:
    """The same on real users, some with hundreds of places, with the settings of `data=lightgcn`."""
    run_dir = folder / "gowalla"
    run_dir.mkdir()
    prepare(run_dir, "data=lightgcn")
    by_event = composed(
        run_dir, "data=lightgcn", "trainer.device=cpu", f"trainer.batch_size={B}", "loss=sampled_softmax", "negatives=in_batch",
        "trainer.sampler=event",
    )  # fmt: skip
    _grouped("_gowalla", by_event, composed(run_dir, "data=lightgcn", "trainer.device=cpu"), results, quick)


def _grouped(where: str, by_event: TrainingConfig, by_user: TrainingConfig, results: Results, quick: bool) -> None:
    say(f"exact softmax by user against in-batch by event{where}")
    event, user = OurStep(by_event), OurStep(by_user)
    say(user.why)
    seconds = cpu_rounds({"event": event, "user": user}, 3 if quick else 10, CALLS)
    results.ratios[f"x_user_grouped{where}"] = ratio(seconds["event"], seconds["user"]) * user.examples / event.examples
    for name, step in (("event", event), ("user", user)):
        results.figures[f"by_{name}{where or '_41k_d64'}_positives_per_s"] = step.examples / statistics.median(seconds[name])


def movielens_config(folder: Path, quick: bool) -> TrainingConfig:
    """The demo's tower on MovieLens-1M, as `towers train data=ml_1m` trains it."""
    run_dir = folder / "ml_1m"
    if not run_dir.exists():
        say("MovieLens-1M: prepare")
        run_dir.mkdir()
        prepare(run_dir, "data=ml_1m")
    config = composed(run_dir, "data=ml_1m", "trainer.threads=1", "trainer.device=cpu", "trainer.epochs=2")
    if quick:
        config.trainer.max_steps, config.evaluate.max_queries = 20, 500
    return config


def stock(folder: Path, results: Results, quick: bool) -> None:
    """A step of MovieLens-1M, and torch's own."""
    config = movielens_config(folder, quick)
    ours = OurStep(config, batches=4)
    say(f"MovieLens-1M: ours ({ours.why}) and torch's own parts")
    forms: dict[str, Form] = {"ours": ours}
    for half in (False, True):
        for sparse in (False, True):
            other = OurStep(config, batches=4)
            model, items = other.trainer.model, other.trainer.objective.items
            name = f"stock {'bf16' if half else 'fp32'}{' sparse' if sparse else ''}"
            forms[name] = Stock(model, items, other.batches, half, sparse)
    seconds = cpu_rounds(forms, 2 if quick else 10, CALLS)
    best = min((values for name, values in seconds.items() if name != "ours"), key=statistics.median)
    results.ratios["x_stock_ml1m"] = ratio(best, seconds["ours"])
    for name, values in seconds.items():
        results.figures[f"{name.replace(' ', '_')}_ml1m_examples_per_s"] = ours.examples / statistics.median(values)


def processes(folder: Path, results: Results, quick: bool) -> None:
    """Two processes on MovieLens-1M, and one."""
    say("MovieLens-1M: two processes and one")
    turns = two_processes(movielens_config(folder, quick), 3 if quick else 15)
    results.ratios["x_two_processes"] = turns.ratio()
    results.figures["two_processes_by_cpu_seconds"] = turns.cpu_ratio()


def whole(folder: Path, results: Results, quick: bool) -> None:
    """`towers train` on MovieLens-1M from opening the data to writing the model, all in, against the step alone before and after it."""
    config = movielens_config(folder, quick)
    ours = OurStep(config, batches=4)
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


GROUPS: dict[str, Callable[[Path, Results, bool], None]] = {
    "ids": ids, "gpu": gpu, "tfrs": tfrs, "grouped": grouped, "gowalla": gowalla, "stock": stock, "processes": processes, "whole": whole,
}  # fmt: skip
OF_DATA = ("gowalla", "stock", "processes", "whole")


if __name__ == "__main__":
    main()
