"""Enough memory for a training run."""

import ctypes
from collections.abc import Iterator
from contextlib import contextmanager

import torch

from towers.errors import TrainingError

_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3
"""Of mallopt in glibc's malloc.h."""
MAPPED_FROM, KEPT = 1 << 25, 1 << 28
"""Bytes: allocations that go back to the system at once when freed, and the most free memory kept for the next step."""
_ALLOCATOR_SAYS = ("can't allocate memory", "DefaultCPUAllocator", "out of memory")


def keep_memory() -> None:
    """Have freed memory kept for the next step. glibc would give arrays of some megabytes back to the system, and get them anew page by
    page: a quarter of a step over 41 thousand items. Other C libraries are left as they are."""
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(_M_MMAP_THRESHOLD, MAPPED_FROM)
        mallopt(_M_TRIM_THRESHOLD, KEPT)


@contextmanager
def enough_memory() -> Iterator[None]:
    """Around a training: memory that ran out, of the machine or of the GPU, names the settings that use it.

    Raises:
        TrainingError: in place of the allocator's own error.
    """
    try:
        yield
    except (MemoryError, RuntimeError) as error:
        if not isinstance(error, MemoryError | torch.OutOfMemoryError) and not any(words in str(error) for words in _ALLOCATOR_SAYS):
            raise
        raise TrainingError(
            f"out of memory ({str(error).splitlines()[0][:200] if str(error) else type(error).__name__}). Lower trainer.batch_size,"
            " negatives.count, model.history.length or model.dim; loss.name=sampled_softmax and optim.name=rowwise_adagrad need less, too"
        ) from error
