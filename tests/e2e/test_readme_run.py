"""What the README says of a finished run: its Python example, and the files that it names."""

import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

README = (Path(__file__).resolve().parents[2] / "README.md").read_text()
IN_RUN_DIR = ("prepared", "model", "checkpoints", "tensorboard", "export", "bundles")


def test_the_python_example_runs_and_prints_titles(spine: Any, tmp_path: Path) -> None:
    example = re.search(r"^```python\n(.*?)^```$", README, re.DOTALL | re.MULTILINE)
    assert example
    named = re.search(r'"(runs/\w+)/bundles"', example[1])
    assert named, "the example opens no bundle of a run"
    (tmp_path / named[1]).parent.mkdir()
    (tmp_path / named[1]).symlink_to(spine.run_dir)
    command = [sys.executable, "-W", "error", "-c", example[1]]
    done = subprocess.run(command, cwd=tmp_path, env=dict(os.environ), capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    shown = re.findall(r"\('(i\d{4})', '([^']+)', -?\d", done.stdout)
    assert len(shown) == 10, done.stdout


def test_the_files_that_it_names_lie_in_the_run(spine: Any) -> None:
    prose = re.sub(r"^```\w*\n.*?^```$", "", README, flags=re.DOTALL | re.MULTILINE)
    code = re.findall(r"`([^`]+)`", prose)
    paths = {piece.rstrip(":") for piece in code if piece.partition("/")[0] in IN_RUN_DIR and "/" in piece}
    assert len(paths) >= len(IN_RUN_DIR)
    for path in paths:
        assert (spine.run_dir / path).exists(), path
    named = {piece for piece in code if re.fullmatch(r"\w+\.(json|md)", piece)} - {"report.md"}  # lies where `towers report` was called
    for name in named:
        assert list(spine.run_dir.rglob(name)), name
