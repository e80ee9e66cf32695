"""Start from a trained model: its rows by id, its other weights as they are. The way to bring a model up to date with a day of new data.

A row of a table follows its id from the old vocabulary to the new one. An id that the old model does not know starts from the OOV row
where training has taught that row to stand for unknown ids (`model.id_dropout`, `model.history.token_dropout`), else from the mean of
the old rows; a new item's content speaks through its features, whose weights are carried over: those of numbers in the new data's
standardisation, so that what is known keeps its vector.
"""

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors import SafetensorError
from torch import Tensor

from towers.bundle import Bundle, current
from towers.columns import EVENT_TYPE, FIRST_ROW, ITEM_ID, OOV_ROW
from towers.errors import ConfigError, TowersError
from towers.lookups import ASSOCIATION_TABLE, HISTORY_TABLE, ITEM_TABLE
from towers.model import TwoTower
from towers.model_config import ModelConfig, model_config_from_json, model_config_to_json
from towers.pointers import CURRENT, MANIFEST
from towers.preprocess import VOCABULARY_KINDS, Preprocessor
from towers.runtime import CONFIG_FILE, WEIGHTS_FILE, load_model, load_weights
from towers.schema import Schema
from training.ancestry import LEARNED, Learned
from training.config import TrainingConfig
from training.opening import PREPARED, parted
from training.rescaling import Rescaled, rescaled

EVENT_WEIGHTS = ("history.event_log_weight", "history.event_push", "history.event.weight")
"""Weights indexed by event type. They exist only where there are several types, so an older model may have none."""
FREE = ("temperature", "id_dropout", "context_dropout")
FREE_OF_HISTORY = ("dropout", "token_dropout", "shorten")
"""Settings of the model that leave its weights as they are, so that they may differ."""
DECLARED = ("history.negative_events",)
"""Known from the new data's own event types."""
_SHOWN = 4
_ADVICE = "Give a bundle, a folder of bundles, a run_dir with model/ and prepared/, or that run's model/"


@dataclass(frozen=True)
class Start:
    """A trained model to start from, and what it has learned from."""

    path: Path
    preprocessor: Preprocessor
    config: ModelConfig
    weights: Mapping[str, Tensor]
    learned: Learned


@dataclass(frozen=True)
class Carried:
    """What was taken over.

    Attributes:
        path: of the old model.
        rows: by vocabulary: (ids carried over, ids that are new, ids left behind).
        learned: what the old model has learned from.
        numbers: numeric features whose weights were told in the new data's standardisation.
    """

    path: str
    rows: Mapping[str, tuple[int, int, int]]
    learned: Learned
    numbers: Sequence[Rescaled] = ()

    def __str__(self) -> str:
        told = [f"{name} {kept} rows carried over, {new} new, {left} left behind" for name, (kept, new, left) in self.rows.items()]
        return f"starting from {self.path}: {'; '.join([*told, *map(str, self.numbers)])}"


def warm_start(model: TwoTower, preprocessor: Preprocessor, path: str) -> Carried:
    """Fill `model` from the trained one at `path`.

    Args:
        model: freshly built on the new data's preprocessing.
        preprocessor: of the new data.
        path: a bundle, a folder of bundles (its current one is taken), a run_dir, or a run_dir's `model`.

    Raises:
        ConfigError: nothing trained lies there, its data was prepared anew since, or its schema or shape is another one; names what
            differs.
    """
    start = open_start(Path(path))
    _check_schema(path, start.preprocessor.schema, preprocessor.schema)
    _check_shape(path, start.config, model.config)
    vocabulary_of = dict(_vocabularies(model, preprocessor.schema))
    places = {name: _places(start.preprocessor, preprocessor, name) for name in sorted({*vocabulary_of.values()})}
    state = model.state_dict()
    retold, numbers = rescaled(start.weights, start.preprocessor, preprocessor)
    weights = {**start.weights, **retold}
    for name, tensor in state.items():
        old = weights.get(name)
        if name in DECLARED:
            continue
        if old is None and name in EVENT_WEIGHTS:
            continue
        if old is None or (name not in vocabulary_of and old.shape != tensor.shape):
            found = "is not in it" if old is None else f"has shape {tuple(old.shape)} there and {tuple(tensor.shape)} here"
            raise ConfigError(f"trainer.init_from: {path} does not fit this model: {name} {found}. Train anew, without trainer.init_from")
        with torch.no_grad():
            tensor.copy_(_aligned(old, places[vocabulary_of[name]], _trained_oov(name, start.config)) if name in vocabulary_of else old)
    counts = {name: _count(start.preprocessor, rows, name) for name, rows in places.items()}
    return Carried(path, counts, start.learned, numbers)


