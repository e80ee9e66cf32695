"""One training a folder, and memory errors that name the knobs."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from towers.errors import ConfigError, TrainingError
from training.room import alone_in, enough_memory

HOLD = """
import sys
from pathlib import Path
from training.room import alone_in
with alone_in(Path(sys.argv[1])):
    print("held", flush=True)
    sys.stdin.read()
"""


def test_a_second_training_in_the_folder_is_refused_until_the_first_is_gone(tmp_path: Path) -> None:
    holder = subprocess.Popen([sys.executable, "-c", HOLD, str(tmp_path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    assert holder.stdin is not None and holder.stdout is not None
    try:
        assert holder.stdout.readline() == b"held\n"
        with pytest.raises(ConfigError, match=f"pid {holder.pid}"), alone_in(tmp_path):
            pass
        with alone_in(tmp_path, wanted=False):
            pass
    finally:
        holder.kill()
        holder.wait()
        holder.stdin.close()
        holder.stdout.close()
    with alone_in(tmp_path):  # killed, not ended: the lock went with it
        pass


def test_memory_that_ran_out_names_the_knobs() -> None:
    with pytest.raises(TrainingError, match=r"out of memory.*trainer\.batch_size.*negatives\.count"), enough_memory():
        np.empty(2**60, np.uint8)
    with pytest.raises(TrainingError, match=r"out of memory.*model\.history\.length"), enough_memory():
        torch.empty(2**60, dtype=torch.uint8)
    with pytest.raises(TrainingError, match="out of memory"), enough_memory():
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB")


def test_other_errors_pass_through() -> None:
    with pytest.raises(RuntimeError, match="shape"), enough_memory():
        raise RuntimeError("shape mismatch")
