"""A process of a run is killed or stops answering: the others end within half a minute, with an error that names it."""

import os
import re
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from training.interactions import write_prepared

REPOSITORY = Path(__file__).resolve().parents[2]
SETTINGS = (
    "data=synthetic", "trainer.device=cpu", "trainer.threads=1", "model.history.length=8", "model.dim=16",
    "trainer.batch_size=16", "trainer.epochs=100000", "trainer.patience=0", "trainer.evaluate_every=0", "trainer.checkpoint_every=50",
)  # fmt: skip
BOUND_S = 30


@pytest.fixture
def run_dir(tmp_path, make_toy):
    write_prepared(tmp_path / "prepared", make_toy(users=60))
    return tmp_path


def environment(**launched):
    paths = [str(REPOSITORY), *filter(None, [os.environ.get("PYTHONPATH")])]
    return {**os.environ, "PYTHONPATH": os.pathsep.join(paths), "OMP_NUM_THREADS": "1", **{k: str(v) for k, v in launched.items()}}


def start(run_dir, rank, size, port):
    with (run_dir / f"told-{rank}").open("w") as told:
        return subprocess.Popen(
            [sys.executable, "-m", "towers", "train", f"run_dir={run_dir}", *SETTINGS],
            cwd=run_dir,
            env=environment(RANK=rank, LOCAL_RANK=rank, WORLD_SIZE=size, MASTER_ADDR="127.0.0.1", MASTER_PORT=port),
            stdout=told,
            stderr=subprocess.STDOUT,
        )


@pytest.fixture
def processes(run_dir):
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port = listener.getsockname()[1]
    started = [start(run_dir, rank, 2, port) for rank in range(2)]
    yield started
    for process in started:
        process.kill()
        process.wait()


def wait_for_a_checkpoint(run_dir, alive):
    deadline = time.monotonic() + 120
    while not list((run_dir / "checkpoints").glob("*-step-*[0-9]")):
        assert time.monotonic() < deadline and alive(), "the run did not come to its first checkpoint"
        time.sleep(0.05)


@pytest.mark.parametrize(
    "lost,by",
    [(1, signal.SIGKILL), pytest.param(0, signal.SIGKILL, marks=pytest.mark.long), pytest.param(1, signal.SIGSTOP, marks=pytest.mark.long)],
    ids=["killed", "first_killed", "stopped"],
)
def test_the_others_end_and_say_who_is_lost(run_dir, processes, lost, by):
    wait_for_a_checkpoint(run_dir, lambda: all(p.poll() is None for p in processes))
    since = time.monotonic()
    processes[lost].send_signal(by)
    left = 1 - lost
    assert processes[left].wait(BOUND_S) == 5
    assert time.monotonic() - since < BOUND_S
    told = (run_dir / f"told-{left}").read_text()
    assert re.search(rf"error: process {lost} .*process {left} stops too.*run the same command again", told), told
    assert "Traceback" not in told
    if by == signal.SIGKILL and lost == 1:
        assert re.search(rf"process 1 \(pid {processes[1].pid} on .*\) died", told), told


@pytest.mark.long
def test_torchrun_ends_and_names_the_rank(run_dir):
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "-m", "towers", "train"]
    with (run_dir / "told").open("w") as told:
        launcher = subprocess.Popen([*command, f"run_dir={run_dir}", *SETTINGS], cwd=run_dir, env=environment(), stdout=told, stderr=told)
    try:
        wait_for_a_checkpoint(run_dir, lambda: launcher.poll() is None)
        children = Path(f"/proc/{launcher.pid}/task/{launcher.pid}/children").read_text().split()
        os.kill(int(children[1]), signal.SIGKILL)
        assert launcher.wait(BOUND_S) != 0
    finally:
        launcher.kill()
    told = (run_dir / "told").read_text()
    assert re.search(r"rank +: 1 .*\n +exitcode +: -9", told), told
    for child in children:
        assert not Path(f"/proc/{child}").exists()
    assert list((run_dir / "checkpoints").glob("*-step-*[0-9]")), "what was saved is kept"
