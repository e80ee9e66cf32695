"""Sets of items without order: files, towers joined with a spectral part, refit, bundle, index, lists for people never seen in training."""

import json
import os
import subprocess
import sys

import numpy as np
import pytest

from serving.retriever import Retriever
from towers.bundle import current
from towers.encoder import Encoder, UserRow
from towers.runtime import TorchRuntime, load_model
from training.interactions import Interactions

GROUPS, ITEMS, USERS = 4, 60, 150
SMALL = ("model.dim=16", "model.spectral.dim=12", "trainer.threads=1", "evaluate.draws=20")


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """Each person likes one group of items; train.txt, valid.txt (inside train) and test.txt as the LightGCN family writes them."""
    folder = tmp_path_factory.mktemp("sets")
    rng = np.random.default_rng(0)
    lines = {"train": [], "valid": [], "test": []}
    for user in range(USERS):
        own = np.arange(user % GROUPS, ITEMS, GROUPS)
        taken = [f"i{item}" for item in rng.permutation(np.append(rng.permutation(own)[:10], rng.integers(0, ITEMS, 2)))]
        taken = list(dict.fromkeys(taken))
        lines["train"].append(" ".join([f"u{user}", *taken[:-2]]))
        lines["valid"].append(f"u{user} {taken[0]}")
        lines["test"].append(" ".join([f"u{user}", *taken[-2:]]))
    (folder / "data").mkdir()
    for name, rows in lines.items():
        (folder / "data" / f"{name}.txt").write_text("\n".join(rows) + "\n")
    for job in ("prepare", "train", "evaluate", "export"):
        towers(folder, job, "experiment=gowalla", "data.path=data", *SMALL)
    towers(folder, "index", "index.exact_up_to=10")
    return folder / "run"


def towers(folder, job, *settings):
    command = [sys.executable, "-W", "error", "-m", "towers", job, *settings, "run_dir=run"]
    done = subprocess.run(command, cwd=folder, env=dict(os.environ), capture_output=True, text=True, timeout=250, check=False)
    assert done.returncode == 0, done.stderr


def test_the_recipe_learns_and_both_counts_are_told(run):
    trained, measured = (json.loads((run / name).read_text()) for name in ("train.json", "metrics.json"))
    assert trained["refit"]["targets"] - trained["targets"] == measured["data"]["split_rows"]["valid"] == USERS
    assert trained["refit"]["epochs"] == trained["best_epoch"] >= 1
    assert measured["metrics"]["test/recall@20"]["value"] > measured["baselines"]["most_popular"]["test/recall@20"]["value"] + 0.2


def test_serving_ranks_as_training_does(run):
    """Torch sums rows in the table, the ONNX graph sums gathered ones; histories of every length, the whole of it."""
    data = Interactions.open(run / "prepared")
    model = load_model(run / "model", data.preprocessor)
    retriever = Retriever.open(current(run / "bundles"))
    encoder = Encoder(data.preprocessor, TorchRuntime(model), model.config.history.length)
    rows = [UserRow(history_items=[f"i{item}" for item in range(count)]) for count in range(model.config.history.length + 3)]
    ours, theirs = encoder.users(rows), retriever.encoder.users(rows)
    np.testing.assert_allclose(theirs.vectors_BHD, ours.vectors_BHD, atol=1e-5)
    np.testing.assert_allclose(theirs.history_weights_BL, ours.history_weights_BL, atol=1e-6)


def test_whoever_has_a_persons_history_gets_that_persons_list(run):
    retriever = Retriever.open(current(run / "bundles"), run / "export" / "histories.parquet")
    data = Interactions.open(run / "prepared")
    ids = data.catalog.column("item_id").to_pylist()
    known = retriever.recommend(user_id="u5", k=10)
    assert known.fallback is None
    # of the stored person everything is history, in no order
    line = next(line.split() for line in (run.parent / "data" / "train.txt").read_text().splitlines() if line.startswith("u5 "))
    test = next(line.split() for line in (run.parent / "data" / "test.txt").read_text().splitlines() if line.startswith("u5 "))
    history = [*line[1:], *test[1:]]
    assert set(history) <= set(ids)
    for order in (history, history[::-1]):
        stranger = retriever.recommend(history=order, k=10)
        assert [item.item_id for item in stranger.items] == [item.item_id for item in known.items]
        assert [item.score for item in stranger.items] == pytest.approx([item.score for item in known.items], abs=1e-5)
