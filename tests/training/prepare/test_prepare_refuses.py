from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from towers.errors import ConfigError, DataError
from training.config import TrainingConfig

TIME = pa.timestamp("us", "UTC")
START_US = 1_700_000_000_000_000
TYPES = ("view", "buy", "skip")


@pytest.mark.parametrize(
    ("log", "split", "words"),
    [
        ({"user_id": ["u"] * 100}, "global_temporal", ["1 users left", "at least 2"]),
        ({"timestamp": [START_US] * 100}, "global_temporal", ["no positive interaction", "leave_one_out"]),
        ({"user_id": [f"u{i}" for i in range(100)]}, "leave_one_out", ["at least 3 positive", "global_temporal"]),
        ({"event_type": ["buy"] + ["skip"] * 99}, "global_temporal", ["no positive interaction"]),
        (
            {"event_type": ["buy"] * 100, "item_id": [f"i{i}" for i in range(100)], "split": ["train", "valid", "test", "test"] * 25},
            "given",
            ["none of the 50 test interactions", "item_cold"],
        ),
    ],
)
def test_data_that_cannot_be_split_say_why(
    config: TrainingConfig, prepare: Any, events: Any, schema: Any, log: dict[str, list[Any]], split: str, words: list[str]
) -> None:
    config.split.name = split
    with pytest.raises(DataError) as caught:
        prepare(events(100, 10, 10) | log, schema=replace(schema, event_weights={}))
    assert all(word in str(caught.value) for word in words), caught.value
    assert not list(Path(config.run_dir).glob("prepared*"))


@pytest.mark.parametrize("split", ["global_temporal", "leave_one_out", "random"])
@pytest.mark.parametrize(
    ("log", "weights", "words"),
    [
        ({"weight": [0.0] * 100}, {}, ["column 'importance' is 0 in all", "data.columns.weight"]),
        ({"event_type": ["buy", "view"] * 50}, {"buy": 0.0, "view": 0.0}, ["buy 0, view 0. Set data.event_weights"]),
        ({"event_type": ["skip"] * 100}, {}, ["skip 0 (what a person did not want)", "data.columns.event_type"]),
        (
            {"event_type": ["buy", "view"] * 50, "weight": [1.0, 0.0] * 50},
            {"buy": 0.0},
            ["buy 0, view 1, and column 'importance' is 0 in the rows of the others"],
        ),
    ],
)
def test_weights_that_are_all_zero_say_where_they_come_from(
    config: TrainingConfig,
    prepare: Any,
    events: Any,
    schema: Any,
    log: dict[str, Any],
    weights: dict[str, float],
    words: list[str],
    split: str,
) -> None:
    config.split.name, config.data.columns = split, {"weight": "importance"}
    with pytest.raises(DataError, match="all 100 interactions weigh 0") as caught:
        prepare(events(100, 10, 10) | log, schema=replace(schema, event_weights=weights))
    assert all(word in str(caught.value) for word in words) and "split" not in str(caught.value), caught.value


def test_weights_whose_product_is_too_large_are_refused_with_their_column(
    config: TrainingConfig, prepare: Any, events: Any, schema: Any
) -> None:
    config.data.columns = {"weight": "importance"}
    log = events(100, 10, 10) | {"event_type": ["buy"] * 100, "weight": [1e36] * 99 + [1.0]}
    with pytest.raises(DataError, match=r"in 99 of 100 interactions column 'importance' times .*data\.event_weights, 1000 at most.*divide"):
        prepare(log, schema=replace(schema, event_weights={"buy": 1000.0}))
    prepare(log, schema=replace(schema, event_weights={"buy": 10.0}))


def test_one_item_has_nothing_to_rank(prepare: Any, events: Any) -> None:
    log = events(100, 10, 10) | {"item_id": ["only"] * 100}
    items = pa.table({"item_id": ["only"], "categories": pa.array([["a"]]), "price": [1.0]})
    with pytest.raises(DataError, match="nothing to rank"):
        prepare(log, items=items)


@pytest.mark.parametrize(("table", "match"), [("items", "'price'"), ("users", "'city'")])
def test_a_declared_feature_without_its_column_names_table_and_feature(
    prepare: Any, table: str, match: str, events: Any, source: Any
) -> None:
    log = events(200, 10, 10)
    made = source(log)
    poor = {"items": made.items.rename_columns(["item_id", "title", "categories", "Price"]), "users": made.users.drop_columns(["city"])}
    with pytest.raises(DataError, match=f"{table}.*{match}"):
        prepare(log, **{table: poor[table]})


def test_an_item_column_of_a_wrong_type_is_named(prepare: Any, events: Any, source: Any) -> None:
    log = events(200, 10, 10)
    items = source(log).items
    with pytest.raises(DataError, match=r"items: column 'price' is of type string.*numeric"):
        prepare(log, items=items.set_column(3, "price", pa.array(["dear"] * len(items))))


@pytest.mark.parametrize(
    ("weights", "words"), [({"bye": 2.0}, "no such event type"), ({"buy": -1.0}, "at least 0"), ({"buy": 1e39}, r"at most 3\.4e\+38")]
)
def test_event_weights_that_fit_nothing_are_refused(prepare: Any, weights: dict[str, float], words: str, events: Any, schema: Any) -> None:
    with pytest.raises(ConfigError, match=words):
        prepare(events(200, 10, 10), schema=replace(schema, event_weights=weights))


@pytest.mark.parametrize(("name", "found"), [("absent.csv", "no such file"), ("folder", "a folder")])
def test_a_consent_table_that_is_not_there_stops_prepare(
    config: TrainingConfig, prepare: Any, events: Any, tmp_path: Path, name: str, found: str
) -> None:
    (tmp_path / "folder").mkdir()
    config.data.consent = str(tmp_path / name)
    with pytest.raises(DataError) as raised:
        prepare(events(100, 10, 10))
    assert str(raised.value).startswith(f"data.consent: got {config.data.consent!r}, {found}. Expected a Parquet or .csv file")
    assert "user_id (or user_key), purpose, granted and timestamp" in str(raised.value)
