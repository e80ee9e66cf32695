"""The jobs after prepare: with the settings that the data was prepared with, and never with other data under a resumed run."""

import json
from pathlib import Path
from typing import Any

import pytest

from towers.errors import ConfigError
from training.config import TrainingConfig
from training.data_config import FeatureConfig, schema_of
from training.opening import digest_of, open_prepared


@pytest.fixture
def prepared(config: TrainingConfig, prepare: Any, events: Any) -> TrainingConfig:
    """A run prepared as `mine` with no declared feature; the config says the same."""
    config.data.name = "mine"
    log = {name: values for name, values in events(400, 30, 20).items() if name not in ("device", "marker")}
    prepare(log, schema=schema_of(config.data))
    return config


def test_the_settings_of_prepare_open_it(prepared: TrainingConfig) -> None:
    assert len(open_prepared(prepared)) > 0


def test_another_dataset_or_split_is_refused(prepared: TrainingConfig) -> None:
    prepared.split.name = "leave_one_out"
    with pytest.raises(ConfigError, match=r"split\.name: got 'leave_one_out', .* prepared with 'global_temporal'"):
        open_prepared(prepared)
    prepared.data.name = "synthetic"
    with pytest.raises(ConfigError, match=r"data\.name: got 'synthetic', .* prepared with 'mine'.*prepare\.yaml"):
        open_prepared(prepared)


def test_changed_declarations_are_refused(prepared: TrainingConfig) -> None:
    prepared.data.features = [FeatureConfig(name="price", kind="numeric", owner="item")]
    with pytest.raises(ConfigError, match=r"data\.features.*item\.item_id.*Run `towers prepare` again"):
        open_prepared(prepared)


def test_the_digest_tells_equal_sizes_apart(config: TrainingConfig, prepare: Any, events: Any) -> None:
    log = events(400, 30, 20)
    first, again = digest_of(prepare(log)), digest_of(prepare(log))
    log["marker"][0] = 1e6
    other = prepare(log)
    assert first == again != digest_of(other)
    facts = json.loads(Path(config.run_dir, "prepared", "prepare.json").read_text())["data"]
    assert facts["digest"] == facts["made"] == digest_of(other)
