"""The training loop. Each part decides for itself what a step means to it; all resume state is in the parts' state_dict."""

import math
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor

from towers.batch import TrainBatch
from towers.errors import ConfigError, DataError, TrainingError
from towers.memory import give_back_memory
from towers.model import TwoTower
from training.checkpoint import Checkpointer
from training.config import TrainerConfig
from training.device import choose_autocast
from training.distributed import ALONE, Processes
from training.facts import Stopwatch
from training.loader import Loader
from training.objective import Objective, not_finite
from training.optim import Optimizer
from training.product_floor import ProductFloor
from training.randomness import NEGATIVES_STREAM, TORCH_STREAM, generator, seed_torch
from training.tracking import Silence, Tracker

MODEL = "model"
"""Name of the model among the checkpoint's parts."""
Validate = Callable[[TwoTower], Mapping[str, float]]


@dataclass
class Progress:
    """How far a run is, and how good.

    Attributes:
        step, epochs: optimiser steps and epochs done.
        examples, seconds: targets trained on, and the seconds that took (loading included, validation not).
        best_epoch: epoch of the best validation so far, counted from 1; 0 = none yet.
        best: its metrics.
        waited: validations since.
        earlier_cpu_s, earlier_wall_s: seconds of the processes that came this far before this one took over.
        place: what computes: a device and its threads.
        started: what the model that this one started from had learned (`ancestry.Learned`); empty where there was none.
    """

    step: int = 0
    epochs: int = 0
    examples: int = 0
    seconds: float = 0.0
    best_epoch: int = 0
    best: dict[str, float] = field(default_factory=dict)
    waited: int = 0
    earlier_cpu_s: float = 0.0
    earlier_wall_s: float = 0.0
    place: str = ""
    started: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self._since = Stopwatch()

    def state_dict(self) -> dict[str, Any]:
        own = self._since.facts()
        earlier = {"earlier_cpu_s": self.earlier_cpu_s + own["cpu_s"], "earlier_wall_s": self.earlier_wall_s + own["wall_s"]}
        return asdict(self) | earlier

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        state = {"started": {}, **state}  # checkpoints of before have none
        for name in asdict(self):
            setattr(self, name, state[name])

    def judge(self, metrics: Mapping[str, float], monitor: str) -> bool:
        """Take a validation's metrics; True where they are the best so far.

        Raises:
            ConfigError: the metric to watch was not measured.
        """
        value = metrics.get(monitor, math.nan)
        if not math.isfinite(value):
            raise ConfigError(
                f"trainer.monitor: {monitor} has the value {value} after epoch {self.epochs}; measured are"
                f" {', '.join(sorted(metrics)) or 'none'}. Choose one of them, or set trainer.evaluate_every=0"
            )
        if self.best and value <= self.best[monitor]:
            self.waited += 1
            return False
        self.best, self.best_epoch, self.waited = dict(metrics), self.epochs, 0
        return True


