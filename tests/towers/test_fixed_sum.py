"""Item vectors from one fixed sparse matrix against those from the features one by one: values and every gradient."""

import numpy as np
import pytest
import torch

from towers.fixed_sum import WIDEST
from towers.model import TwoTower
from towers.model_config import HistoryConfig, InputSpec, ModelConfig

ROWS, DIM, SIZE = 25, 6, 20
INPUTS = (
    InputSpec("item.item_id", "id", ROWS, 0, "item_id"),
    InputSpec("item.brand", "categorical", 5, 0, "item.brand"),
    InputSpec("item.categories", "multi_categorical", 9, 3, "categories"),
    InputSpec("item.also_in", "multi_categorical", 9, 2, "categories"),
    InputSpec("item.liked_with", "preferences", ROWS, 2, "item_id"),
    InputSpec("item.price", "numeric", 0, 2, "item.price"),
    InputSpec("item.look", "dense", 0, 3, "item.look"),
    InputSpec("item.text", "dense", 0, WIDEST + 1, "item.text"),
)
pytestmark = pytest.mark.skipif(not torch.backends.mkl.is_available(), reason="this torch multiplies no sparse matrices")


def build(id_dropout=0.0, inputs=INPUTS):
    torch.manual_seed(0)
    model = TwoTower(ModelConfig(dim=DIM, history=HistoryConfig(length=4), id_dropout=id_dropout), inputs, 3)
    for parameter in model.parameters():
        parameter.data += 0.1 * torch.randn_like(parameter)
    for table in (*model.tables.values(), *model.small_tables.values()):
        table.weight.data[0] = 0.0
    return model.train()


def items(seed=1):
    rng = np.random.default_rng(seed)
    made = {}
    for spec in INPUTS:
        shape = (SIZE, spec.width) if spec.width else (SIZE,)
        if spec.rows:
            values = rng.integers(0 if spec.width else 1, spec.rows, shape).astype(np.int32)
        else:
            values = rng.normal(size=shape).astype(np.float32)
        made[spec.name] = torch.from_numpy(values)
    made["item.categories"][3] = 0  # nothing known
    made["item.categories"][4] = 5  # the same three times
    return made


def passed(model, fixed, seed=2, inputs=None):
    model.zero_grad()
    torch.manual_seed(seed)
    vectors = model.item(inputs or items(), fixed)
    (vectors * torch.randn(SIZE, DIM, generator=torch.Generator().manual_seed(3))).sum().backward()
    return vectors.detach(), {name: p.grad for name, p in model.named_parameters() if p.grad is not None}


def assert_alike(model, fixed, inputs=None):
    (expected, expected_grads), (got, got_grads) = passed(model, None, inputs=inputs), passed(model, fixed, inputs=inputs)
    torch.testing.assert_close(got, expected, atol=1e-6, rtol=1e-5)
    assert got_grads.keys() == expected_grads.keys()
    for name, grad in got_grads.items():
        torch.testing.assert_close(grad.to_dense(), expected_grads[name].to_dense(), atol=1e-6, rtol=1e-5, msg=name)
    assert not got_grads["tables.item_id.weight"].to_dense()[0].any()


def test_vectors_and_gradients_are_those_of_the_features_one_by_one():
    model = build()
    fixed = model.fixed_items(items())
    assert [spec.name for spec in fixed.specs] == [spec.name for spec in INPUTS[:-1]]  # a wide dense feature is multiplied by itself
    assert_alike(model, fixed)


def test_hidden_ids_are_drawn_anew_at_every_step():
    model = build(id_dropout=0.5)
    fixed = model.fixed_items(items())
    assert "item.item_id" not in {spec.name for spec in fixed.specs}
    assert_alike(model, fixed)
    assert not torch.equal(passed(model, fixed, seed=2)[0], passed(model, fixed, seed=5)[0])


def test_a_table_with_a_sparse_gradient_keeps_it():
    model = build()
    model.tables["item_id"].sparse = True
    fixed = model.fixed_items(items())
    assert {spec.table for spec in fixed.specs}.isdisjoint({"item_id"})
    assert passed(model, fixed)[1]["tables.item_id.weight"].is_sparse


@pytest.mark.parametrize("backwards", [False, True])
def test_items_that_have_nothing_but_their_ids(backwards):
    """Rows one after the other are read where they lie; in another order they are not."""
    model = build(inputs=INPUTS[:1])
    ids = torch.arange(3, 3 + SIZE, dtype=torch.int32)
    inputs = {"item.item_id": ids.flip(0) if backwards else ids}
    fixed = model.fixed_items(inputs)
    assert fixed.rows == (None if backwards else slice(3, 3 + SIZE))
    assert_alike(model, fixed, inputs)


def test_weights_moved_since_count():
    model = build()
    fixed = model.fixed_items(items())
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(1.5)
    assert_alike(model, fixed)


def test_doubles_are_left_to_the_features():
    assert build().double().fixed_items(items()) is None
