"""The same step on a GPU: examples a second, and what share of its own bf16 products that is."""

import time
from pathlib import Path

import torch
from clocks import Form
from ours import OurStep, id_config
from report import say

SIDE, TURNS = 8192, 20
BATCH = 8192
FORMS = {"in_batch": "sampled_softmax", "exact": "full_softmax"}


def gpu_figures(run_dir: Path, steps: int) -> dict[str, float]:
    """Figures of two id towers at d128 over all items of a prepared world: in-batch negatives, and the exact softmax by blocks.

    `gpu_<form>_share` is 6 D times rows times candidates a step, over what a product of two 8192 x 8192 bf16 matrices reaches.
    """
    rate = product_rate()
    figures = {"gpu_bf16_tflops": rate / 1e12}
    for name, loss in FORMS.items():
        say(f"GPU: {name}")
        config = id_config(run_dir, 128, BATCH)
        config.loss.name, config.trainer.device = loss, "cuda"
        ours = OurStep(config)
        seconds = _seconds(ours, steps)
        columns = len(ours.trainer.objective.items) if name == "exact" else BATCH
        figures[f"gpu_{name}_examples_per_s"] = ours.examples / seconds
        figures[f"gpu_{name}_share"] = 6 * 128 * ours.examples * columns / seconds / rate
        figures[f"gpu_{name}_peak_gib"] = torch.cuda.max_memory_allocated() / 2**30
    return figures


def product_rate() -> float:
    """Operations a second of a square bf16 product."""
    left = torch.randn(SIDE, SIDE, device="cuda", dtype=torch.bfloat16)
    out = torch.empty_like(left)
    return 2 * SIDE**3 / _seconds(lambda: torch.mm(left, left, out=out), TURNS)


def _seconds(form: Form, turns: int) -> float:
    """Wall seconds a call: calls return before the GPU has done them."""
    for _ in range(3):
        form()
    torch.cuda.synchronize()
    since = time.perf_counter()
    for _ in range(turns):
        form()
    torch.cuda.synchronize()
    return (time.perf_counter() - since) / turns
