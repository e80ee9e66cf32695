"""Which rows of a chunk can be used, and why the others cannot: whole columns at a time.

Legend: n rows of a chunk. A row gets the first reason that fits it, in the order of REASONS.
"""

import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from towers import columns as c
from towers.errors import DataError
from towers.schema import Feature, Schema
from towers.values import LARGEST_NUMBER
from training.features_table import check_kind
from training.sources.base import BAD_TIMESTAMP, MALFORMED_LINE, TIMES_NEEDED, missing_column

REASONS: Final = (
    "ok", "malformed_line", "missing_user_id", "missing_item_id", "id_too_long", "bad_timestamp", "future_timestamp",
    "not_finite_value", "negative_weight", "unknown_split", "bad_vector",
)  # fmt: skip
EARLIEST_US: Final = 315_532_800_000_000
"""1980-01-01. Earlier times are of another unit: seconds of this century read as milliseconds lie in January 1970."""
LATEST_US: Final = 4_102_444_800_000_000
"""2100-01-01."""
DAY_US: Final = 86_400_000_000
_UNITS: Final = {"s": 1_000_000, "ms": 1_000, "us": 1, "ns": 1}

Mask = NDArray[np.bool_]


@dataclass(frozen=True)
class RowRules:
    """What rows are checked against.

    Attributes:
        schema: declared features; context ones are columns of the log.
        need_split: the `split` column decides the split, so it must be there and known.
        latest_us: times after it are of the future: microseconds UTC.
    """

    schema: Schema
    need_split: bool
    latest_us: int

    @classmethod
    def now(cls, schema: Schema, need_split: bool) -> "RowRules":
        """Rules as of now; a day of grace covers clocks and time zones."""
        return cls(schema, need_split, int(time.time() * 1e6) + DAY_US)


@dataclass(frozen=True)
class CheckedChunk:
    """A chunk after the checks.

    Attributes:
        rows: the rows that passed.
        ingest_n: int64 ingest numbers of these rows (place in the log, from 0).
        timestamp_n: int64 microseconds of these rows, NO_TIME where null.
        rejected: the rows that did not, with columns `row` (ingest number) and `reason` added.
    """

    rows: pa.Table
    ingest_n: NDArray[np.int64]
    timestamp_n: NDArray[np.int64]
    rejected: pa.Table | None


def check_columns(chunk: pa.Table, rules: RowRules) -> None:
    """Columns are there and of a usable type.

    Raises:
        DataError: names the column, what was found and what to do.
    """
    found = chunk.column_names
    context = rules.schema.owned_by("context")
    needed = {c.USER_ID: "every log needs it", c.ITEM_ID: "every log needs it"}
    needed |= {f.source_column: f"data.features.{f.name} declares it" for f in context}
    if rules.schema.order == "time":
        needed[c.TIMESTAMP] = TIMES_NEEDED
    if rules.need_split:
        other = "random" if rules.schema.order == "set" else "leave_one_out"
        needed[c.SPLIT] = f"split.name is 'given'; without it use split={other}"
    for name, why in needed.items():
        if name not in found:
            raise missing_column(name, [n for n in found if n not in (BAD_TIMESTAMP, MALFORMED_LINE)], "interactions", why)
    for name in (c.USER_ID, c.ITEM_ID, c.EVENT_ID, c.EVENT_TYPE, c.SPLIT):
        _check_type(chunk, name, _is_text, "text or whole numbers")
    for name in (c.VALUE, c.WEIGHT):
        _check_type(chunk, name, _is_number, "numbers")
    _check_type(chunk, c.TIMESTAMP, pa.types.is_temporal, "times; see data.timestamp_unit")
    for f in context:
        check_kind(f, chunk.schema.field(f.source_column).type, "interactions")


def check_rows(chunk: pa.Table, first_row: int, rules: RowRules) -> CheckedChunk:
    """Sort the rows of a chunk into good and rejected.

    Args:
        chunk: rows as the source gave them, columns already checked.
        first_row: ingest number of its first row.
        rules: what to check against.
    """
    reason_n = np.zeros(len(chunk), np.uint8)
    if MALFORMED_LINE in chunk.column_names:
        _mark(reason_n, _numpy(pc.is_valid(chunk.column(MALFORMED_LINE))).astype(bool), "malformed_line")
    for name, missing in ((c.USER_ID, "missing_user_id"), (c.ITEM_ID, "missing_item_id")):
        length_n = id_bytes(chunk.column(name))
        _mark(reason_n, length_n == 0, missing)
        _mark(reason_n, length_n > c.MAX_ID_BYTES, "id_too_long")
    timestamp_n = _check_times(chunk, reason_n, rules)
    _check_numbers(chunk, reason_n, rules.schema.owned_by("context"))
    if rules.need_split:
        known = pc.is_in(chunk.column(c.SPLIT), value_set=pa.array(c.SPLIT_NAMES, chunk.column(c.SPLIT).type))
        _mark(reason_n, ~_numpy(known).astype(bool), "unknown_split")
    ingest_n = np.arange(first_row, first_row + len(chunk), dtype=np.int64)
    bad_n = reason_n > 0
    if not bad_n.any():
        return CheckedChunk(chunk, ingest_n, timestamp_n, None)
    names = pa.array(np.array(REASONS)[reason_n[bad_n]])
    rejected = chunk.filter(bad_n).append_column("row", pa.array(ingest_n[bad_n])).append_column("reason", names)
    good_n = ~bad_n
    return CheckedChunk(chunk.filter(good_n), ingest_n[good_n], timestamp_n[good_n], rejected)


