"""What a stranger meets at the command line when the disk, the order of words or an empty setting is at fault."""

import errno
import os
import subprocess
import sys
from pathlib import Path

import pytest

from towers.cli import options_first
from towers.disk import disk_error
from towers.errors import EXIT_CONFIG, EXIT_DATA, EXIT_INTERRUPTED

ROOT = Path(__file__).resolve().parents[2]
FULL_JOB = """
import errno, os
from towers.job import run_job
from training.config import register, validate

def run(config):
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

register()
run_job("train", run, validate)
"""


def towers(*arguments: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    return subprocess.run([sys.executable, *arguments], cwd=cwd, env=environment, capture_output=True, text=True, check=False)


def test_a_full_disk_is_one_line_and_code_3(tmp_path: Path) -> None:
    (tmp_path / "job.py").write_text(FULL_JOB)
    done = towers("job.py", "run_dir=here", cwd=tmp_path)
    assert done.returncode == EXIT_DATA
    assert done.stderr.startswith("error: here: No space left on device. Free some space")
    assert len(done.stderr.splitlines()) == 1


def test_only_the_disk_is_excused() -> None:
    assert "Check its permissions" in str(disk_error(PermissionError(errno.EACCES, "no", "a.npy"), "here"))
    assert "a.npy" in str(disk_error(OSError(errno.ENOSPC, "full", "a.npy"), "here"))
    assert disk_error(FileNotFoundError(errno.ENOENT, "no", "a.npy"), "here") is None, "a file that we forgot to write is our bug"


@pytest.mark.parametrize(
    ("setting", "told"),
    [("run_dir=", "run_dir: got ''"), ("experiment=null", "leave it out"), ("run_dir='  '", "run_dir: got")],
)
def test_empty_settings_are_refused(tmp_path: Path, setting: str, told: str) -> None:
    done = towers("-m", "towers", "train", setting, cwd=tmp_path)
    assert done.returncode == EXIT_CONFIG
    assert told in done.stderr
    assert "Traceback" not in done.stderr
    assert list(tmp_path.iterdir()) == []


def test_settings_may_stand_on_both_sides_of_an_option(tmp_path: Path) -> None:
    (tmp_path / "mine" / "data").mkdir(parents=True)
    (tmp_path / "mine" / "data" / "shop.yaml").write_text("# @package _global_\ndata: {name: table, interactions: x.csv}\n")
    done = towers("-m", "towers", "train", "run_dir=r", "--config-dir", "mine", "data=shop", "--cfg", "job", "seed=7", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "interactions: x.csv" in done.stdout and "run_dir: r\n" in done.stdout and "\nseed: 7\n" in done.stdout


def test_options_first_keeps_values_with_their_options() -> None:
    assert options_first(["a=1", "--info", "defaults", "b=2", "-m"]) == ["--info", "defaults", "-m", "a=1", "b=2"]
    assert options_first(["a=1", "--config-dir=x", "-cn", "train"]) == ["--config-dir=x", "-cn", "train", "a=1"]


def test_help_into_a_closed_pipe_is_no_bug(tmp_path: Path) -> None:
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    reader, writer = os.pipe()
    os.close(reader)
    with open(writer, "w") as closed:
        command = [sys.executable, "-m", "towers", "train", "--help"]
        done = subprocess.run(command, cwd=tmp_path, env=environment, stdout=closed, stderr=subprocess.PIPE, text=True, check=False)
    assert (done.returncode, done.stderr) == (EXIT_INTERRUPTED, "")


REFUSING_JOB = """
from towers.errors import ConfigError, DataError
from towers.job import run_job
from training.config import register, validate

def run(config):
    if config.seed == 1:
        raise ConfigError("no")
    if config.seed == 2:
        raise DataError("no")
    return "done"

register()
run_job("train", run, validate)
"""


def test_settings_beside_results_are_those_of_the_results(tmp_path: Path) -> None:
    """What was refused for its settings leaves those of the job before; what began, or was the first, leaves its own."""
    (tmp_path / "job.py").write_text(REFUSING_JOB)
    left = []
    for seed in (1, 0, 1, 2):
        towers("job.py", "run_dir=here", f"seed={seed}", cwd=tmp_path)
        left.append((tmp_path / "here" / "config" / "train.yaml").read_text())
    assert [f"seed={seed}" in text for seed, text in zip((1, 0, 0, 2), left, strict=True)] == [True] * 4
    assert left[1] == left[2]
