"""Taking people's rows out of files: Parquet tables and SQLite files with a user in each row, wherever they lie.

A Parquet file is written anew beside its place and renamed, under its name and with its other rows as they were. A SQLite file is written
anew in its place, for copies of rows that stood elsewhere in it before, and the log beside it is emptied.
"""

import os
import sqlite3
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray

from serving.database import Database
from serving.user_state import EVENTS, ITEMS, TIMES, of_events
from towers.columns import MADE, NO_TIME, PURGED, TIMESTAMP, USER_ID, USER_KEY
from towers.errors import DataError, StorageError
from towers.identity import KEY_BYTES, SECRET_FINGERPRINT, UserKeys
from towers.shards import writing

EVER = 2**63 - 1
NOW = "now"
"""Column of a held-out query's moment."""
_BATCH_ROWS = 20_000
_CHECKPOINT_S = 15.0
_CUT = ".cut"
_NOT_HERE = ("bundles", "checkpoints", "model")
"""Folders of a run in which no row is a user's."""

Moments = Callable[[NDArray[np.uint8]], NDArray[np.int64]]


@dataclass(frozen=True)
class Cut:
    """Which rows go.

    Attributes:
        moments: keys uint8 [n, 16] to int64 [n]: of each user, rows up to this moment (microseconds UTC) go; NO_TIME = none.
        undated: rows that tell no time go with them; otherwise they stay.
        users: the only users concerned, where it is known; others need not be looked for.
        purged: where the rows of everybody go: up to when, microseconds UTC; noted in the files of histories.
    """

    moments: Moments
    undated: bool = True
    users: tuple[bytes, ...] | None = None
    purged: int | None = None


def all_of(user_keys: Iterable[bytes]) -> Cut:
    """Everything of some users."""
    wanted = frozenset(user_keys)

    def moments(keys_n: NDArray[np.uint8]) -> NDArray[np.int64]:
        joined = np.ascontiguousarray(keys_n, np.uint8).tobytes()
        return np.array([EVER if joined[at : at + KEY_BYTES] in wanted else NO_TIME for at in range(0, len(joined), KEY_BYTES)], np.int64)

    return Cut(moments, True, tuple(wanted))


def older_than(moment: int) -> Cut:
    """Everybody's rows up to a moment, microseconds UTC."""
    return Cut(lambda keys_n: np.full(len(keys_n), moment, np.int64), undated=False, purged=moment)


def strangers_to(histories: Path) -> Cut:
    """Everything of people who do not stand in a file of histories. Raises DataError where it cannot be read."""
    try:
        known = pq.read_table(histories, columns=[USER_KEY]).column(0).to_pylist()
    except (OSError, pa.ArrowException) as error:
        raise DataError(f"{histories}: whose histories are left cannot be read ({error})") from error
    known_U = np.array(known, f"S{KEY_BYTES}")

    def moments(keys_n: NDArray[np.uint8]) -> NDArray[np.int64]:
        keys = np.ascontiguousarray(keys_n).view(f"S{KEY_BYTES}").ravel()
        return np.where(np.isin(keys, known_U), NO_TIME, EVER)

    return Cut(moments)


def tables_of_users(folder: Path, besides: Iterable[str] = ()) -> Iterator[Path]:
    """Parquet files under a folder that have a user in each row, and damaged ones, which may.

    Args:
        besides: names of files that are left out.
    """
    for path in sorted(folder.rglob("*.parquet")):
        elsewhere = path.name in besides or set(path.relative_to(folder).parts) & set(_NOT_HERE)
        if not elsewhere and _may_name_users(path):
            yield path


def _may_name_users(path: Path) -> bool:
    try:
        return bool({USER_KEY, USER_ID} & set(pq.read_schema(path).names))
    except (OSError, pa.ArrowException):
        return path.exists()


def secret_of(path: Path) -> bytes | None:
    """Fingerprint of the secret that a Parquet file's users are keyed with; None where it does not say or cannot be read."""
    try:
        found: bytes | None = (pq.read_schema(path).metadata or {}).get(SECRET_FINGERPRINT)
    except (OSError, pa.ArrowException):
        return None
    return found


