"""What batches of each kind ask of the losses, against the slow way."""

import dataclasses

import numpy as np
import pytest
import torch

from towers.columns import FIRST_ROW, TRAIN
from towers.model import TwoTower
from towers.model_config import HistoryConfig, ModelConfig
from towers.runtime import to_tensors
from training.candidates import CandidateItems
from training.config import LossConfig, NegativesConfig
from training.events import TrainingEvents
from training.examples import SequenceSampler, UserSampler
from training.loader import Loader
from training.loss import full_softmax
from training.objective import choose_objective, kept, targets_of

CPU = torch.device("cpu")


def world(make_toy, order):
    data = make_toy(order=order, users=30)
    events = TrainingEvents.select(data, (TRAIN,))
    torch.manual_seed(0)
    config = ModelConfig(dim=8, id_dropout=0.0, context_dropout=0.0, history=HistoryConfig(length=6))
    model = TwoTower(config, data.preprocessor.inputs, data.preprocessor.event_rows)
    batch = Loader(data, events, UserSampler(events), length=6, batch_size=20, seed=0).batch(0, 0)
    return data, model, CandidateItems(data, events, CPU), batch


@pytest.mark.parametrize("order", ["set", "time"])
def test_targets_grouped_by_user_lose_what_they_lose_alone(make_toy, order):
    """One row of scores for all of a user's targets: loss and gradients equal those of a row for each target."""
    data, model, items, batch = world(make_toy, order)
    objective, _ = choose_objective(LossConfig("full_softmax", precision="fp32"), NegativesConfig(), items, "")
    got = objective(model, batch, np.random.default_rng(0))
    got_gradients = torch.autograd.grad(got, [p for p in model.parameters() if p.requires_grad], allow_unused=True)
    user = model.user(to_tensors(batch.user, CPU)).vectors_BHD[:, 0]
    item = model.item(to_tensors({name: array[items.rows_K] for name, array in data.item_features.items()}, CPU))
    ids = data.item_features["item.item_id"][items.rows_K].tolist()
    total, weights = torch.zeros(()), 0.0
    for row, (targets, weight) in enumerate(zip(batch.targets_BT, batch.weights_BT, strict=True)):
        logits = (item @ user[row]) / model.temperature()
        own = {int(items.places(t)) for t in targets if t >= 0}
        history = {ids.index(i) for i in batch.user["history.item"][row].tolist() if i >= FIRST_ROW}
        if order == "set":
            logits = logits.index_fill(0, torch.tensor(sorted(history - own), dtype=torch.int64), -torch.inf)
        for target, share in zip(targets, weight, strict=True):
            if target >= 0:
                total = total + share * (torch.logsumexp(logits, 0) - logits[int(items.places(target))])
                weights += share
    wanted = total / weights
    assert got.item() == pytest.approx(wanted.item(), rel=1e-5)
    wanted_gradients = torch.autograd.grad(wanted, [p for p in model.parameters() if p.requires_grad], allow_unused=True)
    for mine, slow in zip(got_gradients, wanted_gradients, strict=True):
        assert (mine is None) == (slow is None)
        if mine is not None:
            torch.testing.assert_close(mine, slow, rtol=1e-3, atol=1e-6)


def test_only_sets_hide_what_a_user_has(make_toy):
    for order, expected in (("set", True), ("time", False)):
        _, _, items, batch = world(make_toy, order)
        assert (kept(batch, items) is not None) == expected
        assert kept(dataclasses.replace(batch, sampler="event"), items) is None


