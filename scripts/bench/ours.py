"""Our training step as `towers train` runs it: the parts that training.fit assembles, and its Trainer's step."""

import os
import subprocess
import sys
from pathlib import Path
from typing import cast

import torch
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf

from towers.batch import TrainBatch
from towers.model_config import HistoryConfig, ModelConfig
from towers.verbs import conf_dir
from training.config import TrainingConfig, register, validate
from training.fit import assemble
from training.interactions import Interactions
from training.tracking import Silence
from training.trainer import Trainer


def id_config(run_dir: Path, dim: int, batch_size: int, precision: str = "auto", length: int = 1) -> TrainingConfig:
    """Two towers of one id each: the item's, and on the user's side the newest item of the history, out of a table of its own.

    So each side gathers one row an example, as two plain id towers do. In-batch negatives with the logQ correction, accidental hits
    removed; cosine, fixed temperature.
    """
    history = HistoryConfig(length=length, use_event_type=False, use_age=False)
    config = TrainingConfig(run_dir=str(run_dir), model=ModelConfig(dim=dim, history=history, id_dropout=0.0, context_dropout=0.0))
    config.data.order, config.split.name = "position", "leave_one_out"
    config.loss.name, config.negatives.name, config.loss.precision = "sampled_softmax", "in_batch", precision
    config.trainer.sampler, config.trainer.batch_size = "event", batch_size
    config.trainer.evaluate_every, config.trainer.device = 0, "cpu"
    validate(config)
    return config


def composed(run_dir: Path, *overrides: str) -> TrainingConfig:
    """What `towers train run_dir=... <overrides>` would be configured with."""
    register()
    with initialize_config_dir(str(conf_dir()), version_base="1.3"):
        raw = compose("train", [f"run_dir={run_dir}", *overrides])
    return cast(TrainingConfig, OmegaConf.to_object(raw))


def prepare(run_dir: Path, *overrides: str) -> None:
    """`towers prepare`, in a process of its own."""
    command = [sys.executable, "-m", "towers", "prepare", f"run_dir={run_dir}", *overrides]
    done = subprocess.run(command, env={**os.environ, "TOWERS_KEY_FILE": str(run_dir / "key")}, capture_output=True, text=True)
    if done.returncode:
        sys.exit(done.stderr)


class OurStep:
    """One optimiser step a call, on batches loaded beforehand; `examples` is the targets of a step, on average."""

    def __init__(self, config: TrainingConfig, batches: int = 8) -> None:
        parts = assemble(config, Interactions.open(Path(config.run_dir) / "prepared"), torch.device(config.trainer.device))
        self.why = parts.why
        self.batches: list[TrainBatch] = [parts.loader.batch(0, step) for step in range(min(batches, parts.loader.steps_per_epoch))]
        self.examples = sum(int((batch.targets_BT >= 0).sum()) for batch in self.batches) / len(self.batches)
        self.trainer = Trainer(
            parts.model, parts.objective, parts.optimizer, parts.loader, parts.progress, parts.checkpointer, Silence(),
            parts.validate, config.trainer, config.seed,
        )  # fmt: skip
        parts.model.train()
        self._turn = 0

    def __call__(self) -> None:
        self.trainer.train_step(self.batches[self._turn % len(self.batches)])
        self._turn += 1
