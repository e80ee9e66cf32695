"""A trained model's large tables are rounded once, when it is written: the model that is measured is the one that is served."""

import json

import numpy as np
import pytest
import torch

from towers.columns import ITEM_ID
from towers.encoder import Encoder, UserRow
from towers.errors import ConfigError
from towers.lookups import HISTORY_TABLE
from towers.model import TwoTower
from towers.model_config import HistoryConfig, ModelConfig, SpectralConfig
from towers.runtime import TorchRuntime, load_model
from training import half_tables
from training.config import TrainerConfig, TrainingConfig, validate
from training.fit import run
from training.half_tables import fits, round_tables
from training.interactions import write_prepared
from training.onnx_export import export_towers
from training.warm_start import warm_start


@pytest.fixture
def model(toy_set, monkeypatch):
    monkeypatch.setattr(half_tables, "_BLOCK", 7)  # several blocks a table
    torch.manual_seed(0)
    config = ModelConfig(dim=8, history=HistoryConfig(length=6), spectral=SpectralConfig(5, 0.3))
    model = TwoTower(config, toy_set.preprocessor.inputs, toy_set.preprocessor.event_rows).eval()
    with torch.no_grad():
        for name in model.spectral_tables:
            model.tables[name].weight[3:].normal_(std=0.02)
    return model


def weights(model):
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}


def test_tables_of_so_many_rows_are_rounded_and_nothing_else_is(model):
    before, rows = weights(model), model.plan.tables[ITEM_ID]
    assert round_tables(model, None) == round_tables(model, rows + 1) == []
    assert all(torch.equal(tensor, before[name]) for name, tensor in weights(model).items())
    assert {array.dtype.name for array in model.table_arrays().values()} == {"float32"}
    assert sorted(round_tables(model, rows)) == sorted(model.tables)
    for name, tensor in weights(model).items():
        expected = before[name].half().float() if name.startswith("tables.") else before[name]
        assert torch.equal(tensor, expected) and tensor.dtype == before[name].dtype, name
    for name, rows_VD in model.table_arrays().items():
        assert rows_VD.dtype == np.float16
        assert np.array_equal(rows_VD, model.tables[name].weight.detach().numpy())


@pytest.mark.parametrize("spoiled", [70_000.0, 1e30, float("nan"), float("inf")])
def test_a_table_that_half_precision_cannot_hold_stays_whole(model, spoiled, capsys):
    with torch.no_grad():
        model.tables[HISTORY_TABLE].weight[9, 3] = spoiled
    before = weights(model)
    assert HISTORY_TABLE not in round_tables(model, 1)
    assert torch.equal(weights(model)[f"tables.{HISTORY_TABLE}.weight"].nan_to_num(), before[f"tables.{HISTORY_TABLE}.weight"].nan_to_num())
    assert model.table_arrays()[HISTORY_TABLE].dtype == np.float32 and model.table_arrays()[ITEM_ID].dtype == np.float16
    assert "table history_item stays in single precision" in capsys.readouterr().err


@pytest.mark.parametrize("scale,held", [(1e-6, False), (1e-5, False), (1e-3, True), (0.1, True), (3.0, True), (1e4, True), (1e5, False)])
def test_tiny_and_huge_tables_do_not_fit(scale, held):
    assert fits(scale * torch.randn(100, 16, generator=torch.Generator().manual_seed(0))) is held


def test_a_few_short_rows_among_others_do_no_harm():
    """Nothing has moved them since training began, or weight decay has: what they lose is nothing beside what others weigh."""
    weight_VD = 0.1 * torch.randn(100, 16, generator=torch.Generator().manual_seed(0))
    weight_VD[0], weight_VD[5], weight_VD[7] = 0.0, weight_VD[5] * 1e-5, 1e-30
    assert fits(weight_VD)


def test_onnx_gathers_narrow_rows_and_equals_torch(model, toy_set, tmp_path):
    round_tables(model, 1)
    encoder = Encoder(toy_set.preprocessor, TorchRuntime(model), 6)
    ids = toy_set.catalog.column(ITEM_ID).to_pylist()
    batch = encoder.user_batch([UserRow(ids[:9]), UserRow(), UserRow(["no such item", ids[3]])])
    assert export_towers(model, batch, toy_set.item_features, tmp_path) < 1e-6


def config_of(folder, half_from):
    config = TrainingConfig(run_dir=str(folder), trainer=TrainerConfig(epochs=1, device="cpu", batch_size=64, half_from=half_from))
    config.model.dim, config.model.history.length = 8, 6
    return config


def test_a_run_is_written_rounded_and_told_so_and_anew_without(tmp_path, make_toy, capsys):
    toy = make_toy()
    write_prepared(tmp_path / "prepared", toy)

    def tables(half_from):
        run(config_of(tmp_path, half_from))
        told = json.loads((tmp_path / "train.json").read_text())["half_tables"]
        return told, load_model(tmp_path / "model", toy.preprocessor).table_arrays()

    told, rounded = tables(1)
    assert sorted(told) == sorted(rounded) and {array.dtype.name for array in rounded.values()} == {"float16"}
    fresh = TwoTower(config_of(tmp_path, 1).model, toy.preprocessor.inputs, toy.preprocessor.event_rows)
    warm_start(fresh, toy.preprocessor, str(tmp_path))
    assert all(np.array_equal(rows_VD, rounded[name]) for name, rows_VD in fresh.table_arrays().items()), "a refresh starts from them"
    told, whole = tables(None)
    assert "continuing after step" in capsys.readouterr().out, "no step is taken again"
    assert told == [] and {array.dtype.name for array in whole.values()} == {"float32"}
    for name, rows_VD in whole.items():
        assert np.array_equal(rows_VD.astype(np.float16), rounded[name])


def test_a_number_of_rows_below_zero_is_refused():
    with pytest.raises(ConfigError, match="trainer.half_from: got -1"):
        validate(config_of("here", -1))
