from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from towers.consent import Consent
from towers.errors import DataError
from towers.identity import UserKeys
from towers.schema import Feature, Schema, make_schema
from training.ingest import Ingest, Ingested
from training.permission import Permission
from training.sources.base import SourceTables

START = datetime(2024, 1, 1, tzinfo=UTC)
TIME = pa.timestamp("us", "UTC")
SCHEMA = make_schema([Feature("price", "numeric", "context"), Feature("place", "dense", "context", width=2)], "time", {})
PLAIN = make_schema([], "time", {})
KEYS = UserKeys(b"k" * 32)


def log(rows: int = 20, **columns: Any) -> pa.Table:
    """Good rows, with the columns given put over them."""
    made: dict[str, Any] = {
        "user_id": pa.array([f"user-{i % 4}" for i in range(rows)]),
        "item_id": pa.array([f"i{i % 5}" for i in range(rows)]),
        "timestamp": pa.array([START + timedelta(minutes=i) for i in range(rows)], TIME),
    }
    return pa.table(made | columns)


def ingest(
    folder: Path,
    *chunks: pa.Table,
    schema: Schema = PLAIN,
    share: float = 1.0,
    by_split: bool = False,
    raw: bool = False,
    consent: Consent | None = None,
) -> Ingested:
    def interactions() -> Iterator[pa.Table]:
        return iter(chunks)

    (folder / "work").mkdir()
    source = SourceTables("mine", schema, interactions, pa.table({}), pa.table({}))
    reader = Ingest(source, KEYS, folder / "work", folder / "rejected.parquet", by_split, raw, Permission(consent))
    try:
        for _ in reader.chunks():
            pass
        return reader.finish(share)
    finally:
        reader.close()


def put(values: pa.Array, row: int, value: Any) -> pa.Array:
    items = values.to_pylist()
    items[row] = value
    return pa.array(items, values.type)


NUMBERS = pa.array([1.0] * 20)
VECTORS = pa.array([[1.0, 2.0]] * 20, pa.list_(pa.float32()))
WORDS = pa.array(["train", "valid", "test", "train"] * 5)
NOTES = pa.nulls(20, pa.string())
GOOD = log()
BAD: list[tuple[str, str, pa.Array, Any]] = [
    ("missing_user_id", "user_id", GOOD["user_id"].combine_chunks(), None),
    ("missing_user_id", "user_id", GOOD["user_id"].combine_chunks(), ""),
    ("missing_item_id", "item_id", GOOD["item_id"].combine_chunks(), None),
    ("id_too_long", "item_id", GOOD["item_id"].combine_chunks(), "x" * 2**20),
    ("id_too_long", "user_id", GOOD["user_id"].combine_chunks(), "ü" * 129),
    ("bad_timestamp", "timestamp", GOOD["timestamp"].combine_chunks(), None),
    ("bad_timestamp", "timestamp", GOOD["timestamp"].combine_chunks(), datetime(1970, 1, 20, tzinfo=UTC)),
    ("bad_timestamp", "timestamp", GOOD["timestamp"].combine_chunks(), datetime(2101, 1, 1, tzinfo=UTC)),
    ("future_timestamp", "timestamp", GOOD["timestamp"].combine_chunks(), datetime.now(UTC) + timedelta(days=3)),
    ("bad_timestamp", "_bad_timestamp", NOTES, "yesterday"),
    ("malformed_line", "_malformed_line", NOTES, "2 fields, expected 3"),
    ("not_finite_value", "value", NUMBERS, float("inf")),
    ("not_finite_value", "weight", NUMBERS, float("nan")),
    ("not_finite_value", "price", NUMBERS, float("-inf")),
    ("not_finite_value", "price", NUMBERS, 1e300),
    ("negative_weight", "weight", NUMBERS, -0.5),
    ("unknown_split", "split", WORDS, "holdout"),
    ("unknown_split", "split", WORDS, None),
    ("bad_vector", "place", VECTORS, [1.0, 2.0, 3.0]),
    ("bad_vector", "place", VECTORS, []),
]


@pytest.mark.parametrize(("reason", "column", "values", "value"), BAD, ids=lambda v: v if isinstance(v, str) and len(v) < 30 else "")
def test_a_bad_row_is_rejected_with_its_reason_and_nothing_else(tmp_path: Path, reason: str, column: str, values: Any, value: Any) -> None:
    columns = {"price": NUMBERS, "place": VECTORS, "split": WORDS} | {column: put(values, 7, value)}
    done = ingest(tmp_path, log(**columns), schema=SCHEMA, by_split=True)
    assert dict(done.rejects.counts) == {reason: 1}
    kept = pq.read_table(tmp_path / "rejected.parquet").to_pylist()
    assert [(row["row"], row["reason"]) for row in kept] == [(7, reason)]
    if column not in ("user_id", "item_id"):
        assert kept[0]["item_id"] == "i2"
    ingested = [int(row) for bucket in done.spill.buckets() for row in done.spill.read(bucket)["ingest"]]
    assert sorted(ingested) == [row for row in range(20) if row != 7]


@pytest.mark.parametrize("name", ["price", "value"])
def test_nan_is_a_missing_number_not_a_bad_row(tmp_path: Path, name: str) -> None:
    done = ingest(
        tmp_path,
        log(price=NUMBERS, place=VECTORS) if name == "value" else log(price=put(NUMBERS, 3, float("nan")), place=VECTORS),
        schema=SCHEMA,
    )
    assert not done.rejects.counts
    assert done.context[0].missing == (name == "price")


