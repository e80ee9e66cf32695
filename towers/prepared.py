"""The columns of prepared data, as files, and how a user leaves them.

Legend: U users, N rows, both in the order of user keys; rows offsets[u] .. offsets[u+1] are those of user u.
"""

import hashlib
import json
import os
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, Final

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from towers.columns import NO_TIME
from towers.errors import DataError
from towers.job import write_json

ROW_COLUMNS: Final = ("item", "timestamp", "event", "weight", "split")
COLUMNS: Final = ("offsets", "user_keys", *ROW_COLUMNS)
"""The NumPy files of a prepared folder, besides the feature folders."""
FEATURE_FOLDERS: Final = {"context": "context", "users": "user", "items": "item"}
"""Folder of encoded features -> the owner of those features."""
USER_TABLES: Final = ("users.parquet", "raw_user_ids.parquet")
"""Parquet files with a row a user, in the same order."""
FACTS: Final = "prepare.json"
_LEAVING = ".leaving"
_BLOCK_ROWS = 1 << 20

Array = NDArray[Any]


def digest(folder: Path) -> str:
    """sha256 of every column: equal sizes do not make equal data, and a run must not go on with other data than it began with."""
    found = hashlib.sha256()
    for path in sorted(folder.rglob("*.npy")):
        with path.open("rb") as column:
            found.update(hashlib.file_digest(column, "sha256").digest())
    return found.hexdigest()


def remove_users(folder: Path, forgotten: Callable[[NDArray[np.uint8]], NDArray[np.int64]]) -> int:
    """Take users out of a prepared folder; how many rows went. What is counted over all users (vocabularies, popularity) stays.

    New columns are written beside the old ones and then take their places: a death between the two makes columns of different lengths,
    which is told when the folder is opened.

    Args:
        forgotten: keys uint8 [n, 16] -> int64 [n]: a user with an event up to that moment (microseconds UTC), or of unknown time, leaves
            with all events; NO_TIME = the user stays.

    Raises:
        DataError: a column cannot be read or written.
    """
    try:
        return _remove(folder, forgotten)
    except (OSError, ValueError, IndexError, KeyError, pa.ArrowException) as error:
        raise DataError(f"{folder}: users cannot be taken out ({error}). Run `towers prepare` again, which passes over them") from error
    finally:
        for path in folder.rglob(f"*{_LEAVING}"):  # only there where that failed
            path.unlink()


def _remove(folder: Path, forgotten: Callable[[NDArray[np.uint8]], NDArray[np.int64]]) -> int:
    keys_U, offsets = np.load(folder / "user_keys.npy", mmap_mode="r"), np.load(folder / "offsets.npy")
    leaving_U = np.zeros(len(keys_U), bool)
    moments_U = forgotten(keys_U)
    times_N = np.load(folder / "timestamp.npy", mmap_mode="r")
    for user in np.flatnonzero(moments_U != NO_TIME):
        leaving_U[user] = bool((times_N[offsets[user] : offsets[user + 1]] <= moments_U[user]).any())
    if not leaving_U.any():
        return 0
    stays_U, counts_U = ~leaving_U, np.diff(offsets)
    stays_N = np.repeat(stays_U, counts_U)
    _replace(folder / "offsets.npy", np.concatenate([[0], np.cumsum(counts_U[stays_U])]).astype(np.int64))
    for path in [folder / f"{name}.npy" for name in ROW_COLUMNS] + sorted((folder / "context").glob("*.npy")):
        _filter(path, stays_N)
    for path in [folder / "user_keys.npy", *sorted((folder / "users").glob("*.npy"))]:
        _filter(path, stays_U)
    for path in (folder / name for name in USER_TABLES):
        if path.is_file():
            pq.write_table(pq.read_table(path).filter(pa.array(stays_U)), f"{path}{_LEAVING}")
    for path in sorted(folder.rglob(f"*{_LEAVING}")):
        os.replace(path, str(path).removesuffix(_LEAVING))
    facts = json.loads((folder / FACTS).read_text())
    facts["data"] |= {"users": int(stays_U.sum()), "rows": int(stays_N.sum()), "digest": digest(folder)}
    facts["data"]["forgotten_users"] = facts["data"].get("forgotten_users", 0) + int(leaving_U.sum())
    write_json(folder / FACTS, facts)
    return int(np.count_nonzero(~stays_N))


def _filter(path: Path, stays: NDArray[np.bool_]) -> None:
    """The rows that stay, block by block."""
    old = np.load(path, mmap_mode="r")
    ends = range(_BLOCK_ROWS, len(old) + _BLOCK_ROWS, _BLOCK_ROWS)
    blocks = (old[end - _BLOCK_ROWS : end][stays[end - _BLOCK_ROWS : end]] for end in ends)
    write_array(Path(f"{path}{_LEAVING}"), old.dtype, (int(stays.sum()), *old.shape[1:]), blocks)


def write_array(path: Path, dtype: np.dtype[Any], shape: tuple[int, ...], blocks: Iterable[NDArray[Any]]) -> None:
    """Write a NumPy file of an array that comes in blocks of rows, as it may be larger than memory.

    Raises:
        OSError: the disk does not take it; names the file.
    """
    header = {"descr": np.lib.format.dtype_to_descr(dtype), "fortran_order": False, "shape": shape}
    try:
        with path.open("wb") as sink:
            np.lib.format.write_array_header_1_0(sink, header)
            for block in blocks:
                sink.write(np.ascontiguousarray(block, dtype).tobytes())
    except OSError as error:
        raise OSError(error.errno, error.strerror, str(path)) from error


def _replace(path: Path, content: Array) -> None:
    with open(f"{path}{_LEAVING}", "wb") as sink:
        np.save(sink, content)
