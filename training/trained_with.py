"""What a model was trained with is no setting of the jobs after `towers train`: what asks them for something else is refused."""

from pathlib import Path
from typing import Final

from towers.errors import ConfigError
from towers.job import overrides
from training.config import TrainingConfig
from training.facts import deciding_settings
from training.opening import result_of

SETTINGS: Final = "settings"
"""Of train.json."""
_SECTIONS: Final = ("model", "loss", "negatives", "optim", "trainer")


def refuse_other_training(config: TrainingConfig) -> None:
    """Refuse settings of the training that were typed for this job and are not those of the run's model, which would only be written down.
    What an experiment or a dataset composes for every job says nothing; of a run of before nothing is known.

    Raises:
        ConfigError: names the setting.
    """
    trained = result_of(Path(config.run_dir)).get(SETTINGS, {})
    asked = deciding_settings(config)
    for key in (override.lstrip("+").partition("=")[0] for override in overrides()):
        if key.partition(".")[0] in _SECTIONS and key in trained and key in asked and asked[key] != trained[key]:
            raise ConfigError(
                f"{key}: got {asked[key]!r}, and the model in {config.run_dir} was trained with {trained[key]!r}, which this job cannot"
                " change. Leave the setting out, or run `towers train` with it first"
            )