class Trainer:
    """Trains a model until its steps are done or validation no longer improves.

    Args:
        model: on its device.
        objective: loss of a batch.
        optimizer: moves the model's parameters.
        loader: the examples; tells where in which epoch the run is.
        progress: steps done and best so far.
        checkpointer: saves the parts above.
        tracker: told about every step and epoch.
        validate: measures the model on validation queries; returns values by metric name.
        config: the loop's settings.
        seed: all of a step's randomness comes from (seed, step).
        processes: that train together, on parts of the same batches.
        last_epoch: stop after that many epochs, on the schedule of all of them; 0 = config decides alone.
    """

    def __init__(
        self,
        model: TwoTower,
        objective: Objective,
        optimizer: Optimizer,
        loader: Loader,
        progress: Progress,
        checkpointer: Checkpointer,
        tracker: Tracker | Silence,
        validate: Validate,
        config: TrainerConfig,
        seed: int,
        processes: Processes = ALONE,
        last_epoch: int = 0,
    ) -> None:
        self.model = model
        self.objective = objective
        self.optimizer = optimizer
        self.loader = loader
        self.progress = progress
        self.checkpointer = checkpointer
        self.tracker = tracker
        self.validate = validate
        self.config = config
        self.seed = seed
        self.processes = processes
        self.last_epoch = last_epoch
        self.total_steps = total_steps(config, loader)
        self.autocast = choose_autocast(config.precision, objective.items.device)[0]
        self.floor = ProductFloor(objective.items.device)

    def fit(self) -> Progress:
        """Train from wherever the parts stand to the end; the model then holds its best weights.

        Raises:
            TrainingError: the loss or gradient is not finite.
            DataError: inputs are not finite, or a checkpoint cannot be written.
        """
        while not self.finished():
            self.model.train()
            since = time.perf_counter()
            for batch in self.loader:
                with self.floor.counting(lambda: self.progress.examples):
                    scalars = self.train_step(batch)
                now = time.perf_counter()
                self.progress.seconds, since = self.progress.seconds + now - since, now
                self.tracker.step(self.progress, scalars, self.floor)
                if self.finished():
                    break
                self.checkpointer.maybe_save(self.progress.step)
            self.end_epoch()
        if not self.checkpointer.load_best(MODEL):
            self._measure_anew()
        return self.progress

    def train_step(self, batch: TrainBatch) -> dict[str, float]:
        """One optimiser step; returns its scalars. Nothing moves where the loss or its gradient is not finite."""
        step, processes = self.progress.step, self.processes
        # the same dropout mask for the rows of all processes would be less noise than asked for
        seed_torch(int(generator(self.seed, TORCH_STREAM, step, processes.rank).integers(2**62)), self.objective.items.device)
        self.optimizer.zero_grad()
        share = processes.share(float(batch.weights_BT.sum(dtype=np.float64)), int((batch.targets_BT >= 0).sum()))
        with torch.autocast(self.objective.items.device.type, torch.bfloat16, enabled=self.autocast):
            loss = share.weight * self.objective(self.model, batch, generator(self.seed, NEGATIVES_STREAM, step))
        loss.backward()  # type: ignore[no-untyped-call]
        loss = processes.sum_gradients(self.model.parameters(), loss)
        norm = self.optimizer.grad_norm()
        scalars = {"train/loss": loss.item(), "train/grad_norm": norm.item()}
        self._check_finite(batch, scalars)
        scalars["train/lr"] = self.optimizer.step(step, norm)
        scalars["train/temperature"] = self.model.temperature().item()
        self.progress.step += 1
        self.progress.examples += share.targets
        return scalars

    def end_epoch(self) -> None:
        """Validate where it is due, save, tell."""
        progress, every = self.progress, self.config.evaluate_every
        self.loader.end_epoch()
        progress.epochs += 1
        metrics: Mapping[str, float] = {}
        best = False
        if every > 0 and (progress.epochs % every == 0 or self.finished()):
            self.model.eval()
            metrics = self.processes.lead(lambda: dict(self.validate(self.model)))
            best = progress.judge(metrics, self.config.monitor)
            give_back_memory()
        self.checkpointer.save(progress.step, best)
        self.tracker.epoch(progress, metrics, self.config.monitor, best)

    def _measure_anew(self) -> None:
        """The weights are not those that were the best: the best's figures say nothing of them."""
        if self.progress.best:
            self.model.eval()
            self.progress.best = self.processes.lead(lambda: dict(self.validate(self.model)))
            self.progress.best_epoch = self.progress.epochs

    def finished(self) -> bool:
        """All steps are done, or validation has not improved for `patience` validations."""
        stopped = self.config.patience > 0 and self.progress.waited >= self.config.patience
        stopped |= 0 < self.last_epoch <= self.progress.epochs
        return stopped or self.progress.step >= self.total_steps

    def _check_finite(self, batch: TrainBatch, scalars: Mapping[str, float]) -> None:
        if all(math.isfinite(value) for value in scalars.values()):
            return
        step, loss, norm = self.progress.step + 1, scalars["train/loss"], scalars["train/grad_norm"]
        what = f"step {step}: the loss is {loss} and its gradient's norm {norm}; the optimiser was not moved"
        inputs = self.processes.union(not_finite(batch.user), batch.user) + not_finite(_on_cpu(self.objective.items.inputs))
        if inputs:
            raise DataError(f"{what}. These inputs hold NaN or infinity: {', '.join(inputs)}. Repair the columns and prepare again")
        exact = "" if self.config.precision == "fp32" else ", or use trainer.precision=fp32"
        raise TrainingError(
            f"{what}. Lower optim.lr, set optim.clip_norm=1, or raise model.temperature{exact}; then start anew with trainer.resume=false"
        )


def total_steps(config: TrainerConfig, loader: Loader) -> int:
    """Optimiser steps of the whole run: all epochs, or trainer.max_steps where that is less."""
    steps = config.epochs * loader.steps_per_epoch
    return min(steps, config.max_steps) if config.max_steps > 0 else steps


def _on_cpu(inputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name: tensor.cpu() for name, tensor in inputs.items()}
