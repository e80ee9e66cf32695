"""Refit: what validation has chosen is trained anew on training and validation rows together, so that no row known before the test is
wasted. Vocabularies stay those of the training rows: ids first met in validation rows share the OOV row."""

from dataclasses import replace
from pathlib import Path

import numpy as np

from towers.columns import TRAIN, VALID
from towers.errors import ConfigError
from training.ancestry import Learned
from training.config import EvaluateConfig, TrainingConfig
from training.interactions import Interactions
from training.opening import result_of

RESULT = "train.json"
FOLDER = "refit"
"""Where a refit keeps its checkpoints and scalars, below those of the training that chose."""


def with_validation(data: Interactions) -> Interactions:
    """The same data with validation rows as training rows: what the final model learns from, and what is counted beside it."""
    return replace(data, split=np.where(data.split == VALID, np.uint8(TRAIN), data.split))


def refit_config(config: TrainingConfig) -> TrainingConfig:
    """The settings of the second training: the first one's, but nothing is validated."""
    return replace(config, trainer=replace(config.trainer, evaluate_every=0, patience=0))


def was_refit(run_dir: Path) -> bool:
    """Whether the run's model has been trained anew on training and validation rows."""
    return bool(result_of(run_dir).get("refit"))


def refit_said(run_dir: Path, name: str = "") -> list[str]:
    """What a protocol has to say of a model that has learned from validation rows; nothing of another one.

    Args:
        name: of a rival; empty = the run's own model.
    """
    learned, of = Learned.of_run(run_dir), f" of {name}" * bool(name)
    said = []
    if was_refit(run_dir):
        rows = "" if name else "; training rows are both of them here"
        said.append(f"refit{of}: validation chose the epochs, then the model was trained anew on train and valid{rows}")
    if learned.through:
        said.append(
            f"start{of}: {learned.through}, which had learned from rows that validate here, so validation could not judge what was chosen"
        )
    return said


def check_unseen(run_dir: Path, split: str, key: str = "evaluate.split") -> None:
    """That the run's model was not trained on the rows of `split`, which are to be ranked.

    Args:
        key: the setting that the message starts with.

    Raises:
        ConfigError: it was.
    """
    learned = Learned.of_run(run_dir)
    if split != "valid" or not learned.validation:
        return
    by, chose = "was refitted on the validation rows", f"; what chose it stands in {run_dir / RESULT}"
    if learned.through:
        by, chose = f"started from {learned.through} (trainer.init_from), which had learned from the validation rows", ""
    raise ConfigError(f"{key}: the model in {run_dir} {by}, so they cannot judge it. Use evaluate.split=test{chose}")


def evaluated(data: Interactions, settings: EvaluateConfig, run_dir: Path) -> Interactions:
    """The data as an evaluation of the run's model reads it: a refitted model's baselines and counts are of the rows that it had, too.

    Raises:
        ConfigError: the model was trained on the rows that are to be ranked.
    """
    check_unseen(run_dir, settings.split)
    return with_validation(data) if was_refit(run_dir) else data
