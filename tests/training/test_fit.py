import json
import re
import shutil

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from towers.columns import VALID
from towers.errors import ConfigError, DataError
from training import exporting, metrics, ranking, trainer
from training.baselines import most_popular
from training.checkpoint import STATE, TENSORS
from training.config import EvaluateConfig, LossConfig, OptimConfig, TrainerConfig, TrainingConfig
from training.fit import assemble, run
from training.interactions import Interactions, write_prepared
from training.objective import SampledSoftmax
from training.opening import check_trained_on, open_prepared
from training.queries import make_queries, recommendable
from training.rank_queries import rank_queries
from training.refit import with_validation


@pytest.fixture(scope="module")
def prepared(tmp_path_factory, make_toy):
    return write_prepared(tmp_path_factory.mktemp("toy") / "prepared", make_toy())


@pytest.fixture
def make_config(tmp_path, prepared):
    shutil.copytree(prepared, tmp_path / "prepared")

    def build(optim=None, loss=None, **settings):
        loop = TrainerConfig(**{"epochs": 2, "batch_size": 64, "device": "cpu", **settings})
        config = TrainingConfig(run_dir=str(tmp_path), trainer=loop)
        config.model.dim, config.model.history.length = 8, 6
        config.optim, config.loss = optim or config.optim, loss or config.loss
        return config

    return build


@pytest.fixture
def weights(tmp_path):
    return lambda: load_file(tmp_path / "model" / "weights.safetensors")


def newest(tmp_path):
    return max(p for p in (tmp_path / "checkpoints").iterdir())


def test_a_finished_run_is_not_trained_twice(make_config, weights, tmp_path, capsys):
    run(make_config())
    before, result = weights(), json.loads((tmp_path / "train.json").read_text())
    run(make_config())
    assert f"continuing after step {result['run']['steps']}" in capsys.readouterr().out
    assert all(torch.equal(tensor, before[name]) for name, tensor in weights().items())
    assert json.loads((tmp_path / "train.json").read_text())["valid"] == result["valid"]


@pytest.mark.parametrize("job", [ranking.run, exporting.run])
def test_a_model_of_other_prepared_data_is_neither_measured_nor_exported(make_config, tmp_path, job, monkeypatch):
    """Columns of the same shape do not make the same data: ids have other rows there, and the split may be another."""
    monkeypatch.setattr(exporting, "check_secret", lambda *_: None)
    path = tmp_path / "prepared" / "prepare.json"
    path.write_text(json.dumps({"data": {"digest": "one", "made": "one"}}))
    run(make_config())
    path.write_text(json.dumps({"data": {"digest": "less, somebody was forgotten", "made": "one"}}))
    check_trained_on(tmp_path, open_prepared(make_config()))
    path.write_text(json.dumps({"data": {"digest": "two", "made": "two"}}))
    with pytest.raises(DataError, match="was trained on other data than .* holds now"):
        job(make_config())
    assert not (tmp_path / "metrics.json").exists() and not (tmp_path / "bundles").exists()


def test_other_settings_do_not_continue_a_run(make_config, tmp_path):
    run(make_config())
    with pytest.raises(ConfigError, match=r"other settings.*trainer\.resume=false.*another run_dir"):
        run(make_config(optim=OptimConfig(lr=0.1)))
    run(make_config(optim=OptimConfig(lr=0.1), resume=False, epochs=1))
    assert json.loads((tmp_path / "train.json").read_text())["epochs"] == 1


def test_settings_that_change_no_weight_may_change(make_config, capsys):
    run(make_config())
    run(make_config(log_every=1, keep_checkpoints=5, checkpoint_every=3))
    assert "continuing" in capsys.readouterr().out


def test_a_truncated_newest_checkpoint_is_passed_over_and_said(make_config, weights, tmp_path, capfd):
    run(make_config())
    before = weights()
    path = newest(tmp_path) / TENSORS
    path.write_bytes(path.read_bytes()[:-100])
    run(make_config())
    assert re.search(r"checkpoint .* is damaged.*taking the checkpoint before it", capfd.readouterr().err)
    assert all(torch.equal(tensor, before[name]) for name, tensor in weights().items())


def test_state_is_the_listed_parts_and_no_more(make_config, tmp_path):
    run(make_config(epochs=1, evaluate_every=0))
    state = json.loads((newest(tmp_path) / STATE).read_text())
    assert set(state["values"]) == {"model", "optimizer", "loader", "progress"}
    assert state["values"]["loader"] == {"epoch": 1, "step": 0}
    result = json.loads((tmp_path / "train.json").read_text())
    assert result["valid"] == {} and result["best_epoch"] == 0


@pytest.mark.parametrize("loss", ["sampled_softmax", "full_softmax"])
def test_the_loss_asked_for_is_the_loss_taken(make_config, tmp_path, loss):
    run(make_config(loss=LossConfig(name=loss), epochs=1))
    assert json.loads((tmp_path / "train.json").read_text())["run"]["loss"] == loss


