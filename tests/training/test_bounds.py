"""Every number among the settings has its bounds, and what lies outside is refused by name."""

import dataclasses
from collections.abc import Iterator
from contextlib import nullcontext
from operator import attrgetter
from typing import Any

import pytest

from towers.errors import ConfigError
from training.bounds import BOUNDS
from training.config import TrainingConfig, validate

ELSEWHERE = ("model.", "split.valid_share", "split.test_share", "data.synthetic.")
"""Checked where they are used: ModelConfig.validate, training.config.validate, the synthetic source."""


def numbers(schema: Any, where: str = "") -> Iterator[str]:
    for field in dataclasses.fields(schema):
        if dataclasses.is_dataclass(field.type):
            yield from numbers(field.type, f"{where}{field.name}.")
        elif field.type in (int, float):
            yield where + field.name


def test_every_number_has_bounds() -> None:
    assert {key for key in numbers(TrainingConfig) if not key.startswith(ELSEWHERE)} <= set(BOUNDS)


def test_the_defaults_lie_within() -> None:
    validate(TrainingConfig(run_dir="here"))


@pytest.mark.parametrize("key", BOUNDS)
@pytest.mark.parametrize("value", [-1, float("nan"), float("inf")])
def test_what_lies_outside_is_refused_by_name(key: str, value: float) -> None:
    config = TrainingConfig(run_dir="here")
    owner, _, name = key.rpartition(".")
    setattr(attrgetter(owner)(config) if owner else config, name, value)
    with pytest.raises(ConfigError, match=f"^{key}: got {value}, expected"):
        validate(config)


def test_a_history_of_everything_leaves_nothing_to_predict_and_is_refused() -> None:
    config = TrainingConfig(run_dir="here")
    config.trainer.history_share = 1.0
    with pytest.raises(ConfigError, match=r"trainer\.history_share: got 1\.0, expected a share of at least 0 and below 1"):
        validate(config)


@pytest.mark.parametrize(("draws", "enough"), [(1, False), (19, False), (20, True)])
def test_an_interval_takes_some_draws(draws: int, enough: bool) -> None:
    config = TrainingConfig(run_dir="here")
    config.evaluate.draws = draws
    with nullcontext() if enough else pytest.raises(ConfigError, match=f"^evaluate.draws: got {draws}, expected at least 20"):
        validate(config)


@pytest.mark.parametrize(
    ("part", "setting", "value"),
    [
        ("history", "heads", 0), ("history", "layers", 0), ("user_head", "dropout", 1.0), ("item_head", "hidden", [8, 0]),
    ],
)  # fmt: skip
def test_shapes_of_the_model_are_refused_before_it_is_built(part: str, setting: str, value: Any) -> None:
    config = TrainingConfig(run_dir="here")
    setattr(getattr(config.model, part), setting, value)
    with pytest.raises(ConfigError, match=rf"^model\.{part}\.{setting}: "):
        validate(config)


def test_no_negatives_at_all_are_refused() -> None:
    config = TrainingConfig(run_dir="here")
    config.negatives.count = 0
    with pytest.raises(ConfigError, match=r"negatives\.count: got 0"):
        validate(config)
    config.negatives.name = "in_batch"
    validate(config)


def test_new_people_need_an_order() -> None:
    config = TrainingConfig(run_dir="here")
    config.evaluate.max_history = 50
    validate(config)
    config.data.order, config.split.name = "set", "random"
    with pytest.raises(ConfigError, match=r"^evaluate\.max_history: nothing lies before"):
        validate(config)


@pytest.mark.parametrize("order", ["set", "position"])
def test_the_split_that_is_advised_where_there_are_no_times_is_taken(order: str) -> None:
    config = TrainingConfig(run_dir="here")
    config.data.order = order
    with pytest.raises(ConfigError, match="needs timestamps") as caught:
        validate(config)
    config.split.name = str(caught.value).partition("Use ")[2].split()[0]
    validate(config)
