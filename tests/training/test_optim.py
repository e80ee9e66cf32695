import itertools
import subprocess
import sys

import pytest
import torch
from torch import nn

from towers.errors import ConfigError
from towers.lookups import CoreInput, TowerPlan
from training.config import OptimConfig, TrainingConfig, validate
from training.optim import Optimizer, choose_tables, learning_rate

SPARSE = pytest.mark.parametrize("tables", [{}, {"0": "lazy_adam"}, {"0": "rowwise_adagrad"}], ids=["dense", "lazy", "adagrad"])


def make(seed=0, tables=None, **settings):
    torch.manual_seed(seed)
    model = nn.Sequential(nn.Embedding(7, 3, padding_idx=0), nn.Linear(3, 2))
    return model, Optimizer(model, OptimConfig(**settings), 10, tables)


def one_step(model, optimizer, step):
    optimizer.zero_grad()
    model(torch.tensor([step % 7, 3])).square().sum().backward()
    return optimizer.step(step, optimizer.grad_norm())


def test_warm_up_then_cosine_to_near_zero():
    config = OptimConfig(lr=0.1, warmup_share=0.1, schedule="cosine")
    rates = [learning_rate(config, step, 100) for step in range(100)]
    assert rates[:10] == pytest.approx([0.01 * (s + 1) for s in range(10)])
    assert max(rates) == pytest.approx(0.1) and rates[55] == pytest.approx(0.05, abs=1e-3)
    assert all(a > b for a, b in itertools.pairwise(rates[10:])) and 0 < rates[-1] < 1e-4


def test_constant_stays_and_no_warm_up_starts_at_full_rate():
    config = OptimConfig(lr=0.1, warmup_share=0.0, schedule="constant")
    assert [learning_rate(config, step, 5) for step in range(5)] == [0.1] * 5


def test_linear_falls_evenly_to_near_zero():
    config = OptimConfig(lr=0.1, warmup_share=0.2, schedule="linear")
    rates = [learning_rate(config, step, 10) for step in range(10)]
    assert rates == pytest.approx([0.05, 0.1, *(0.1 * (8 - s) / 8 for s in range(8))])


@pytest.mark.parametrize("schedule", ["constant", "linear", "cosine"])
@pytest.mark.parametrize("share", [0.0, 0.5, 1.0])
def test_every_schedule_starts_at_its_peak_and_never_rises_after_it(schedule, share):
    rates = [learning_rate(OptimConfig(lr=0.1, warmup_share=share, schedule=schedule), step, 8) for step in range(9)]
    peak = rates.index(max(rates))
    assert max(rates) == pytest.approx(0.1) and min(rates) >= 0
    assert all(b > a for a, b in itertools.pairwise(rates[: peak + 1]))
    assert all(b <= a for a, b in itertools.pairwise(rates[peak:]))


def test_a_single_step_has_a_rate():
    assert learning_rate(OptimConfig(lr=0.1), 0, 1) == pytest.approx(0.1)


def test_moves_as_plain_adam_with_decoupled_decay():
    """The textbook update, written out."""
    model, optimizer = make(lr=0.1, weight_decay=0.01, schedule="constant", warmup_share=0.0)
    weight = model[1].weight.detach().clone().double()
    m = v = torch.zeros_like(weight)
    for step in range(4):
        one_step(model, optimizer, step)
        g = model[1].weight.grad.double()
        m, v = 0.9 * m + 0.1 * g, 0.999 * v + 0.001 * g * g
        weight = weight * (1 - 0.1 * 0.01)
        weight = weight - 0.1 * (m / (1 - 0.9 ** (step + 1))) / ((v / (1 - 0.999 ** (step + 1))).sqrt() + 1e-8)
    assert torch.allclose(model[1].weight.double(), weight, atol=1e-5)


@SPARSE
def test_gradient_norm_is_that_of_the_dense_gradient(tables):
    """Lookups of the same row are summed before they are measured."""
    norms = []
    for chosen in ({}, tables):
        model, optimizer = make(tables=chosen)
        optimizer.zero_grad()
        model(torch.tensor([2, 2, 5, 0])).square().sum().backward()
        norms.append(optimizer.grad_norm())
    assert torch.allclose(*norms)


def test_clipping_reaches_the_rows_of_a_table():
    """With plain Adagrad's first step any scale would cancel; with a state from before, it shows."""
    moved = []
    for clip in (0.0, 0.05):
        model, optimizer = make(tables={"0": "rowwise_adagrad"}, clip_norm=clip, schedule="constant", warmup_share=0.0)
        optimizer.load_state_dict({"0.weight/square": torch.ones(7)})
        before = model[0].weight.detach().clone()
        optimizer.zero_grad()
        (model(torch.tensor([1, 2])).square().sum() * 0.1).backward()
        norm = optimizer.grad_norm()
        optimizer.step(0, norm)
        moved.append(model[0].weight.detach() - before)
    share = 0.05 / norm
    assert share < 0.9
    assert torch.allclose(moved[1], moved[0] * share, rtol=0.02)


