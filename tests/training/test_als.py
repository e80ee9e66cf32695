"""ALS as a baseline of a run: where `implicit` is installed, the benchmark tunes it and leaves what `towers report` reads."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

ROOT = Path(__file__).resolve().parents[2]


def test_als_is_tuned_tested_by_the_same_code_and_read_by_the_report(tmp_path: Path) -> None:
    pytest.importorskip("implicit", reason="the bench extra is not installed")
    rng = np.random.default_rng(0)
    lines = {"train": [], "test": []}
    for user in range(120):  # two tastes, and everybody has a part of the items of one
        items = rng.permutation(40)[:20] * 2 + user % 2
        lines["train"].append(f"{user} {' '.join(map(str, items[:14]))}")
        lines["test"].append(f"{user} {' '.join(map(str, items[14:]))}")
    for name, text in lines.items():
        (tmp_path / f"{name}.txt").write_text("\n".join(text) + "\n")
    run = tmp_path / "run"
    bench = [sys.executable, str(ROOT / "scripts" / "bench" / "als.py"), str(run), "--quick"]
    prepare = [sys.executable, "-m", "towers", "prepare", "experiment=gowalla", f"data.path={tmp_path}", f"run_dir={run}"]
    for command in (prepare, bench):
        done = subprocess.run(command, capture_output=True, text=True, timeout=120, env=dict(os.environ), check=False)
        assert done.returncode == 0, done.stderr
    document = json.loads(done.stdout.splitlines()[-1])
    written = json.loads((run / "baselines" / "als.json").read_text())
    recall = written["metrics"]["test/recall@20"]
    assert document["figures"]["d64/test/recall@20"] == pytest.approx(recall["value"], abs=1e-4)
    assert recall["value"] > 0.5, "20 of the 26 items of one's own taste that are left hold about three quarters of the held-out ones"
    assert recall["ci95"][0] < recall["value"] < recall["ci95"][1] and recall["n"] == 120
    assert len(written["tried"]) == 2 and written["protocol"].endswith("fitted anew on train and valid")
