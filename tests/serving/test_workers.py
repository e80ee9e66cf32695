"""Workers that die are told of and started again, unless they die again and again; real processes, apart from this one's threads."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

SCRIPT = """
import os, signal, sys
from pathlib import Path
from serving.logs import log_to_stderr
from serving.workers import Workers

lives, deaths, jump_s = Path(sys.argv[1]), int(sys.argv[2]), float(sys.argv[3])

def lived():
    return len(lives.read_bytes())

def work(number, ready):
    with lives.open("ab") as told:
        told.write(b".")
    if lived() == 1:
        raise OSError("no file")
    if lived() <= deaths:
        os.kill(os.getpid(), signal.SIGKILL)
    ready()
    signal.pause()

def stop():
    raise KeyboardInterrupt

lives.touch()
log_to_stderr()
signal.signal(signal.SIGTERM, lambda *_: stop())
Workers(1, work, lambda: jump_s * (lived() // 4)).run(stop)
"""


def run(folder: Path, deaths: int, jump_s: float) -> tuple[int, str, list[dict[str, Any]]]:
    """Exit code, standard error and its log lines, of a worker that dies so often and a clock that stands still but at each fourth."""
    command = [sys.executable, "-c", SCRIPT, str(folder / "lives"), str(deaths), str(jump_s)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    return done.returncode, done.stderr, [json.loads(line) for line in done.stderr.splitlines() if line.startswith("{")]


def test_a_death_is_told_with_its_cause(tmp_path: Path) -> None:
    code, stderr, lines = run(tmp_path, 2, 0)
    assert code == 0, stderr
    failed, first, second = lines
    assert (failed["event"], failed["worker"]) == ("worker failed", 0) and failed["pid"] == first["ended_pid"]
    assert failed["reason"] == "OSError('no file')" and failed["trace"][-1].endswith(" work")
    for line, how in ((first, {"exit_code": 1}), (second, {"signal": "SIGKILL"})):
        assert (line["event"], line["level"], line["worker"]) == ("worker ended, another is started", "error", 0)
        assert line.items() >= how.items() and line["ended_pid"] != line["pid"]


@pytest.mark.parametrize(("deaths", "jump_s", "ends"), [(4, 0, False), (5, 0, True), (12, 100, False)])
def test_only_early_deaths_one_after_the_other_end_the_service(tmp_path: Path, deaths: int, jump_s: float, ends: bool) -> None:
    code, stderr, lines = run(tmp_path, deaths, jump_s)
    assert (code != 0) is ends is ("5 workers died within 5 s of their start" in stderr), stderr
    assert sum("ended_pid" in line for line in lines) == deaths
