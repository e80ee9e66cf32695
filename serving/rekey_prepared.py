"""Prepared columns under other user keys: they lie in the order of keys, so every user's rows move.

Legend: U users, N rows; rows offsets[u] .. offsets[u+1] are those of user u.
"""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from serving.rekey_files import Rewritten, beside
from serving.rekey_map import KeyMap
from towers.columns import USER_ID, USER_KEY
from towers.errors import ConfigError, DataError
from towers.identity import KEY_BYTES, SECRET_FINGERPRINT
from towers.job import write_json
from towers.prepared import FACTS, ROW_COLUMNS, USER_TABLES, digest, write_array

_BLOCK_ROWS = 1 << 20


def refuse_learned_keys(run_dir: Path) -> None:
    """Raise ConfigError where keys are values of a feature: then they are in vocabularies and weights, which only training writes."""
    for path in run_dir.rglob("schema.json"):
        features = json.loads(path.read_text()).get("features", ())
        if any(one["owner"] == "user" and (one.get("column") or one["name"]) == USER_ID for one in features):
            raise ConfigError(
                f"{path}: declares {USER_ID} as a feature, so vocabularies and weights know people by their old keys. Delete prepared/,"
                " model/, checkpoints/ and bundles/ of this run, exchange the secret, then prepare and train anew"
            )


def rekey_prepared(folder: Path, to: KeyMap) -> list[Rewritten]:
    """Write all columns of users beside the old ones; an empty list where they are under the new secret already.

    Raises:
        DataError: a column cannot be read or written.
        ConfigError: they are keyed with a third secret.
    """
    try:
        secret = (pq.read_schema(folder / USER_TABLES[0]).metadata or {}).get(SECRET_FINGERPRINT)
        if secret == to.new.fingerprint():
            return []
        if secret not in (None, to.old.fingerprint()):
            raise ConfigError(f"{folder}: its users are keyed with neither of the two secrets; subject.old_key names another than theirs")
        return _written(folder, to)
    except (OSError, ValueError, IndexError, KeyError, pa.ArrowException) as error:
        raise DataError(f"{folder}: cannot be written under other keys ({error}). Run `towers prepare` again, or delete it") from error


def settle_facts(folder: Path) -> None:
    """Tell in prepare.json what the columns are now; to be called once they are in their places."""
    facts = json.loads((folder / FACTS).read_text())
    users, rows = len(np.load(folder / "user_keys.npy", mmap_mode="r")), int(np.load(folder / "offsets.npy")[-1])
    facts["data"] |= {"users": users, "rows": rows, "digest": digest(folder)}
    write_json(folder / FACTS, facts)


def _written(folder: Path, to: KeyMap) -> list[Rewritten]:
    keys_U, offsets = np.load(folder / "user_keys.npy"), np.load(folder / "offsets.npy")
    found = to.find(keys_U)
    users_V = np.flatnonzero(found.known_n)
    users_V = users_V[np.argsort(np.ascontiguousarray(found.keys_n[users_V]).view(f"S{KEY_BYTES}").reshape(-1), kind="stable")]
    counts_V = np.diff(offsets)[users_V]
    ends_V = np.concatenate([[0], np.cumsum(counts_V)]).astype(np.int64)
    made: dict[Path, NDArray[Any]] = {folder / "offsets.npy": ends_V, folder / "user_keys.npy": found.keys_n[users_V]}
    for path in sorted((folder / "users").glob("*.npy")):
        made[path] = np.load(path)[users_V]
    for path, column in made.items():
        with beside(path).open("wb") as sink:
            np.save(sink, column)
    rows = [folder / f"{name}.npy" for name in ROW_COLUMNS] + sorted((folder / "context").glob("*.npy"))
    for path in rows:
        _move_rows(path, offsets[users_V], ends_V)
    tables = [path for path in (folder / name for name in USER_TABLES) if path.is_file()]
    for path in tables:
        _move_users(path, users_V, found.keys_n, to)
    unnamed = int(np.count_nonzero(~found.known_n))
    others = [path for path in [*made, *rows, *tables] if path.name != "user_keys.npy"]
    return [Rewritten(folder / "user_keys.npy", len(keys_U), unnamed), *(Rewritten(path, 0, 0) for path in others)]


def _move_rows(path: Path, starts_V: NDArray[np.int64], ends_V: NDArray[np.int64]) -> None:
    """A column with each user's rows in their new place, block by block."""
    old = np.load(path, mmap_mode="r")
    write_array(beside(path), old.dtype, (int(ends_V[-1]), *old.shape[1:]), _moved(old, starts_V, ends_V))


def _moved(old: NDArray[Any], starts_V: NDArray[np.int64], ends_V: NDArray[np.int64]) -> Iterator[NDArray[Any]]:
    shift_V = starts_V - ends_V[:-1]
    at = 0
    while at < len(shift_V):
        stop = max(at + 1, int(np.searchsorted(ends_V, ends_V[at] + _BLOCK_ROWS, side="right")) - 1)
        rows = np.arange(ends_V[at], ends_V[stop]) + np.repeat(shift_V[at:stop], np.diff(ends_V[at : stop + 1]))
        yield old[rows]
        at = stop


def _move_users(path: Path, users_V: NDArray[np.int64], keys_U: NDArray[np.uint8], to: KeyMap) -> None:
    table = pq.read_table(path).take(pa.array(users_V))
    if USER_KEY in table.column_names:
        field = table.schema.field(USER_KEY)
        keys = pa.array([key.tobytes() for key in keys_U[users_V]], field.type)
        table = table.set_column(table.column_names.index(USER_KEY), field, keys)
    pq.write_table(table.replace_schema_metadata({**(table.schema.metadata or {}), SECRET_FINGERPRINT: to.new.fingerprint()}), beside(path))
