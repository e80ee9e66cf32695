"""The spectral part beside the learned towers: one dot product that is the sum of two scores, computed from the rows that training had."""

import json
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from towers.batch import HISTORY_ITEM
from towers.columns import FIRST_ROW, OOV_ROW, TRAIN
from towers.encoder import Encoder, UserRow
from towers.errors import ConfigError, DataError, GateError
from towers.lookups import SPECTRAL_HISTORY, SPECTRAL_ITEM, gather
from towers.model import ExportCore, TwoTower
from towers.model_config import HistoryConfig, ModelConfig, SpectralConfig
from towers.runtime import TorchRuntime, load_model, to_tensors
from training import fit, join, onnx_export
from training.config import TrainerConfig, TrainingConfig, validate
from training.interactions import Interactions, write_prepared
from training.narrow import _factor, training_users
from training.onnx_export import export_towers
from training.rank_queries import encode_users
from training.spectral import interaction_matrix, spectral_tables
from training.validation import Validator
from training.warm_start import warm_start

WEIGHT, DIM, SPECTRAL = 0.6, 5, 4


@pytest.fixture(scope="module")
def towers_apart(toy_set):
    torch.manual_seed(3)
    config = ModelConfig(dim=DIM, id_dropout=0.0, history=HistoryConfig(length=30))
    return TwoTower(config, toy_set.preprocessor.inputs, toy_set.preprocessor.event_rows).eval()


@pytest.fixture(scope="module")
def joined(toy_set, towers_apart):
    return join.join_spectral(towers_apart, toy_set, SpectralConfig(SPECTRAL, WEIGHT), seed=0)


def histories(data, users):
    """Training items of some users, as a request names them."""
    ids = data.catalog.column("item_id").to_pylist()
    return [UserRow(history_items=[ids[item] for item in np.flatnonzero(interaction_matrix(data)[[user]].toarray()[0])]) for user in users]


def test_scores_are_the_learned_ones_and_the_weighted_filter(toy_set, towers_apart, joined):
    users = range(8)
    scores = []
    for model in (towers_apart, joined):
        encoder = Encoder(toy_set.preprocessor, TorchRuntime(model), 30)
        encoded = encoder.users(histories(toy_set, users))
        scores.append(encoded.vectors_BHD[:, 0] @ encoder.runtime.item(toy_set.item_features).T)
    matrix = interaction_matrix(toy_set).toarray()
    degree = np.maximum(matrix.sum(0), 1)
    normal = np.maximum(matrix.sum(1, keepdims=True), 1) ** -0.5 * matrix * degree**-0.5
    right = np.linalg.svd(normal)[2][:SPECTRAL]
    low_pass = (matrix[: len(users)] * degree**-0.5) @ right.T @ right * degree**0.5
    np.testing.assert_allclose(scores[1], scores[0] + WEIGHT * low_pass, atol=3e-3)
    assert np.abs(scores[1] - scores[0]).max() > 0.1


def test_onnx_graphs_equal_torch_with_gathered_rows_of_both_widths(toy_set, joined, tmp_path):
    encoder = Encoder(toy_set.preprocessor, TorchRuntime(joined), 30)
    batch = encoder.user_batch([*histories(toy_set, range(3)), UserRow()])
    assert export_towers(joined, batch, toy_set.item_features, tmp_path) < 1e-5
    arrays = gather(batch, joined.plan.user, joined.table_arrays())
    core = ExportCore(joined, "user")(*(torch.from_numpy(np.array(arrays[entry.name])) for entry in joined.plan.user))[0]
    with torch.no_grad():  # rows summed in the table, and rows gathered first
        torch.testing.assert_close(core, joined.user(to_tensors(batch)).vectors_BHD, atol=1e-6, rtol=0)
    assert core.shape == (4, 1, DIM + SPECTRAL) == (4, 1, joined.config.width)


def test_whoever_has_the_same_history_gets_the_same_vector_and_strangers_are_silent(toy_set, joined):
    encoder = Encoder(toy_set.preprocessor, TorchRuntime(joined), 30)
    row = histories(toy_set, [2])[0]
    turned = UserRow(history_items=row.history_items[::-1])
    strange = UserRow(history_items=[*row.history_items, "no such item"])
    vectors = encoder.users([row, turned, strange, UserRow()]).vectors_BHD[:, 0]
    np.testing.assert_allclose(vectors[1], vectors[0], atol=1e-6)
    np.testing.assert_allclose(vectors[2, DIM:], vectors[0, DIM:], atol=1e-6)
    assert not vectors[3, DIM:].any() and vectors[0, DIM:].any()