def open_start(path: Path) -> Start:
    """Read a trained model; see `warm_start`."""
    with _readable(path):
        folder = _folder(path)
        if (folder / MANIFEST).is_file():
            bundle = Bundle.open(folder)
            preprocessor, learned = bundle.preprocessor(), Learned.read(bundle.manifest.get(LEARNED, {}))
        else:
            run_dir = folder.parent
            if fault := parted(run_dir):  # a bundle is sealed with the vocabularies that its weights are of
                raise ConfigError(
                    f"trainer.init_from: {fault}. Start from a bundle that was exported before, or run `towers train`"
                    " (trainer.resume=false) there again, or `towers prepare` there with the log and settings of then"
                )
            preprocessor, learned = Preprocessor.open(run_dir / PREPARED), Learned.of_run(run_dir)
        # load_model is strict: weights, shape and preprocessing belong together
        return Start(path, preprocessor, load_model(folder, preprocessor).config, load_weights(folder), learned)


def kept_length(config: TrainingConfig) -> int:
    """Length of the histories that the transformer of trainer.init_from reads, where model.history.length is left open; else 0.

    Its weights are of so many places and no others, however much longer histories have become since.

    Raises:
        ConfigError: nothing trained lies there.
    """
    history, path = config.model.history, config.trainer.init_from
    if not path or history.length or history.name != "transformer":
        return 0
    with _readable(Path(path)):
        old = model_config_from_json(json.loads((_folder(Path(path)) / CONFIG_FILE).read_text())).history
    return old.length if old.name == history.name else 0


def _folder(path: Path) -> Path:
    """The bundle, or the `model` of a run."""
    if (path / CURRENT).is_file():
        path = current(path)
    if (path / MANIFEST).is_file():
        return path
    folder = path if (path / WEIGHTS_FILE).is_file() else path / "model"
    if not (folder / CONFIG_FILE).is_file():
        raise ConfigError(f"trainer.init_from: {path} holds no trained model. {_ADVICE}")
    return folder


@contextmanager
def _readable(path: Path) -> Iterator[None]:
    try:
        yield
    except ConfigError:
        raise
    except (TowersError, OSError, ValueError, SafetensorError) as error:
        raise ConfigError(f"trainer.init_from: {path} cannot be read: {error}. {_ADVICE}") from error


def _vocabularies(model: TwoTower, schema: Schema) -> Iterator[tuple[str, str]]:
    """(name of a weight, the vocabulary that numbers its rows)."""
    specs = (*model.plan.user_specs, *model.plan.item_specs)
    vocabulary = {feature.input_name: feature.vocabulary for feature in schema.features}
    numbered = {spec.table: vocabulary[spec.name] for spec in specs if spec.kind in VOCABULARY_KINDS}
    for name in model.state_dict():
        table = name.split(".")[1] if name.startswith(("tables.", "small_tables.")) else ""
        if table in (ITEM_TABLE, HISTORY_TABLE, ASSOCIATION_TABLE):
            yield name, ITEM_ID
        elif table in numbered:
            yield name, numbered[table]
        elif name in EVENT_WEIGHTS:
            yield name, EVENT_TYPE


