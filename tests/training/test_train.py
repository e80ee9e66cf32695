"""The job itself, as a process: results, resume after kill -9, refusals. What needs no process of its own is in test_fit.py."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from training.checkpoint import TENSORS
from training.interactions import write_prepared

REPOSITORY = Path(__file__).resolve().parents[2]
SETTINGS = ("data=synthetic", "trainer.device=cpu", "trainer.threads=1", "model.history.length=8", "model.dim=16")


def command(run_dir, *overrides):
    return [sys.executable, "-m", "training.train", f"run_dir={run_dir}", *SETTINGS, *overrides]


def environment():
    paths = [str(REPOSITORY), *filter(None, [os.environ.get("PYTHONPATH")])]
    return {**os.environ, "PYTHONPATH": os.pathsep.join(paths), "OMP_NUM_THREADS": "1"}


def train(run_dir, *overrides, expect=0):
    done = subprocess.run(command(run_dir, *overrides), cwd=run_dir, env=environment(), capture_output=True, text=True, timeout=120)
    assert done.returncode == expect, done.stderr
    return done


@pytest.fixture(scope="module")
def prepared(tmp_path_factory, make_toy):
    folder = tmp_path_factory.mktemp("toy") / "prepared"
    return write_prepared(folder, make_toy(users=120, events=(8, 24)))


@pytest.fixture
def make_run(tmp_path, prepared):
    def build(name):
        shutil.copytree(prepared, tmp_path / name / "prepared")
        return tmp_path / name

    return build


def weights(run_dir):
    return load_file(run_dir / "model" / "weights.safetensors")


def newest(run_dir):
    return max(p for p in (run_dir / "checkpoints").iterdir() if p.suffix != ".tmp")


def test_a_run_writes_its_results(make_run):
    run_dir = make_run("run")
    done = train(run_dir, "trainer.epochs=2", "trainer.batch_size=64")
    assert done.stdout.splitlines()[-1] == f"train: done -> {run_dir / 'train.json'}"
    assert "full_softmax" in done.stdout and "a target costs about" in done.stdout
    assert sum(line.startswith("epoch ") for line in done.stderr.splitlines()) == 2
    result = json.loads((run_dir / "train.json").read_text())
    assert set(result) == {"run", "valid", "best_epoch", "epochs"}
    assert set(result["run"]) == {
        "experiment", "seed", "config_hash", "git_commit", "wall_s", "cpu_s", "peak_rss_mib",
        "steps", "examples_per_s", "loss", "sampler", "device",
    }  # fmt: skip
    assert result["epochs"] == 2 and result["run"]["sampler"] == "event" and result["run"]["device"] == "cpu"
    assert result["run"]["examples_per_s"] > 0 and 0 <= result["valid"]["valid/ndcg@20"] <= 1
    assert (run_dir / "model" / "model_config.json").is_file() and weights(run_dir)
    assert list((run_dir / "tensorboard").glob("events.*"))


@pytest.mark.long
@pytest.mark.parametrize(
    "overrides",
    [
        ("model=pooled", "loss.name=sampled_softmax", "trainer.batch_size=16"),
        ("model=transformer", "model.history.length=8", "trainer.batch_size=4"),
    ],
    ids=["pooled", "transformer"],
)
def test_kill_9_in_the_second_epoch_and_resume_equals_the_uninterrupted_run(make_run, overrides):
    settings = (*overrides, "trainer.epochs=3", "trainer.checkpoint_every=10", "trainer.patience=0")
    whole, cut = make_run("whole"), make_run("cut")
    train(whole, *settings)
    steps = json.loads((whole / "train.json").read_text())["run"]["steps"]
    process = subprocess.Popen(command(cut, *settings), cwd=cut, env=environment(), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        deadline = time.monotonic() + 60
        while not _step_in(cut / "checkpoints", steps // 3 + 1, 2 * steps // 3 - 1):
            assert time.monotonic() < deadline and process.poll() is None, "the second epoch was not seen"
            time.sleep(0.002)
    finally:
        process.send_signal(signal.SIGKILL)
        process.wait()
    assert process.returncode == -signal.SIGKILL and not (cut / "train.json").exists()
    resumed = train(cut, *settings)
    assert "continuing after step" in resumed.stdout
    mine, theirs = weights(cut), weights(whole)
    assert mine.keys() == theirs.keys() and all(torch.equal(mine[name], theirs[name]) for name in mine)
    mine, theirs = load_file(newest(cut) / TENSORS), load_file(newest(whole) / TENSORS)
    assert all(torch.equal(mine[name], theirs[name]) for name in theirs), "the last state too, not only the best"
    results = [json.loads((run / "train.json").read_text()) for run in (cut, whole)]
    assert results[0]["valid"] == results[1]["valid"] and results[0]["run"]["steps"] == results[1]["run"]["steps"]


def _step_in(folder, first, last):
    names = [p.name for p in folder.glob("*-step-*") if p.suffix != ".tmp"] if folder.is_dir() else []
    return any(first <= int(name.rpartition("-")[2]) <= last for name in names)


def test_without_prepared_data_it_says_what_to_run(tmp_path):
    done = train(tmp_path, expect=3)
    assert "towers prepare" in done.stderr


def test_the_settings_are_read_before_torch():
    code = "import sys, training.train; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], env=environment(), timeout=60).returncode == 0


def test_an_unknown_key_is_refused(tmp_path):
    done = train(tmp_path, "trainer.epoch=3", expect=2)
    assert "epoch" in done.stderr
    assert not (tmp_path / "checkpoints").exists()