def test_a_cold_item_has_zeros_in_the_spectral_part(toy_set, joined):
    items = TorchRuntime(joined).item(toy_set.item_features)
    cold = np.asarray(interaction_matrix(toy_set).sum(0)).ravel() == 0
    assert cold.any() and not items[cold, DIM:].any() and items[~cold, DIM:].any(1).all()
    assert (np.asarray(toy_set.item_features["item.item_id"])[cold] < FIRST_ROW).any()
    new = Encoder(toy_set.preprocessor, TorchRuntime(joined), 30).items({"item_id": ["brand new"], "categories": [["group-1"]]}, 1)
    assert not new[:, DIM:].any() and np.linalg.norm(new[:, :DIM]) == pytest.approx(1, abs=1e-4)
    assert not any(joined.table_arrays()[name][: OOV_ROW + 1].any() for name in (SPECTRAL_ITEM, SPECTRAL_HISTORY))


def settings(folder, **trainer):
    config = TrainingConfig(run_dir=str(folder), trainer=TrainerConfig(epochs=2, device="cpu", **trainer))
    config.model = ModelConfig(dim=DIM, history=HistoryConfig(length=0), spectral=SpectralConfig(SPECTRAL))
    config.split.name, config.data.order = "given", "set"
    return config


def test_a_run_weighs_on_training_rows_joins_on_all_and_may_start_again(tmp_path, toy_set, monkeypatch, capsys):
    write_prepared(tmp_path / "prepared", toy_set)
    config = settings(tmp_path, refit=True)
    seen = []

    def tables(data, dim, seed):
        seen.append(int((data.split == TRAIN).sum()))
        return spectral_tables(data, dim, seed)

    monkeypatch.setattr(join, "spectral_tables", tables)
    fit.run(config)
    result = json.loads((tmp_path / "train.json").read_text())
    assert seen == [result["targets"], result["refit"]["targets"]], "what is weighed has not seen the validation rows, what is kept has"
    tried, weight = result["spectral"]["tried"], result["spectral"]["weight"]
    assert weight >= float(max(tried, key=lambda name: tried[name])) and list(tried) == ["0", *(f"{one:g}" for one in join.WEIGHTS)]
    assert result["valid"]["valid/ndcg@20"] == tried[f"{weight:g}"] > tried["0"]
    assert f"spectral part: weight {weight:g}; valid/ndcg@20" in capsys.readouterr().err
    opened = Interactions.open(tmp_path / "prepared")
    model = load_model(tmp_path / "model", opened.preprocessor)
    assert model.config.spectral == SpectralConfig(SPECTRAL, weight)
    fresh = TwoTower(replace(model.config, spectral=SpectralConfig()), opened.preprocessor.inputs, opened.preprocessor.event_rows)
    warm_start(fresh, opened.preprocessor, str(tmp_path))  # another training starts from the learned part
    assert all(torch.equal(tensor, model.state_dict()[name]) for name, tensor in fresh.state_dict().items())
    weights = (tmp_path / "model" / "weights.safetensors").read_bytes()
    fit.run(config)
    assert (tmp_path / "model" / "weights.safetensors").read_bytes() == weights, "a run that was done ends in the same model"
    config.model.spectral.weight = 1.2
    fit.run(config)
    assert load_model(tmp_path / "model", opened.preprocessor).config.spectral.weight == 1.2, "the learned part stands as it was trained"


def test_more_of_the_computed_part_is_taken_while_queries_cannot_tell():
    rng = np.random.default_rng(4)
    base_Q = rng.random(400)
    noise = {weight: rng.normal(0, 0.1, 400) for weight in (0.3, 0.6, 1.2, 2.4)}
    lost = {0.3: 0.03, 0.6: 0.0, 1.2: 0.002, 2.4: 0.02}  # one standard error is 0.005 to 0.007
    values = {weight: base_Q - lost[weight] + noise[weight] - noise[weight].mean() for weight in noise}
    assert join.greatest_as_good(values) == 1.2
    assert join.greatest_as_good({1.2: base_Q, 4.8: base_Q}) == 4.8, "equal ones cannot be told apart"
    assert join.greatest_as_good({0.6: base_Q, 4.8: base_Q - 1e-6}) == 0.6, "a difference that is the same for all is no noise"


