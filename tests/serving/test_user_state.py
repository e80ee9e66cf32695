"""Stored histories: every user is found, nobody else's is, and a damaged file says so."""

import os
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from serving.user_state import StoredUser, UserHistories
from towers.columns import CATALOG, ITEM_ROWS, NO_TIME
from towers.errors import DataError
from towers.vocab import Vocabulary, digest_of


def table(keys: list[bytes]) -> pa.Table:
    return pa.table(
        {
            "user_key": pa.array(keys, pa.binary(16)),
            "item_ids": pa.array([[f"item-{i}", "shared"][: i % 3] for i in range(len(keys))], pa.list_(pa.string())),
            "event_types": pa.array([["play", "skip"][: i % 3] for i in range(len(keys))], pa.list_(pa.string())),
            "timestamps": pa.array([[i, None][: i % 3] for i in range(len(keys))], pa.list_(pa.int64())),
            "age": pa.array([i if i % 2 else None for i in range(len(keys))], pa.int32()),
        }
    )


@pytest.fixture
def keys() -> list[bytes]:
    rng = np.random.default_rng(0)
    random = [rng.bytes(16) for _ in range(200)]
    twins = [b"\x80" * 8 + bytes([i]) * 8 for i in range(5)]  # one 8-byte prefix, five people
    return sorted([*random, *twins, bytes(16), b"\xff" * 16, b"\x01" + bytes(15)])


def test_every_user_is_found_over_several_row_groups(tmp_path: Path, keys: list[bytes]) -> None:
    written = table(keys)
    pq.write_table(written, tmp_path / "h.parquet", row_group_size=37)
    users = UserHistories.open(tmp_path / "h.parquet")
    assert len(users) == len(keys)
    for row, expected in zip(keys, written.to_pylist(), strict=True):
        user = users.get(row)
        assert user is not None
        assert user.items == expected["item_ids"] and user.events == expected["event_types"]
        assert user.timestamps == [NO_TIME if time is None else time for time in expected["timestamps"]]
        assert user.features == {"age": expected["age"]}


def test_types_and_times_may_be_unknown(tmp_path: Path, keys: list[bytes]) -> None:
    bare = table(keys)
    for name in ("event_types", "timestamps"):
        bare = bare.set_column(bare.column_names.index(name), name, pa.array([None] * len(keys), bare.schema.field(name).type))
    pq.write_table(bare, tmp_path / "h.parquet")
    user = UserHistories.open(tmp_path / "h.parquet").get(keys[2])
    assert user is not None
    assert (user.items, user.events, user.timestamps) == (["item-2", "shared"], [None, None], [NO_TIME, NO_TIME])


def test_what_is_taught_is_what_would_be_looked_up(keys: list[bytes]) -> None:
    users = UserHistories(table(keys))
    items, kinds = Vocabulary.fit([f"item-{i}" for i in range(0, 200, 3)]), Vocabulary.fit(["play"])
    known = [user for key in keys if (user := users.get(key)) is not None]
    before = [(items.rows(user.items).tolist(), kinds.rows(user.events).tolist()) for user in known]
    users.teach(items, kinds)
    assert [(items.rows(user.items).tolist(), kinds.rows(user.events).tolist()) for user in known] == before
    assert before == [(items.rows(list(user.items)).tolist(), kinds.rows(list(user.events)).tolist()) for user in known]


def test_histories_of_known_items_hold_no_ids_of_their_own(keys: list[bytes]) -> None:
    """Those of the first vocabulary serve; a later one, of another model, learns them all the same."""
    written = table(keys)
    users = UserHistories(written)
    ids = sorted({item for items in written.column("item_ids").to_pylist() for item in items})
    every, few, kinds = Vocabulary.fit([*ids, "new"]), Vocabulary.fit(ids[::2]), Vocabulary.fit(["play", "skip"])
    users.teach(every, kinds)
    known = [user for key in keys if (user := users.get(key)) is not None]
    assert [list(user.items) for user in known] == written.column("item_ids").to_pylist()
    assert all(user.items.distinct is every.values() for user in known), "held twice"  # type: ignore[attr-defined]
    assert [every.rows(user.items).tolist() for user in known] == [every.rows(list(user.items)).tolist() for user in known]
    users.teach(few, kinds)
    assert [few.rows(user.items).tolist() for user in known] == [few.rows(list(user.items)).tolist() for user in known]
    assert users.get(keys[2]) == known[2]


def with_rows(written: pa.Table, catalog: Vocabulary) -> pa.Table:
    """The same file as export writes it: items by their row in a catalogue as well."""
    ids = catalog.values().to_pylist()
    rows = [[ids.index(item) for item in items] for items in written.column("item_ids").to_pylist()]
    metadata = {CATALOG: digest_of(catalog.values())}
    return written.append_column(ITEM_ROWS, pa.array(rows, pa.list_(pa.int32()))).replace_schema_metadata(metadata)