def _places(old: Preprocessor, new: Preprocessor, name: str) -> NDArray[np.int64]:
    """The old row of each new row; OOV_ROW for an id that the old vocabulary lacks."""
    values = new.vocabularies[name].values().to_pylist()
    return np.concatenate([np.arange(FIRST_ROW), old.vocabularies[name].rows(values).astype(np.int64)])


def _aligned(old: Tensor, places_V: NDArray[np.int64], trained_oov: bool) -> Tensor:
    """Old rows in the new order."""
    aligned = old[torch.from_numpy(places_V)]
    if len(old) > FIRST_ROW and not trained_oov:
        unknown_V = torch.from_numpy(places_V == OOV_ROW)
        unknown_V[:FIRST_ROW] = False
        aligned[unknown_V] = old[FIRST_ROW:].mean(0)
    return aligned


def _trained_oov(name: str, config: ModelConfig) -> bool:
    table = name.split(".")[1]
    items = table == ITEM_TABLE and config.id_dropout > 0
    shared = config.history.share_item_table or config.history.content
    histories = table in (ITEM_TABLE if shared else HISTORY_TABLE, ASSOCIATION_TABLE) and config.history.token_dropout > 0
    return items or histories


def _count(old: Preprocessor, places_V: NDArray[np.int64], name: str) -> tuple[int, int, int]:
    kept = int((places_V[FIRST_ROW:] != OOV_ROW).sum())
    return kept, len(places_V) - FIRST_ROW - kept, len(old.vocabularies[name]) - FIRST_ROW - kept


def _check_schema(path: str, old: Schema, new: Schema) -> None:
    theirs, ours = ({f.input_name: f for f in schema.features} for schema in (old, new))
    faults = [f"feature {name} is not in it" for name in ours if name not in theirs]
    faults += [f"feature {name} is not declared here" for name in theirs if name not in ours]
    for name in ours:
        if name in theirs and ours[name] != theirs[name]:
            differing = [key for key, value in vars(ours[name]).items() if vars(theirs[name])[key] != value]
            faults += [f"feature {name} has {key} {vars(theirs[name])[key]!r} there, {vars(ours[name])[key]!r} here" for key in differing]
    if old.order != new.order:
        faults.append(f"data.order is {old.order!r} there, {new.order!r} here")
    _refuse(path, "schema", faults)


def _check_shape(path: str, old: ModelConfig, new: ModelConfig) -> None:
    theirs, ours = _flat(old), _flat(new)
    if old.history.content and new.history.content:  # a trained model has the sums of both in a table that is made anew
        theirs["history.share_item_table"] = new.history.share_item_table
    _refuse(
        path,
        "model",
        [f"model.{key} is {theirs[key]!r} there, {ours[key]!r} here" for key in sorted({*ours} & {*theirs}) if ours[key] != theirs[key]],
    )


def _flat(config: ModelConfig) -> dict[str, Any]:
    raw = model_config_to_json(config)
    flat = {key: value for key, value in raw.items() if key not in FREE and not isinstance(value, dict)}
    for part in ("history", "user_head", "item_head"):
        flat |= {f"{part}.{key}": value for key, value in raw[part].items() if key not in FREE_OF_HISTORY}
    if config.history.name == "mean":  # pooled rows have no place, so a longer history needs no other weights
        for key in ("length", "layers", "heads"):
            del flat[f"history.{key}"]
    return flat


def _refuse(path: str, what: str, faults: list[str]) -> None:
    if faults:
        more = f"; and {len(faults) - _SHOWN} more" if len(faults) > _SHOWN else ""
        raise ConfigError(
            f"trainer.init_from: {path} has another {what}: {'; '.join(faults[:_SHOWN])}{more}."
            " Use its settings, or train anew without trainer.init_from"
        )
