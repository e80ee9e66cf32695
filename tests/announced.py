"""Waiting for a server that a test started."""

import json
import subprocess
import time
from pathlib import Path
from typing import Any


def wait_for_announcement(server: "subprocess.Popen[Any]", run_dir: Path, seconds: float = 60) -> dict[str, Any]:
    """What `server` says of itself in serve.json once it listens.

    A file of a former server may lie there until this one takes it away, at any moment: it counts as none.
    """
    deadline = time.monotonic() + seconds
    while True:
        try:
            told: dict[str, Any] = json.loads((run_dir / "serve.json").read_text())
        except FileNotFoundError:
            told = {}
        if told.get("pid") == server.pid and told["state"] == "listening":
            return told
        assert server.poll() is None, f"it ended with {server.returncode}: {server.stderr and server.stderr.read()}"
        assert time.monotonic() < deadline, f"not listening within {seconds:.0f} s"
        time.sleep(0.02)
