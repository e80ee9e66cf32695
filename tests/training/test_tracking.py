import itertools
from types import SimpleNamespace

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from towers.model_config import HistoryConfig, ModelConfig
from training.config import OptimConfig, TrainerConfig, TrainingConfig
from training.fit import run
from training.interactions import write_prepared
from training.tracking import Tracker

NAMES = ("loss", "grad_norm", "lr", "temperature", "examples_per_s", "product_floor_share")


START = SimpleNamespace(step=0, epochs=0, examples=0, seconds=0.0)


class Half:
    """A floor at half the time taken."""

    def share(self, examples, seconds):
        return {"train/product_floor_share": 0.5 * examples / (200 * seconds)} if seconds else {}


def read(folder):
    events = EventAccumulator(str(folder), size_guidance={"scalars": 0})
    events.Reload()
    return events


def test_scalars_config_and_epoch_lines(tmp_path, capfd):
    pace = SimpleNamespace(step=0, epochs=0, examples=0, seconds=0.0)
    with Tracker.open(tmp_path, every=2, since=START, total_steps=4, config="seed: 7") as tracker:
        for _ in range(4):
            pace.step, pace.examples, pace.seconds = pace.step + 1, pace.examples + 100, pace.seconds + 0.5
            tracker.step(pace, {"train/loss": 8.0 / pace.step, "train/lr": 0.1}, Half())
        pace.epochs = 1
        tracker.epoch(pace, {"valid/ndcg@20": 0.25, "valid/recall@20": 0.5}, "valid/ndcg@20", best=True)
    events = read(tmp_path)
    assert [(e.step, e.value) for e in events.Scalars("train/loss")] == [(2, 4.0), (4, 2.0)]
    assert [e.value for e in events.Scalars("train/examples_per_s")] == pytest.approx([200, 200])
    assert [e.value for e in events.Scalars("train/product_floor_share")] == pytest.approx([0.5, 0.5])
    assert [(e.step, e.value) for e in events.Scalars("valid/ndcg@20")] == [(4, 0.25)]
    assert "seed: 7" in str(events.Tensors("config/text_summary")[0])
    lines = [line for line in capfd.readouterr().err.splitlines() if line]
    assert lines == ["epoch 1 (step 4): loss 4.1667, valid/ndcg@20 0.2500 (best), 200 examples/s"], "no bar where there is no terminal"


def test_scalars_past_the_resumed_step_are_dropped(tmp_path):
    def run(step, last, loss):
        pace = SimpleNamespace(step=step, epochs=0, examples=0, seconds=0.0)
        with Tracker.open(tmp_path, every=1, since=pace, total_steps=last, config="") as tracker:
            while pace.step < last:
                pace.step += 1
                tracker.step(pace, {"train/loss": loss}, Half())

    run(0, 4, 1.0)
    run(2, 5, 2.0)  # cut off after 4, continued from a checkpoint at 2
    assert [(e.step, e.value) for e in read(tmp_path).Scalars("train/loss")] == [(1, 1.0), (2, 1.0), (3, 2.0), (4, 2.0), (5, 2.0)]


def test_the_pace_after_a_resume_is_that_of_its_own_steps(tmp_path):
    pace = SimpleNamespace(step=10, epochs=1, examples=1_000_000, seconds=1.0)
    with Tracker.open(tmp_path, every=1, since=SimpleNamespace(**vars(pace)), total_steps=11, config="") as tracker:
        pace.step, pace.examples, pace.seconds = 11, pace.examples + 100, pace.seconds + 0.5
        tracker.step(pace, {"train/loss": 1.0}, Half())
    assert [e.value for e in read(tmp_path).Scalars("train/examples_per_s")] == pytest.approx([200])


def test_a_run_leaves_its_pace_floor_gradient_rate_and_temperature(tmp_path, make_toy):
    """The event file of a real run, read back."""
    model = ModelConfig(dim=8, learn_temperature=True, history=HistoryConfig(length=6))
    loop = TrainerConfig(epochs=2, batch_size=64, device="cpu", log_every=2)
    config = TrainingConfig(
        run_dir=str(tmp_path), model=model, trainer=loop, optim=OptimConfig(schedule="linear", warmup_share=0.0, lr=0.1)
    )
    write_prepared(tmp_path / "prepared", make_toy())
    run(config)
    events = read(tmp_path / "tensorboard")
    kept = {name: events.Scalars(f"train/{name}") for name in NAMES}
    steps = [e.step for e in kept["loss"]]
    assert steps == list(range(2, 2 * len(steps) + 1, 2)) and len(steps) > 3
    assert all([e.step for e in scalars] == steps for scalars in kept.values())
    values = {name: [e.value for e in scalars] for name, scalars in kept.items()}
    assert all(0 < share < 1 for share in values["product_floor_share"])
    assert all(value > 0 for name in ("examples_per_s", "grad_norm", "temperature") for value in values[name])
    assert len(set(values["temperature"])) > 1, "it is learned"
    assert values["lr"][0] < 0.1 and all(a > b for a, b in itertools.pairwise(values["lr"]))
