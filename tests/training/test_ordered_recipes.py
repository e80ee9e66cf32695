"""The recipes for ordered sets, cut short, on the real sets: they compose, train, read what they should and pass the counted baselines."""

import json
import os
import subprocess
import sys

import pytest

from towers.lookups import plan_towers
from towers.model_config import model_config_from_json
from towers.preprocess import Preprocessor

pytestmark = [pytest.mark.realdata, pytest.mark.long]


def towers(run_dir, job, experiment, path, *overrides):
    command = [sys.executable, "-m", "towers", job, f"experiment={experiment}", f"run_dir={run_dir}", f"data.path={path}"]
    command += ["trainer.threads=1", *overrides]
    done = subprocess.run(command, env=dict(os.environ), capture_output=True, text=True, timeout=1200, check=False)
    assert done.returncode == 0, done.stderr


def short_run(run_dir, experiment, path, *overrides):
    towers(run_dir, "prepare", experiment, path)
    towers(run_dir, "train", experiment, path, "evaluate.seen=masked", *overrides)
    towers(run_dir, "evaluate", experiment, path, "evaluate.seen=masked", "evaluate=quick", *overrides)
    config = model_config_from_json(json.loads((run_dir / "model" / "model_config.json").read_text()))
    inputs = Preprocessor.open(run_dir / "prepared").inputs
    document = json.loads((run_dir / "metrics.json").read_text())
    ndcg = {name: metrics["test/ndcg@10"]["value"] for name, metrics in document["baselines"].items()}
    return config, plan_towers(config, inputs, 5), document["metrics"]["test/ndcg@10"]["value"], ndcg


def test_beauty_reads_attributes_and_needs_no_times(tmp_path, real_data):
    config, plan, ndcg, baselines = short_run(tmp_path / "beauty", "beauty", real_data("amazon-beauty"), "trainer.epochs=3")
    assert config.history.length == 30, "enough for 95 % of the users"
    assert [spec.name for spec in plan.item_specs] == ["item.item_id", "item.attributes"]
    assert ndcg > 2 * baselines["most_popular"]


def test_ml_1m_is_past_popularity_after_an_epoch(tmp_path, real_data):
    config, plan, ndcg, baselines = short_run(
        tmp_path / "ml", "ml_1m_loo", real_data("ml-1m"), "trainer.epochs=1", "trainer.evaluate_every=1"
    )
    assert config.history.length == 100
    assert "history.gap" in {entry.name for entry in plan.user}
    assert ndcg > 3 * baselines["most_popular"]
