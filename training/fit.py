"""The work of `towers train`: build the parts from the config, restore, fit, write the result."""

import json
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch

from towers.alone import alone_in
from towers.columns import EVENT_TYPE, NEGATIVE_EVENT_TYPES, TRAIN
from towers.job import write_json
from towers.model import TwoTower
from towers.runtime import save_model
from training.ancestry import LEARNED, inherited, learned_by, warn_of_validation
from training.candidates import CandidateItems
from training.checkpoint import Checkpointer
from training.choice import Sizes, choose, fitting_length
from training.config import TrainingConfig
from training.device import choose_autocast, choose_device, place_of
from training.distributed import ALONE, Processes, join
from training.events import TrainingEvents
from training.examples import Sampler, make_sampler
from training.facts import Stopwatch, config_hash, deciding_settings, run_facts
from training.half_tables import round_tables
from training.history_content import build, folded
from training.inspection import Inspector
from training.interactions import Interactions
from training.join import Weighed, check_events, choose_weight, join_spectral, learned_alone
from training.launch import follow_launcher, launch, wanted
from training.loader import MOST_TARGETS, Loader
from training.negatives import doubts
from training.new_items_fit import fit_new_items
from training.objective import Objective, choose_objective
from training.opening import digest_of, made_of, open_permitted
from training.optim import Optimizer, choose_tables
from training.refit import FOLDER, RESULT, refit_config, with_validation
from training.room import enough_memory, keep_memory
from training.score_blocks import WIDEST_GUESSED
from training.tracking import Silence, Tracker, say
from training.trained_with import SETTINGS
from training.trainer import MODEL, Progress, Trainer, Validate, total_steps
from training.validation import Validator
from training.warm_start import kept_length, warm_start


@dataclass(frozen=True)
class Parts:
    """A training, put together and not yet restored; `why` says which loss was chosen and why, `last_epoch` where it stops early (0 = it
    does not)."""

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
    processes: Processes
    last_epoch: int = 0

    @property
    def targets(self) -> int:
        """Targets of an epoch."""
        return int(self.objective.items.counts_K.sum())


class Outcome(NamedTuple):
    """How a training went, on how many targets, and the weight of a spectral part beside what it made (None = there is none)."""

    progress: Progress
    targets: int
    weighed: Weighed | None = None


def run(config: TrainingConfig) -> str:
    """Train in config.run_dir; returns the path of train.json.

    Raises:
        DataError: no prepared data, people in it who withdrew, or nothing in it to train on.
        ConfigError: a setting does not fit this machine, or the checkpoints found belong to other settings.
        TrainingError: the loss or gradient is not finite.
    """
    watch = Stopwatch()
    run_dir = Path(config.run_dir)
    if wanted(config):
        launch(config)
        return str(run_dir / RESULT)
    follow_launcher()
    device = choose_device(config.trainer.device)
    if config.trainer.threads > 0:
        torch.set_num_threads(config.trainer.threads)
    with enough_memory(), join(device) as processes, alone_in(run_dir, processes.first):
        data, _ = open_permitted(config)
        check_events(data, config.model.spectral)
        parts = assemble(learned_alone(config), data, device, processes)
        train(learned_alone(config), data, parts, config.trainer.resume)
        weighed = processes.lead(lambda: choose_weight(folded(parts.model, data), data, config)) if config.model.spectral.dim else None
        chosen = Outcome(parts.progress, parts.targets, weighed)
        if config.trainer.refit:
            del parts  # its memory is free for the second training
            data, again = with_validation(data), learned_alone(refit_config(config))
            parts = assemble(again, data, device, processes, FOLDER, chosen.progress.best_epoch)
            train(again, data, parts, resume=True)  # what trainer.resume=false forgets, the first training has removed
        return str(processes.lead(lambda: write_results(config, data, parts, device, watch, chosen)))


