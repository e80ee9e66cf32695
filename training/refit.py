"""Refit: what validation has chosen is trained anew on training and validation rows together, so that no row known before the test is
wasted. Vocabularies stay those of the training rows: ids first met in validation rows share the OOV row."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np

from towers.columns import TRAIN, VALID
from towers.errors import ConfigError
from training.config import EvaluateConfig, TrainingConfig
from training.interactions import Interactions

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
    """Whether the run's model has been trained on validation rows."""
    path = run_dir / RESULT
    return path.is_file() and bool(json.loads(path.read_text()).get("refit"))


def refit_said(run_dir: Path) -> list[str]:
    """What a protocol has to say of a refitted model; nothing of another one."""
    if not was_refit(run_dir):
        return []
    return ["refit: validation chose the epochs, then the model was trained anew on train and valid; training rows are both of them here"]


def check_unseen(run_dir: Path, split: str, key: str = "evaluate.split") -> None:
    """That the run's model was not trained on the rows of `split`, which are to be ranked.

    Args:
        key: the setting that the message starts with.

    Raises:
        ConfigError: it was.
    """
    if split == "valid" and was_refit(run_dir):
        raise ConfigError(
            f"{key}: the model in {run_dir} was refitted on the validation rows, so they cannot judge it. Use evaluate.split=test;"
            f" what chose it stands in {run_dir / RESULT}"
        )


def evaluated(data: Interactions, settings: EvaluateConfig, run_dir: Path) -> Interactions:
    """The data as an evaluation of the run's model reads it: a refitted model's baselines and counts are of the rows that it had, too.

    Raises:
        ConfigError: the model was trained on the rows that are to be ranked.
    """
    check_unseen(run_dir, settings.split)
    return with_validation(data) if was_refit(run_dir) else data
