"""History rows with content: read through the item tower while training, summed up in a table afterwards, with equal vectors."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from towers.batch import HISTORY_ITEM
from towers.columns import FIRST_ROW, OOV_ROW
from towers.errors import ConfigError
from towers.fitting import PreprocessorFit
from towers.lookups import HISTORY_TABLE, ITEM_TABLE
from towers.model import TwoTower
from towers.model_config import HistoryConfig, ModelConfig
from towers.runtime import load_model, save_model, to_tensors
from towers.schema import Feature, make_schema
from training import fit
from training.config import TrainerConfig, TrainingConfig, validate
from training.history_content import ContentTower, build, folded
from training.interactions import write_prepared
from training.queries import make_queries
from training.warm_start import warm_start

CPU = torch.device("cpu")


def config_of(name="transformer", **history):
    settings = {"share_item_table": True, "content": True, **history}
    return ModelConfig(dim=8, history=HistoryConfig(name=name, length=10, heads=2, **settings))


@pytest.fixture(scope="module")
def toy(make_toy):
    return make_toy()


@pytest.fixture(scope="module")
def inputs(toy):
    """What the user tower reads of some queries, the first history with an unknown item."""
    found = make_queries(toy, "valid", "event", "leave_one_out", 0, 0).inputs(slice(0, 12), 10)
    found[HISTORY_ITEM] = found[HISTORY_ITEM].copy()
    found[HISTORY_ITEM][0, -1] = OOV_ROW
    return to_tensors(found)


def test_a_row_is_what_the_item_tower_sums(toy):
    torch.manual_seed(0)
    model = build(replace(config_of(), similarity="dot"), toy, CPU).eval()
    item_ID = model.item(to_tensors(toy.item_features))
    id_I = torch.from_numpy(np.asarray(toy.item_features["item.item_id"]))
    known_I = id_I >= FIRST_ROW
    torch.testing.assert_close(model.history_rows(id_I[known_I]), item_ID[known_I])
    assert not model.history_rows(torch.zeros(2, dtype=torch.int64)).any(), "padding stays silent"
    assert not torch.equal(model.history_rows(id_I[known_I]), model.tables[ITEM_TABLE](id_I[known_I]))


@pytest.mark.parametrize(
    "settings", [{"name": "mean"}, {"name": "mean", "associations": True}, {}], ids=["mean", "mean with second rows", "transformer"]
)
def test_folded_towers_give_equal_vectors_without_reading_content(toy, inputs, settings, tmp_path):
    torch.manual_seed(1)
    model = build(config_of(**settings), toy, CPU).eval()
    save_model(folded(model, toy), tmp_path)
    plain = load_model(tmp_path, toy.preprocessor)
    assert type(plain) is TwoTower
    assert plain.plan.history_table == HISTORY_TABLE
    torch.testing.assert_close(plain.user(inputs).vectors_BHD, model.user(inputs).vectors_BHD)
    items = to_tensors(toy.item_features)
    torch.testing.assert_close(plain.item(items), model.item(items))


def test_content_of_histories_is_trained(toy, inputs):
    torch.manual_seed(2)
    model = build(config_of(), toy, CPU)
    model.user(inputs).vectors_BHD.sum().backward()
    assert model.small_tables["categories"].weight.grad.abs().sum() > 0


def test_training_writes_folded_towers_and_starts_from_them(toy, tmp_path):
    write_prepared(tmp_path / "prepared", toy)
    config = TrainingConfig(run_dir=str(tmp_path), model=config_of(), trainer=TrainerConfig(epochs=1, threads=1, batch_size=16))
    fit.run(config)
    trained = load_model(tmp_path / "model", toy.preprocessor)
    assert trained.config.history.content
    assert not trained.config.history.share_item_table
    fresh = build(config_of(), toy, CPU)
    assert isinstance(fresh, ContentTower)
    warm_start(fresh, toy.preprocessor, str(tmp_path))
    ids = torch.arange(FIRST_ROW, len(toy.preprocessor.vocabularies["item_id"]))
    torch.testing.assert_close(fresh.eval().history_rows(ids), trained.tables[HISTORY_TABLE](ids))
    with pytest.raises(ConfigError, match=r"model\.history\.content"):
        warm_start(build(config_of(content=False), toy, CPU), toy.preprocessor, str(tmp_path))


def test_what_cannot_be_is_refused(toy):
    with pytest.raises(ConfigError, match=r"model\.history\.share_item_table=true"):
        validate(TrainingConfig(run_dir="x", model=config_of(share_item_table=False)))
    schema = make_schema([Feature("hour", "categorical", "context")], "time", {})
    bare = PreprocessorFit(schema)
    bare.see("item", {"item_id": ["a"]})
    bare.see("context", {"hour": ["noon"]})
    bare.see_events(["interaction"])
    with pytest.raises(ConfigError, match=r"data\.features"):
        build(config_of(), replace(toy, preprocessor=bare.finish()), CPU)
