"""`towers train` as several processes: who dies is named and stops the others; results and checkpoints are those of one process."""

import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from training.interactions import write_prepared

REPOSITORY = Path(__file__).resolve().parents[2]
SETTINGS = (
    "data=synthetic", "trainer.device=cpu", "trainer.threads=1", "model.history.length=8", "model.dim=16", "trainer.batch_size=16",
    "trainer.patience=0",
)  # fmt: skip
ENDLESS = ("trainer.epochs=100000", "trainer.evaluate_every=0", "trainer.checkpoint_every=50")
EXACT = (
    "trainer.epochs=3", "trainer.checkpoint_every=5", "model.id_dropout=0", "model.context_dropout=0", "loss.precision=fp32",
    "loss.name=sampled_softmax",
)  # fmt: skip
BOUND_S = 30


@pytest.fixture
def run_dir(tmp_path, make_toy):
    write_prepared(tmp_path / "prepared", make_toy(users=60))
    return tmp_path


def environment(**launched):
    paths = [str(REPOSITORY), *filter(None, [os.environ.get("PYTHONPATH")])]
    return {**os.environ, "PYTHONPATH": os.pathsep.join(paths), "OMP_NUM_THREADS": "1", **{k: str(v) for k, v in launched.items()}}


@pytest.fixture
def start():
    """Starts the processes of a run, as a launcher would; what they say goes to run_dir/told-<rank>."""
    started = []

    def launch(run_dir, size, settings):
        with socket.socket() as listener:
            listener.bind(("127.0.0.1", 0))
            port = listener.getsockname()[1]
        processes = []
        for rank in range(size):
            with (run_dir / f"told-{rank}").open("w") as told:
                process = subprocess.Popen(
                    [sys.executable, "-m", "towers", "train", f"run_dir={run_dir}", *SETTINGS, *settings],
                    cwd=run_dir,
                    env=environment(RANK=rank, LOCAL_RANK=rank, WORLD_SIZE=size, MASTER_ADDR="127.0.0.1", MASTER_PORT=port),
                    stdout=told,
                    stderr=subprocess.STDOUT,
                )
            processes.append(process)
        started.extend(processes)
        return processes

    yield launch
    for process in started:
        process.kill()
        process.wait()


def wait_for_a_checkpoint(run_dir, alive):
    deadline = time.monotonic() + 120
    while not list((run_dir / "checkpoints").glob("*-step-*[0-9]")):
        assert time.monotonic() < deadline and alive(), "the run did not come to its first checkpoint"
        time.sleep(0.05)


@pytest.mark.long
@pytest.mark.parametrize(
    "lost,by",
    [(1, signal.SIGKILL), (0, signal.SIGKILL), (1, signal.SIGSTOP)],
    ids=["killed", "first_killed", "stopped"],
)
def test_the_others_end_and_say_who_is_lost(run_dir, start, lost, by):
    processes = start(run_dir, 2, ENDLESS)
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


@pytest.fixture
def launched(run_dir):
    """A run under a launcher: the launcher, its processes by rank once they train, and what all of them say."""
    told = run_dir / "told"

    def launch(*command):
        with told.open("w") as file:
            launcher = subprocess.Popen(
                [sys.executable, *command, f"run_dir={run_dir}", *SETTINGS, *ENDLESS],
                cwd=run_dir, env=environment(), stdout=file, stderr=file,
            )  # fmt: skip
        started.append(launcher)
        wait_for_a_checkpoint(run_dir, lambda: launcher.poll() is None)
        children = [int(pid) for pid in Path(f"/proc/{launcher.pid}/task/{launcher.pid}/children").read_text().split()]
        return launcher, children, told

    started = []
    yield launch
    for launcher in started:
        launcher.terminate()
        launcher.wait(BOUND_S)


def test_started_by_the_job_itself_and_one_is_killed(run_dir, launched):
    launcher, children, told = launched("-m", "towers", "train", "trainer.processes=2")
    os.kill(children[1], signal.SIGKILL)
    assert launcher.wait(BOUND_S) == 5, told.read_text()
    assert f"error: train: process 1 (pid {children[1]}) was killed by SIGKILL" in told.read_text()
    assert not any(Path(f"/proc/{child}").exists() for child in children)


def test_a_launcher_that_is_killed_leaves_nobody_training(launched):
    launcher, children, told = launched("-m", "towers", "train", "trainer.processes=2")
    launcher.kill()
    launcher.wait()
    deadline = time.monotonic() + BOUND_S
    while any(map(running, children)):
        assert time.monotonic() < deadline, told.read_text()
        time.sleep(0.1)
    assert f"the process that started this one (pid {launcher.pid}) is gone" in told.read_text()


