"""The job itself, as a process: results, resume after kill -9, refusals. What needs no process of its own is in test_fit.py."""

import contextlib
import json
import os
import random
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
KILLS = 10
WAIT_S = 600
"""For whatever is to happen: seconds on idle cores, minutes on busy ones."""
SETTINGS = ("data=synthetic", "trainer.device=cpu", "trainer.threads=1", "model.history.length=8", "model.dim=16")


def command(run_dir, *overrides):
    return [sys.executable, "-m", "training.train", f"run_dir={run_dir}", *SETTINGS, *overrides]


def environment():
    paths = [str(REPOSITORY), *filter(None, [os.environ.get("PYTHONPATH")])]
    return {**os.environ, "PYTHONPATH": os.pathsep.join(paths), "OMP_NUM_THREADS": "1"}


def train(run_dir, *overrides, expect=0):
    done = subprocess.run(command(run_dir, *overrides), cwd=run_dir, env=environment(), capture_output=True, text=True, timeout=WAIT_S)
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
    assert set(result) == {
        "run", "valid", "best_epoch", "epochs", "targets", "refit", "spectral", "half_tables", "prepared", "learned", "settings",
    }  # fmt: skip
    assert result["prepared"] == "", "these columns were not written by prepare"
    assert set(result["run"]) == {
        "experiment", "seed", "config_hash", "git_commit", "wall_s", "cpu_s", "peak_rss_mib",
        "steps", "examples_per_s", "loss", "sampler", "device", "processes",
    }  # fmt: skip
    assert result["refit"] is result["spectral"] is None and result["targets"] > 0 and result["epochs"] == 2
    assert result["run"]["sampler"] == "event" and result["run"]["device"] == "cpu"
    assert result["run"]["examples_per_s"] > 0 and 0 <= result["valid"]["valid/ndcg@20"] <= 1
    assert (run_dir / "model" / "model_config.json").is_file() and weights(run_dir)
    assert list((run_dir / "tensorboard").glob("events.*"))


@pytest.mark.long
@pytest.mark.timeout(3600)
@pytest.mark.parametrize(
    "overrides",
    [
        ("model=pooled", "loss.name=sampled_softmax", "trainer.batch_size=16"),
        ("model=transformer", "model.history.length=8", "trainer.batch_size=4"),
    ],
    ids=["pooled", "transformer"],
)
def test_kill_9_at_ten_random_points_and_resume_equals_the_uninterrupted_run(make_run, overrides):
    settings = (*overrides, "trainer.epochs=4", "trainer.checkpoint_every=7", "trainer.patience=0")
    whole, cut = make_run("whole"), make_run("cut")
    train(whole, *settings)
    steps = json.loads((whole / "train.json").read_text())["run"]["steps"]
    rng = random.Random(0)
    saved = []
    for point in sorted(rng.sample(range(steps * 9 // 10), KILLS)):
        kill_after(cut, settings, point, rng.uniform(0, 0.05))
        saved.append(newest_step(cut))
    assert saved == sorted(saved) and len(set(saved)) > KILLS // 2, "the kills were spread over the run"
    resumed = train(cut, *settings)
    assert "continuing after step" in resumed.stdout
    assert_same_run(cut, whole)


def kill_after(run_dir, settings, point, more_s):
    """Train, and kill -9 a moment after a checkpoint of step `point` or later is seen."""
    told = run_dir / "told.txt"
    with told.open("w") as errors:
        process = subprocess.Popen(
            command(run_dir, *settings), cwd=run_dir, env=environment(), stdout=subprocess.PIPE, stderr=errors, text=True
        )
    try:
        assert process.stdout.readline().startswith("train: "), told.read_text()
        deadline = time.monotonic() + WAIT_S
        while newest_step(run_dir) < point:
            assert time.monotonic() < deadline and process.poll() is None, f"step {point} was not seen: {told.read_text()}"
            time.sleep(0.002)
        time.sleep(more_s)
    finally:
        process.send_signal(signal.SIGKILL)
        process.wait()
        process.stdout.close()
    assert process.returncode == -signal.SIGKILL and not (run_dir / "train.json").exists()


def newest_step(run_dir):
    names = [p.name for p in (run_dir / "checkpoints").glob("*-step-*[0-9]")]
    return max((int(name.rpartition("-")[2]) for name in names), default=-1)


def assert_same_run(mine, theirs):
    """Bit for bit: the best weights, the last state, and what was said of them."""
    for a, b in ((weights(mine), weights(theirs)), (load_file(newest(mine) / TENSORS), load_file(newest(theirs) / TENSORS))):
        assert a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in b)
    results = [json.loads((run / "train.json").read_text()) for run in (mine, theirs)]
    assert results[0]["valid"] == results[1]["valid"] and results[0]["run"]["steps"] == results[1]["run"]["steps"]


@pytest.mark.long
@pytest.mark.timeout(3600)
def test_a_full_disk_loses_nothing_saved_and_the_run_goes_on(make_run, small_disk):
    """A real one: checkpoints lie on a file system of their own, which is filled up while the run goes."""
    settings = ("model=pooled", "trainer.batch_size=16", "trainer.epochs=8", "trainer.checkpoint_every=5", "trainer.patience=0")
    whole, cut = make_run("whole"), make_run("cut")
    train(whole, *settings)
    small_disk(cut / "checkpoints")
    process = subprocess.Popen(
        command(cut, *settings), cwd=cut, env=environment(), stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True
    )
    deadline = time.monotonic() + WAIT_S
    while newest_step(cut) < 0:
        assert time.monotonic() < deadline and process.poll() is None
        time.sleep(0.002)
    ballast = cut / "checkpoints" / "ballast"
    with contextlib.suppress(OSError), ballast.open("wb", buffering=0) as file:
        while True:
            file.write(bytes(4096))
    _, told = process.communicate(timeout=WAIT_S)
    assert process.returncode == 3 and "No space left" in told and "are kept" in told and "Free some space" in told, told
    kept = newest_step(cut)
    ballast.unlink()
    assert f"continuing after step {kept}" in train(cut, *settings).stdout
    assert_same_run(cut, whole)


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