def train(config: TrainingConfig, data: Interactions, parts: Parts, resume: bool) -> None:
    """Restore or start, say what is about to happen, and fit."""
    restored, processes = restore(parts, resume), parts.processes
    if not parts.progress.step and config.trainer.init_from:
        carried = warm_start(parts.model, data.preprocessor, config.trainer.init_from)
        parts.progress.started = inherited(carried.learned, data).as_json()
        if processes.first:
            print(f"train: {carried}", flush=True)
            if parts.progress.started["validation"] and not parts.last_epoch:
                warn_of_validation(config.trainer.init_from)
    several = f" on {processes.size} processes" if processes.size > 1 else ""
    epochs = f", {parts.last_epoch} epochs on training and validation rows" if parts.last_epoch else ""
    device = parts.objective.items.device
    if processes.first:
        print(
            f"train: {parts.targets} targets in {len(parts.sampler)} {parts.sampler.name} examples, {parts.steps} steps{epochs},"
            f" {device.type}{several}, {choose_autocast(config.trainer.precision, device)[1]}; {parts.why}{restored}",
            flush=True,
        )
    fit(config, data, parts)


def write_results(config: TrainingConfig, data: Interactions, parts: Parts, device: torch.device, watch: Stopwatch, chosen: Outcome) -> str:
    """Write the model, its spectral part joined, and train.json; returns the path of the latter.

    Args:
        data: what the model was trained on.
        parts: of the training that made the model.
        chosen: of the training that validation judged.
    """
    run_dir, progress, weighed = Path(config.run_dir), parts.progress, chosen.weighed
    model = folded(parts.model, data)
    if weighed:
        model = join_spectral(model, data, replace(config.model.spectral, weight=weighed.weight), config.seed, weighed.fitted)
    half = round_tables(model, config.trainer.half_from)
    save_model(model, run_dir / "model", fit_new_items(model, data, config.seed) if config.trainer.new_items == "content" else None)
    facts = run_facts(config, watch)
    for training in {id(p): p for p in (chosen.progress, progress)}.values():  # the second one where there is a refit
        facts["cpu_s"] = round(facts["cpu_s"] + training.earlier_cpu_s, 3)
        facts["wall_s"] = round(facts["wall_s"] + training.earlier_wall_s, 3)
    document = {
        "run": {
            **facts,
            "steps": progress.step,
            "examples_per_s": round(progress.examples / max(progress.seconds, 1e-9), 1),
            "loss": parts.objective.name,
            "sampler": parts.sampler.name,
            "device": device.type,
            "processes": parts.processes.size,
        },
        "valid": weighed.metrics if weighed else chosen.progress.best,
        "spectral": {"weight": weighed.weight, "fitted": weighed.fitted, "tried": weighed.tried} if weighed else None,
        "half_tables": half,
        "prepared": made_of(data),
        SETTINGS: deciding_settings(config),
        "best_epoch": chosen.progress.best_epoch,
        "epochs": chosen.progress.epochs,
        "targets": chosen.targets,
        LEARNED: learned_by(data, bool(parts.last_epoch), chosen.progress.started, config.trainer.init_from or "").as_json(),
        "refit": {"epochs": progress.epochs, "targets": parts.targets} if parts.last_epoch else None,
    }
    return str(write_json(run_dir / RESULT, document))


