import dataclasses
import math
import shutil

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from towers.columns import TRAIN
from towers.errors import ConfigError, DataError, TrainingError
from towers.model import TwoTower
from towers.model_config import HistoryConfig, ModelConfig
from towers.runtime import TorchRuntime
from training.batches import user_inputs
from training.checkpoint import Checkpointer
from training.config import LossConfig, NegativesConfig, OptimConfig, TrainerConfig
from training.events import TrainingEvents
from training.examples import EventSampler, SequenceSampler
from training.loader import Loader
from training.negatives import doubts
from training.objective import CandidateItems, choose_objective
from training.optim import Optimizer
from training.tracking import Tracker
from training.trainer import MODEL, Progress, Trainer, total_steps

POOLED = ModelConfig(dim=16, history=HistoryConfig(length=6), id_dropout=0.1)
TRANSFORMER = ModelConfig(dim=16, history=HistoryConfig(name="transformer", length=8, layers=1, dropout=0.1), id_dropout=0.1)


def make_trainer(
    folder, data, model_config=POOLED, loss="full_softmax", negatives="mixed", validate=None, seed=0, optim=None, config_hash="", **settings
):
    """All parts of a run as training.fit joins them, on the toy world."""
    config = TrainerConfig(**{"batch_size": 64, "epochs": 4, "patience": 0, "device": "cpu", **settings})
    torch.manual_seed(seed)
    model = TwoTower(model_config, data.preprocessor.inputs, data.preprocessor.event_rows)
    events = TrainingEvents.select(data, (TRAIN,))
    length = model_config.history.length
    sampler = SequenceSampler(events, length) if model_config.history.name == "transformer" else EventSampler(events)
    loader = Loader(data, events, sampler, length=length, batch_size=config.batch_size, seed=seed)
    items = CandidateItems(data, events, torch.device("cpu"))
    objective, _ = choose_objective(LossConfig(name=loss), NegativesConfig(negatives, 32, refresh_every=4), items, "")
    steps = total_steps(config, loader)
    optimizer = Optimizer(model, optim or OptimConfig(lr=0.03), steps)
    progress = Progress()
    parts = {MODEL: model, "optimizer": optimizer, "loader": loader, "progress": progress, **objective.parts()}
    saver = Checkpointer(
        folder / "checkpoints", parts, config_hash=config_hash, every=config.checkpoint_every, keep=config.keep_checkpoints, say=print
    )
    tracker = Tracker.open(folder / "tensorboard", every=1000, since=Progress(), total_steps=steps, config="")
    return Trainer(
        model, objective, optimizer, loader, progress, saver, tracker, validate or (lambda m: {"valid/ndcg@20": 0.5}), config, seed
    )


def hit_rate(model, data, split, k):
    """Share of held-out events in the top k of all items, history and context as at their time."""
    length = model.config.history.length
    positions = np.flatnonzero(data.split == split)
    context = {name: array[positions] for name, array in data.context.items()}
    users = data.users_of(positions)
    runtime = TorchRuntime(model)
    user_BD = runtime.user(user_inputs(data, users, positions, data.timestamp[positions], context, length)).vectors_BHD[:, 0]
    scores_BI = user_BD @ runtime.item(data.item_features).T
    target_B = scores_BI[np.arange(len(positions)), data.item[positions]]
    return float((np.sum(scores_BI > target_B[:, None], axis=1) < k).mean())


def popular_hit_rate(data, split, k):
    top = np.argsort(-data.train_counts(), kind="stable")[:k]
    return float(np.isin(data.item[data.split == split], top).mean())


@pytest.fixture(scope="module")
def toy(make_toy):
    return make_toy(users=120, events=(8, 24))


def weights(trainer):
    return {name: tensor.clone() for name, tensor in trainer.model.state_dict().items()}


@pytest.mark.parametrize(
    "model_config,loss,negatives",
    [
        (POOLED, "full_softmax", "mixed"),
        (POOLED, "sampled_softmax", "in_batch"),
        (POOLED, "sampled_softmax", "uniform"),
        (POOLED, "sampled_softmax", "popularity"),
        (POOLED, "sampled_softmax", "mixed"),
        (POOLED, "sampled_softmax", "hard"),
        (TRANSFORMER, "full_softmax", "mixed"),
        (TRANSFORMER, "sampled_softmax", "mixed"),
    ],
)
def test_learns_and_beats_popularity(tmp_path, toy, model_config, loss, negatives):
    trainer = make_trainer(tmp_path, toy, model_config, loss, negatives, epochs=12, evaluate_every=0)
    losses = [trainer.train_step(batch)["train/loss"] for batch in trainer.loader]
    trainer.loader.load_state_dict({"epoch": 1, "step": 0})
    trainer.fit()
    trainer.loader.load_state_dict({"epoch": 0, "step": 0})
    later = [trainer.train_step(batch)["train/loss"] for batch in trainer.loader]
    assert np.mean(later) < 0.8 * np.mean(losses)
    assert hit_rate(trainer.model, toy, 1, 5) > 2 * popular_hit_rate(toy, 1, 5)


