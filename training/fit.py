"""The work of `towers train`: build the parts from the config, restore, fit, write the result."""

import json
from dataclasses import asdict, dataclass
from pathlib import Path

import torch

from towers.columns import TRAIN
from towers.job import write_json
from towers.model import TwoTower
from towers.runtime import save_model
from training.checkpoint import Checkpointer
from training.config import TrainingConfig
from training.device import choose_device
from training.examples import EventSampler, Sampler, SequenceSampler, TrainingEvents
from training.facts import Stopwatch, config_hash, run_facts
from training.interactions import Interactions
from training.loader import Loader
from training.objective import CandidateItems, Objective, choose_objective
from training.opening import digest_of, open_prepared
from training.optim import Optimizer
from training.tracking import Tracker, say
from training.trainer import MODEL, Progress, Trainer, Validate, total_steps
from training.validation import Validator

BATCH_SIZES = {"event": 1024, "sequence": 128}
"""Examples a step where the config leaves it open: a window holds up to a hundred targets, an event one."""


@dataclass(frozen=True)
class Parts:
    """A run, put together and not yet restored; `why` says which loss was chosen and why."""

    model: TwoTower
    sampler: Sampler
    loader: Loader
    objective: Objective
    why: str
    optimizer: Optimizer
    progress: Progress
    checkpointer: Checkpointer
    validate: Validate
    steps: int


def run(config: TrainingConfig) -> str:
    """Train in config.run_dir; returns the path of train.json.

    Raises:
        DataError: no prepared data, or nothing in it to train on.
        ConfigError: a setting does not fit this machine, or the checkpoints found belong to other settings.
        TrainingError: the loss or gradient is not finite.
    """
    watch = Stopwatch()
    run_dir = Path(config.run_dir)
    device = choose_device(config.trainer.device)
    if config.trainer.threads > 0:
        torch.set_num_threads(config.trainer.threads)
    parts = assemble(config, open_prepared(config), device)
    restored = restore(parts.checkpointer, config.trainer.resume)
    print(
        f"train: {len(parts.sampler)} {parts.sampler.name} examples, {parts.steps} steps, {device.type}, {config.trainer.precision};"
        f" {parts.why}{restored}",
        flush=True,
    )
    fit(config, parts)
    save_model(parts.model, run_dir / "model")
    progress = parts.progress
    document = {
        "run": {
            **run_facts(config, watch),
            "steps": progress.step,
            "examples_per_s": round(progress.examples / max(progress.seconds, 1e-9), 1),
            "loss": parts.objective.name,
            "sampler": parts.sampler.name,
            "device": device.type,
        },
        "valid": progress.best,
        "best_epoch": progress.best_epoch,
        "epochs": progress.epochs,
    }
    return str(write_json(run_dir / "train.json", document))


def assemble(config: TrainingConfig, data: Interactions, device: torch.device) -> Parts:
    """Build every part from the config; the model's first weights come from the seed."""
    torch.manual_seed(config.seed)
    model = TwoTower(config.model, data.preprocessor.inputs, data.preprocessor.event_rows).to(device)
    events = TrainingEvents.select(data, (TRAIN,))
    sampler = choose_sampler(config, events)
    batch_size = config.trainer.batch_size or BATCH_SIZES[sampler.name]
    loader = Loader(data, events, sampler, length=config.model.history.length, batch_size=batch_size, seed=config.seed)
    objective, why = choose_objective(config.loss, config.negatives, CandidateItems(data, events, device), data.n_items)
    steps = total_steps(config.trainer, loader)
    optimizer = Optimizer(model, config.optim, steps)
    progress = Progress()
    checkpointer = Checkpointer(
        Path(config.run_dir) / "checkpoints",
        {MODEL: model, "optimizer": optimizer, "loader": loader, "progress": progress},
        config_hash=data_and_config_hash(config, data),
        every=config.trainer.checkpoint_every,
        keep=config.trainer.keep_checkpoints,
        say=say,
    )
    validate: Validate = Validator(data, config) if config.trainer.evaluate_every > 0 else _no_validation
    return Parts(model, sampler, loader, objective, why, optimizer, progress, checkpointer, validate, steps)


def fit(config: TrainingConfig, parts: Parts) -> None:
    """Train from wherever the parts stand, telling TensorBoard and the console."""
    tracker = Tracker.open(
        Path(config.run_dir) / "tensorboard",
        every=config.trainer.log_every,
        step=parts.progress.step,
        total_steps=parts.steps,
        config=json.dumps(asdict(config), indent=2),
    )
    with tracker:
        Trainer(
            parts.model,
            parts.objective,
            parts.optimizer,
            parts.loader,
            parts.progress,
            parts.checkpointer,
            tracker,
            parts.validate,
            config.trainer,
            config.seed,
        ).fit()


def restore(checkpointer: Checkpointer, resume: bool) -> str:
    """Continue from the newest whole checkpoint, or start anew; returns what to say about it."""
    if not resume:
        checkpointer.clear()
        return ""
    step = checkpointer.restore()
    return "" if step is None else f"; continuing after step {step}"


def choose_sampler(config: TrainingConfig, events: TrainingEvents) -> Sampler:
    """The sampler that the config asks for; auto trains all positions of a transformer at once."""
    auto = "sequence" if config.model.history.name == "transformer" else "event"
    name = auto if config.trainer.sampler == "auto" else config.trainer.sampler
    return SequenceSampler(events, config.model.history.length) if name == "sequence" else EventSampler(events)


def data_and_config_hash(config: TrainingConfig, data: Interactions) -> str:
    """The config's hash, and the prepared data's sizes and digest: what differs means that other data was prepared since."""
    sizes = f"{data.n_users}-{data.n_items}-{len(data)}-{data.preprocessor.event_rows}"
    return f"{config_hash(config)}-{sizes}-{digest_of(data)}"


def _no_validation(model: TwoTower) -> dict[str, float]:
    return {}
