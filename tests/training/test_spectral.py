"""Spectral vectors against a dense singular value decomposition, and the tables they are put into."""

import json

import numpy as np
import pytest
import scipy.sparse as sp
import torch

from towers.batch import HISTORY_ITEM
from towers.columns import FIRST_ROW, NO_TIME
from towers.model import TwoTower
from towers.model_config import HistoryConfig, ModelConfig
from towers.runtime import load_model
from training import fit
from training.config import TrainerConfig, TrainingConfig
from training.interactions import Interactions, write_prepared
from training.spectral import interaction_matrix, spectral_start, spectral_vectors


def dense_filter(matrix, dim):
    """(normalised matrix's) V V^T of the `dim` greatest singular values, and those values."""
    users, items = (np.maximum(matrix.sum(axis), 1) ** -0.5 for axis in (1, 0))
    _, sigma, right = np.linalg.svd(users[:, None] * matrix * items)
    return right[:dim].T @ right[:dim], sigma[:dim]


def communities(rng, users=90, items=40, groups=6):
    """As many clear directions as groups, and noise well below them."""
    near = (np.arange(users)[:, None] % groups) == (np.arange(items) % groups)
    return (rng.random((users, items)) < np.where(near, 0.7, 0.05)).astype(np.float32)


def test_vectors_equal_a_dense_decomposition():
    matrix = communities(np.random.default_rng(0))
    matrix[:, 7] = 0  # met by nobody
    vectors, sigma = spectral_vectors(sp.csr_array(matrix), 6, seed=0)
    wanted, wanted_sigma = dense_filter(matrix, 6)
    np.testing.assert_allclose(sigma, wanted_sigma, atol=1e-4)
    np.testing.assert_allclose(vectors @ vectors.T, wanted, atol=1e-3)
    assert np.abs(vectors[7]).max() < 1e-9 and (vectors.sum(0) > -1e-4).all()


def test_as_many_vectors_as_there_are_users():
    matrix = communities(np.random.default_rng(1), users=5, items=8)
    vectors, sigma = spectral_vectors(sp.csr_array(matrix), 5, seed=0)
    assert vectors.shape == (8, 5) and np.isfinite(vectors).all()
    np.testing.assert_allclose(sigma, dense_filter(matrix, 5)[1], atol=1e-3)


@pytest.fixture(scope="module")
def toy(make_toy):
    return make_toy(order="set")


def build(data, dim, **settings):
    torch.manual_seed(3)
    config = ModelConfig(dim=dim, id_dropout=0.0, history=HistoryConfig(length=30), **settings)
    return TwoTower(config, data.preprocessor.inputs, data.preprocessor.event_rows).eval()


def test_the_sum_of_a_history_scores_as_the_low_pass_filter(toy):
    """history rows d^-1/2 V, item rows d^1/2 V: x Di^-1/2 V V^T Di^1/2, up to one factor for all scores of a user."""
    model, dim = build(toy, 4, similarity="dot"), 4
    spectral_start(model, toy, seed=0)
    matrix = interaction_matrix(toy).toarray()
    degree = matrix.sum(0)
    met = degree > 0
    low_pass, _ = dense_filter(matrix, dim)
    id_rows = np.asarray(toy.item_features["item.item_id"])
    for user in range(5):
        items = np.flatnonzero(matrix[user])
        rows = torch.from_numpy(id_rows[items].astype(np.int64))
        mean = model.tables["history_item"].weight[rows].mean(0)
        scores = (model.tables["item_id"].weight[torch.from_numpy(id_rows.astype(np.int64))] @ mean).detach().numpy()[met]
        wanted = ((matrix[user] * np.maximum(degree, 1) ** -0.5) @ low_pass * degree**0.5)[met]
        assert np.corrcoef(scores, wanted)[0, 1] > 0.9999


