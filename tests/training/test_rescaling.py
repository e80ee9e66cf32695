"""A warm start on other numbers: what the old model said of a value, the new one says before it has learned anything."""

import numpy as np
import pytest
import torch

from towers.fitting import PreprocessorFit
from towers.model import TwoTower
from towers.model_config import HeadConfig, HistoryConfig, ModelConfig
from towers.runtime import TorchRuntime, save_model
from towers.schema import Feature, make_schema
from training.warm_start import warm_start

FEATURES = (Feature("price", "numeric", "item"), Feature("age", "numeric", "user"), Feature("load", "numeric", "context"))
ITEMS = ["a", "b", "c", "d"]
CHEAP = [10.0, 25.0, 35.0, 48.0]
OWNERS = {"item": "price", "user": "age", "context": "load"}


def fitted(numbers):
    fit = PreprocessorFit(make_schema(FEATURES, "time", {}))
    fit.see("item", {"item_id": ITEMS})
    for owner, name in OWNERS.items():
        fit.see(owner, {name: numbers})
    fit.see_events(["view"])
    return fit.finish()


def vectors(model, preprocessor, numbers):
    """Of the items, and of users with nothing but their numbers."""
    runtime, rows = TorchRuntime(model), len(numbers)
    item = preprocessor.encode("item", {"item_id": ITEMS[:rows], "price": numbers}, rows)
    nobody = preprocessor.history([[]] * rows, [[]] * rows, [[]] * rows, np.zeros(rows, np.int64), model.config.history.length)
    user = {name: array for o in ("user", "context") for name, array in preprocessor.encode(o, {OWNERS[o]: numbers}, rows).items()}
    return runtime.item(item), runtime.user(nobody | user).vectors_BHD


@pytest.fixture
def carried(tmp_path):
    """Old and new model with their preprocessing, and what was told, after a warm start from one set of numbers to another."""

    def carry(old_numbers, new_numbers, config):
        old_fit, new_fit = fitted(old_numbers), fitted(new_numbers)
        models = []
        for seed, fit in enumerate((old_fit, new_fit)):
            torch.manual_seed(seed)
            models.append(TwoTower(config, fit.inputs, fit.event_rows))
        with torch.no_grad():  # a trained map is no nudge
            for name, tensor in models[0].named_parameters():
                if "projections" in name:
                    tensor.normal_()
        save_model(models[0], tmp_path / "model")
        old_fit.save(tmp_path / "prepared")
        return (models[0], old_fit), (models[1], new_fit), str(warm_start(models[1], new_fit, str(tmp_path)))

    return carry


@pytest.mark.parametrize("head", ["linear", "mlp"])
def test_items_and_users_keep_their_vectors_whatever_newcomers_cost(carried, head):
    config = ModelConfig(dim=8, history=HistoryConfig(length=6), item_head=HeadConfig(head), user_head=HeadConfig(head))
    old, new, told = carried(CHEAP, [*CHEAP, 400.0, 500.0], config)
    for before, after in zip(vectors(*old, [*CHEAP[:3], None]), vectors(*new, [*CHEAP[:3], None]), strict=True):
        np.testing.assert_allclose(after, before, rtol=1e-4, atol=1e-5)
    assert "item.price now around 169.667 by" in told and "(was 29.5 by 13.9014)" in told


def test_what_was_constant_says_no_more_of_other_values_than_a_fresh_weight_would(carried):
    old, new, _ = carried([5.0] * 4, [5.0, 900.0, 300.0, 100.0], ModelConfig(dim=8, history=HistoryConfig(length=6)))
    before, after = (vectors(*side, [5.0, None])[0] for side in (old, new))
    np.testing.assert_allclose(after, before, rtol=1e-4, atol=1e-5)
    name = "item_features.projections.item:price.weight"
    assert torch.equal(old[0].state_dict()[name][:, 0], new[0].state_dict()[name][:, 0])


def test_numbers_that_stay_are_carried_over_to_the_last_bit(carried):
    old, new, told = carried(CHEAP, CHEAP, ModelConfig(dim=8, history=HistoryConfig(length=6)))
    for name, tensor in old[0].state_dict().items():
        assert torch.equal(tensor, new[0].state_dict()[name]), name
    assert "now around" not in told