@pytest.mark.parametrize(("rows", "tile"), [(2, 3), (9, 4), (512, 1 << 21)])
@pytest.mark.parametrize("half", [False, True])
@pytest.mark.parametrize("scale", [1.0, 100.0])
def test_absent_items_are_not_there(monkeypatch, rows, tile, half, scale):
    for name, value in {"FEWEST_ROWS": tile, "WIDE_ROWS": rows, "TILE_BYTES": 1, "EVEN": 1}.items():
        monkeypatch.setattr(f"training.score_blocks.{name}", value)
    g = torch.Generator().manual_seed(0)
    user = torch.nn.functional.normalize(torch.randn(9, 8, generator=g)) * scale
    item = torch.nn.functional.normalize(torch.randn(11, 8, generator=g))
    user.requires_grad_(), item.requires_grad_()
    target, weight = torch.arange(9), torch.rand(9, generator=g)
    absent = (torch.tensor([0, 0, 3, 8, 8, 8]), torch.tensor([1, 10, 0, 0, 1, 9]))
    loss = full_softmax(user, item, target, weight, 0.5, half=half, absent=absent)
    logits = (user @ item.t() / 0.5).index_put(absent, torch.tensor(-torch.inf))
    slow = (weight * torch.nn.functional.cross_entropy(logits, target, reduction="none")).sum() / weight.sum()
    tolerance = 2e-2 if half else 1e-5
    assert loss.item() == pytest.approx(slow.item(), rel=tolerance, abs=tolerance)
    for mine, wanted in zip(torch.autograd.grad(loss, (user, item)), torch.autograd.grad(slow, (user, item)), strict=True):
        torch.testing.assert_close(mine, wanted, rtol=tolerance, atol=tolerance * 0.1 + 1e-5)


def test_a_sampled_loss_takes_user_batches(make_toy):
    _, model, items, batch = world(make_toy, "set")
    objective, _ = choose_objective(LossConfig("sampled_softmax"), NegativesConfig("mixed", 64), items, "")
    loss = objective(model, batch, np.random.default_rng(0))
    loss.backward()
    assert torch.isfinite(loss) and model.tables["item_id"].weight.grad is not None


@pytest.mark.parametrize(("order", "share"), [("set", 0.5), ("set", 0.8), ("time", 0.5)])
def test_user_batches_are_corrected_for_how_often_they_draw_an_item(make_toy, order, share):
    """Late events, and those of users with few, are targets more often than their number says."""
    data = make_toy(order=order, users=30)
    events = TrainingEvents.select(data, (TRAIN,))
    loader = Loader(data, events, UserSampler(events), length=4, batch_size=30, seed=0, history_share=share)
    items, epochs = CandidateItems(data, events, CPU), 1500
    targets = [batch.targets_BT[batch.targets_BT >= 0] for epoch in range(epochs) for batch in [loader.batch(epoch, 0)]]
    objective, _ = choose_objective(LossConfig("sampled_softmax"), NegativesConfig("in_batch"), items, "", draws=loader.draws)
    drawn_K = np.bincount(items.places(np.concatenate(targets)), minlength=len(items))
    met = np.flatnonzero(items.counts_K)
    q_M = np.exp(objective._negatives.draw(met, np.random.default_rng(0)).log_q_C)
    np.testing.assert_allclose(q_M.sum(), 1, atol=1e-5)
    p_M = drawn_K[met] / drawn_K.sum()
    spread_M = 5 * np.sqrt(p_M / drawn_K.sum())
    assert (abs(q_M - p_M) < spread_M).all()
    assert (abs(items.counts_K[met] / items.counts_K.sum() - p_M) > spread_M).any(), "the data would not show the difference"


def test_a_step_of_whole_windows_asks_at_every_position_in_order(make_toy):
    """Where every position has a target nothing is picked out; beside a position without one, the same rows are."""
    data = make_toy(order="time", users=30)
    items = CandidateItems(data, TrainingEvents.select(data, (TRAIN,)), CPU)
    torch.manual_seed(0)
    history = HistoryConfig(name="transformer", length=6, layers=1, dropout=0.0)
    config = ModelConfig(dim=8, id_dropout=0.0, context_dropout=0.0, history=history)
    model = TwoTower(config, data.preprocessor.inputs, data.preprocessor.event_rows)
    events = TrainingEvents.select(data, (TRAIN,))
    batch = Loader(data, events, SequenceSampler(events, 6), length=6, batch_size=8, seed=0).batch(0, 0)
    whole = dataclasses.replace(batch, targets_BT=np.where(batch.targets_BT >= 0, batch.targets_BT, items.rows_K[0]))
    asked = model.user_sequence(to_tensors(batch.user, CPU))
    assert torch.equal(targets_of(model, whole, items).user_BD, asked.reshape(-1, 8))
    holed = dataclasses.replace(whole, targets_BT=whole.targets_BT.copy())
    holed.targets_BT[1, 2] = -1
    without = torch.cat([asked.reshape(-1, 8)[: whole.targets_BT.shape[1] + 2], asked.reshape(-1, 8)[whole.targets_BT.shape[1] + 3 :]])
    assert torch.equal(targets_of(model, holed, items).user_BD, without)