def assemble(
    config: TrainingConfig,
    data: Interactions,
    device: torch.device,
    processes: Processes = ALONE,
    folder: str = "",
    last_epoch: int = 0,
) -> Parts:
    """Build every part from the config; the model's first weights come from the seed.

    Args:
        folder: of the checkpoints, below the run's own.
        last_epoch: stop after that many epochs, on the schedule of trainer.epochs; 0 = do not.
    """
    keep_memory()
    digest = data_and_config_hash(config, data)
    kept = kept_length(config)
    config = fitting_length(config, np.diff(data.offsets), kept)
    torch.manual_seed(config.seed)
    model = build(config.model, data, device)
    model.history.mark_negative(data.preprocessor.vocabularies[EVENT_TYPE].rows(NEGATIVE_EVENT_TYPES))
    events = TrainingEvents.select(data, (TRAIN,))
    items = CandidateItems(data, events, device)
    choice = choose(config, Sizes(int(items.counts_K.sum()), events.users_with_targets(), len(items), data.schema.order == "set"))
    sampler, batch_size = make_sampler(choice.sampler, events, config.model.history.length), choice.batch_size
    loader = Loader(
        data, events, sampler, length=config.model.history.length, batch_size=batch_size, seed=config.seed, part=processes.rows,
        history_share=config.trainer.history_share, beside=device.type == "cuda",
    )  # fmt: skip
    if processes.first and not last_epoch and (warning := doubts(config.negatives, choice.loss, sampler.name, batch_size, len(items))):
        say(warning)  # once: a refit draws as the training before it
    objective, why = choose_objective(replace(config.loss, name=choice.loss), config.negatives, items, choice.why, processes, loader.draws)
    why += f"; histories of {kept} events, as in {config.trainer.init_from}" if kept else ""
    if config.model.similarity == "cosine" and config.model.temperature * WIDEST_GUESSED < 1:
        why += f"; all in fp32, as scores reach 1/{config.model.temperature:g} (model.temperature), past {WIDEST_GUESSED:g}"
    steps = total_steps(config.trainer, loader)  # of the schedule
    tables = choose_tables(config.optim, model.plan, batch_size, candidates_a_step(config, objective, sampler, batch_size))
    optimizer = Optimizer(model, config.optim, steps, {f"tables.{name}": kind for name, kind in tables.items()})
    progress = Progress(place=place_of(device, processes))
    checkpointer = Checkpointer(
        Path(config.run_dir) / "checkpoints" / folder,
        {MODEL: model, "optimizer": optimizer, "loader": loader, "progress": progress, **objective.parts()},
        config_hash=digest + (f"-{folder}-{last_epoch}" if last_epoch else ""),
        settings=deciding_settings(config) | ({"the epochs of the refit": last_epoch} if last_epoch else {}),
        every=config.trainer.checkpoint_every,
        keep=config.trainer.keep_checkpoints,
        say=say,
        processes=processes,
    )
    measured = config.trainer.evaluate_every > 0 and processes.first
    validate: Validate = Validator(data, config) if measured else _no_validation
    done = min(steps, last_epoch * loader.steps_per_epoch) if last_epoch else steps
    return Parts(model, sampler, loader, objective, why, optimizer, progress, checkpointer, validate, done, processes, last_epoch)


def fit(config: TrainingConfig, data: Interactions, parts: Parts) -> None:
    """Train from wherever the parts stand, telling TensorBoard and the console."""
    with open_tracker(config, data, parts) as tracker:
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
            parts.processes,
            parts.last_epoch,
        ).fit()
        tracker.finish(parts.progress, asdict(config), parts.progress.best)


def open_tracker(config: TrainingConfig, data: Interactions, parts: Parts) -> Tracker | Silence:
    if not parts.processes.first:
        return Silence()
    return Tracker.open(
        Path(config.run_dir) / "tensorboard" / (FOLDER if parts.last_epoch else ""),
        every=config.trainer.log_every,
        since=replace(parts.progress),
        total_steps=parts.steps,
        config=json.dumps(asdict(config), indent=2),
        inspector=Inspector(parts.model, data, config) if config.inspect.every else None,
    )


def restore(parts: Parts, resume: bool) -> str:
    """Continue from the newest whole checkpoint, or start anew; returns what to say about it."""
    if not resume:
        parts.checkpointer.clear()
    here = parts.progress.place
    step = parts.checkpointer.restore() if resume else None
    if step is None:
        parts.processes.copy_state(parts.model)  # equal already where all machines draw alike
        return ""
    before, parts.progress.place = parts.progress.place, here
    moved = f", then on {before} and now on {here}, so to rounding what it would have become there" if before != here else ""
    return f"; continuing after step {step}{moved}"


def candidates_a_step(config: TrainingConfig, objective: Objective, sampler: Sampler, batch_size: int) -> int:
    """Item vectors that a step computes, at most."""
    if objective.name == "full_softmax":
        return len(objective.items)
    targets = batch_size * {"event": 1, "sequence": config.model.history.length, "user": MOST_TARGETS}[sampler.name]
    return min(targets + config.negatives.count, len(objective.items))


def data_and_config_hash(config: TrainingConfig, data: Interactions) -> str:
    """The config's hash, and the prepared data's sizes and digest: what differs means that other data was prepared since.

    Whether a refit follows changes nothing of the training that chooses.
    """
    config = replace(config, trainer=replace(config.trainer, refit=False))
    sizes = f"{data.n_users}-{data.n_items}-{len(data)}-{data.preprocessor.event_rows}"
    return f"{config_hash(config)}-{sizes}-{digest_of(data)}"


def _no_validation(model: TwoTower) -> dict[str, float]:
    return {}
