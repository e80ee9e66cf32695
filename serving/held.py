"""Everything that is held of a person, in words that a person can read."""

import json
import sqlite3
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from serving.database import Database
from serving.standing import Standing
from serving.subjects import Places
from towers.columns import EVENT_TYPE, FIRST_ROW, ITEM_ID, ITEM_ROWS, NO_TIME, TIMESTAMP, USER_ID, USER_KEY, WEIGHT
from towers.consent import purposes_of
from towers.decoded import decoded
from towers.errors import BundleError, DataError
from towers.identity import UserKeys
from towers.preprocess import Preprocessor

CONTEXT = "context"
_TIMES = (TIMESTAMP, "timestamps", "now")


def held(user_id: str, places: Places, keys: UserKeys, standing: Standing) -> dict[str, Any]:
    """What a run and its service hold of a person, by file; an empty `held` where that is nothing.

    Files that cannot be read, which may hold more, stand in `unread` with the reason.
    """
    key, unread = keys.key(user_id), {}
    found: dict[str, list[dict[str, Any]]] = {}
    for path in places.databases():
        try:
            found |= {f"{places.name(path)}: {table}": rows for table, rows in _in_database(path, key).items()}
        except (DataError, sqlite3.Error) as error:
            unread[places.name(path)] = str(error)
    for path in places.tables():
        try:
            found[places.name(path)] = _in_table(path, key, user_id)
        except FileNotFoundError:
            continue  # its time was over meanwhile
        except (OSError, pa.ArrowException) as error:
            unread[places.name(path)] = str(error)
    prepared = places.prepared()
    if prepared is not None:
        try:
            found[places.name(prepared)] = _in_prepared(prepared, key)
        except (OSError, ValueError, IndexError, KeyError, BundleError, pa.ArrowException) as error:
            unread[places.name(prepared)] = str(error)
    return {
        "user_id": user_id,
        "user_key": key.hex(),
        "consent": purposes_of(standing.mask(key)),
        "decisions": [{**asdict(decision), TIMESTAMP: _value(TIMESTAMP, decision.timestamp)} for decision in standing.decisions(key)],
        "held": {place: rows for place, rows in found.items() if rows},
        "unread": unread,
    }


def _in_database(path: Path, key: bytes) -> dict[str, list[dict[str, Any]]]:
    database, found = Database(path, ()), {}
    try:
        for (table,) in database.read("SELECT name FROM sqlite_master WHERE type = 'table'"):
            columns = [str(row[1]) for row in database.read(f'PRAGMA table_info("{table}")')]
            if USER_KEY in columns:
                rows = database.read(f'SELECT * FROM "{table}" WHERE {USER_KEY} = ?', (key,))
                found[str(table)] = [_readable(dict(zip(columns, row, strict=True))) for row in rows]
    finally:
        database.close()
    return found


def _in_table(path: Path, key: bytes, user_id: str) -> list[dict[str, Any]]:
    keyed = USER_KEY in pq.read_schema(path).names
    rows = pq.read_table(path, filters=[(USER_KEY, "=", key) if keyed else (USER_ID, "=", user_id)], partitioning=None)
    return [_readable(row) for row in rows.to_pylist()]


def _in_prepared(folder: Path, key: bytes) -> list[dict[str, Any]]:
    """The person's rows of the training columns, and their declared features."""
    keys_U = np.load(folder / "user_keys.npy", mmap_mode="r")
    user = np.flatnonzero((keys_U == np.frombuffer(key, np.uint8)).all(axis=1))
    if not len(user):
        return []
    start, stop = np.load(folder / "offsets.npy", mmap_mode="r")[user[0] : user[0] + 2].tolist()
    items = pq.read_table(folder / "catalog.parquet", columns=[ITEM_ID]).column(0)
    columns = [np.load(folder / f"{name}.npy", mmap_mode="r")[start:stop].tolist() for name in ("item", "timestamp", "event", "weight")]
    preprocessor = Preprocessor.open(folder)
    kinds = dict(enumerate(preprocessor.vocabularies[EVENT_TYPE].values().to_pylist(), FIRST_ROW))
    rows = [
        _readable({ITEM_ID: items[item].as_py(), TIMESTAMP: time, EVENT_TYPE: kinds.get(event), WEIGHT: weight, CONTEXT: context or None})
        for item, time, event, weight, context in zip(*columns, _contexts(folder, preprocessor, start, stop), strict=True)
    ]
    known = folder / "users.parquet"
    return rows + ([_readable(pq.read_table(known).slice(user[0], 1).to_pylist()[0])] if known.is_file() else [])


def _contexts(folder: Path, preprocessor: Preprocessor, start: int, stop: int) -> list[dict[str, Any]]:
    """Of each row, what is known of its context by feature."""
    found: list[dict[str, Any]] = [{} for _ in range(start, stop)]
    for name, feature in preprocessor.declared[CONTEXT].items():
        values_n = np.load(folder / CONTEXT / f"{name}.npy", mmap_mode="r")[start:stop]
        for row, value in zip(found, decoded(preprocessor, feature, values_n), strict=True):
            row |= {} if value is None else {name: value}
    return found


def _readable(row: dict[str, Any]) -> dict[str, Any]:
    """Keys as hex digits, times as people write them, JSON as what it says; without what is not known or said by ids already."""
    return {name: _value(name, value) for name, value in row.items() if value is not None and name != ITEM_ROWS}


def _value(name: str, value: Any) -> Any:
    if isinstance(value, bytes):
        return value.hex()
    if isinstance(value, list):
        return [_value(name, entry) for entry in value]
    if isinstance(value, datetime):
        return value.isoformat()
    if isinstance(value, int) and name in _TIMES:
        return None if value == NO_TIME else datetime.fromtimestamp(value / 1e6, UTC).isoformat()
    if isinstance(value, str) and value[:1] == "{":
        try:
            return _readable(json.loads(value))
        except ValueError:
            return value
    return value