def test_a_loss_that_is_not_finite_stops_before_the_optimiser_moves(tmp_path, toy):
    trainer = make_trainer(tmp_path, toy)
    batches = iter(trainer.loader)
    trainer.train_step(next(batches))
    with torch.no_grad():
        trainer.model.history.no_history_D.fill_(math.nan)
    before, moments = weights(trainer), {k: v.clone() for k, v in trainer.optimizer.state_dict().items()}
    with pytest.raises(TrainingError, match=r"step 2: the loss is nan.*not moved.*optim\.lr.*trainer\.resume=false"):
        trainer.train_step(next(batches))
    assert all(torch.equal(before[k], v) or (k == "history.no_history_D") for k, v in trainer.model.state_dict().items())
    assert all(torch.equal(moments[k], v) for k, v in trainer.optimizer.state_dict().items())
    assert trainer.progress.step == 1


def test_a_gradient_that_is_not_finite_stops_too(tmp_path, toy):
    trainer = make_trainer(tmp_path, toy)
    batch = next(iter(trainer.loader))
    before = weights(trainer)
    trainer.model.tables["item_id"].weight.register_hook(lambda gradient: gradient * math.inf)
    with pytest.raises(TrainingError, match=r"the loss is \d.*gradient's norm (nan|inf)"):
        trainer.train_step(batch)
    assert all(torch.equal(before[k], v) for k, v in trainer.model.state_dict().items())


def test_infinite_inputs_are_named(tmp_path, toy):
    trainer = make_trainer(tmp_path, toy)
    batch = next(iter(trainer.loader))
    bad = dataclasses.replace(batch, user={**batch.user, "user.height": np.full((64, 2), np.inf, np.float32)})
    with torch.no_grad():
        trainer.model.history.no_history_D.fill_(math.nan)
    with pytest.raises(DataError, match=r"NaN or infinity: user\.height"):
        trainer.train_step(bad)


@pytest.mark.parametrize(
    "model_config,loss,negatives",
    [(POOLED, "sampled_softmax", "mixed"), (POOLED, "sampled_softmax", "hard"), (TRANSFORMER, "full_softmax", "mixed")],
)
@pytest.mark.parametrize("cut", ["mid_epoch", "epoch_end"])
def test_resuming_gives_the_same_weights_bit_for_bit(tmp_path, toy, model_config, loss, negatives, cut):
    def make(folder):
        return make_trainer(
            folder, toy, model_config, loss, negatives, epochs=3, checkpoint_every=2, batch_size=64 if loss != "full_softmax" else 16
        )

    whole = make(tmp_path / "whole")
    whole.fit()

    class Killed(Exception):
        pass

    first = make(tmp_path / "cut")
    at = first.loader.steps_per_epoch + 3
    if cut == "mid_epoch":

        def kill(pace, scalars, floor):
            if pace.step == at:
                raise Killed

        first.tracker.step = kill
    else:

        def kill_at_validation(model):
            if first.progress.epochs == 2:
                raise Killed
            return {"valid/ndcg@20": 0.5}

        first.validate = kill_at_validation
    with pytest.raises(Killed):
        first.fit()
    second = make(tmp_path / "cut")
    assert 0 < second.checkpointer.restore() <= 2 * first.loader.steps_per_epoch
    second.fit()
    assert all(torch.equal(v, weights(whole)[k]) for k, v in weights(second).items())
    assert all(torch.equal(v, whole.optimizer.state_dict()[k]) for k, v in second.optimizer.state_dict().items())
    clocks = dict.fromkeys(("seconds", "earlier_cpu_s", "earlier_wall_s"), 0)
    mine, theirs = dataclasses.replace(second.progress, **clocks), dataclasses.replace(whole.progress, **clocks)
    assert mine == theirs


def test_the_same_seed_gives_the_same_weights_and_another_does_not(tmp_path, toy):
    runs = [make_trainer(tmp_path / str(i), toy, epochs=1, seed=seed) for i, seed in enumerate((3, 3, 4))]
    for run in runs:
        run.fit()
    a, b, c = (weights(run)["tables.item_id.weight"] for run in runs)
    assert torch.equal(a, b) and not torch.equal(a, c)


