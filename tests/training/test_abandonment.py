"""What three abandoned items do to a list, on a small world in which abandons tell: train it, then run the benchmark."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[2]
SMALL = (
    "experiment=synthetic_abandon", "data.synthetic.users=500", "data.synthetic.items=300", "data.synthetic.days=40",
    "data.synthetic.events_per_user=30", "trainer.batch_size=256", "trainer.evaluate_every=0", "trainer.threads=1", "model.dim=32",
)  # fmt: skip


def measured(run_dir: Path, *settings: str) -> dict[str, Any]:
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "TOWERS_KEY_FILE": str(run_dir.parent / "key")}
    commands = [[sys.executable, "-m", "towers", job, f"run_dir={run_dir}", *SMALL, *settings] for job in ("prepare", "train")]
    for command in [*commands, [sys.executable, str(ROOT / "scripts" / "bench" / "abandon.py"), str(run_dir), "--quick"]]:
        done = subprocess.run(command, cwd=run_dir.parent, env=environment, capture_output=True, text=True, timeout=600, check=False)
        assert done.returncode == 0, done.stderr
    return dict(json.loads(done.stdout.splitlines()[-1])["ratios"])


@pytest.mark.long
def test_three_abandons_take_a_third_of_their_category_and_cost_the_others_nothing(tmp_path: Path) -> None:
    """The mask alone, which any seen item has, takes about a third; the abandons take clearly more."""
    ratios = measured(tmp_path / "run")
    assert ratios["share_change"] < -0.3
    assert ratios["share_change"] < ratios["share_change_masked"] - 0.05
    assert ratios["ndcg"] > 0.99