def test_a_table_has_its_own_learning_rate():
    for table_lr, want in ((0.0, 1.0), (0.4, 0.4)):
        model, optimizer = make(tables={"0": "rowwise_adagrad"}, lr=0.1, table_lr=table_lr, schedule="constant", warmup_share=0.0)
        before = model[0].weight.detach().clone()
        one_step(model, optimizer, 1)
        # the first step of row-wise Adagrad has length lr sqrt(dim)
        assert (model[0].weight - before)[1].norm().item() == pytest.approx(want * 3**0.5, rel=1e-4)


@SPARSE
def test_padding_and_rows_not_met(tables):
    model, optimizer = make(tables=tables)
    model[0].weight.data[0] = 0
    before = model[0].weight.detach().clone()
    for step in (1, 2):
        optimizer.zero_grad()
        model(torch.tensor([0, 4, 4])).square().sum().backward()
        optimizer.step(step, optimizer.grad_norm())
    moved = (model[0].weight != before).any(1)
    assert moved.tolist() == [False, False, False, False, True, False, False]


def plan(**rows):
    """A tower that reads a history of 10 from `history_item`, and item ids from `item_id`."""
    user = (CoreInput("h.rows", "h", "float32", (10, 8), "history_item"), CoreInput("h.mask", "h", "float32", (10,), is_mask=True))
    return TowerPlan(
        user, (CoreInput("i.rows", "i", "float32", (8,), "item_id"),), (), (), rows, dict.fromkeys(rows, 8), "history_item", False, False
    )


def test_auto_trains_row_by_row_where_a_step_reads_a_part():
    config = OptimConfig(name="auto")
    assert choose_tables(config, plan(history_item=10**6, item_id=10**6), 100, 300).keys() == {"history_item", "item_id"}
    # every step goes through all items: a full softmax; and 1,000 lookups of a history table of 1,000 rows
    assert choose_tables(config, plan(history_item=1000, item_id=300), 100, 297) == {}


def test_a_name_decides_for_all_tables():
    tables = plan(history_item=10, item_id=10**6)
    assert choose_tables(OptimConfig(name="adam"), tables, 100, 300) == {}
    want = {"history_item": "rowwise_adagrad", "item_id": "rowwise_adagrad"}
    assert choose_tables(OptimConfig(name="rowwise_adagrad"), tables, 100, 300) == want


def test_only_embeddings_are_tables():
    with pytest.raises(TypeError, match="expected nn.Embedding"):
        make(tables={"1": "lazy_adam"})


def test_clipping_bounds_the_gradient_and_reports_its_length_before():
    model, optimizer = make(clip_norm=0.01)
    optimizer.zero_grad()
    (model(torch.tensor([1, 2])).square().sum() * 100).backward()
    norm = optimizer.grad_norm()
    assert norm > 0.01
    optimizer.step(0, norm)
    assert optimizer.grad_norm() == pytest.approx(0.01, rel=1e-3)


@SPARSE
def test_state_round_trip_continues_bit_for_bit(tables):
    model, optimizer = make(tables=tables)
    for step in range(3):
        one_step(model, optimizer, step)
    other, fresh = make(seed=1, tables=tables)
    other.load_state_dict(model.state_dict())
    fresh.load_state_dict(optimizer.state_dict())
    assert all(isinstance(value, torch.Tensor) for value in optimizer.state_dict().values())
    for step in range(3, 6):
        one_step(model, optimizer, step)
        one_step(other, fresh, step)
    for a, b in zip(model.parameters(), other.parameters(), strict=True):
        assert torch.equal(a, b)


def test_a_state_of_another_model_is_refused():
    model, optimizer = make()
    one_step(model, optimizer, 0)
    smaller = Optimizer(nn.Linear(3, 2), OptimConfig(), 10)
    with pytest.raises(KeyError):
        smaller.load_state_dict(optimizer.state_dict())


def test_a_state_without_a_table_is_refused():
    model, optimizer = make()
    one_step(model, optimizer, 0)
    with pytest.raises(KeyError, match=r"0\.weight/"):
        make(tables={"0": "lazy_adam"})[1].load_state_dict(optimizer.state_dict())


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"schedule": "step"}, "optim.schedule: got 'step', expected one of constant, linear, cosine"),
        ({"warmup_share": 1.5}, "optim.warmup_share: got 1.5"),
        ({"clip_norm": -1.0}, "optim.clip_norm: got -1.0"),
    ],
)
def test_settings_out_of_range_are_refused(settings, says):
    with pytest.raises(ConfigError, match=says):
        validate(TrainingConfig(optim=OptimConfig(**settings)))


def test_training_does_not_import_the_compiler():
    """It costs as much as importing torch, and a short run is little more than that."""
    code = (
        "import sys, torch; from training.config import OptimConfig; from training.optim import Optimizer\n"
        "from training.product_floor import ProductFloor\n"
        "model = torch.nn.Linear(2, 1); optimizer = Optimizer(model, OptimConfig(), 2)\n"
        "with ProductFloor(torch.device('cpu')).counting(lambda: 0):\n"
        "    model(torch.ones(1, 2)).sum().backward(); optimizer.step(0, optimizer.grad_norm())\n"
        "sys.exit('torch._dynamo' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