def test_ids_with_spaces_unicode_and_256_bytes_are_kept_as_they_are(tmp_path: Path) -> None:
    ids = [" a b ", "日本 語", "x" * 256, "ü" * 128, "a\nb", "'; drop table", "i"] + ["i"] * 13
    done = ingest(tmp_path, log(item_id=pa.array(ids)))
    assert done.items.texts == list(dict.fromkeys(ids))
    assert not done.rejects.counts


def test_rejected_rows_hold_user_keys_not_raw_ids(tmp_path: Path) -> None:
    table = log(item_id=put(GOOD["item_id"].combine_chunks(), 3, None))
    ingest(tmp_path, table)
    assert b"user-3" not in (tmp_path / "rejected.parquet").read_bytes()
    assert pq.read_table(tmp_path / "rejected.parquet").column("user_key").to_pylist() == [KEYS.key("user-3")]


def test_rejected_rows_hold_raw_ids_where_asked_for(tmp_path: Path) -> None:
    done = ingest(tmp_path, log(item_id=put(GOOD["item_id"].combine_chunks(), 3, None)), raw=True)
    assert pq.read_table(tmp_path / "rejected.parquet").column("user_id").to_pylist() == ["user-3"]
    assert done.raw_users[KEYS.key("user-0")] == "user-0"


def test_past_the_share_the_error_has_counts_examples_and_the_knob(tmp_path: Path) -> None:
    table = log(timestamp=pa.array([None] * 6 + [START] * 14, TIME), weight=put(NUMBERS, 10, -1.0))
    with pytest.raises(DataError) as caught:
        ingest(tmp_path, table, share=0.1)
    message = str(caught.value)
    for part in ("7 of 20", "35.0%", "bad_timestamp: 6", "negative_weight: 1", "row 0", "row 10", "data.max_rejected_share"):
        assert part in message
    assert "user-" not in message


def test_a_share_that_is_allowed_is_counted_over_all_chunks(tmp_path: Path) -> None:
    bad = log(timestamp=pa.array([None] * 20, TIME))
    done = ingest(tmp_path, bad, log(), log(), share=0.34)
    assert done.rows == 60
    assert done.rejects.counts["bad_timestamp"] == 20


def test_a_log_of_bad_rows_alone_is_an_error_at_any_share(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="20 of 20 rows"):
        ingest(tmp_path, log(timestamp=pa.array([None] * 20, TIME)), share=1.0)


@pytest.mark.parametrize("chunks", [(), (log().slice(0, 0),)])
def test_an_empty_log_is_an_error(tmp_path: Path, chunks: tuple[pa.Table, ...]) -> None:
    with pytest.raises(DataError, match="no rows"):
        ingest(tmp_path, *chunks)


@pytest.mark.parametrize(
    ("table", "words"),
    [
        (log().rename_columns(["userId", "item_id", "timestamp"]), ["user_id", "userId", "data.columns.user_id"]),
        (log().drop_columns(["item_id"]), ["item_id", "user_id, timestamp"]),
        (log().drop_columns(["timestamp"]), ["timestamp", "data.order"]),
        (log(timestamp=pa.array(["yesterday"] * 20)), ["timestamp", "string", "data.timestamp_unit"]),
        (log(user_id=pa.array([1.5] * 20)), ["user_id", "double"]),
        (log(weight=pa.array(["much"] * 20)), ["weight", "string", "numbers"]),
    ],
)
def test_columns_missing_or_of_a_wrong_type_are_named(tmp_path: Path, table: pa.Table, words: list[str]) -> None:
    with pytest.raises(DataError) as caught:
        ingest(tmp_path, table)
    assert all(word in str(caught.value) for word in words), caught.value


def test_a_declared_context_feature_without_its_column_is_named_with_the_likely_one(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="'price'.*'Price'"):
        ingest(tmp_path, log(Price=NUMBERS, place=VECTORS), schema=SCHEMA)


def test_a_context_column_of_a_wrong_type_is_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"price.*string.*numeric"):
        ingest(tmp_path, log(price=pa.array(["1"] * 20), place=VECTORS), schema=SCHEMA)


def test_split_given_needs_its_column(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"'split'.*split.name is 'given'.*split=leave_one_out"):
        ingest(tmp_path, log(), by_split=True)
    (tmp_path / "work").rmdir()
    parsed = log().append_column("_malformed_line", pa.nulls(20, pa.string()))
    with pytest.raises(DataError, match=r"split=random.*; found are") as caught:
        ingest(tmp_path, parsed, by_split=True, schema=make_schema([], "set", {}))
    assert "_malformed_line" not in str(caught.value)


def test_without_order_times_may_be_missing(tmp_path: Path) -> None:
    done = ingest(tmp_path, log().drop_columns(["timestamp"]), schema=make_schema([], "position", {}))
    assert done.rows == 20
    assert not done.rejects.counts


def test_whole_number_and_dictionary_ids_are_texts(tmp_path: Path) -> None:
    table = log(user_id=pa.array(list(range(20)), pa.int32()), item_id=pa.array(["a", "b"] * 10).dictionary_encode())
    done = ingest(tmp_path, table, raw=True)
    assert done.items.texts == ["a", "b"]
    assert done.raw_users[KEYS.key("7")] == "7"


def test_undeclared_columns_are_dropped_and_counted(tmp_path: Path) -> None:
    done = ingest(tmp_path, log(colour=pa.array(["red", None] * 10), session_id=pa.array(["s"] * 20)))
    assert done.dropped == {"colour": 10, "session_id": 20}


def test_a_missing_event_type_is_the_default(tmp_path: Path) -> None:
    done = ingest(tmp_path, log(event_type=pa.array(["click", None, "", "buy"] * 5)))
    assert done.events.texts == ["click", "buy", "interaction"]
