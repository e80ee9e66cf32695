"""The synthetic world is learnable and not trivial: what the default tower must reach on it, and that context helps."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hydra import compose, initialize_config_dir

from towers.runtime import TorchRuntime, load_model
from towers.topk import dot_products
from towers.verbs import conf_dir
from training import metrics
from training.bootstrap import estimate
from training.config import register
from training.interactions import Interactions
from training.queries import Queries, make_queries, recommendable
from training.rank_queries import encode_items, encode_users, rank_queries

K = 20
NDCG = f"test/ndcg@{K}"
JOBS = ("prepare", "train")


def run(run_dir: Path, job: str, *overrides: str) -> None:
    command = [sys.executable, "-m", "towers", job, f"run_dir={run_dir}", *overrides]
    done = subprocess.run(command, cwd=run_dir.parent, env=dict(os.environ), capture_output=True, text=True, timeout=600, check=False)
    assert done.returncode == 0, done.stderr


@pytest.fixture(scope="module")
def default_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    run_dir = tmp_path_factory.mktemp("quality") / "default"
    for job in JOBS:
        run(run_dir, job)
    run(run_dir, "evaluate", "evaluate.baselines=[most_popular,random,oracle]", "evaluate.slices=false")
    return run_dir


def per_query(run_dir: Path) -> tuple[Queries, np.ndarray]:
    """NDCG@20 of each test query, seen items masked, as `towers evaluate` measures it."""
    data = Interactions.open(run_dir / "prepared")
    runtime = TorchRuntime(load_model(run_dir / "model", data.preprocessor, torch.device("cpu")))
    queries = make_queries(data, "test", "event", "global_temporal").unseen()
    users_QHD = encode_users(runtime, queries, runtime.model.config.history.length)
    fill = dot_products(users_QHD, encode_items(runtime, data))
    top = rank_queries(fill, queries, K, masked=True, allowed_I=recommendable(data))
    return queries, metrics.ndcg(metrics.hits(top.rows_Qk, queries.relevant, data.n_items), queries.relevant_Q, K)


@pytest.mark.long
def test_the_world_is_learnable_and_not_trivial(default_run: Path) -> None:
    document: dict[str, Any] = json.loads((default_run / "metrics.json").read_text())
    model = document["metrics"][NDCG]
    popular, random, oracle = (document["baselines"][name][NDCG] for name in ("most_popular", "random", "oracle"))
    assert popular["value"] >= 3 * random["value"]
    assert model["value"] >= 2 * popular["value"]
    assert model["ci95"][0] > popular["ci95"][1]
    assert 0.6 * oracle["value"] <= model["value"] < oracle["value"]
    assert not any("BELOW" in warning for warning in document["warnings"])


@pytest.mark.long
def test_context_helps_with_an_interval_that_excludes_zero(default_run: Path) -> None:
    without = default_run.parent / "no_context"
    for job in JOBS:
        run(without, job, "experiment=synthetic_no_context")
    queries, with_Q = per_query(default_run)
    same, without_Q = per_query(without)
    for one, other in ((queries.user_Q, same.user_Q), (queries.now_Q, same.now_Q), (queries.relevant[1], same.relevant[1])):
        np.testing.assert_array_equal(one, other, err_msg="the two runs do not answer the same queries")
    reported = json.loads((default_run / "metrics.json").read_text())["metrics"][NDCG]["value"]
    assert with_Q.mean() == pytest.approx(reported, abs=1e-4)
    gain = estimate((with_Q - without_Q)[:, None], queries.user_Q, draws=1000, seed=0)
    print(f"context adds {gain.value_M[0]:.4f} [{gain.low_M[0]:.4f}, {gain.high_M[0]:.4f}] to {without_Q.mean():.4f}")
    assert gain.low_M[0] > 0
    assert gain.value_M[0] > 0.2 * without_Q.mean(), "context matters in this world, and not by a hair"


def test_the_run_without_context_differs_in_nothing_else() -> None:
    register()
    with initialize_config_dir(str(conf_dir()), version_base="1.3"):
        default, without = compose("train"), compose("train", overrides=["experiment=synthetic_no_context"])
    kept = [feature for feature in default.data.features if feature.owner != "context"]
    assert len(kept) < len(default.data.features)
    assert without.data.features == kept
    for config in (default, without):
        for key in ("experiment", "run_dir"):
            config[key] = ""
        config.data.features = []
    assert default == without
