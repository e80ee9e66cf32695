"""One training a folder, and memory errors that name the knobs."""

import ctypes
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from towers.alone import alone_in
from towers.errors import ConfigError, TrainingError
from training.room import enough_memory

HOLD = """
import sys
from pathlib import Path
from towers.alone import alone_in
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


STEPS = """
import resource, sys
import numpy as np
from training.room import keep_memory
def step():
    arrays = [np.ones(3 << 20, np.uint8) for _ in range(16)]
if sys.argv[1] == "kept":
    keep_memory()
step()
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(5):
    step()
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


@pytest.mark.skipif(not hasattr(ctypes.CDLL(None), "gnu_get_libc_version"), reason="another C library keeps memory its own way")
def test_freed_memory_is_there_for_the_next_step() -> None:
    """Pages that a step gets from the system, of 61,440 that it writes."""
    pages = [int(subprocess.run([sys.executable, "-c", STEPS, how], capture_output=True, check=True).stdout) for how in ("kept", "plain")]
    assert pages[0] < 1000 < 20_000 < pages[1]


FREED = """
import numpy as np
from towers.memory import give_back_memory
from training.room import keep_memory
def resident():
    return int(open("/proc/self/statm").read().split()[1])
keep_memory()
arrays = [np.ones(3 << 20, np.uint8) for _ in range(32)]
full = resident()
del arrays
kept = resident()
give_back_memory()
print(full, kept, resident())
"""


@pytest.mark.skipif(not hasattr(ctypes.CDLL(None), "gnu_get_libc_version"), reason="another C library keeps memory its own way")
def test_what_a_validation_freed_goes_back_to_the_system() -> None:
    """Resident pages with 24,576 in use, with them freed, and given back."""
    done = subprocess.run([sys.executable, "-c", FREED], capture_output=True, check=True)
    full, kept, left = map(int, done.stdout.split())
    assert kept > full - 1000
    assert left < full - 20_000
