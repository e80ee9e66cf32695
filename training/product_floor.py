"""How fast a step could be: the time that its matrix products alone would take.

The estimate: the multiplications and additions of every matrix product of one step (forward and backward, by their shapes and precision),
divided by the rate of a product of two 1024 x 1024 matrices of that precision on this machine, measured once. Lookups, exponentials,
the optimiser, loading and validation are not in it, so its share of the real time tells what they cost.
"""

import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

_SIDE, _TURNS = 1024, 3
_LEFT = {"mm": 0, "bmm": 0, "addmm": 1, "baddbmm": 1}
"""Where the left factor stands among the arguments of each matrix product; the right one follows it."""


class ProductFloor:
    """Counts the products of one step, and tells the floor of an example.

    Args:
        device: where the steps run. Other devices than the CPU are not measured: their steps run beside the clock.
    """

    def __init__(self, device: torch.device) -> None:
        self._pending = device.type == "cpu"
        self._seconds_per_example: float | None = None

    @contextmanager
    def counting(self, examples: Callable[[], int]) -> Iterator[None]:
        """Around a step: counts the first one that is asked about.

        Args:
            examples: examples done so far.
        """
        if not self._pending:
            yield
            return
        self._pending = False
        before = examples()
        with ProductCounter() as counter:
            yield
        if examples() > before:
            seconds = sum(flops / product_rate(kind) for kind, flops in counter.flops.items())
            self._seconds_per_example = seconds / (examples() - before)

    def share(self, examples: int, seconds: float) -> Mapping[str, float]:
        """`train/product_floor_share`: the floor of some examples over the seconds they took; nothing where it was not measured."""
        if self._seconds_per_example is None or seconds <= 0:
            return {}
        return {"train/product_floor_share": examples * self._seconds_per_example / seconds}


class ProductCounter(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """While it is entered, counts 2 m n k for each matrix product that runs, by the precision of its factors.

    Attributes:
        flops: by dtype.
    """

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.flops: dict[torch.dtype, int] = {}

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        return False  # to tell the compiler that it is not wanted, torch would import it: 1.3 CPU s

    def __torch_dispatch__(self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None) -> Any:
        left = _LEFT.get(func.overloadpacket.__name__.removesuffix("_"))  # addmm_ is addmm
        if left is not None:
            self._count(args[left], args[left + 1])
        return func(*args, **(kwargs or {}))

    def _count(self, left: Tensor, right: Tensor) -> None:
        self.flops[left.dtype] = self.flops.get(left.dtype, 0) + 2 * left.numel() * right.shape[-1]


def product_rate(kind: torch.dtype) -> float:
    """Operations a second of a square product on the CPU, the best of a few."""
    left, right = torch.ones(_SIDE, _SIDE, dtype=kind), torch.ones(_SIDE, _SIDE, dtype=kind)
    out = torch.mm(left, right)
    best = float("inf")
    for _ in range(_TURNS):
        since = time.perf_counter()
        torch.mm(left, right, out=out)
        best = min(best, time.perf_counter() - since)
    return float(2 * _SIDE**3 / best)
