"""The catalogue: every item that can be recommended, in ascending order of its id's UTF-8 bytes. Legend: I items."""

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from itertools import islice

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from towers import columns as c
from towers.errors import DataError
from towers.schema import Schema
from training.features_table import feature_values
from training.validate_rows import microseconds

_MOST = 0.5
"""Share of the log below which it is likelier that the table writes ids another way than that it lacks items."""


@dataclass(frozen=True)
class Coverage:
    """How many of the log's items, and of their events, are items of the table; ids of which two examples are enough."""

    items: int
    items_of: int
    events: int
    events_of: int
    only_in_log: Sequence[str]
    only_in_table: Sequence[str]

    def warning(self) -> str:
        """What to say where it is little; else nothing."""
        if min(self.items / self.items_of, self.events / max(1, self.events_of)) >= _MOST:
            return ""
        return (
            f"the items table holds {self.items:,} of the log's {self.items_of:,} items ({self.items / self.items_of:.1%}), and"
            f" {self.events:,} of its {self.events_of:,} events are of them; the others have no title and no features."
            f" Only in the log: {_examples(self.only_in_log)}; only in the table: {_examples(self.only_in_table)}"
        )


@dataclass(frozen=True)
class Catalogue:
    """Items in row order.

    Attributes:
        ids: item ids, ascending.
        row_of_code: int32, catalogue row by the log's item code, -1 = left out.
        values: raw values [I] of declared item features by feature name.
        table: what catalog.parquet holds, but for train_count.
        counts: facts for the data card: `without_interactions`, `not_in_items_table`, `repeated`, `bad_ids`, `left_out`, `hidden`.
        missing: values that are missing, by feature name: not there, or not finite.
        coverage: what of the log the items table holds; None where there is no table.
    """

    ids: list[str]
    row_of_code: NDArray[np.int32]
    values: dict[str, pa.ChunkedArray]
    table: pa.Table
    counts: dict[str, int]
    missing: dict[str, int]
    coverage: "Coverage | None" = None

    def with_train_counts(self, counts_I: NDArray[np.int64]) -> pa.Table:
        """The table of catalog.parquet."""
        return self.table.append_column("train_count", pa.array(counts_I, pa.int64()))


def build_catalogue(items: pa.Table, schema: Schema, seen: Sequence[str], events: NDArray[np.int64], min_item_events: int) -> Catalogue:
    """Items of the items table and of the log; where `min_item_events` is above 1, only those with as many events.

    Args:
        items: the source's items; where an id repeats, its last row counts.
        schema: declared features.
        seen: item ids of the log, by code.
        events: rows of the log by code, duplicates dropped.
        min_item_events: fewer leave the item out of log and catalogue.

    Raises:
        DataError: a declared feature has no column, fewer than two items are left, or the table has none of the log's.
    """
    if c.ITEM_ID not in items.column_names:
        raise DataError(f"items: no column 'item_id'; found are {', '.join(items.column_names) or 'none'}")
    row_in_table, bad, repeated = _table_rows(items)
    coverage = _coverage(row_in_table, seen, events)
    enough = events >= min_item_events
    chosen = {item for item, keep in zip(seen, enough.tolist(), strict=True) if keep}
    if min_item_events <= 1:
        chosen.update(row_in_table)
    ids = sorted(chosen, key=str.encode)
    if len(ids) < 2:
        raise DataError(
            f"items: found {len(ids)} to recommend ({', '.join(ids) or 'none'}), expected at least 2: with one there is nothing to rank."
            " Check data.columns.item_id, or lower data.min_item_events"
        )
    place = {item: row for row, item in enumerate(ids)}
    at = np.array([row_in_table.get(item, -1) for item in ids], np.int64)
    rows = items.take(pa.array(at, mask=at < 0))
    values, missing = feature_values(rows, schema.owned_by("item"), "items")
    missing.pop(c.ITEM_ID, None)
    values[c.ITEM_ID] = pa.chunked_array([pa.array(ids, pa.string())])
    table = _table(ids, rows, values)
    counts = {
        "without_interactions": len(set(ids) - set(seen)),
        "not_in_items_table": int(np.count_nonzero(at < 0)),
        "repeated": repeated,
        "bad_ids": bad,
        "left_out": len(set(seen) | set(row_in_table)) - len(ids),
        "hidden": int(pc.sum(table.column(c.IS_HIDDEN)).as_py()),
    }
    row_of_code = np.array([place.get(item, -1) for item in seen], np.int32)
    return Catalogue(ids, row_of_code, values, table, counts, missing, coverage)


def _coverage(table: Collection[str], seen: Sequence[str], events: NDArray[np.int64]) -> Coverage | None:
    """None where there is no table, or no log.

    Raises:
        DataError: they have no item in common.
    """
    if not table or not seen:
        return None
    known = np.array([item in table for item in seen])
    log, others = set(seen), (item for item, there in zip(seen, known.tolist(), strict=True) if not there)
    found = Coverage(
        int(known.sum()), len(seen), int(events[known].sum()), int(events.sum()),
        [*islice(others, 2)], [*islice((item for item in table if item not in log), 2)],
    )  # fmt: skip
    if not found.items:
        raise DataError(
            f"items: the table holds none of the log's {len(seen):,} items. The log has {_examples(found.only_in_log)}, the table"
            f" {_examples(found.only_in_table)}. One item needs the same id in both: check the column that holds it in each file"
            " (data.columns.item_id, data.columns.items.item_id), or leave the items table out"
        )
    return found


def _examples(ids: Sequence[str]) -> str:
    return ", ".join(repr(one if len(one) <= 60 else f"{one[:57]}...") for one in ids) or "none"


def _table_rows(items: pa.Table) -> tuple[dict[str, int], int, int]:
    """The last row of each usable id in the items table; how many ids were unusable, how many repeated."""
    rows: dict[str, int] = {}
    bad = 0
    for row, item in enumerate(items.column(c.ITEM_ID).to_pylist()):
        if item is None or item == "" or len(str(item).encode()) > c.MAX_ID_BYTES:
            bad += 1
        else:
            rows[str(item)] = row
    return rows, bad, len(items) - bad - len(rows)


def _table(ids: list[str], rows: pa.Table, values: dict[str, pa.ChunkedArray]) -> pa.Table:
    made = {c.ITEM_ID: pa.array(ids, pa.string())}
    for name, kind in ((c.TITLE, pa.string()), (c.CATEGORIES, pa.list_(pa.string()))):
        made[name] = rows.column(name).cast(kind) if name in rows.column_names else pa.nulls(len(ids), kind)
    created = _created(rows) if c.CREATED_AT in rows.column_names else np.full(len(ids), c.NO_TIME)
    made[c.CREATED_AT] = pa.array(created, pa.int64(), mask=created == c.NO_TIME).cast(pa.timestamp("us", "UTC"))
    hidden = rows.column(c.IS_HIDDEN) if c.IS_HIDDEN in rows.column_names else pa.nulls(len(ids), pa.bool_())
    made[c.IS_HIDDEN] = pc.fill_null(hidden.cast(pa.bool_()), False)
    made |= {name: column for name, column in values.items() if name not in made}
    return pa.table(made)


def _created(rows: pa.Table) -> NDArray[np.int64]:
    """Creation times; films may be older than any log, so the bounds of events do not apply."""
    column = rows.column(c.CREATED_AT)
    if pa.types.is_timestamp(column.type) and column.type.unit == "us":
        plain: NDArray[np.int64] = column.cast(pa.int64()).fill_null(c.NO_TIME).to_numpy()
        return plain
    return microseconds(column)[0]