def test_a_gpu_that_is_not_there_is_a_config_error(make_config, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(ConfigError, match=r"trainer\.device: got cuda"):
        run(make_config(device="cuda"))


def test_no_prepared_data(make_config, tmp_path):
    shutil.rmtree(tmp_path / "prepared")
    with pytest.raises(DataError, match="towers prepare"):
        run(make_config())


@pytest.mark.parametrize("optim", ["adam", "lazy_adam", "rowwise_adagrad"])
def test_an_interrupted_run_keeps_what_was_saved_and_continues(make_config, weights, tmp_path, monkeypatch, capsys, optim):
    """Ctrl-C anywhere: the next run starts from the newest checkpoint and ends as if nothing had been."""
    real = trainer.Trainer.train_step

    def interrupted(self, batch):
        if self.progress.step == self.loader.steps_per_epoch + 2:
            raise KeyboardInterrupt
        return real(self, batch)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(trainer.Trainer, "train_step", interrupted)
        run(make_config(OptimConfig(name=optim)))
    assert not (tmp_path / "train.json").exists()
    run(make_config(OptimConfig(name=optim)))
    assert "continuing after step" in capsys.readouterr().out
    continued = weights()
    run(make_config(OptimConfig(name=optim), resume=False))
    assert all(torch.equal(tensor, continued[name]) for name, tensor in weights().items())


def test_a_run_goes_on_with_other_threads_and_counts_the_seconds_of_both(make_config, tmp_path, capsys, threads):
    run(make_config(threads=1))
    first, place = json.loads((tmp_path / "train.json").read_text())["run"], capsys.readouterr().out
    assert "then on" not in place
    run(make_config(threads=2, epochs=2))
    both = json.loads((tmp_path / "train.json").read_text())["run"]
    assert "then on cpu with 1 threads and now on cpu with 2 threads, so to rounding" in capsys.readouterr().out
    trained = json.loads((newest(tmp_path) / "state.json").read_text())["values"]["progress"]
    assert 0 < trained["earlier_cpu_s"] <= first["cpu_s"] and 0 < trained["earlier_wall_s"] <= first["wall_s"]
    assert both["cpu_s"] > trained["earlier_cpu_s"] and both["wall_s"] > trained["earlier_wall_s"]


@pytest.fixture
def threads():
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


def test_data_without_order_train_by_user(make_config, make_toy, weights, tmp_path, monkeypatch, capsys):
    """The choice is made from sizes: a run that continues makes it again, and ends as one that was never cut off."""
    shutil.rmtree(tmp_path / "prepared")
    write_prepared(tmp_path / "prepared", make_toy(order="set"))
    run(make_config(batch_size=8, checkpoint_every=3))
    out = capsys.readouterr().out
    assert "user examples" in out and "full_softmax" in out and "a target costs about" in out
    result, whole = json.loads((tmp_path / "train.json").read_text()), weights()
    assert result["run"]["sampler"] == "user" and result["run"]["loss"] == "full_softmax"
    shutil.rmtree(tmp_path / "checkpoints")
    real = trainer.Trainer.train_step

    def interrupted(self, batch):
        if self.progress.step == 5:
            raise KeyboardInterrupt
        return real(self, batch)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(trainer.Trainer, "train_step", interrupted)
        run(make_config(batch_size=8, checkpoint_every=3))
    run(make_config(batch_size=8, checkpoint_every=3))
    assert "continuing after step 3" in capsys.readouterr().out
    assert all(torch.equal(tensor, whole[name]) for name, tensor in weights().items())


@pytest.mark.parametrize("loss", ["sampled_softmax", "full_softmax"])
def test_tables_trained_row_by_row_get_sparse_gradients(make_config, tmp_path, loss):
    config = make_config(OptimConfig(name="rowwise_adagrad"), LossConfig(name=loss))
    parts = assemble(config, Interactions.open(tmp_path / "prepared"), torch.device("cpu"))
    parts.objective(parts.model.train(), parts.loader.batch(0, 0), np.random.default_rng(0)).backward()
    tables = [table.weight.grad for table in parts.model.tables.values()]
    assert len(tables) == 2 and all(grad.is_sparse and not grad.is_coalesced() for grad in tables)
    state = parts.optimizer.state_dict()
    assert {name for name in state if name.endswith("/square")} == {f"tables.{name}.weight/square" for name in parts.model.tables}


def test_the_correction_is_for_what_the_sampler_draws(make_config, tmp_path):
    config = make_config(loss=LossConfig(name="sampled_softmax", precision="fp32"), sampler="user", history_share=0.5)
    parts = assemble(config, Interactions.open(tmp_path / "prepared"), torch.device("cpu"))

    def loss(objective):
        return float(objective(parts.model.eval(), parts.loader.batch(0, 0), np.random.default_rng(0)).detach())

    def corrected(drawn_I):
        return SampledSoftmax(parts.objective.items, config.loss, config.negatives, False, drawn_I=drawn_I)

    assert loss(parts.objective) == pytest.approx(loss(corrected(parts.loader.draws())), abs=1e-5)
    assert abs(loss(parts.objective) - loss(corrected(None))) > 1e-3


def test_refit_trains_anew_on_training_and_validation_rows_for_the_epochs_chosen(make_config, weights, tmp_path, capsys):
    run(make_config(epochs=3))
    chosen, alone = json.loads((tmp_path / "train.json").read_text()), weights()
    run(make_config(epochs=3, refit=True))
    result = json.loads((tmp_path / "train.json").read_text())
    data = Interactions.open(tmp_path / "prepared")
    assert result["valid"] == chosen["valid"] and result["best_epoch"] == chosen["best_epoch"]
    assert result["targets"] == chosen["targets"] == int(data.train_counts().sum())
    validating = int(((data.split == VALID) & (data.weight > 0)).sum())
    assert result["refit"] == {"epochs": chosen["best_epoch"], "targets": result["targets"] + validating}
    assert f"{result['refit']['targets']} targets" in capsys.readouterr().out
    assert not torch.equal(weights()["tables.item_id.weight"], alone["tables.item_id.weight"])


@pytest.mark.parametrize(("count", "said"), [(10_000, 1), (8, 0)])
def test_more_negatives_than_items_are_told_of_once(make_config, capfd, count, said):
    config = make_config(epochs=1, refit=True, loss=LossConfig("sampled_softmax"))
    config.negatives.count = count
    run(config)
    warnings = [line for line in capfd.readouterr().err.splitlines() if line.startswith("warning:")]
    assert len(warnings) == said
    assert all(re.match(r"warning: negatives\.count: 10,000 are drawn a step and only \d+ items can be", line) for line in warnings)


def test_a_run_made_anew_shows_its_own_vectors_alone_and_warns_of_nothing(make_config, tmp_path, capfd):
    for resume in (True, False, True):
        run(make_config(epochs=1, refit=True, resume=resume))
    told = capfd.readouterr()
    assert "warning" not in (told.out + told.err).lower()
    for folder in (tmp_path / "tensorboard", tmp_path / "tensorboard" / "refit"):
        assert (folder / "projector_config.pbtxt").read_text().count("tensor_name") == len(list(folder.glob("*/vectors"))) == 1


def test_an_interrupted_refit_continues(make_config, weights, tmp_path, monkeypatch):
    """Stopped in its second training, the run does not choose again, and ends as if nothing had been."""
    real, seen = trainer.Trainer.train_step, []

    def interrupted(self, batch):
        seen.append(self.last_epoch)
        if self.last_epoch and self.progress.step == 2:
            raise KeyboardInterrupt
        return real(self, batch)

    config = {"epochs": 2, "refit": True, "checkpoint_every": 1}
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(trainer.Trainer, "train_step", interrupted)
        run(make_config(**config))
    with monkeypatch.context() as patch:
        patch.setattr(trainer.Trainer, "train_step", lambda self, batch: seen.append(self.last_epoch) or real(self, batch))
        seen.clear()
        run(make_config(**config))
    assert seen and all(seen)
    continued = weights()
    run(make_config(**config, resume=False))
    assert all(torch.equal(tensor, continued[name]) for name, tensor in weights().items())


def test_a_refitted_model_is_not_judged_by_what_it_was_trained_on(make_config, tmp_path):
    config = make_config(epochs=1, refit=True)
    run(config)
    config.evaluate = EvaluateConfig(split="valid", draws=10)
    with pytest.raises(ConfigError, match=r"evaluate\.split: .*refitted on the validation rows"):
        ranking.run(config)
    config.evaluate = EvaluateConfig(ks=[5], baselines=["most_popular"], draws=10, slices=False)
    ranking.run(config)
    document = json.loads((tmp_path / "metrics.json").read_text())
    data = Interactions.open(tmp_path / "prepared")
    assert any("anew on train and valid" in line for line in document["protocol"])
    assert document["data"]["split_rows"]["valid"] == int((data.split == VALID).sum())
    popular = most_popular(with_validation(data))
    queries = make_queries(data, "test", "auto", config.split.name).unseen()
    top = rank_queries(popular, queries, 5, masked=True, allowed_I=recommendable(data))
    hits = metrics.hits(top.rows_Qk, queries.relevant, data.n_items)
    expected = float(metrics.recall(hits, queries.relevant_Q, 5).mean())
    assert document["baselines"]["most_popular"]["test/recall@5"]["value"] == pytest.approx(expected)
