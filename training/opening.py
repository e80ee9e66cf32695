"""Opening a run's prepared data for the jobs after prepare: with the settings it was prepared with and of people who still allow it, or not
at all."""

import json
from pathlib import Path
from typing import Any

import numpy as np

from towers.consent import TRAIN
from towers.errors import ConfigError, DataError
from towers.prepared import FACTS
from towers.rekeying import refuse_unfinished
from training.config import TrainingConfig
from training.data_config import schema_of
from training.interactions import Interactions
from training.people import check_secret
from training.permission import Permission

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


def open_permitted(config: TrainingConfig) -> tuple[Interactions, Permission]:
    """The prepared data of config.run_dir to train and measure on, and what people allow now.

    Whoever refused `train` since prepare is not passed over here: rows of theirs are in the split, in the catalogue's counts and in the
    vocabularies, and prepare alone takes them out of all.

    Raises:
        DataError: people in it do not allow `train`, or are forgotten; see `open_prepared` and `Permission.open` besides.
        ConfigError: as `open_prepared` and `Permission.open`; or its users were keyed with another secret than the decisions.
    """
    data, permission = open_prepared(config), Permission.open(config)
    if permission.asks_people:
        folder = Path(config.run_dir) / PREPARED
        check_secret(folder / "users.parquet", config.identity.key_file)
        gone = int(np.count_nonzero(~permission.usable(data, TRAIN)))
        if gone:
            raise DataError(
                f"{folder}: {gone:,} of {data.n_users:,} people in it do not allow `{TRAIN}` any more (data.consent, or what they told a"
                " service) or are forgotten. Run `towers prepare` again with the same settings: it leaves their rows out. Then train"
            )
    return data, permission


def check_trained_on(run_dir: Path, data: Interactions, key: str = "") -> None:
    """The run's model and its prepared data belong together: rows taken out since (somebody was forgotten) part them no more than new user
    keys do, another `towers prepare` does.

    Args:
        key: what the message starts with.

    Raises:
        DataError: data was prepared anew since the model was trained.
    """
    if fault := parted(run_dir, made_of(data)):
        raise DataError(
            f"{key}{fault}. Run `towers train` again (trainer.resume=false), or `towers prepare` with the log and settings of then"
        )


def parted(run_dir: Path, made: str | None = None) -> str:
    """What parts a run's model from its prepared data; empty where nothing does, or it cannot be known.

    Args:
        made: see `made_of`; None = as it stands in run_dir's prepared data.
    """
    if made is None:
        made = str(_read(run_dir / PREPARED / FACTS).get("data", {}).get("made", ""))
    trained_on = result_of(run_dir).get("prepared", "")
    if not (trained_on and made) or trained_on == made:
        return ""
    return (
        f"{run_dir / 'model'} was trained on other data than {run_dir / PREPARED} holds now: ids have other rows, and the split may be"
        " another"
    )


def result_of(run_dir: Path) -> dict[str, Any]:
    """The run's train.json; empty where there is none."""
    return _read(run_dir / "train.json")


def _read(path: Path) -> dict[str, Any]:
    """An object in a file; empty where there is none: a model without its result, or data that prepare did not write."""
    try:
        document = json.loads(path.read_text())
    except (OSError, ValueError):
        return {}
    return document if isinstance(document, dict) else {}


def made_of(data: Interactions) -> str:
    """What prepare wrote as the digest of its columns, whatever was taken out of them since; empty for data that it did not write."""
    return str(data.facts.get("data", {}).get("made", ""))


def digest_of(data: Interactions) -> str:
    """What prepare wrote as the digest of its columns; empty for data that it did not write."""
    return str(data.facts.get("data", {}).get("digest", ""))
