"""First pass over a log: chunks of raw rows in, checked fixed-size records out, in buckets by user.

What stays in memory is one chunk, the distinct item ids, and the distinct values of coded columns.
"""

import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from towers import columns as c
from towers.consent import TRAIN
from towers.errors import DataError
from towers.identity import KEY_BYTES, UserKeys
from training.ahead import ahead
from training.key_cache import KeyCache
from training.permission import Permission
from training.raw_codes import MISSING, Codes, ContextColumn, distinct, hash_ids
from training.rejects import RejectLog
from training.sources.base import BAD_TIMESTAMP, MALFORMED_LINE, SourceTables
from training.sources.live import KEYED
from training.spill import KEY, Spill, split_keys
from training.validate_rows import CheckedChunk, RowRules, check_columns, check_rows

USED_COLUMNS = (c.USER_ID, c.ITEM_ID, c.TIMESTAMP, c.EVENT_ID, c.EVENT_TYPE, c.WEIGHT, c.SPLIT, BAD_TIMESTAMP, MALFORMED_LINE)


@dataclass
class Ingested:
    """The log after the first pass.

    Attributes:
        spill: the records, in buckets by user.
        items, events: codes of item ids and event types.
        context: declared context features, in order.
        rows: read, rejected ones included.
        dropped: undeclared columns -> rows that had a value in them.
        raw_users: user key -> raw id, where identity.keep_raw_ids asks for it.
        rows_ahead, lead_us: rows later than the clock, and by how much the latest is, microseconds.
        passed_over: rows that may not be used, by reason (see `Permission`).
    """

    spill: Spill
    items: Codes
    events: Codes
    context: list[ContextColumn]
    rejects: RejectLog
    rows: int = 0
    rows_ahead: int = 0
    lead_us: int = 0
    dropped: Counter[str] = field(default_factory=Counter)
    raw_users: dict[bytes, str] = field(default_factory=dict)
    passed_over: Counter[str] = field(default_factory=Counter)


