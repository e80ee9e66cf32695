"""Small logs and a prepare that runs on them, shared by the tests of the prepare job."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from towers.schema import Feature, make_schema
from training import prepare_run
from training.config import TrainingConfig
from training.interactions import Interactions
from training.sources.base import SourceTables

TIME = pa.timestamp("us", "UTC")
START_US = 1_700_000_000_000_000
TYPES = ("view", "buy", "skip")
SCHEMA = make_schema(
    [
        Feature("marker", "numeric", "context"),
        Feature("device", "categorical", "context", min_count=2),
        Feature("price", "numeric", "item"),
        Feature("genres", "multi_categorical", "item", column="categories"),
        Feature("city", "categorical", "user"),
    ],
    "time",
    {"buy": 3.0},
)


def events(rows: int, users: int, items: int, seed: int = 0) -> dict[str, list[Any]]:
    rng = np.random.default_rng(seed)
    return {
        "user_id": [f"u{u}" for u in rng.integers(0, users, rows)],
        "item_id": [f"i{i}" for i in rng.integers(0, items, rows)],
        "timestamp": [START_US + int(t) * 1_000_000 for t in rng.integers(0, rows, rows)],
        "event_type": [TYPES[e] for e in rng.integers(0, 3, rows)],
        "weight": [float(w) for w in rng.choice([0.5, 1.0], rows)],
        "device": [["phone", "tv", None][d] for d in rng.integers(0, 3, rows)],
        "marker": [float(i) for i in range(rows)],
    }


def source(log: dict[str, list[Any]], chunk: int = 64, schema: Any = SCHEMA, **tables: pa.Table) -> SourceTables:
    kinds = {"timestamp": TIME, "weight": pa.float64(), "marker": pa.float64()}
    table = pa.table({name: pa.array(values, kinds.get(name, pa.string())) for name, values in log.items()})

    def interactions() -> Iterator[pa.Table]:
        for start in range(0, len(table), chunk):
            yield table.slice(start, chunk)

    ids = sorted({item for item in log["item_id"] if item})
    items = pa.table({
        "item_id": ["cold", *ids],
        "title": [f"Title {i}" for i in range(len(ids) + 1)],
        "categories": pa.array([["a", "b"] if i % 2 else ["c"] for i in range(len(ids) + 1)]),
        "price": pa.array([float("nan"), *map(float, range(len(ids)))]),
    })  # fmt: skip
    users = pa.table({"user_id": ["stranger", *sorted({u for u in log["user_id"] if u})[1:]]})
    users = users.append_column("city", pa.array(["x"] * len(users)))
    return SourceTables("mine", schema, interactions, tables.get("items", items), tables.get("users", users), tables.get("audit"))


@pytest.fixture
def config(tmp_path: Path) -> TrainingConfig:
    made = TrainingConfig(run_dir=str(tmp_path / "run"))
    made.identity.key_file = str(tmp_path / "key")
    made.identity.keep_raw_ids = True
    return made


@pytest.fixture
def prepare(config: TrainingConfig, monkeypatch: pytest.MonkeyPatch) -> Any:
    def prepare(log: dict[str, list[Any]], **settings: Any) -> Interactions:
        made = source(log, **settings)
        monkeypatch.setattr(prepare_run, "open_source", lambda data: made)
        return Interactions.open(Path(prepare_run.run(config)))

    return prepare


@pytest.fixture(name="events")
def events_fixture() -> Any:
    """`events(rows, users, items, seed=0)`: columns of a random log."""
    return events


@pytest.fixture(name="source")
def source_fixture() -> Any:
    """`source(log, chunk=64, schema=..., items=..., users=..., audit=...)`: the log as a source."""
    return source


@pytest.fixture
def schema() -> Any:
    """What `source` declares unless told otherwise."""
    return SCHEMA
