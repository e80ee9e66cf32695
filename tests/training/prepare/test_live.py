"""Events that a service was told train like those of a log: prepared columns are the same, wherever an event came from."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from serving.events import StoredEvent
from serving.rolling import roll_events
from serving.sqlite_events import SqliteEvents
from towers.columns import REMOVAL
from towers.errors import ConfigError, DataError
from towers.identity import UserKeys
from towers.live_logs import EVENTS_FILE
from towers.partitions import parts
from towers.schema import Feature, make_schema
from training import prepare_run
from training.config import TrainingConfig, validate
from training.interactions import Interactions
from training.sources.live import with_live

SCHEMA = make_schema(
    [
        Feature("marker", "numeric", "context"),
        Feature("used", "categorical", "context", column="device"),
        Feature("moods", "multi_categorical", "context", column="moods_of_the_day"),
        Feature("place", "dense", "context", width=2),
        Feature("since", "time", "context"),
    ],
    "time",
    {},
)
KINDS = {"marker": pa.float64(), "timestamp": pa.timestamp("us", "UTC"), "moods_of_the_day": pa.list_(pa.string()),
         "place": pa.list_(pa.float32()), "since": pa.timestamp("us", "UTC")}  # fmt: skip


def log_of(events: Any, rows: int) -> dict[str, list[Any]]:
    made: dict[str, list[Any]] = events(rows, 12, 9)
    del made["weight"]
    made["moods_of_the_day"] = [[["calm"], ["calm", "odd"], None][n % 3] for n in range(rows)]
    made["place"] = [[float(n), -1.0] if n % 4 else None for n in range(rows)]
    made["since"] = [made["timestamp"][n] - 1000 * n if n % 5 else None for n in range(rows)]
    return made


def rows_of(log: dict[str, list[Any]], places: range) -> dict[str, list[Any]]:
    return {name: [values[n] for n in places] for name, values in log.items()}


def source_of(source: Any, log: dict[str, list[Any]], schema: Any = SCHEMA) -> Any:
    """The log with typed columns, without tables of items and users."""
    table = pa.table({name: pa.array(values, KINDS.get(name, pa.string())) for name, values in log.items()})
    made = source({"item_id": [], "user_id": [], "timestamp": []}, schema=schema, items=pa.table({"item_id": pa.array([], pa.string())}),
                  users=pa.table({"user_id": pa.array([], pa.string())}))  # fmt: skip
    return type(made)("mine", schema, lambda: iter([table.slice(0, 50), table.slice(50)]), made.items, made.users)


def write_live(folder: Path, log: dict[str, list[Any]], keys: UserKeys) -> Path:
    """The log's rows through a service's store: in calls, with their context by feature name."""
    store = SqliteEvents(folder / "events.db", keys.fingerprint())
    for n in range(len(log["user_id"])):
        context = {
            "marker": log["marker"][n], "used": log["device"][n], "moods": log["moods_of_the_day"][n], "place": log["place"][n],
            "since": log["since"][n], "gone": "no such feature any more",
        }  # fmt: skip
        facts = json.dumps({"value": 2, "context": {name: value for name, value in context.items() if value is not None}})
        key = keys.key(log["user_id"][n])
        store.append([StoredEvent(key, f"e{n}", log["item_id"][n], log["event_type"][n], log["timestamp"][n], None, facts)], 0)
    roll_events(store, folder / "events", 0, everything=True)
    store.close()
    return folder / "events"


@pytest.fixture
def prepared(config: TrainingConfig, monkeypatch: pytest.MonkeyPatch) -> Any:
    """`prepared(source, live=None)`: what `towers prepare` makes of a source and live events."""

    def prepared(made: Any, live: Path | None = None) -> Interactions:
        monkeypatch.setattr(prepare_run, "open_source", lambda data: made)
        config.data.live = None if live is None else str(live)
        return Interactions.open(Path(prepare_run.run(config)))

    return prepared


def test_a_log_with_live_events_is_prepared_like_the_whole_log(
    config: TrainingConfig, prepared: Any, events: Any, source: Any, tmp_path: Path
) -> None:
    log, keys = log_of(events, 200), UserKeys.open(config.identity.key_file, create=True)
    for n in range(125, 200, 7):
        log["event_type"][n] = REMOVAL  # of what stands in the log, and of what was told live
    live = write_live(tmp_path, rows_of(log, range(110, 200)), keys)  # ten of them stand in the log too
    whole = prepared(source_of(source, log))
    assert json.loads((Path(config.run_dir) / "prepare.json").read_text())["data"]["rows_removed_by_users"] > len(range(125, 200, 7))
    columns = {name: np.array(getattr(whole, name)) for name in ("offsets", "item", "timestamp", "event", "weight", "split")}
    context = {name: np.array(values) for name, values in whole.context.items()}
    joined = prepared(source_of(source, rows_of(log, range(120))), live)
    for name, values in columns.items():
        np.testing.assert_array_equal(getattr(joined, name), values, err_msg=name)
    assert len(context) == 5
    for name, values in context.items():
        np.testing.assert_array_equal(joined.context[name], values, err_msg=name)
    facts = json.loads((Path(config.run_dir) / "prepare.json").read_text())
    assert facts["notes"]["live_events"] == "90 in 1 files of events/"


def test_events_add_the_types_that_a_log_lacks(config: TrainingConfig, prepared: Any, events: Any, source: Any, tmp_path: Path) -> None:
    log, keys = log_of(events, 100), UserKeys.open(config.identity.key_file, create=True)
    live = write_live(tmp_path, rows_of(log, range(60, 100)), keys)
    plain = rows_of({name: values for name, values in log.items() if name != "event_type"}, range(60))
    data = prepared(source_of(source, plain), live)
    types = data.preprocessor.vocabularies["event_type"].values().to_pylist()
    assert set(types) == {"interaction", *log["event_type"][60:]}


def test_a_damaged_file_is_told_of_and_the_rest_is_read(
    config: TrainingConfig, prepared: Any, events: Any, source: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    log, keys = log_of(events, 100), UserKeys.open(config.identity.key_file, create=True)
    live = write_live(tmp_path, rows_of(log, range(60, 100)), keys)
    (path,) = parts(live)
    path.write_bytes(path.read_bytes()[:200])
    whole = len(prepared(source_of(source, rows_of(log, range(60)))))
    assert len(prepared(source_of(source, rows_of(log, range(60))), live)) == whole
    facts = json.loads((Path(config.run_dir) / "prepare.json").read_text())
    assert path.name in facts["notes"]["live_files_skipped"]
    assert f"warning: data.live: 1 of 1 files of {live} cannot be read and are left out:\n  {path}: " in capsys.readouterr().err


def test_values_that_a_feature_no_longer_takes_are_missing(
    config: TrainingConfig, prepared: Any, events: Any, source: Any, tmp_path: Path
) -> None:
    """`used` was words, and is a number today."""
    log, keys = log_of(events, 100), UserKeys.open(config.identity.key_file, create=True)
    live = write_live(tmp_path, rows_of(log, range(60, 100)), keys)
    schema = make_schema([Feature("used", "numeric", "context", column="marker")], "time", {})
    read = with_live(source_of(source, rows_of(log, range(60)), schema), str(live), keys)
    *_, last = read.interactions()
    assert last.column("marker").null_count == len(last) == 40


def test_a_service_that_has_written_no_events_yet_adds_none(events: Any, source: Any, tmp_path: Path, capsys: Any) -> None:
    mine = source_of(source, log_of(events, 20))
    SqliteEvents(tmp_path / "state" / EVENTS_FILE, b"f").close()
    assert with_live(mine, str(tmp_path / "state" / "events"), UserKeys(b"a" * 32)) is mine
    assert "no events in" in capsys.readouterr().out


def test_what_does_not_belong_together_is_refused(config: TrainingConfig, events: Any, source: Any, tmp_path: Path) -> None:
    log = log_of(events, 20)
    live = write_live(tmp_path, log, UserKeys(b"a" * 32))
    with pytest.raises(ConfigError, match="another secret"):
        with_live(source_of(source, log), str(live), UserKeys(b"b" * 32))
    with pytest.raises(DataError, match=r"data\.live"):
        with_live(source_of(source, log), str(tmp_path / "nothing"), UserKeys(b"a" * 32))
    config.data.live, config.split.name = str(live), "given"
    with pytest.raises(ConfigError, match=r"data\.live"):
        validate(config)
