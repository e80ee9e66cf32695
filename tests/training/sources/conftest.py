"""Typed dataset configs as the jobs get them: conf/data/<name>.yaml over the schema, with a test's own settings on top."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from omegaconf import OmegaConf

from training.config import TrainingConfig
from training.data_config import DataConfig

ROOT = Path(__file__).resolve().parents[3]


@pytest.fixture
def data_config() -> Callable[..., DataConfig]:
    def make(source: str, **settings: Any) -> DataConfig:
        shipped = OmegaConf.to_container(OmegaConf.load(ROOT / "conf" / "data" / f"{source}.yaml"))["data"]
        merged = OmegaConf.merge(OmegaConf.structured(TrainingConfig(run_dir="unused")), {"data": {**shipped, **settings}})
        config = OmegaConf.to_object(merged)
        assert isinstance(config, TrainingConfig)
        return config.data

    return make
