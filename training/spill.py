"""Sorting a log larger than memory by user: records are appended to buckets on disk by the first byte of the user key, and each
bucket is then sorted on its own. Buckets in order hold users in order.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from towers.columns import NO_TIME

BUCKETS = 256
KEY = [("key_hi", "<u8"), ("key_lo", "<u8")]
"""A user key as two numbers whose order is the order of its bytes."""

Records = NDArray[Any]


class Spill:
    """Buckets of fixed-size records in a folder.

    Args:
        folder: existing and empty.
        dtype: of a record; it has `key_hi`.
    """

    def __init__(self, folder: Path, dtype: np.dtype[Any]) -> None:
        self._folder, self.dtype = folder, dtype

    def append(self, records_n: Records) -> None:
        """Add records, each to its bucket, keeping their order there."""
        bucket_n = (records_n["key_hi"] >> np.uint64(56)).astype(np.uint8)
        ordered_n = records_n[np.argsort(bucket_n, kind="stable")]
        ends = np.cumsum(np.bincount(bucket_n, minlength=BUCKETS))
        start = 0
        for bucket, end in enumerate(ends.tolist()):
            if end > start:
                with self._path(bucket).open("ab") as sink:
                    sink.write(ordered_n[start:end].data)
            start = end

    def replace(self, bucket: int, records_n: Records) -> None:
        """Put a bucket's processed records in its place."""
        with self._path(bucket).open("wb") as sink:
            sink.write(np.ascontiguousarray(records_n).data)

    def read(self, bucket: int) -> Records:
        return np.fromfile(self._path(bucket), self.dtype)

    def drop(self, bucket: int) -> None:
        self._path(bucket).unlink()

    def buckets(self) -> Iterator[int]:
        """Buckets that hold records, in key order."""
        return iter([b for b in range(BUCKETS) if self._path(b).exists()])

    def _path(self, bucket: int) -> Path:
        return self._folder / f"{bucket:02x}.records"


def split_keys(keys: NDArray[np.uint8]) -> NDArray[np.uint64]:
    """Keys uint8 [n, 16] as numbers uint64 [n, 2]: high half, low half."""
    return np.ascontiguousarray(keys).view(">u8").astype(np.uint64)


def join_keys(high_n: NDArray[np.uint64], low_n: NDArray[np.uint64]) -> NDArray[np.uint8]:
    """The inverse of `split_keys`: uint8 [n, 16]."""
    return np.stack([high_n, low_n], axis=1).astype(">u8").view(np.uint8).reshape(-1, 16)


def sort_bucket(records_n: Records, order: str, deduplicate: bool) -> tuple[Records, int]:
    """A bucket's records by (user, time, ingest order), or by (user, ingest order) where `order` is not `time`.

    Args:
        records_n: as spilled.
        order: `time`, `position` or `set`.
        deduplicate: keep only the first of the rows equal in user, item, time and event type, and of each user's equal event
            ids. Rows without a time count as equal in time under `set` alone: elsewhere each has a place of its own.

    Returns:
        the sorted records and how many duplicates were dropped.
    """
    sorted_n = records_n[np.lexsort((records_n["ingest"], records_n["timestamp"], records_n["key_lo"], records_n["key_hi"]))]
    kept_n = np.ones(len(sorted_n), bool)
    if deduplicate:
        kept_n = ~_repeated(sorted_n, order)
        sorted_n = sorted_n[kept_n]
    if order != "time":
        sorted_n = sorted_n[np.lexsort((sorted_n["ingest"], sorted_n["key_lo"], sorted_n["key_hi"]))]
    return sorted_n, int(len(kept_n) - np.count_nonzero(kept_n))


def user_starts(sorted_n: Records) -> NDArray[np.int64]:
    """First record of each user in a sorted bucket, and the end: int64 [users + 1]."""
    change_n = (sorted_n["key_hi"][1:] != sorted_n["key_hi"][:-1]) | (sorted_n["key_lo"][1:] != sorted_n["key_lo"][:-1])
    return np.concatenate([[0], np.flatnonzero(change_n) + 1, [len(sorted_n)]]).astype(np.int64)


def _repeated(sorted_n: Records, order: str) -> NDArray[np.bool_]:
    """Where a record repeats an earlier one; the records are sorted by (user, time, ingest order)."""
    starts = user_starts(sorted_n)
    user_n = np.repeat(np.arange(len(starts) - 1), np.diff(starts))
    same_n = (user_n[1:] == user_n[:-1]) & (sorted_n["timestamp"][1:] == sorted_n["timestamp"][:-1])
    if order != "set":
        same_n &= sorted_n["timestamp"][1:] != NO_TIME
    tie_n = np.concatenate([[0], np.cumsum(~same_n)])
    tied = np.flatnonzero(np.concatenate([[False], same_n]) | np.concatenate([same_n, [False]]))
    what = (sorted_n["item"][tied].astype(np.int64) << 32) | sorted_n["event"][tied].astype(np.int64)
    repeated_n = np.zeros(len(sorted_n), bool)
    repeated_n[_later_equals(tied, tie_n[tied], what)] = True
    if "event_id" in (sorted_n.dtype.names or ()):
        named = np.flatnonzero(sorted_n["event_id"])
        repeated_n[_later_equals(named, user_n[named], sorted_n["event_id"][named])] = True
    return repeated_n


def _later_equals(rows: NDArray[np.int64], group: NDArray[Any], value: NDArray[Any]) -> NDArray[np.int64]:
    """Those of `rows` (ascending) that have an earlier one with the same group and value."""
    order = np.lexsort((value, group))
    equal = (group[order][1:] == group[order][:-1]) & (value[order][1:] == value[order][:-1])
    repeated: NDArray[np.int64] = rows[order[1:][equal]]
    return repeated
