"""A demo that is killed leaves no job behind that trains on."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]


def test_its_job_ends_with_it(tmp_path: Path) -> None:
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "TOWERS_KEY_FILE": str(tmp_path / "key")}
    command = [sys.executable, "-m", "towers", "demo", "experiment=synthetic_fast", "data.synthetic.users=200000", "run_dir=demo"]
    with open(tmp_path / "log", "w") as log:
        demo = subprocess.Popen(command, cwd=tmp_path, env=environment, stdout=log, stderr=log)
        job = wait_for(lambda: child_of(demo.pid))
        demo.kill()
        demo.wait()
        assert wait_for(lambda: not Path(f"/proc/{job}").exists()), "it would prepare for a minute"
    assert not (tmp_path / "demo" / "prepared").exists()


def child_of(pid: int) -> int | None:
    found = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    # it has begun once it handles being told to end
    return int(found[0]) if found and handles(int(found[0]), signal.SIGTERM) else None


def handles(pid: int, number: int) -> bool:
    caught = next(line for line in Path(f"/proc/{pid}/status").read_text().splitlines() if line.startswith("SigCgt:"))
    return bool(int(caught.split()[1], 16) >> (number - 1) & 1)


def wait_for(condition: Callable[[], Any]) -> Any:
    until = time.monotonic() + 30
    while time.monotonic() < until:
        if found := condition():
            return found
        time.sleep(0.02)
    return None
