"""Datasets by name: each opener turns its format into the same tables (`base.SourceTables`)."""

from collections.abc import Callable
from typing import Final

from towers.errors import ConfigError
from training.data_config import DataConfig
from training.sources.base import Oracle, SourceTables, refuse_audited
from training.sources.frappe import open_frappe
from training.sources.lightgcn import open_lightgcn
from training.sources.movielens import open_ml_1m, open_ml_100k
from training.sources.sequences import open_sequences
from training.sources.synthetic import open_synthetic
from training.sources.table import open_table

SOURCES: Final[dict[str, Callable[[DataConfig], SourceTables]]] = {
    "synthetic": open_synthetic,
    "ml_1m": open_ml_1m,
    "ml_100k": open_ml_100k,
    "lightgcn": open_lightgcn,
    "frappe": open_frappe,
    "sequences": open_sequences,
    "table": open_table,
}

__all__ = ["SOURCES", "Oracle", "SourceTables", "open_source"]


def open_source(data: DataConfig) -> SourceTables:
    """Open the dataset that `data.name` names.

    Raises:
        ConfigError: the name or a setting is wrong, or an audit column is declared as a feature.
        DataError: the dataset as a whole cannot be read.
    """
    if data.name not in SOURCES:
        raise ConfigError(f"data.name: got {data.name!r}, expected one of {', '.join(SOURCES)}")
    source = SOURCES[data.name](data)
    refuse_audited(source)
    return source
