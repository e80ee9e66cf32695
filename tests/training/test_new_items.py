"""Items that were not in training, told from their content by a regression on the trained vectors."""

import numpy as np
import pytest
import scipy.sparse
import torch

from serving.onnx_runtime import OnnxRuntime
from towers.bundle import Bundle, publish
from towers.encoder import Encoder, UserRow
from towers.errors import BundleError, ConfigError
from towers.fitting import PreprocessorFit
from towers.model import TwoTower
from towers.model_config import HistoryConfig, ModelConfig
from towers.new_items import entries, lay_out
from towers.runtime import TorchRuntime, load_runtime, save_model
from towers.schema import Feature, make_schema
from training.config import TrainerConfig, TrainingConfig, validate
from training.fit import run
from training.interactions import write_prepared
from training.new_items_fit import fit_new_items, ridge
from training.onnx_export import export_towers
from training.warm_start import warm_start

FEATURES = [
    Feature("categories", "multi_categorical", "item", max_values=3),
    Feature("title", "text", "item", max_values=4, buckets=32),
    Feature("year", "numeric", "item"),
    Feature("sound", "dense", "item", width=2),
]


@pytest.fixture(scope="module")
def catalogue():
    """Encoded items with every kind of content, and the fitted preprocessing."""
    columns = {
        "item_id": [f"i{n}" for n in range(30)],
        "categories": [["a", "b"], ["b"], [], ["c", "a", "b"], ["a"]] * 6,
        "title": ["one word", "two words here", "", "word", "here"] * 6,
        "year": [1990 + n if n % 7 else None for n in range(30)],
        "sound": [[n / 30, -1.0] for n in range(30)],
    }
    fit = PreprocessorFit(make_schema(FEATURES, "time", {}))
    fit.see("item", columns)
    preprocessor = fit.finish()
    return preprocessor, preprocessor.encode("item", columns, 30)


def test_ridge_solves_the_normal_equations():
    rng = np.random.default_rng(0)
    x_NF, y_ND, weight_N = (rng.random((50, 9)) < 0.3).astype(float), rng.normal(size=(50, 4)), rng.random(50) + 0.5
    exact = np.linalg.solve(x_NF.T * weight_N @ x_NF + 2.0 * np.eye(9), x_NF.T * weight_N @ y_ND)
    np.testing.assert_allclose(ridge(scipy.sparse.csr_array(x_NF), y_ND, weight_N, 2.0), exact, atol=1e-4)


def test_every_kind_of_content_has_its_columns(catalogue):
    preprocessor, batch = catalogue
    blocks = lay_out(preprocessor.inputs, batch)
    assert [(block.input, block.kind) for block in blocks] == [
        ("item.categories", "values"), ("item.categories", "pairs"), ("item.title", "values"), ("item.year", "number"),
        ("item.sound", "dense"), ("", "one"),
    ]  # fmt: skip
    columns_CJ, values_CJ = entries(blocks, batch)
    size, start = sum(block.size for block in blocks), np.cumsum([0, *(block.size for block in blocks)])
    x_CF = np.zeros((30, size))
    np.add.at(x_CF, (np.arange(30)[:, None], columns_CJ), values_CJ)
    [values, pairs, words, year, sound, one] = [x_CF[:, start[b] : start[b + 1]] for b in range(len(blocks))]
    assert values.sum(1).tolist()[:5] == [2, 1, 1, 3, 1], "no category is a value of its own"
    assert pairs.sum(1).tolist()[:5] == [1, 0, 0, 3, 0]
    # a pair is one column, in whichever order its values stand
    assert ((pairs[0] > 0) & (pairs[3] > 0)).sum() == 1
    assert np.array_equal(words.sum(1), (batch["item.title"] > 0).sum(1)) and words.sum() > 0
    known = np.array([n % 7 != 0 for n in range(30)])
    np.testing.assert_allclose(year[known, :-1].sum(1), 1, atol=1e-6)
    assert (year[~known, -1] == 1).all() and not year[~known, :-1].any() and not year[known, -1].any()
    place = year[known, :-1] @ np.arange(year.shape[1] - 1)
    assert (np.diff(place) > 0).all() and place[0] == 0 and place[-1] == year.shape[1] - 2
    np.testing.assert_allclose(sound[:, 0], np.arange(30) / 30, atol=1e-6)
    assert (one == 1).all()


