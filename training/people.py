"""Users in the order of their keys: declared features, raw ids where kept, and the audit table, which stays outside prepared data.

Legend: U users of the log, T rows of a table of users.
"""

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray

from towers.columns import NO_TIME, USER_ID, USER_KEY
from towers.errors import ConfigError, DataError
from towers.identity import KEY_BYTES, SECRET_FINGERPRINT, UserKeys, key_file
from towers.schema import Schema
from training.features_table import feature_values
from training.permission import Permission

KeyColumn = pa.binary(KEY_BYTES)
AUDIT = "audit.parquet"
"""In the run_dir, beside the prepared data: columns for audits alone, by user key."""


@dataclass(frozen=True)
class People:
    """Users in row order.

    Attributes:
        values: raw values [U] of declared user features by feature name. `user_id` declared as a feature holds keys, never raw ids.
        counts: facts for the data card: `without_interactions`, `not_in_users_table`, `repeated`.
        missing: values that are missing, by feature name: not there, or not finite.
    """

    values: dict[str, pa.ChunkedArray]
    counts: dict[str, int]
    missing: dict[str, int]


def build_people(users: pa.Table, schema: Schema, keys: UserKeys, keys_U: NDArray[np.uint8], permission: Permission) -> People:
    """Align the users table with the users of the log; where an id repeats, its last row counts.

    Raises:
        DataError: no user_id column, or a declared feature has none.
    """
    at, repeated, unknown = _rows_of_users(users, keys, keys_U)
    at[permission.forgotten(keys_U) != NO_TIME] = -1  # who comes back is known by later events; nothing dates a row of this table
    rows = users.take(pa.array(at, mask=at < 0))
    declared = [f for f in schema.owned_by("user") if f.source_column != USER_ID]
    values, missing = feature_values(rows, declared, "users")
    for f in schema.owned_by("user"):
        if f.source_column == USER_ID:
            values[f.name] = pa.chunked_array([pa.array([key.tobytes().hex() for key in keys_U], pa.string())])
    counts = {"without_interactions": unknown, "not_in_users_table": int(np.count_nonzero(at < 0)), "repeated": repeated}
    return People(values, counts, missing)


def write_users(folder: Path, people: People, keys: UserKeys, keys_U: NDArray[np.uint8], raw: Mapping[bytes, str]) -> None:
    """users.parquet (user_key and raw declared features, for serving) and, where ids were kept, raw_user_ids.parquet."""
    key_column = key_array(keys_U)
    users = pa.table({USER_KEY: key_column, **people.values}, metadata={SECRET_FINGERPRINT: keys.fingerprint()})
    pq.write_table(users, folder / "users.parquet")
    if raw:
        ids = pa.array([raw.get(key.tobytes()) for key in keys_U], pa.string())
        pq.write_table(pa.table({USER_KEY: key_column, USER_ID: ids}), folder / "raw_user_ids.parquet")


def write_audit(path: Path, audit: pa.Table, keys: UserKeys, permission: Permission) -> None:
    """The audit table by user key, of users who allow measuring; replaced atomically. Prepared data have no path to it."""
    ids = [text for text in _ids(audit, "audit") if text]
    audit = audit.filter(pc.fill_null(pc.not_equal(audit.column(USER_ID).cast(pa.string()), ""), False))
    keyed = audit.drop_columns([USER_ID]).add_column(0, USER_KEY, pa.array([keys.key(text) for text in ids], KeyColumn))
    keys_n = keys.keys(ids)
    keyed = keyed.filter(pa.array(permission.measurable(keys_n)))
    temporary = path.with_name(path.name + ".tmp")
    pq.write_table(keyed, temporary)
    os.replace(temporary, path)


def key_array(keys_U: NDArray[np.uint8]) -> pa.Array:
    """Keys uint8 [U, 16] as an Arrow column."""
    flat = np.ascontiguousarray(keys_U, np.uint8)
    return pa.FixedSizeBinaryArray.from_buffers(KeyColumn, len(flat), [None, pa.py_buffer(flat)])


def _rows_of_users(users: pa.Table, keys: UserKeys, keys_U: NDArray[np.uint8]) -> tuple[NDArray[np.int64], int, int]:
    """Row in the users table of each user of the log (-1 = none); ids repeated; users without interactions."""
    ids = _ids(users, "users")
    keys_T = _sortable(keys.keys(ids))
    sorted_U = _sortable(keys_U)
    place_T = np.minimum(np.searchsorted(sorted_U, keys_T), max(0, len(sorted_U) - 1))
    known_T = sorted_U[place_T] == keys_T
    at = np.full(len(keys_U), -1, np.int64)
    np.maximum.at(at, place_T[known_T], np.flatnonzero(known_T))
    unique = len(np.unique(keys_T))
    return at, len(keys_T) - unique, unique - int(np.count_nonzero(at >= 0))


def _sortable(keys_T: NDArray[np.uint8]) -> NDArray[np.bytes_]:
    return np.ascontiguousarray(keys_T).view(f"S{KEY_BYTES}").reshape(-1)


def _ids(table: pa.Table, where: str) -> Sequence[str]:
    if USER_ID not in table.column_names:
        raise DataError(f"{where}: no column 'user_id'; found are {', '.join(table.column_names) or 'none'}")
    # no interaction has an empty id, so a row without one finds nobody
    return ["" if text is None else str(text) for text in table.column(USER_ID).to_pylist()]


def check_secret(users: Path, setting: str | None) -> None:
    """Receipts and decisions are found by a secret: under another one, nobody would count as forgotten. Where none is, none is needed.

    Args:
        users: the file that `write_users` left.
        setting: `identity.key_file`.

    Raises:
        ConfigError: the secret at hand is another than these users were keyed with.
    """
    file = key_file(setting)
    made_with = (pq.read_schema(users).metadata or {}).get(SECRET_FINGERPRINT)
    if file.exists() and made_with not in (None, UserKeys.open(setting).fingerprint()):
        raise ConfigError(
            f"user-key secret {file}: not the one that the users of {users.parent} were keyed with. Point identity.key_file or"
            " $TOWERS_KEY_FILE at the file that `towers prepare` used"
        )