@pytest.mark.long
def test_a_torchrun_that_is_killed_leaves_nobody_training(launched):
    launcher, children, told = launched(
        "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "-m", "towers", "train"
    )  # fmt: skip
    launcher.kill()
    launcher.wait()
    deadline = time.monotonic() + 2 * BOUND_S
    while any(map(running, children)):
        assert time.monotonic() < deadline, told.read_text()
        time.sleep(0.1)


def running(pid):
    """Whether it lives: an orphan that has ended may stay as a zombie until somebody asks for its exit code."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


@pytest.mark.long
def test_torchrun_ends_and_names_the_rank(run_dir, launched):
    launcher, children, told = launched(
        "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "-m", "towers", "train"
    )  # fmt: skip
    os.kill(children[1], signal.SIGKILL)
    assert launcher.wait(BOUND_S) != 0
    assert re.search(r"rank +: 1 .*\n +exitcode +: -9", told.read_text()), told.read_text()
    assert not any(Path(f"/proc/{child}").exists() for child in children)
    assert list((run_dir / "checkpoints").glob("*-step-*[0-9]")), "what was saved is kept"


@pytest.mark.long
@pytest.mark.parametrize("by", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_to_the_launcher_ends_all(run_dir, launched, by):
    launcher, children, told = launched("-m", "towers", "train", "trainer.processes=2")
    launcher.send_signal(by)
    assert launcher.wait(BOUND_S) == 5, told.read_text()
    assert not any(Path(f"/proc/{child}").exists() for child in children)


@pytest.mark.long
@pytest.mark.parametrize("before,after", [(2, 1), (1, 2)])
def test_a_run_goes_on_with_another_number_of_processes(run_dir, start, before, after):
    whole, cut = run_dir / "whole", run_dir / "cut"
    for folder in (whole, cut):
        shutil.copytree(run_dir / "prepared", folder / "prepared")
    finish(whole, start(whole, 1, EXACT))
    first = start(cut, before, EXACT)
    wait_for_a_checkpoint(cut, lambda: all(p.poll() is None for p in first))
    for process in first:
        process.kill()
        process.wait()
    told = finish(cut, start(cut, after, EXACT))
    assert "continuing after step" in told
    assert ("on 2 processes" in told) == (after == 2)
    results = [json.loads((folder / "train.json").read_text()) for folder in (cut, whole)]
    assert results[0]["run"]["processes"] == after and results[0]["run"]["steps"] == results[1]["run"]["steps"]
    assert results[0]["valid"] == pytest.approx(results[1]["valid"], abs=1e-6)
    weights, theirs = (load_file(folder / "model" / "weights.safetensors") for folder in (cut, whole))
    assert all(torch.allclose(weights[name], theirs[name], rtol=0, atol=1e-5) for name in theirs)


def finish(run_dir, processes):
    """What the first process said; the others say nothing, and only the first one's files are there."""
    for rank, process in enumerate(processes):
        assert process.wait(120) == 0, (run_dir / f"told-{rank}").read_text()
        assert rank == 0 or not (run_dir / f"told-{rank}").read_text()
    return (run_dir / "told-0").read_text()


FAILING = """
import sys, torch
from towers.errors import DataError, TowersError
from training.distributed import join

def full():
    raise DataError("the disk is full")

try:
    with join(torch.device("cpu")) as processes:
        processes.share(1.0, 1)
        if sys.argv[1] == "lead":
            processes.lead(full)
        if processes.rank == 1:
            raise MemoryError("no more")
        while True:
            processes.share(1.0, 1)
except TowersError as error:
    print(error)
    sys.exit(error.exit_code)
"""


@pytest.mark.long
@pytest.mark.parametrize("where", ["lead", "alone"])
def test_an_error_of_one_ends_all(where):
    """Of the first process while the others wait for it: its error, said once. Of another: the first one names it and its error."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port = listener.getsockname()[1]
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", FAILING, where],
            env=environment(RANK=rank, WORLD_SIZE=2, MASTER_ADDR="127.0.0.1", MASTER_PORT=port),
            stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        )
        for rank in range(2)
    ]  # fmt: skip
    (first, _), (second, trace) = (process.communicate(timeout=60) for process in processes)
    if where == "lead":
        assert [p.returncode for p in processes] == [3, 3] and first == "the disk is full\n" and second + trace == ""
    else:
        assert processes[0].returncode == 5 and "process 1 (pid" in first and "failed with MemoryError: no more" in first, first