def test_stops_early_and_keeps_the_best(tmp_path, toy):
    values = [0.1, 0.3, 0.2, 0.25, 0.4]
    kept = {}

    def validate(model):
        assert not model.training
        epoch = len(kept) + 1
        kept[epoch] = {name: tensor.clone() for name, tensor in model.state_dict().items()}
        return {"valid/ndcg@20": values[epoch - 1], "valid/recall@20": epoch}

    trainer = make_trainer(tmp_path, toy, validate=validate, epochs=5, patience=2)
    progress = trainer.fit()
    assert progress.epochs == 4 and progress.best_epoch == 2
    assert progress.best == {"valid/ndcg@20": 0.3, "valid/recall@20": 2}
    assert all(torch.equal(v, kept[2][k]) for k, v in trainer.model.state_dict().items())
    assert trainer.finished()


def test_a_finished_run_resumed_does_nothing_more(tmp_path, toy):
    make_trainer(tmp_path, toy, epochs=2).fit()
    again = make_trainer(tmp_path, toy, epochs=2)
    steps = again.checkpointer.restore()
    assert again.fit().step == steps == again.total_steps


def test_max_steps_bounds_the_run(tmp_path, toy):
    calls = []
    trainer = make_trainer(tmp_path, toy, epochs=5, max_steps=3, validate=lambda m: calls.append(1) or {"valid/ndcg@20": 1.0})
    assert trainer.fit().step == 3 and calls == [1]


@pytest.mark.parametrize("metrics", [{}, {"valid/recall@20": 0.1}, {"valid/ndcg@20": math.nan}])
def test_a_metric_that_cannot_be_watched_is_a_config_error(tmp_path, toy, metrics):
    trainer = make_trainer(tmp_path, toy, validate=lambda m: metrics)
    with pytest.raises(ConfigError, match=r"trainer\.monitor: valid/ndcg@20.*evaluate_every=0"):
        trainer.fit()


def test_validation_is_skipped_where_it_is_not_due(tmp_path, toy):
    calls = []

    def validate(model):
        calls.append(1)
        return {"valid/ndcg@20": 0.1 * len(calls)}

    make_trainer(tmp_path, toy, validate=validate, epochs=5, evaluate_every=2).fit()
    assert len(calls) == 3, "epochs 2 and 4, and the last"


@pytest.mark.parametrize("damage", ["lost", "damaged"])
def test_a_run_survives_the_loss_of_its_best_and_measures_what_it_has(tmp_path, toy, damage):
    values = iter([0.5, 0.4, 0.4])
    trainer = make_trainer(tmp_path, toy, epochs=2, validate=lambda model: {"valid/ndcg@20": next(values)})
    end = trainer.end_epoch

    def spoil():
        end()
        best = trainer.checkpointer.folder / trainer.checkpointer.best
        if damage == "lost":
            shutil.rmtree(best, ignore_errors=True)
        else:
            (best / "tensors.safetensors").write_bytes(b"")

    trainer.end_epoch = spoil
    progress = trainer.fit()
    assert progress.best == {"valid/ndcg@20": 0.4} and progress.best_epoch == 2, "the figures of the weights that are there"
    saved = load_file(sorted(trainer.checkpointer.folder.glob("*-step-*"))[-1] / "tensors.safetensors")
    assert all(torch.equal(tensor, saved[f"model:{name}"]) for name, tensor in trainer.model.state_dict().items())


def test_a_batch_of_one_trains(tmp_path, toy):
    trainer = make_trainer(tmp_path, toy, loss="sampled_softmax", negatives="in_batch", batch_size=1, max_steps=2)
    assert trainer.fit().step == 2
    none = doubts(NegativesConfig(name="in_batch"), "sampled_softmax", "event", 1, 39)
    assert "NOTHING IS LEARNED" in none and "trainer.batch_size=1" in none
    for others in (("sampled_softmax", "event", 2), ("sampled_softmax", "sequence", 1), ("full_softmax", "event", 1)):
        assert doubts(NegativesConfig(name="in_batch"), *others, 39) == ""


def test_the_loss_is_said(toy):
    items = CandidateItems(toy, TrainingEvents.select(toy, (TRAIN,)), torch.device("cpu"))
    objective, why = choose_objective(LossConfig("full_softmax"), NegativesConfig(), items, "cheap enough")
    assert objective.name == "full_softmax" and "over 39 items" in why and "(cheap enough; " in why
    objective, why = choose_objective(LossConfig("sampled_softmax"), NegativesConfig(), items, "asked for")
    assert objective.name == "sampled_softmax" and "mixed negatives, 1024 drawn (asked for; " in why


def test_items_never_met_in_training_are_no_candidates(toy):
    items = CandidateItems(toy, TrainingEvents.select(toy, (TRAIN,)), torch.device("cpu"))
    assert toy.n_items - 1 not in items.rows_K
    assert (items.inputs["item.item_id"] >= 3).all()
