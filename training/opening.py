"""Opening a run's prepared data for the jobs after prepare: with the settings it was prepared with, or not at all."""

from pathlib import Path

from towers.errors import ConfigError
from towers.rekeying import refuse_unfinished
from training.config import TrainingConfig
from training.data_config import schema_of
from training.interactions import Interactions

PREPARED = "prepared"


def open_prepared(config: TrainingConfig) -> Interactions:
    """The prepared data of config.run_dir.

    A job that was told of another dataset or split would measure by another protocol, and its result would say so wrongly.

    Raises:
        DataError: there is none, or it is damaged.
        ConfigError: it was prepared with another `data` or `split`, or its user keys are being exchanged.
    """
    refuse_unfinished(Path(config.run_dir))
    folder = Path(config.run_dir) / PREPARED
    data = Interactions.open(folder)
    was = data.facts.get("data", {})
    split = was.get("split", {})
    for key, now, then in (
        ("data.name", config.data.name, was.get("name")),
        ("split.name", config.split.name, split.get("name") if isinstance(split, dict) else None),
    ):
        if then not in (None, now):
            raise ConfigError(
                f"{key}: got {now!r}, and {folder} was prepared with {then!r}. Give this job the same data=... and split=... as prepare"
                f" ({folder.parent / 'config' / 'prepare.yaml'} has them), or run `towers prepare` again"
            )
    if was.get("schema_hash") not in (None, schema_of(config.data).hash()):
        declared = ", ".join(f.input_name for f in data.schema.features)
        raise ConfigError(
            f"data.features, data.order or data.event_weights: other than those that {folder} was prepared with (order"
            f" {data.schema.order}; {declared}). Run `towers prepare` again, or give the settings of then"
        )
    return data


def digest_of(data: Interactions) -> str:
    """What prepare wrote as the digest of its columns; empty for data that it did not write."""
    return str(data.facts.get("data", {}).get("digest", ""))