def id_bytes(ids: pa.ChunkedArray) -> NDArray[np.int64]:
    """UTF-8 length of every id; 0 where it is missing or empty."""
    if not _is_string(ids.type):
        return _numpy(pc.is_valid(ids)).astype(np.int64)
    return _numpy(pc.fill_null(pc.binary_length(ids), 0)).astype(np.int64)


def microseconds(times: pa.ChunkedArray) -> tuple[NDArray[np.int64], Mask]:
    """Any time column as int64 microseconds (NO_TIME where null or absurd), and where it is absurd."""
    if not pa.types.is_timestamp(times.type):
        times = times.cast(pa.timestamp("s" if pa.types.is_date(times.type) else "us"))
    factor, divide = _UNITS[times.type.unit], 1000 if times.type.unit == "ns" else 1
    valid_n = _numpy(pc.is_valid(times)).astype(bool)
    raw_n = _numpy(pc.fill_null(times.cast(pa.int64()), 0)) // divide
    absurd_n = valid_n & ((raw_n < EARLIEST_US // factor) | (raw_n >= LATEST_US // factor))
    usable_n = valid_n & ~absurd_n
    return np.where(usable_n, np.where(usable_n, raw_n, 0) * factor, c.NO_TIME), absurd_n


def _check_times(chunk: pa.Table, reason_n: NDArray[np.uint8], rules: RowRules) -> NDArray[np.int64]:
    if c.TIMESTAMP not in chunk.column_names:
        return np.full(len(chunk), c.NO_TIME, np.int64)
    timestamp_n, absurd_n = microseconds(chunk.column(c.TIMESTAMP))
    _mark(reason_n, absurd_n, "bad_timestamp")
    if BAD_TIMESTAMP in chunk.column_names:
        _mark(reason_n, _numpy(pc.is_valid(chunk.column(BAD_TIMESTAMP))).astype(bool), "bad_timestamp")
    if rules.schema.order == "time":
        _mark(reason_n, timestamp_n == c.NO_TIME, "bad_timestamp")
    _mark(reason_n, timestamp_n > rules.latest_us, "future_timestamp")
    return timestamp_n


def _check_numbers(chunk: pa.Table, reason_n: NDArray[np.uint8], context: Sequence[Feature]) -> None:
    """Infinite numbers, and those past what a feature may hold, are errors; NaN is how many tools write a missing one, except in a
    weight."""
    numeric = [f.source_column for f in context if f.kind == "numeric"]
    for name in dict.fromkeys((c.VALUE, c.WEIGHT, *numeric)):
        if name in chunk.column_names:
            values_n = _numpy(pc.fill_null(chunk.column(name).cast(pa.float64()), 1.0))
            _mark(reason_n, (np.abs(values_n) > LARGEST_NUMBER) | ((name == c.WEIGHT) & np.isnan(values_n)), "not_finite_value")
            if name == c.WEIGHT:
                _mark(reason_n, values_n < 0, "negative_weight")
    for f in context:
        if f.kind == "dense":
            wrong = pc.not_equal(pc.list_value_length(chunk.column(f.source_column)), f.width)
            _mark(reason_n, _numpy(pc.fill_null(wrong, False)).astype(bool), "bad_vector")


def _mark(reason_n: NDArray[np.uint8], mask_n: Mask, reason: str) -> None:
    reason_n[mask_n & (reason_n == 0)] = REASONS.index(reason)


def _check_type(chunk: pa.Table, name: str, allowed: Any, expected: str) -> None:
    if name in chunk.column_names:
        kind = chunk.schema.field(name).type
        if not (allowed(kind) or pa.types.is_null(kind)):
            raise DataError(
                f"interactions: column {name!r} is of type {kind}, expected {expected}. Convert it, or map another column to it"
            )


def _is_string(kind: pa.DataType) -> bool:
    return bool(pa.types.is_string(kind) or pa.types.is_large_string(kind))


def _is_text(kind: pa.DataType) -> bool:
    return bool(_is_string(kind) or pa.types.is_integer(kind))


def _is_number(kind: pa.DataType) -> bool:
    return bool(pa.types.is_integer(kind) or pa.types.is_floating(kind) or pa.types.is_boolean(kind) or pa.types.is_decimal(kind))


def _numpy(values: Any) -> NDArray[Any]:
    array: NDArray[Any] = values.to_numpy() if isinstance(values, pa.ChunkedArray) else values.to_numpy(zero_copy_only=False)
    return array
