"""`trainer.processes`: start the processes of a training run on this machine, and end all of them where one dies.

Loss and weights of N processes are those of one up to rounding (1e-5, for every loss and sampler). Three things depend on N: with
dropout each process draws masks of its own, so runs differ as runs of two seeds do; bf16 products round sums of other parts; and hard
negatives are mined from users of every part. Exchanges go through shared memory on the CPUs of one machine, over gloo between machines,
and over nccl on GPUs. The first process alone validates, saves and reports; where what started them is killed, all end.
"""

import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Sequence

from towers.errors import EXIT_INTERRUPTED, ConfigError, TowersError
from towers.job import LAUNCHED, config_dirs, overrides
from training.config import TrainingConfig

POLL_S = 0.1
GRACE_S = 12.0
"""What the others have to notice a death and name it themselves, before they are told to end."""
FOLLOW_S = 0.5
FEWEST_ALLOWED = 2
"""Processes that one core may have, too: enough to try what several do."""


class ProcessEnded(TowersError):
    """A process of the run ended with an error or was killed; the run ends with its exit code."""

    def __init__(self, message: str, code: int) -> None:
        super().__init__(message)
        self.exit_code = code


def wanted(config: TrainingConfig) -> bool:
    """Whether this process is to start others: it is asked for, and no launcher has done it.

    Raises:
        ConfigError: what a launcher has set is not whole, or it has started another number than is asked for; or more are asked for than
            this machine has cores.
    """
    if "RANK" not in os.environ:
        most = max(FEWEST_ALLOWED, os.cpu_count() or 1)
        if config.trainer.processes > most:
            raise ConfigError(
                f"trainer.processes: got {config.trainer.processes}, and this machine has {os.cpu_count()} cores: more processes than cores"
                f" wait for one another, each with a model and an optimiser in memory. Use at most {most}"
            )
        return config.trainer.processes > 1
    rank, size = os.environ["RANK"], os.environ.get("WORLD_SIZE", "")
    if not (rank.isdecimal() and size.isdecimal() and int(rank) < int(size)):
        raise ConfigError(
            f"RANK is {rank!r} and WORLD_SIZE is {size!r}, expected a rank below the number of processes, as a launcher sets both. Start"
            " with torchrun, or unset RANK and use trainer.processes"
        )
    if config.trainer.processes not in (0, int(size)):
        raise ConfigError(
            f"trainer.processes: got {config.trainer.processes}, and the launcher has started {size} (WORLD_SIZE). Leave it at 0 under"
            " torchrun"
        )
    return False


def launch(config: TrainingConfig) -> None:
    """Run this very job in `trainer.processes` processes, which meet in training.distributed.

    Raises:
        ProcessEnded: one of them failed; names it.
    """
    typed = [o for o in overrides() if not o.startswith("run_dir=")]
    command = [sys.executable, "-m", "towers", "train", *config_dirs(), *typed, f"run_dir={config.run_dir}"]
    size = config.trainer.processes
    threads = str(max(1, (os.cpu_count() or 1) // size))
    shared = {
        "OMP_NUM_THREADS": threads,
        **os.environ,
        "WORLD_SIZE": str(size),
        LAUNCHED: str(os.getpid()),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(_free_port()),
    }
    processes = [subprocess.Popen(command, env={**shared, "RANK": str(rank), "LOCAL_RANK": str(rank)}) for rank in range(size)]
    try:
        failed = _wait(processes)
    finally:
        _end(processes)
    if failed is not None:
        code = processes[failed].returncode
        who = f"train: process {failed} (pid {processes[failed].pid})"
        if code > 0:
            raise ProcessEnded(f"{who} ended with exit code {code}; its own message stands above", code)
        how = f"{who} was killed by {signal.Signals(-code).name}, and the others were ended"
        why = "; the machine may have had no memory left" if code == -signal.SIGKILL else ""
        raise ProcessEnded(f"{how}{why}. What was saved is kept; run the same command again to continue", EXIT_INTERRUPTED)


def follow_launcher() -> None:
    """In a process that `launch` started: end soon after the launcher does. A launcher that was killed has told nobody, and who started it
    thinks that the run is over. Where no launcher is, nothing happens."""
    launcher = os.environ.get(LAUNCHED)
    if launcher is not None:
        threading.Thread(target=_end_without, args=(int(launcher),), name="launcher", daemon=True).start()


def _end_without(launcher: int) -> None:
    while os.getppid() == launcher:  # an orphan gets another parent
        time.sleep(FOLLOW_S)
    print(f"error: train: the process that started this one (pid {launcher}) is gone, so it ends too", file=sys.stderr, flush=True)
    os.kill(os.getpid(), signal.SIGTERM)
    time.sleep(GRACE_S)
    os._exit(EXIT_INTERRUPTED)  # the main thread waits inside torch, where no signal reaches it


def _wait(processes: Sequence[subprocess.Popen[bytes]]) -> int | None:
    """Until all have ended, or one has failed and the others had time to notice; returns which one failed first."""
    failed, deadline = None, float("inf")
    while time.monotonic() < deadline:
        codes = [process.poll() for process in processes]
        if failed is None and any(codes):
            failed = next(rank for rank, code in enumerate(codes) if code)
            deadline = time.monotonic() + GRACE_S
        if None not in codes:
            break
        time.sleep(POLL_S)
    return failed


def _end(processes: Sequence[subprocess.Popen[bytes]]) -> None:
    for process in processes:
        process.terminate()
    for process in processes:
        try:
            process.wait(GRACE_S)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def _free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])