def cut_table(path: Path, cut: Cut, keys: UserKeys) -> int:
    """Take rows out of a Parquet file; how many went, and of histories how many users lost events.

    Raises:
        DataError: the file cannot be read or written.
    """
    temporary = path.with_name(f".{path.name}{_CUT}")
    try:
        with pq.ParquetFile(path) as source:
            named = USER_KEY if USER_KEY in source.schema_arrow.names else USER_ID
            made = (source.schema_arrow.metadata or {}).get(MADE) if cut.undated else None
            made_us = EVER if made is None else int(made)
            if not (_moments(source.read(columns=[named]).column(0), cut, keys) != NO_TIME).any():
                return 0
            gone = 0
            handle = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, path.stat().st_mode & 0o777)
            schema = _purged(source.schema_arrow, cut)
            with open(handle, "wb") as file, pq.ParquetWriter(file, schema, write_page_checksum=True, **writing(schema)) as sink:
                for batch in source.iter_batches(_BATCH_ROWS):
                    table = pa.Table.from_batches([batch])
                    moment_n = _moments(table.column(named), cut, keys)
                    moment_n[moment_n >= made_us] = EVER  # made before the wish, whatever time its events say they are of
                    left, lost = _left(table, moment_n, cut.undated)
                    gone += lost
                    sink.write_table(left.replace_schema_metadata(schema.metadata))
        if gone:
            os.replace(temporary, path)
        return gone
    except (OSError, pa.ArrowException) as error:
        raise DataError(f"{path}: rows of users cannot be taken out ({error})") from error
    finally:
        temporary.unlink(missing_ok=True)


def cuts_left(root: Path) -> Iterator[Path]:
    """Files below a folder that a removal which was killed left; none may be at work."""
    return root.rglob(f".*.parquet{_CUT}")


def _purged(schema: pa.Schema, cut: Cut) -> pa.Schema:
    """Of histories, with a note of what goes, for a service that has read them (`UserHistories`)."""
    if cut.purged is None or ITEMS not in schema.names:
        return schema
    return schema.with_metadata({**(schema.metadata or {}), PURGED: str(cut.purged).encode()})


def cut_database(path: Path, cut: Cut) -> int:
    """Take rows out of every table of a SQLite file that has a column user_key; how many went.

    Raises:
        DataError: the file is no database or cannot be written anew, or its log could not be emptied because another process reads on and
            on.
    """
    database, gone = Database(path, ()), 0
    try:
        for (table,) in database.read("SELECT name FROM sqlite_master WHERE type = 'table'"):
            columns = {str(row[1]) for row in database.read(f'PRAGMA table_info("{table}")')}
            if USER_KEY in columns:
                gone += _cut_rows(database, str(table), cut)
        if gone or cut.users is not None:  # of users who are named, rows deleted long ago may have left copies
            database.rewrite()
        until = time.monotonic() + _CHECKPOINT_S
        while not database.checkpoint():
            if time.monotonic() > until:
                raise DataError(f"{path}: what was deleted still stands in its log, which another process holds; stop it and forget again")
            time.sleep(0.02)
    except (sqlite3.Error, StorageError) as error:
        raise DataError(f"{path}: rows of users cannot be taken out ({error})") from error
    finally:
        database.close()
    return gone


def _cut_rows(database: Database, table: str, cut: Cut) -> int:
    users = cut.users
    if users is None:
        found = database.read(f'SELECT DISTINCT {USER_KEY} FROM "{table}" WHERE {USER_KEY} IS NOT NULL')
        users = tuple(bytes(key) for (key,) in found)  # type: ignore[call-overload]
    moments = cut.moments(np.frombuffer(b"".join(users), np.uint8).reshape(-1, KEY_BYTES)).tolist()
    rows = [(user, moment) for user, moment in zip(users, moments, strict=True) if moment != NO_TIME]
    query = f'DELETE FROM "{table}" WHERE {USER_KEY} = ? AND {TIMESTAMP} <= ?'
    with database.transaction() as connection:
        return sum(connection.execute(query, row).rowcount for row in rows)


