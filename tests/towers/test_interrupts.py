"""Ctrl-C while a job starts, when the libraries that it imports swallow exceptions: the job ends, with the usual line and code."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from towers.errors import EXIT_INTERRUPTED
from towers.interrupts import TOLD

ROOT = Path(__file__).resolve().parents[2]
SWALLOWS = """
import os, signal, time
try:
    os.kill(os.getpid(), signal.{signal})
    time.sleep(0.2)
except BaseException:
    pass
"""
VERB = "from training.train import main"
RUN = "def run(config):\n    {work}\n    return 'result'\n"
START = """
from towers import cli
from towers.job import run_job
from towers.verbs import VERBS, Verb
import training.train
training.train.run_job = lambda name, run, validate: run_job(name, "fake_run:run", validate)
cli.run(Verb("train", "fake_verb:main", "train", ""), ["run_dir=here"])
"""


def started(folder: Path, verb: str = VERB, run: str = RUN.format(work="pass")) -> subprocess.CompletedProcess[str]:
    (folder / "fake_verb.py").write_text(verb)
    (folder / "fake_run.py").write_text(run)
    (folder / "start.py").write_text(START)
    environment = {**os.environ, "PYTHONPATH": f"{ROOT}{os.pathsep}{folder}"}
    return subprocess.run([sys.executable, "start.py"], cwd=folder, env=environment, capture_output=True, text=True, check=False)


@pytest.mark.parametrize("number", ["SIGINT", "SIGTERM"])
@pytest.mark.parametrize("where", ["before the settings", "before the work", "in the work"])
def test_no_import_swallows_an_interrupt(tmp_path: Path, where: str, number: str) -> None:
    swallows = SWALLOWS.format(signal=number)
    if where == "before the settings":
        done = started(tmp_path, verb=f"{swallows}\n{VERB}")
    elif where == "before the work":
        done = started(tmp_path, run=f"{swallows}\n{RUN.format(work='pass')}")
    else:
        (tmp_path / "late.py").write_text(swallows)
        done = started(tmp_path, run=RUN.format(work="import late, time; time.sleep(5)"))
    assert (done.returncode, done.stdout, done.stderr) == (EXIT_INTERRUPTED, "", f"{TOLD}\n")
    assert (tmp_path / "here").exists() == (where == "in the work")


def test_a_job_that_ignores_it_goes_on_ignoring_it(tmp_path: Path) -> None:
    """As a shell starts those in the background."""
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        done = started(tmp_path, run=SWALLOWS.format(signal="SIGINT") + RUN.format(work="pass"))
    finally:
        signal.signal(signal.SIGINT, before)
    assert (done.returncode, done.stdout) == (0, "train: done -> result\n")


def handles(pid: int, number: int) -> bool:
    caught = next(line for line in Path(f"/proc/{pid}/status").read_text().splitlines() if line.startswith("SigCgt:"))
    return bool(int(caught.split()[1], 16) >> (number - 1) & 1)


@pytest.mark.parametrize("seconds", [0.0, 0.4, 0.8])
def test_a_real_job_at_some_moment_of_its_start(tmp_path: Path, seconds: float) -> None:
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-m", "towers", "prepare", "experiment=synthetic_fast", "data.synthetic.users=20000"]
    job = subprocess.Popen(command, cwd=tmp_path, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    while not handles(job.pid, signal.SIGTERM):  # Python has begun, and handed over
        time.sleep(0.01)
    time.sleep(seconds)
    job.send_signal(signal.SIGINT)
    out, err = job.communicate(timeout=60)
    assert (job.returncode, out, err.splitlines()[-1:]) == (EXIT_INTERRUPTED, "", [TOLD])
    assert "Traceback" not in err