@pytest.fixture(scope="module")
def towers(toy_set):
    """A model whose item vectors follow their group, and what was fitted on it."""
    torch.manual_seed(0)
    model = TwoTower(
        ModelConfig(dim=8, history=HistoryConfig(length=6)), toy_set.preprocessor.inputs, toy_set.preprocessor.event_rows
    ).eval()
    group_I = np.arange(toy_set.n_items) // 9
    with torch.no_grad():
        centre_GD = 3.0 * torch.randn(group_I.max() + 1, 8)
        rows_I = torch.from_numpy(toy_set.item_features["item.item_id"].astype(np.int64))
        model.tables["item_id"].weight[rows_I] = centre_GD[group_I] + 0.1 * torch.randn(len(group_I), 8)
    return model, fit_new_items(model, toy_set)


def new_of(preprocessor, runtime, group):
    return Encoder(preprocessor, runtime, 6).items({"item_id": ["brand new"], "categories": [[group]]}, 1)


def test_new_items_land_beside_those_of_their_kind_and_trained_ones_stay(toy_set, towers, tmp_path):
    model, fitted = towers
    save_model(model, tmp_path, fitted)
    plain, runtime = TorchRuntime(model), load_runtime(tmp_path, toy_set.preprocessor)
    before_ID, after_ID = plain.item(toy_set.item_features), runtime.item(toy_set.item_features)
    trained_I = toy_set.train_counts() > 0
    assert np.array_equal(before_ID[trained_I], after_ID[trained_I])
    assert np.linalg.norm(after_ID, axis=1) == pytest.approx(1, abs=1e-5)
    for group in range(3):
        [vector_D] = new_of(toy_set.preprocessor, runtime, f"group-{group}")
        nearest = np.argsort(-(before_ID[trained_I] @ vector_D))[:5]
        assert (np.flatnonzero(trained_I)[nearest] // 9 == group).all()


def test_onnx_gives_the_vectors_of_torch_and_a_refresh_starts_from_the_towers(toy_set, towers, tmp_path):
    model, fitted = towers
    toy_set.preprocessor.save(tmp_path)
    save_model(model, tmp_path, fitted)
    (tmp_path / "tables").mkdir()
    for name, table in model.table_arrays().items():
        np.save(tmp_path / "tables" / f"{name}.npy", table)
    user = Encoder(toy_set.preprocessor, TorchRuntime(model), 6).user_batch([UserRow(), UserRow(["item-001"])])
    export_towers(model, user, {name: array[:20] for name, array in toy_set.item_features.items()}, tmp_path / "onnx")
    files = {path.relative_to(tmp_path).as_posix(): path for path in tmp_path.rglob("*") if path.is_file()}
    bundle = Bundle.open(publish(tmp_path / "bundles", "v1", files, {}))
    onnx, reference = OnnxRuntime(bundle, bundle.preprocessor()), load_runtime(tmp_path, toy_set.preprocessor)
    for group in ("group-0", "never seen"):
        found = new_of(bundle.preprocessor(), onnx, group)
        np.testing.assert_allclose(found, new_of(toy_set.preprocessor, reference, group), atol=1e-6)
        assert not np.allclose(found, new_of(toy_set.preprocessor, TorchRuntime(model), group), atol=1e-2)
    fresh = TwoTower(model.config, toy_set.preprocessor.inputs, toy_set.preprocessor.event_rows)
    warm_start(fresh, toy_set.preprocessor, str(tmp_path / "bundles" / "v1"))
    assert torch.equal(fresh.tables["item_id"].weight, model.tables["item_id"].weight)


def test_weights_that_do_not_fit_their_layout_are_refused(toy_set, towers, tmp_path):
    model, fitted = towers
    cut = type(fitted)(fitted.blocks, fitted.weights_FD[:-1], fitted.length)
    save_model(model, tmp_path, cut)
    with pytest.raises(BundleError, match="new_items.weights is float32"):
        load_runtime(tmp_path, toy_set.preprocessor)


def test_a_finished_run_is_written_anew_with_them_and_without(tmp_path, make_toy, capsys):
    toy = make_toy()
    write_prepared(tmp_path / "prepared", toy)
    vectors = {}
    for new_items in ("tower", "content", "tower"):
        config = TrainingConfig(run_dir=str(tmp_path), trainer=TrainerConfig(epochs=1, device="cpu", batch_size=64, new_items=new_items))
        config.model.dim, config.model.history.length = 8, 6
        run(config)
        found = new_of(toy.preprocessor, load_runtime(tmp_path / "model", toy.preprocessor), "group-1")
        assert np.array_equal(vectors.setdefault(new_items, found), found)
    assert not np.allclose(vectors["tower"], vectors["content"], atol=1e-3)
    assert capsys.readouterr().out.count("continuing after step") == 2, "no step is taken again"
    with pytest.raises(ConfigError, match="trainer.new_items: got 'both'"):
        validate(TrainingConfig(run_dir="here", trainer=TrainerConfig(new_items="both")))