class Ingest:
    """Reads a source's interactions into a spill.

    Args:
        source: the dataset.
        keys: makes user keys.
        work: an empty folder for the spill.
        rejected: path of the Parquet file of rejected rows.
        need_split: the `split` column decides the split.
        keep_raw_ids: remember raw user ids, and write them among rejected rows.
        permission: whose rows may be used; others are counted and go nowhere.
    """

    def __init__(
        self, source: SourceTables, keys: UserKeys, work: Path, rejected: Path, need_split: bool, keep_raw_ids: bool, permission: Permission
    ) -> None:
        self._source, self._keys, self._keep, self._permission = source, keys, keep_raw_ids, permission
        self._remembered, self._keyed = KeyCache(keys), False
        self._rules = RowRules.now(source.schema, need_split)
        self._work, self._rejected = work, rejected
        self._result: Ingested | None = None

    def chunks(self) -> Iterator[int]:
        """Read everything; yields the rows read so far after each chunk, for a progress bar.

        Raises:
            DataError: a column is missing or of the wrong type.
        """
        for chunk in ahead(map(decoded, self._source.interactions())):
            result = self._result or self._start(chunk)
            self._keyed = KEYED in (chunk.schema.metadata or {})
            check_columns(chunk, self._rules)
            checked = check_rows(chunk, result.rows, self._rules)
            self._count_ahead(result, checked.timestamp_n)
            checked = self._permitted(result, checked)
            if checked.rejected is not None:
                result.rejects.add(checked.rejected)
            result.rows += len(chunk)
            self._count_dropped(result, chunk)
            if len(checked.rows):
                result.spill.append(self._records(result, checked))
            yield result.rows

    def finish(self, max_rejected_share: float) -> Ingested:
        """The result of the pass.

        Raises:
            DataError: the log is empty, or too much of it was rejected.
        """
        result = self._result
        if result is None or result.rows == 0:
            raise DataError(f"data {self._source.name!r}: the log has no rows; expected interactions of users with items. Check data.path")
        result.rejects.close()
        result.rejects.check_share(result.rows, max_rejected_share)
        if result.rejects.counts.total() == result.rows:
            result.rejects.check_share(result.rows, 0.0)
        return result

    def close(self) -> None:
        """Close the rejected-rows file, also after an error."""
        if self._result is not None:
            self._result.rejects.close()

    def _start(self, chunk: pa.Table) -> Ingested:
        check_columns(chunk, self._rules)
        context = [ContextColumn(f) for f in self._source.schema.owned_by("context")]
        spill = Spill(self._work, record_dtype(chunk.column_names, context))
        rejects = RejectLog(self._rejected, None if self._keep else self._reject_keys)
        rejects.start(chunk)
        self._result = Ingested(spill, Codes(c.ITEM_ID), Codes(c.EVENT_TYPE), context, rejects)
        return self._result

    def _records(self, result: Ingested, checked: CheckedChunk) -> NDArray[Any]:
        rows, names = checked.rows, checked.rows.column_names
        records, fields = np.empty(len(rows), result.spill.dtype), result.spill.dtype.names or ()
        keys = self._user_keys(result, rows.column(c.USER_ID))
        records["key_hi"], records["key_lo"] = keys[:, 0], keys[:, 1]
        records["ingest"], records["timestamp"] = checked.ingest_n, checked.timestamp_n
        records["item"] = result.items.of(rows.column(c.ITEM_ID))
        events = rows.column(c.EVENT_TYPE) if c.EVENT_TYPE in names else pa.nulls(len(rows), pa.string())
        records["event"] = _event_codes(result.events, events)
        records["weight"] = rows.column(c.WEIGHT).cast(pa.float32()).fill_null(1.0).to_numpy() if c.WEIGHT in names else 1.0
        if c.SPLIT in fields:
            records["split"] = _split_codes(rows.column(c.SPLIT)) if self._rules.need_split else c.TRAIN
        if c.EVENT_ID in fields:
            records["event_id"] = hash_ids(rows.column(c.EVENT_ID))
        for column in result.context:
            records[column.feature.input_name] = column.collect(rows.column(column.feature.source_column))
        return records

    def _permitted(self, result: Ingested, checked: CheckedChunk) -> CheckedChunk:
        """Without the rows, good or bad, that may not be used."""
        if not self._permission.asks:
            return checked
        good_n, rejected = self._may_stay(result, checked.rows, checked.timestamp_n), checked.rejected
        if rejected is not None:
            rejected = rejected.filter(pa.array(self._may_stay(result, rejected, np.full(len(rejected), c.NO_TIME))))
            rejected = rejected if len(rejected) else None
        return CheckedChunk(checked.rows.filter(pa.array(good_n)), checked.ingest_n[good_n], checked.timestamp_n[good_n], rejected)

    def _may_stay(self, result: Ingested, rows: pa.Table, time_n: NDArray[np.int64]) -> NDArray[np.bool_]:
        place_n, unique = distinct(rows.column(c.USER_ID))
        reasons = self._permission.passed_over(self._keys_of(unique), TRAIN, place_n, time_n)
        result.passed_over.update({reason: int(np.count_nonzero(gone_n)) for reason, gone_n in reasons.items()})
        stays_n: NDArray[np.bool_] = ~np.logical_or.reduce(list(reasons.values()))
        return stays_n

    def _user_keys(self, result: Ingested, ids: pa.ChunkedArray) -> NDArray[np.uint64]:
        place_n, unique = distinct(ids)
        keys = self._keys_of(unique)
        if self._keep and not self._keyed:
            result.raw_users.update(zip((key.tobytes() for key in keys), map(str, unique.to_pylist()), strict=True))
        halves: NDArray[np.uint64] = split_keys(keys)[place_n]
        return halves

    def _keys_of(self, ids: pa.Array) -> NDArray[np.uint8]:
        """Keys of the users of a chunk, which may itself hold keys: uint8 [n, 16]."""
        if not self._keyed:
            return self._remembered.keys(ids)
        return np.frombuffer(bytes.fromhex("".join(ids.to_pylist())), np.uint8).reshape(-1, KEY_BYTES)

    def _reject_keys(self, ids: pa.ChunkedArray) -> pa.Array:
        key = bytes.fromhex if self._keyed else self._keys.key
        return pa.array([None if text is None else key(str(text)) for text in ids.to_pylist()], pa.binary(KEY_BYTES))

    def _count_ahead(self, result: Ingested, time_n: NDArray[np.int64]) -> None:
        now = time.time_ns() // 1000
        ahead_n = time_n[time_n > now]
        result.rows_ahead += len(ahead_n)
        result.lead_us = max(result.lead_us, int(ahead_n.max(initial=now)) - now)

    def _count_dropped(self, result: Ingested, chunk: pa.Table) -> None:
        used = {*USED_COLUMNS, *(f.source_column for f in self._source.schema.owned_by("context"))}
        for name in chunk.column_names:
            if name not in used:
                result.dropped[name] += len(chunk) - chunk.column(name).null_count


def record_dtype(names: list[str], context: list[ContextColumn]) -> np.dtype[Any]:
    """The layout of a spilled row, for a log with these columns."""
    fields: list[Any] = [*KEY, ("ingest", "<i8"), ("timestamp", "<i8"), ("item", "<i4"), ("event", "<i4"), ("weight", "<f4")]
    fields += [("split", "u1")] if c.SPLIT in names else []
    fields += [("event_id", "<i8")] if c.EVENT_ID in names else []
    fields += [(column.feature.input_name, column.dtype, column.tail) for column in context]
    return np.dtype(fields)


def decoded(chunk: pa.Table) -> pa.Table:
    """The chunk without dictionary columns: what follows looks at plain types only."""
    for place, column in enumerate(chunk.schema):
        if pa.types.is_dictionary(column.type):
            chunk = chunk.set_column(place, column.name, chunk.column(place).cast(column.type.value_type))
    return chunk


def _event_codes(events: Codes, column: pa.ChunkedArray | pa.Array) -> NDArray[np.int32]:
    """Codes of event types; a missing one is the default type."""
    codes = events.of(column)
    if (codes == MISSING).any():
        codes[codes == MISSING] = events.of(pa.array([c.DEFAULT_EVENT_TYPE]))[0]
    return codes


def _split_codes(column: pa.ChunkedArray) -> NDArray[np.uint8]:
    known = pa.array(c.SPLIT_NAMES, column.type)
    codes: NDArray[np.uint8] = pc.index_in(column, value_set=known).to_numpy().astype(np.uint8)
    return codes
