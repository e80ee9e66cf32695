"""What a training run needs for itself: its folder, and enough memory."""

import ctypes
import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch

from towers.errors import ConfigError, TrainingError

LOCK = ".training.lock"
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3
"""Of mallopt in glibc's malloc.h."""
MAPPED_FROM, KEPT = 1 << 25, 1 << 28
"""Bytes: allocations that go back to the system at once when freed, and the most free memory kept for the next step."""
_ALLOCATOR_SAYS = ("can't allocate memory", "DefaultCPUAllocator", "out of memory")


@contextmanager
def alone_in(run_dir: Path, wanted: bool = True) -> Iterator[None]:
    """Hold a run's folder: two trainings would prune each other's checkpoints. The lock goes with the process, however it ends.

    Args:
        run_dir: the run.
        wanted: False does nothing: of several processes of one training the first holds the folder for all.

    Raises:
        ConfigError: another process trains there; names it.
    """
    if not wanted:
        yield
        return
    run_dir.mkdir(parents=True, exist_ok=True)
    handle = os.open(run_dir / LOCK, os.O_RDWR | os.O_CREAT, 0o644)
    try:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            holder = os.pread(handle, 32, 0).decode(errors="replace").strip() or "unknown"
            raise ConfigError(
                f"run_dir: another training (pid {holder}) runs in {run_dir}. Wait for it, end it, or use another one"
            ) from error
        os.ftruncate(handle, 0)
        os.pwrite(handle, f"{os.getpid()}\n".encode(), 0)
        yield
    finally:
        os.close(handle)


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
