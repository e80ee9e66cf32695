"""How long exact full ranking takes: Gowalla, 29,858 users x 40,981 items, d64, 20 best, seen items masked, one core.

    TOWERS_DATA_DIR=... python scripts/bench/evaluate.py [--quick]

The data is prepared by `towers prepare`; what is timed are `make_queries`' queries through `dot_products` and `rank_queries`, as
`towers evaluate` calls them. Vectors: random ones, smoothed over the interactions twice, so that neighbours crowd as trained ones do.
The floor is the matrix product alone, in the ranking's own blocks. All forms are timed in turns; the least time of each counts.
"""

import argparse
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from report import finish, say
from torch import Tensor

from towers.columns import TRAIN
from towers.dot_products import Finder, dot_products
from towers.topk import TopK
from training.interactions import Interactions
from training.queries import Queries, make_queries, recommendable
from training.rank_queries import rank_queries

DIM, K, BLOCK = 64, 20, 122
Form = Callable[[], object]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="two turns instead of seven")
    turns = 2 if parser.parse_args().quick else 7
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        data = prepared(Path(folder))
        queries = make_queries(data, "test", "user", "given").unseen()
        user_QD, item_ID = smoothed(data, queries)
        allowed_I = recommendable(data)

        def ranked(half: bool) -> TopK:
            return rank_queries(dot_products(user_QD, item_ID, half), queries, K, masked=True, allowed_I=allowed_I)

        forms: dict[str, Form] = {
            "ranking, bf16 candidates": lambda: ranked(True),
            "ranking, fp32 candidates": lambda: ranked(False),
            "floor: matrix product, bf16": lambda: floor(user_QD, item_ID, True),
            "floor: matrix product, fp32": lambda: floor(user_QD, item_ID, False),
            "queries and their seen items": lambda: [queries.seen_items(slice(s, s + 4096)) for s in range(0, len(queries), 4096)],
        }
        seconds = timed(forms, turns)
        mine, theirs = ranked(True), ranked(False)
        equal = float(np.mean((mine.rows_Qk == theirs.rows_Qk) & (mine.scores_Qk == theirs.scores_Qk)))
    half, full, floor_half, floor_full, _ = seconds.values()
    finish(
        "evaluate",
        [("what", "CPU s"), *((name, f"{value:.2f}") for name, value in seconds.items())],
        {"x_fp32": full / half, "share_bf16_floor": floor_half / half, "share_fp32_floor": floor_full / full},
        {
            "gowalla_full_ranking_cpu_s": half,
            "gowalla_full_ranking_fp32_cpu_s": full,
            "gemm_floor_bf16_cpu_s": floor_half,
            "gemm_floor_fp32_cpu_s": floor_full,
            "queries": len(queries),
            "items": data.n_items,
            "share_of_places_equal_in_both": equal,
        },
    )


def prepared(folder: Path) -> Interactions:
    """Gowalla through `towers prepare`; $TOWERS_DATA_DIR/gowalla holds it."""
    say("prepare gowalla")
    command = [sys.executable, "-m", "towers", "prepare", "data=lightgcn", f"run_dir={folder}"]
    environment = {**os.environ, "TOWERS_KEY_FILE": str(folder / "key")}
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    if done.returncode:
        sys.exit(done.stderr)
    return Interactions.open(folder / "prepared")


def smoothed(data: Interactions, queries: Queries) -> tuple[Tensor, Tensor]:
    """Unit vectors [Q, D] and [I, D]: items start random, users are the mean of their items, and items of their users."""
    rows = np.flatnonzero(data.split == TRAIN)
    user_N, item_N = torch.from_numpy(data.users_of(rows)), torch.from_numpy(data.item[rows].astype(np.int64))
    item_ID = torch.randn(data.n_items, DIM, generator=torch.Generator().manual_seed(0))
    unit = torch.nn.functional.normalize
    user_UD = torch.zeros(data.n_users, DIM)
    for _ in range(2):
        user_UD = unit(torch.zeros(data.n_users, DIM).index_add_(0, user_N, item_ID[item_N]), dim=1)
        item_ID = unit(0.3 * item_ID + torch.zeros_like(item_ID).index_add_(0, item_N, user_UD[user_N]), dim=1)
    return user_UD[torch.from_numpy(queries.user_Q)], item_ID


def floor(user_QD: Tensor, item_ID: Tensor, half: bool) -> None:
    """The matrix product alone."""
    finder = Finder(dot_products(user_QD, item_ID, half), K, BLOCK)
    for start in range(0, len(user_QD), BLOCK):
        finder.approximate(slice(start, start + BLOCK))


def timed(forms: dict[str, Form], turns: int) -> dict[str, float]:
    """Least CPU seconds of each form, measured in turns."""
    best = dict.fromkeys(forms, float("inf"))
    for turn in range(turns):
        say(f"turn {turn + 1} of {turns}")
        for name, form in forms.items():
            since = time.process_time()
            form()
            best[name] = min(best[name], time.process_time() - since)
    return best


if __name__ == "__main__":
    main()
