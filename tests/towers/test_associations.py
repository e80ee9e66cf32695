"""Second rows of a history's events (`model.history.associations`): what they add, how they weigh, and where they lie."""

from dataclasses import replace

import pytest
import torch

from towers.columns import FIRST_ROW, MISSING_ROW, OOV_ROW
from towers.encoders import make_encoder
from towers.errors import ConfigError
from towers.lookups import ASSOCIATION_TABLE, ITEM_TABLE
from towers.model import TwoTower
from towers.model_config import HistoryConfig, InputSpec, ModelConfig

DIM, EVENTS, SKIP = 6, 5, 4
HISTORY = HistoryConfig(length=4, share_item_table=True, use_repeats=True, associations=True)
INPUTS = (InputSpec("item.item_id", "id", 12, 0, "item_id"), InputSpec("context.day", "categorical", 6, 0, "day", in_history=True))


def drawn(module):
    torch.manual_seed(0)
    for name, parameter in module.named_parameters():
        if name.endswith("log_weight"):
            parameter.data = 0.2 * torch.randn_like(parameter)
    return module.eval()


def batch(days=(4, 3)):
    return {
        "history.item": torch.tensor([[0, 5, 7, 5], [8, 8, 8, 6]]).int(),
        "history.event": torch.tensor([[0, 3, 3, 4], [3, 3, 3, 3]]).int(),
        "history.context.day": torch.tensor([[0, 3, 4, 0], [3, 4, 5, 3]]).int(),
        "history.age": torch.tensor([[0, 9, 5, 2], [7, 6, 3, 2]]).int(),
        "context.day": torch.tensor(days).int(),
    }


def towers(**settings):
    return drawn(TwoTower(ModelConfig(dim=DIM, similarity="dot", history=replace(HISTORY, **settings)), INPUTS, EVENTS))


def test_a_second_mean_is_added_that_weighs_by_repeats_of_its_own_and_not_by_context():
    """Against the formula: age, event type and own repeats, the factor of a negative type, and nothing of the day that is asked for."""
    encoder = drawn(make_encoder(ModelConfig(dim=DIM, history=replace(HISTORY, negative_push=0.5)), EVENTS, True, True, ("context.day",)))
    encoder.mark_negative(torch.tensor([SKIP]).numpy())
    rows, second = torch.randn(2, 4, DIM), torch.randn(2, 4, DIM)
    mask = torch.tensor([[0.0, 1, 1, 1], [1, 1, 1, 1]])
    repeat = torch.tensor([[0, 2, 1, 2], [2, 2, 2, 1]])
    read = {**batch(), "history.item.rows": rows, "history.association.rows": second, "history.mask": mask, "history.repeat": repeat.int()}
    found = encoder(read)
    event, age = read["history.event"].long(), read["history.age"].long()
    logits = torch.where(event == SKIP, 0.0, encoder.event_log_weight[event]) + encoder.age_log_weight[age]
    logits = (logits + 10 * encoder.association_log_weight[repeat]).masked_fill(mask == 0, -1e9)
    expected = torch.softmax(logits, 1) * mask * torch.where(event == SKIP, -0.5, 1.0)
    torch.testing.assert_close(found.association_BL, expected)
    whole = torch.einsum("bl,bld->bd", found.weights_BL, rows) + torch.einsum("bl,bld->bd", expected, second)
    torch.testing.assert_close(found.vector_BD, whole)
    other_day = encoder({**read, "context.day": torch.tensor([3, 5]).int()})
    assert torch.equal(other_day.association_BL, found.association_BL) and not torch.equal(other_day.weights_BL, found.weights_BL)


def test_rows_summed_where_they_lie_equal_gathered_rows():
    """Vectors and gradients: the way of training and torch, against the way of the exported core."""
    model, found = towers(), []
    for whole in (True, False):
        model.zero_grad()
        vectors = (model.user(batch()) if whole else model.user_core(model.lookup_user(batch()))).vectors_BHD
        (vectors * torch.arange(DIM)).sum().backward()
        tables = [model.tables[name].weight.grad for name in (ITEM_TABLE, ASSOCIATION_TABLE)]
        found.append([vectors.detach(), *tables, model.history.association_log_weight.grad])
    assert all(bool(grad.any()) for grad in found[0][1:])
    for pooled, row_by_row in zip(*found, strict=True):
        torch.testing.assert_close(pooled, row_by_row)


def test_without_repeats_second_rows_weigh_alike():
    encoder = drawn(make_encoder(ModelConfig(dim=DIM, history=replace(HISTORY, use_repeats=False)), EVENTS, False, False, ()))
    rows = torch.randn(1, 4, DIM)
    mask = torch.tensor([[0.0, 0, 1, 1]])
    found = encoder({"history.item.rows": rows, "history.association.rows": rows, "history.mask": mask})
    assert found.association_BL.tolist() == [[0, 0, 0.5, 0.5]]


def test_unknown_items_are_silent_in_the_table_of_their_own():
    table = towers().tables[ASSOCIATION_TABLE].weight
    assert not table[: max(OOV_ROW, MISSING_ROW) + 1].any() and table[FIRST_ROW:].any(1).all()
    assert ASSOCIATION_TABLE not in towers(associations=False).tables


def test_other_encoders_refuse_them():
    with pytest.raises(ConfigError, match=r"model\.history\.associations: only the mean"):
        ModelConfig(history=HistoryConfig("transformer", associations=True)).validate()