def test_training_alone_is_that_of_a_model_without_the_part(tmp_path, toy_set):
    models = []
    for name, dim in (("with", SPECTRAL), ("without", 0)):
        write_prepared(tmp_path / name / "prepared", toy_set)
        config = settings(tmp_path / name)
        config.model.spectral = SpectralConfig(dim)
        fit.run(config)
        models.append(load_model(tmp_path / name / "model", toy_set.preprocessor).state_dict())
    for name, tensor in models[1].items():
        assert torch.equal(models[0][name], tensor), name
    assert set(models[0]) - set(models[1]) == {f"tables.{SPECTRAL_ITEM}.weight", f"tables.{SPECTRAL_HISTORY}.weight"}


def test_a_given_weight_needs_no_validation(tmp_path, toy_set):
    write_prepared(tmp_path / "prepared", toy_set)
    config = settings(tmp_path, evaluate_every=0)
    config.model.spectral.weight = 0.9
    fit.run(config)
    assert load_model(tmp_path / "model", toy_set.preprocessor).config.spectral.weight == 0.9
    assert json.loads((tmp_path / "train.json").read_text())["spectral"] == {"weight": 0.9, "fitted": False, "tried": {}}


def test_what_a_spectral_part_cannot_do_is_refused(tmp_path, toy_set):
    with pytest.raises(ConfigError, match=r"spectral\.newest"):
        validate(replace(settings(tmp_path), data=replace(settings(tmp_path).data, order="time")))
    with pytest.raises(ConfigError, match=r"chooses its weight"):
        validate(settings(tmp_path, evaluate_every=0))
    with pytest.raises(ConfigError, match=r"history\.name=mean"):
        ModelConfig(history=HistoryConfig(name="transformer"), spectral=SpectralConfig(4)).validate()
    with pytest.raises(ConfigError, match=r"0 stands for one chosen"):
        TwoTower(ModelConfig(spectral=SpectralConfig(4)), toy_set.preprocessor.inputs, toy_set.preprocessor.event_rows)


def test_events_that_a_spectral_part_cannot_tell_apart_are_refused_before_anything_is_trained(tmp_path, toy_set):
    skipping = replace(toy_set, weight=np.where(np.arange(len(toy_set)) % 9, 1, 0).astype(np.float32))
    write_prepared(tmp_path / "prepared", skipping)
    with pytest.raises(ConfigError, match=r"events have no weight"):
        fit.run(settings(tmp_path))
    assert not (tmp_path / "checkpoints").exists()


def test_the_learned_part_never_reads_the_spectral_tables(toy_set, joined):
    assert {name for name, weight in joined.named_parameters() if not weight.requires_grad} == {
        f"tables.{SPECTRAL_ITEM}.weight",
        f"tables.{SPECTRAL_HISTORY}.weight",
    }
    batch = Encoder(toy_set.preprocessor, TorchRuntime(joined), 30).user_batch(histories(toy_set, [1]))
    assert batch[HISTORY_ITEM].shape == (1, 30)


NARROW = 7


@pytest.fixture(scope="module")
def narrow(toy_set, towers_apart):
    return join.join_spectral(towers_apart, toy_set, SpectralConfig(SPECTRAL, WEIGHT, NARROW), seed=0)


def scores_of_training_users(data, model):
    runtime = TorchRuntime(model)
    users = np.concatenate([encode_users(runtime, block, 30)[:, 0] for block in training_users(data, seed=0)])
    assert len(users) == data.n_users
    return users @ runtime.item(data.item_features).T


def test_narrow_towers_score_as_the_best_projection_of_wide_ones(toy_set, joined, narrow):
    wide, served = (scores_of_training_users(toy_set, model) for model in (joined, narrow))
    left, values, right = np.linalg.svd(wide, full_matrices=False)
    best = (left[:, :NARROW] * values[:NARROW]) @ right[:NARROW]
    lost = np.linalg.norm(best - wide)
    assert lost > 0.01 * np.linalg.norm(wide)
    assert np.linalg.norm(served - wide) < 1.01 * lost
    np.testing.assert_allclose(served, best, atol=0.02)