def test_items_by_row_are_named_by_their_catalogue(tmp_path: Path, keys: list[bytes]) -> None:
    written = table(keys)
    catalog, kinds = Vocabulary.fit([*(f"item-{i}" for i in range(300)), "shared", "a new one"]), Vocabulary.fit(["play", "skip"])
    pq.write_table(with_rows(written, catalog), tmp_path / "h.parquet", row_group_size=37)
    users = UserHistories.open(tmp_path / "h.parquet", unnamed=True)
    users.name(catalog)
    users.teach(catalog, kinds)
    known = [user for key in keys if (user := users.get(key)) is not None]
    assert [list(user.items) for user in known] == written.column("item_ids").to_pylist()
    assert all(user.items.distinct is catalog.values() for user in known)  # type: ignore[attr-defined]
    assert known == [UserHistories.open(tmp_path / "h.parquet").get(key) for key in keys]


def test_rows_of_another_catalogue_name_nothing(tmp_path: Path, keys: list[bytes]) -> None:
    written = table(keys)
    ids = [*(f"item-{i}" for i in range(300)), "shared"]
    pq.write_table(with_rows(written, Vocabulary.fit(ids)), tmp_path / "h.parquet")
    for other in (Vocabulary.fit(["0 first", *ids]), Vocabulary.fit(ids[1:]), Vocabulary.numbered(ids[::-1])):
        users = UserHistories.open(tmp_path / "h.parquet", unnamed=True)
        users.name(other)
        assert [list(user.items) for key in keys if (user := users.get(key))] == written.column("item_ids").to_pylist()
    never = UserHistories.open(tmp_path / "h.parquet", unnamed=True)
    assert [list(user.items) for key in keys if (user := never.get(key))] == written.column("item_ids").to_pylist()


def test_rows_past_the_catalogue_are_refused(tmp_path: Path, keys: list[bytes]) -> None:
    catalog = Vocabulary.fit([*(f"item-{i}" for i in range(300)), "shared"])
    written = with_rows(table(keys), catalog)
    past = pa.array([[301] * len(rows) for rows in written.column(ITEM_ROWS).to_pylist()], pa.list_(pa.int32()))
    pq.write_table(written.set_column(written.column_names.index(ITEM_ROWS), ITEM_ROWS, past), tmp_path / "h.parquet")
    users = UserHistories.open(tmp_path / "h.parquet", unnamed=True)
    with pytest.raises(DataError, match="item_rows reach past the catalogue"):
        users.name(catalog)


def test_a_digest_is_of_values_and_their_bounds() -> None:
    values = pa.array(["x", "ab", "c", "ü", ""])
    assert digest_of(values.slice(1, 2)) == digest_of(pa.array(["ab", "c"]))
    digests = {digest_of(pa.array(values, pa.string())) for values in (["ab", "c"], ["a", "bc"], ["c", "ab"], ["ab", "c", ""], ["abc"], [])}
    assert len(digests) == 6


def test_history_before_a_moment() -> None:
    user = StoredUser(["a", "b", "c", "d"], ["play", None, "skip", "play"], [NO_TIME, 10, 30, 20], {"age": 5})
    assert user.before(20) == StoredUser(["a", "b"], ["play", None], [NO_TIME, 10], {"age": 5})
    assert user.before(31) is user


def test_strangers_are_not_found(keys: list[bytes]) -> None:
    users = UserHistories(table(keys))
    for stranger in (b"\x80" * 8 + b"\x09" * 8, b"\x80" * 16, os.urandom(16)):
        assert users.get(stranger) is None
    assert UserHistories(table([])).get(bytes(16)) is None


def test_a_slice_of_a_table_is_read_from_its_own_start(keys: list[bytes]) -> None:
    users = UserHistories(table(keys).slice(50, 60))
    assert users.get(keys[49]) is None and users.get(keys[110]) is None
    assert all(users.get(key) is not None for key in keys[50:110])


def test_what_cannot_be_used_is_refused(tmp_path: Path, keys: list[bytes]) -> None:
    with pytest.raises(DataError, match="not sorted"):
        UserHistories(table(keys[::-1]))
    path = tmp_path / "h.parquet"
    with pytest.raises(DataError, match="cannot be read"):
        UserHistories.open(path)
    pq.write_table(table(keys).drop_columns(["timestamps"]), path)
    with pytest.raises(DataError, match="no column timestamps"):
        UserHistories.open(path)
    pq.write_table(table(keys), path)
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(DataError, match="cannot be read"):
        UserHistories.open(path)
    misfits = {
        "item_ids": pa.array([[1, 2]] * len(keys)),
        "event_types": pa.array([["play"] * 3] * len(keys)),
        "timestamps": pa.array(["2026-01-01"] * len(keys)),
    }
    for name, column in misfits.items():
        place = ["user_key", "item_ids", "event_types", "timestamps"].index(name)
        pq.write_table(table(keys).set_column(place, name, column), path)
        with pytest.raises(DataError, match=name):
            UserHistories.open(path)
    wrong = table(keys).set_column(0, "user_key", pa.array([key.hex() for key in keys]))
    pq.write_table(wrong, path)
    with pytest.raises(DataError, match="expected 16 bytes"):
        UserHistories.open(path)