@pytest.mark.parametrize("share", [False, True])
def test_tables_are_filled_where_training_has_met_the_item(toy, share):
    model = build(toy, 60)  # more dimensions than the data have items
    model.config.history.share_item_table = share
    if share:
        torch.manual_seed(3)
        model = TwoTower(model.config, toy.preprocessor.inputs, toy.preprocessor.event_rows)
    before = {name: table.weight.detach().clone() for name, table in model.tables.items()}
    said = spectral_start(model, toy, seed=0)
    met = np.unique(np.asarray(toy.item_features["item.item_id"])[interaction_matrix(toy).sum(0) > 0])
    met = torch.from_numpy(met[met >= FIRST_ROW].astype(np.int64))
    assert f"{len(met)} items" in said
    for name, table in model.tables.items():
        changed = torch.nonzero((table.weight != before[name]).any(1)).flatten()
        assert torch.equal(changed, met), "rows of unknown items, padding and OOV stay as they were"
    lengths = model.tables["item_id"].weight[met].norm(dim=1)
    assert (lengths - 1).abs().max() < 0.02, "the rest is small random numbers"


def test_a_new_user_with_the_same_history_gets_the_same_vector(toy):
    model = build(toy, 8)
    spectral_start(model, toy, seed=0)
    batch = {HISTORY_ITEM: np.array([[0, 3, 4, 5], [0, 3, 4, 5]], np.int32), "history.event": np.full((2, 4), 2, np.int32)}
    batch |= {"history.age": np.array([[0, 1, 1, 1]] * 2, np.int32), **toy.preprocessor.encode("context", {}, 2)}
    vectors = model.user({name: torch.from_numpy(np.array(a)) for name, a in batch.items()}).vectors_BHD
    assert torch.equal(vectors[0], vectors[1])


def test_a_run_starts_from_the_training_rows_takes_whole_histories_and_continues(tmp_path, make_toy, monkeypatch, capsys):
    data = make_toy(order="set", users=30, events=(6, 15))
    assert (data.timestamp == NO_TIME).all()
    write_prepared(tmp_path / "prepared", data)
    trainer = TrainerConfig(sampler="user", start="spectral", predict="all", history_share=0.7, epochs=2, refit=True, device="cpu")
    config = TrainingConfig(run_dir=str(tmp_path), trainer=trainer)
    config.model.dim, config.model.history.length, config.split.name = 6, 0, "given"
    config.loss.name = "full_softmax"
    starts = []

    def started(model, rows, seed):
        starts.append(int(rows.train_counts().sum()))
        return spectral_start(model, rows, seed)

    monkeypatch.setattr(fit, "spectral_start", started)
    fit.run(config)
    result = json.loads((tmp_path / "train.json").read_text())
    assert starts == [result["targets"], result["refit"]["targets"]], (
        "the refit's vectors have seen the validation rows, the first ones have not"
    )
    assert "spectral start: 6 dimensions" in capsys.readouterr().out
    opened = Interactions.open(tmp_path / "prepared")
    longest = int(np.diff(opened.offsets).max())
    assert load_model(tmp_path / "model", opened.preprocessor).config.history.length == longest
    fit.run(config)
    assert len(starts) == 2, "a run that goes on does not start again"


@pytest.mark.realdata
def test_gowalla_is_ranked_well_before_any_training(gowalla):
    """64 dimensions, every 30th user, train items masked; exact singular vectors give 0.145, those of four rounds a little more."""
    train, test = (pairs_of(gowalla / f"{name}.txt") for name in ("train", "test"))
    shape = (max(train[0].max(), test[0].max()) + 1, max(train[1].max(), test[1].max()) + 1)
    matrix, wanted = (sp.csr_array((np.ones(len(u), np.float32), (u, i)), shape=shape) for u, i in (train, test))
    vectors, _ = spectral_vectors(matrix, 64, seed=0)
    degree = np.maximum(matrix.sum(0), 1)[:, None]
    some = np.arange(0, shape[0], 30)
    history, wanted = matrix[some], wanted[some]
    scores = (history @ (degree**-0.5 * vectors)) @ (degree**0.5 * vectors).T
    scores[history.nonzero()] = -np.inf
    best = np.argpartition(-scores, 20, axis=1)[:, :20]
    hits = np.take_along_axis(wanted.toarray(), best, axis=1).sum(1)
    assert (hits / wanted.sum(1)).mean() == pytest.approx(0.149, abs=0.005)


def pairs_of(path):
    lines = [np.array(line.split(), np.int64) for line in path.read_text().splitlines() if line.strip()]
    return np.repeat([line[0] for line in lines], [len(line) - 1 for line in lines]), np.concatenate([line[1:] for line in lines])