def test_narrow_towers_keep_the_learned_users_and_have_narrow_tables(toy_set, towers_apart, narrow):
    assert narrow.config.width == NARROW
    assert narrow.table_arrays()[SPECTRAL_HISTORY].shape[1] == narrow.table_arrays()[SPECTRAL_ITEM].shape[1] == NARROW
    encoder = Encoder(toy_set.preprocessor, TorchRuntime(narrow), 30)
    empty = encoder.users([UserRow()]).vectors_BHD[0, 0]
    learned = Encoder(toy_set.preprocessor, TorchRuntime(towers_apart), 30).users([UserRow()]).vectors_BHD[0, 0]
    np.testing.assert_allclose(empty, [*learned, *[0] * (NARROW - DIM)], atol=1e-6)


def test_parts_of_narrow_users_sum_to_their_vectors(toy_set, narrow):
    encoder = Encoder(toy_set.preprocessor, TorchRuntime(narrow), 30)
    encoded = encoder.runtime.user(encoder.user_batch([*histories(toy_set, range(4)), UserRow()]), parts=True)
    np.testing.assert_allclose(encoded.parts.parts_BSD.sum(1), encoded.vectors_BHD[:, 0], atol=1e-5)


def test_narrow_onnx_graphs_equal_torch(toy_set, narrow, tmp_path):
    encoder = Encoder(toy_set.preprocessor, TorchRuntime(narrow), 30)
    batch = encoder.user_batch([*histories(toy_set, range(3)), UserRow()])
    assert export_towers(narrow, batch, toy_set.item_features, tmp_path) < 1e-5


def test_onnx_graphs_of_long_vectors_may_differ_by_as_many_places_as_those_of_short_ones(toy_set, narrow, tmp_path, monkeypatch):
    """What a sum of fp32 numbers around 400 is rounded to is no difference; a hundred times as much is one."""
    spectral = replace(narrow.config.spectral, weight=3e4)
    model = TwoTower(replace(narrow.config, spectral=spectral), toy_set.preprocessor.inputs, toy_set.preprocessor.event_rows)
    model.load_state_dict(narrow.state_dict())
    batch = Encoder(toy_set.preprocessor, TorchRuntime(model), 30).user_batch([*histories(toy_set, range(3)), UserRow()])
    assert np.abs(TorchRuntime(model).user(batch).vectors_BHD).max() > 400
    assert export_towers(model, batch, toy_set.item_features, tmp_path) < 1e-5
    forward = ExportCore.forward
    monkeypatch.setattr(ExportCore, "forward", lambda core, *arrays: tuple(out * (1 + 1e-4) for out in forward(core, *arrays)))
    session = onnx_export.onnxruntime.InferenceSession

    def of_before(path, **settings):
        return session(str(tmp_path / path.rpartition("/")[2]), **settings)

    monkeypatch.setattr(onnx_export, "onnxruntime", SimpleNamespace(InferenceSession=of_before))
    with pytest.raises(GateError, match="differ from torch"):
        export_towers(model, batch, toy_set.item_features, tmp_path / "other")


def test_weights_are_compared_narrow(tmp_path, toy_set):
    write_prepared(tmp_path / "prepared", toy_set)
    config = settings(tmp_path)
    config.model.spectral.narrow_to = NARROW
    fit.run(config)
    result = json.loads((tmp_path / "train.json").read_text())
    opened = Interactions.open(tmp_path / "prepared")
    model = load_model(tmp_path / "model", opened.preprocessor)
    assert model.config.spectral == SpectralConfig(SPECTRAL, result["spectral"]["weight"], NARROW)
    validator = Validator(opened, config)
    assert validator(model)["valid/ndcg@20"] == pytest.approx(result["valid"]["valid/ndcg@20"], abs=1e-6)


@pytest.mark.parametrize("narrow_to", [DIM - 1, DIM + SPECTRAL, 3 * DIM])
def test_widths_that_cannot_be_are_refused(narrow_to):
    with pytest.raises(ConfigError, match=r"model\.spectral\.narrow_to"):
        ModelConfig(dim=DIM, spectral=SpectralConfig(SPECTRAL, WEIGHT, narrow_to)).validate()


def test_moments_of_hardly_any_direction_are_factored_and_no_numbers_are_refused():
    rng = np.random.default_rng(0)
    alike_WW = np.outer(first_W := rng.normal(size=12), first_W)
    alike_WW -= 1e-5 * np.trace(alike_WW) / 12 * np.eye(12)  # what rounding of single precision leaves
    lower_WW = _factor(alike_WW)
    np.testing.assert_allclose(lower_WW @ lower_WW.T, alike_WW, atol=1e-3 * np.trace(alike_WW))
    with pytest.raises(DataError, match="narrow_to"):
        _factor(-np.eye(3))
