"""From a request's raw values to a user vector: ONNX Runtime as `towers serve` runs it, against torch eager behind the same preprocessing.

    .venv/bin/python scripts/bench/encode.py [--quick] [--items 100000]

History of 50 events with types and times, six context features, 64 dimensions; the mean tower and the two-layer transformer. Batches of 1,
32 and 256 rows; with a GPU, torch on it as well. Process CPU time (on a GPU: wall time), forms in turns.
"""

import argparse
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import torch

sys.path.insert(0, str(Path(__file__).resolve().parent))
from clocks import cpu_rounds, ratio
from report import finish, say
from serving_world import fast_encoder, make_run, user_rows

from serving.runtimes import open_runtime
from towers.bundle import Bundle, current
from towers.encoder import Encoder

BATCHES = (1, 32, 256)


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("--quick", action="store_true", help="20,000 items and few rounds: under a minute")
    arguments.add_argument("--items", type=int, default=100_000)
    told = arguments.parse_args()
    items, rounds = (20_000, 10) if told.quick else (told.items, 60)
    torch.set_num_threads(1)
    rows_out = [["tower", "batch", "what", "us a row", "against torch eager"]]
    ratios: dict[str, float] = {}
    figures: dict[str, float] = {}
    for tower in ("mean", "transformer"):
        with tempfile.TemporaryDirectory() as folder:
            say(f"{tower}: a bundle of {items:,} items")
            bundle = Bundle.open(current(make_run(Path(folder), items, 100, tower, index=False) / "bundles"))
            fast = fast_encoder(bundle)
            eager = Encoder(fast.preprocessor, open_runtime(bundle, fast.preprocessor, "torch"), fast.length)
            rows = user_rows(0, items, max(BATCHES))
            worst = float(np.abs(fast.users(rows).vectors_BHD - eager.users(rows).vectors_BHD).max())
            figures[f"difference_{tower}"] = worst
            for size in BATCHES:
                parts = [rows[start : start + size] for start in range(0, max(BATCHES), size)][:64]
                forms = {
                    "eager": lambda parts=parts, eager=eager: [eager.users(part) for part in parts],
                    "fast": lambda parts=parts, fast=fast: [fast.users(part) for part in parts],
                    "preparing": lambda parts=parts, fast=fast: [fast.user_batch(part) for part in parts],
                }
                seconds = cpu_rounds(forms, rounds)
                done = len(parts) * size
                key = tower if size == 1 else f"{tower}_{size}"
                ratios[f"eager_over_fast_{key}"] = ratio(seconds["eager"], seconds["fast"])
                for name, taken in seconds.items():
                    figures[f"{name}_us_{key}"] = 1e6 * float(np.median(taken)) / done
                    times = f"{ratio(seconds['eager'], taken):.2f}x" if name != "preparing" else ""
                    rows_out.append([tower, str(size), name, f"{figures[f'{name}_us_{key}']:.1f}", times])
            if torch.cuda.is_available():
                figures |= _on_gpu(tower, bundle, fast, rows, rows_out)
    finish("encode", rows_out, ratios, figures)


def _on_gpu(tower: str, bundle: Bundle, fast: Encoder, rows: list, rows_out: list[list[str]]) -> dict[str, float]:  # type: ignore[type-arg]
    """Wall time, because the work is not this process's; vectors come back to the CPU within it."""
    gpu = Encoder(fast.preprocessor, open_runtime(bundle, fast.preprocessor, "torch", "cuda"), fast.length)
    found = {f"difference_cuda_{tower}": float(np.abs(gpu.users(rows).vectors_BHD - fast.users(rows).vectors_BHD).max())}
    for size in BATCHES:
        taken = []
        for _ in range(30):
            since = time.perf_counter()
            gpu.users(rows[:size])
            taken.append(time.perf_counter() - since)
        found[f"cuda_us_{tower}_{size}"] = 1e6 * float(np.median(taken)) / size
        rows_out.append([tower, str(size), "cuda, wall", f"{found[f'cuda_us_{tower}_{size}']:.1f}", ""])
    return found


if __name__ == "__main__":
    main()