def _moments(users: pa.ChunkedArray, cut: Cut, keys: UserKeys) -> NDArray[np.int64]:
    """Of each row, up to when its user's rows go; NO_TIME for rows of nobody."""
    coded = users.combine_chunks().dictionary_encode()
    values = coded.dictionary.to_pylist()
    found = [value if isinstance(value, bytes) else keys.key(str(value)) for value in values]
    moments = cut.moments(np.frombuffer(b"".join(found), np.uint8).reshape(-1, KEY_BYTES))
    moment_n: NDArray[np.int64] = np.append(moments, NO_TIME)[coded.indices.fill_null(len(values)).to_numpy(zero_copy_only=False)]
    return moment_n


def _left(table: pa.Table, moment_n: NDArray[np.int64], undated: bool) -> tuple[pa.Table, int]:
    """The rows that stay, and how many went or lost something."""
    concerned_n = moment_n != NO_TIME
    if {ITEMS, EVENTS, TIMES} <= set(table.column_names):
        return _shorter(table, moment_n, undated)
    dated = TIMESTAMP if TIMESTAMP in table.column_names else NOW
    if dated in table.column_names and (dated == TIMESTAMP or not undated):  # what a held-out query saw is older than its moment
        times = table.column(dated)
        time_n = times.cast(pa.timestamp("us", "UTC") if pa.types.is_timestamp(times.type) else times.type).cast(pa.int64())
        time_n = time_n.fill_null(NO_TIME).to_numpy()
        goes_n = concerned_n & np.where(time_n == NO_TIME, undated, time_n <= moment_n)
    else:
        goes_n = concerned_n & undated
    return table.filter(pa.array(~goes_n)), int(np.count_nonzero(goes_n))


def _shorter(table: pa.Table, moment_n: NDArray[np.int64], undated: bool) -> tuple[pa.Table, int]:
    """Histories without their events up to the moment; users without any event left go, and what is known of the others besides goes."""
    lists = {name: table.column(name).combine_chunks() for name in filter(of_events, table.column_names)}
    count_n = pc.list_value_length(lists[ITEMS]).fill_null(0).to_numpy(zero_copy_only=False).astype(np.int64)
    row_e = np.repeat(np.arange(len(table)), count_n)
    dated_n = pc.list_value_length(lists[TIMES]).fill_null(0).to_numpy(zero_copy_only=False) == count_n
    time_e = np.full(len(row_e), NO_TIME, np.int64)
    time_e[dated_n[row_e]] = lists[TIMES].flatten().fill_null(NO_TIME).to_numpy(zero_copy_only=False)
    goes_e = (moment_n[row_e] != NO_TIME) & np.where(time_e == NO_TIME, undated, time_e <= moment_n[row_e])
    lost_n = np.bincount(row_e[goes_e], minlength=len(table)) > 0
    kept_n = np.bincount(row_e[~goes_e], minlength=len(table))
    goes_n = (moment_n != NO_TIME) & (kept_n == 0) & (lost_n | undated)
    columns = {}
    for name in table.column_names:
        column = table.column(name)
        if name in lists:
            columns[name] = _fewer(lists[name], count_n, ~goes_e, row_e)
        elif undated and name not in (USER_KEY, USER_ID):
            columns[name] = pc.if_else(pa.array(lost_n), pa.scalar(None, column.type), column)
        else:
            columns[name] = column
    left = pa.table(columns, schema=table.schema).filter(pa.array(~goes_n))
    return left, int(np.count_nonzero(lost_n | goes_n))


def _fewer(lists: pa.Array, count_n: NDArray[np.int64], stays_e: NDArray[np.bool_], row_e: NDArray[np.int64]) -> pa.Array:
    """A list column without some entries; rows that have no entry for each item of theirs have none at all."""
    length_n = pc.list_value_length(lists).fill_null(0).to_numpy(zero_copy_only=False)
    whole_e = (length_n == count_n)[row_e]
    kept_n = np.bincount(row_e[stays_e & whole_e], minlength=len(lists))
    offsets = pa.array(np.concatenate([[0], np.cumsum(kept_n)]), pa.int32())
    return pa.ListArray.from_arrays(offsets, lists.flatten().filter(pa.array(stays_e[whole_e])), type=lists.type)
