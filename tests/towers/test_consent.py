"""The consent table: later rows win wherever they stand, the future waits, what cannot be meant is refused by name."""

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from towers.columns import NO_TIME
from towers.consent import BITS, PURPOSES, Consent, purposes_of
from towers.errors import DataError
from towers.identity import UserKeys

KEYS = UserKeys(b"k" * 32)
NOW = 1_800_000_000_000_000
ROW = {"user_id": "a", "purpose": "train", "granted": True, "timestamp": 1_700_000_000}


def table(path: Path, *rows: dict[str, Any]) -> Consent:
    pq.write_table(pa.Table.from_pylist([{**ROW, **row} for row in rows]), path / "consent.parquet")
    return Consent.open(path / "consent.parquet", KEYS, NOW)


def test_the_latest_row_counts_wherever_it_stands(tmp_path: Path) -> None:
    late, early = {"timestamp": 1_700_000_009, "granted": False}, {"timestamp": 1_700_000_001}
    assert table(tmp_path, late, early).mask(KEYS.key("a")) == 0
    assert table(tmp_path, {"granted": False}, {}).mask(KEYS.key("a")) == BITS["train"], "of one moment, the last"
    found = table(tmp_path, early, {"purpose": "measure"}, {"user_id": "b", "purpose": "marketing"})
    assert purposes_of(found.mask(KEYS.key("a"))) == {"personalize": False, "train": True, "marketing": False, "measure": True}
    assert found.mask(KEYS.key("b")) == BITS["marketing"] and found.mask(KEYS.key("nobody")) == 0
    assert found.times(KEYS.key("a"))[1] == 1_700_000_001_000_000 and found.times(KEYS.key("b"))[1] == NO_TIME


def test_keys_that_end_in_zeros_are_told_from_shorter_ones(tmp_path: Path) -> None:
    """Of 256 people one has such a key, and NumPy drops the zeros of a single element."""
    keys = [b"k" * (16 - zeros) + bytes(zeros) for zeros in (0, 1, 2, 15, 16)]
    rows = [{"user_key": key, "purpose": "train", "granted": True, "timestamp": 1_700_000_000 + i} for i, key in enumerate(keys)]
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "consent.parquet")
    found = Consent.open(tmp_path / "consent.parquet", KEYS, NOW)
    assert [found.mask(key) for key in keys] == [BITS["train"]] * 5
    assert [found.times(key)[PURPOSES.index("train")] for key in keys] == [(1_700_000_000 + i) * 1_000_000 for i in range(5)]
    assert found.mask(b"k" * 12 + bytes(4)) == 0 and found.mask(b"\1" + bytes(15)) == 0


def test_rows_of_the_future_are_counted_and_wait(tmp_path: Path) -> None:
    rows = ({}, {"timestamp": NOW / 1e6 + 60, "granted": False}, {"timestamp": NOW / 1e6 + 30, "user_id": "b"})
    found = table(tmp_path, *rows)
    assert found.mask(KEYS.key("a")) == BITS["train"] and (found.future, found.due) == (2, NOW + 30_000_000)
    later = Consent.open(tmp_path / "consent.parquet", KEYS, NOW + 60_000_000)
    assert later.mask(KEYS.key("a")) == 0 and later.mask(KEYS.key("b")) == BITS["train"] and later.due is None


def test_csv_and_keys_and_times_as_people_write_them(tmp_path: Path) -> None:
    path = tmp_path / "consent.csv"
    path.write_text(f"user_key,purpose,granted,timestamp\n{KEYS.key('a').hex()},train,true,2026-01-31T12:00:00Z\n")
    assert Consent.open(path, KEYS, NOW).mask(KEYS.key("a")) == BITS["train"]
    path.write_text("user_id,purpose,granted,timestamp\n7,measure,1,2026-01-31 12:00:00\n7,train,0,1999-01-01 00:00:00\n")
    assert Consent.open(path, KEYS, NOW).mask(KEYS.key("7")) == BITS["measure"]
    pq.write_table(pa.table({**{k: [v] for k, v in ROW.items()}, "user_key": [KEYS.key("b")]}), tmp_path / "keys.parquet")
    assert Consent.open(tmp_path / "keys.parquet", KEYS, NOW).mask(KEYS.key("b")) == BITS["train"]


@pytest.mark.parametrize(
    ("rows", "said"),
    [
        ([{"purpose": "profiling"}], "unknown purpose 'profiling'; expected one of personalize, train, marketing, measure"),
        ([{"granted": 2}], "column granted holds"),
        ([{"granted": "yes"}], "column granted holds"),
        ([{"timestamp": "yesterday"}], "column timestamp is string"),
        ([{"timestamp": None}, {}], "1 rows without timestamp"),
        ([{"user_id": None}, {}], "1 rows without user_id"),
        ([{"user_key": "beef"}], "column user_key holds other than 16 bytes"),
    ],
)
def test_what_cannot_be_meant_is_refused(tmp_path: Path, rows: list[dict[str, Any]], said: str) -> None:
    with pytest.raises(DataError, match=said):
        table(tmp_path, *rows)


def test_a_file_that_is_no_consent_table(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("user,purpose\n1,train\n")
    with pytest.raises(DataError, match="no column user_id or user_key, granted, timestamp; found are user, purpose"):
        Consent.open(tmp_path / "a.csv", KEYS, NOW)
    with pytest.raises(DataError, match="cannot be read"):
        Consent.open(tmp_path / "absent.parquet", KEYS, NOW)


_ROWS = st.lists(st.tuples(st.integers(0, 5), st.sampled_from(PURPOSES), st.booleans(), st.integers(0, 4)), max_size=40)


@settings(max_examples=60, deadline=None)
@given(_ROWS)
def test_it_decides_as_reading_the_rows_one_by_one_does(tmp_path_factory: Any, rows: list[tuple[int, str, bool, int]]) -> None:
    """Every user, purpose and way of asking, against a plain dictionary."""
    path = tmp_path_factory.mktemp("consent") / "t.parquet"
    columns = {"user_id": [f"u{u}" for u, *_ in rows], "purpose": [p for _, p, *_ in rows], "granted": [g for *_, g, _ in rows]}
    types = {"user_id": pa.string(), "purpose": pa.string(), "granted": pa.bool_()}
    arrays = {name: pa.array(values, types[name]) for name, values in columns.items()}
    pq.write_table(pa.table({**arrays, "timestamp": pa.array([t for *_, t in rows], pa.int64())}), path)
    expected = {}
    for user, purpose, granted, _ in sorted((row for row in rows if row[3] <= 3), key=lambda row: row[3]):
        expected[f"u{user}", purpose] = granted
    found = Consent.open(path, KEYS, 3_000_000)
    users = [f"u{user}" for user in range(7)]
    for purpose in PURPOSES:
        wanted = [expected.get((user, purpose), False) for user in users]
        assert found.allowed(KEYS.keys(users), purpose).tolist() == wanted
        assert [bool(found.mask(KEYS.key(user)) & BITS[purpose]) for user in users] == wanted
    assert found.future == sum(row[3] > 3 for row in rows)


def test_a_hundred_thousand_users_are_asked_in_one_go(tmp_path: Path) -> None:
    """R8's scale: what crosses a denied purpose, of 100,000 random states."""
    rng = np.random.default_rng(0)
    users = [f"u{i}" for i in range(100_000)]
    granted_UP = rng.random((len(users), len(PURPOSES))) < 0.5
    known = rng.random(granted_UP.shape) < 0.8
    user_n, purpose_n = np.nonzero(known)
    order = rng.permutation(len(user_n))
    columns = {
        "user_id": pa.array(users).take(pa.array(user_n[order])), "purpose": pa.array(np.array(PURPOSES)[purpose_n[order]]),
        "granted": pa.array(granted_UP[known][order]), "timestamp": pa.array(np.full(len(order), 5)),
    }  # fmt: skip
    pq.write_table(pa.table(columns), tmp_path / "t.parquet")
    found = Consent.open(tmp_path / "t.parquet", KEYS, NOW)
    keys = KEYS.keys(users)
    for place, purpose in enumerate(PURPOSES):
        assert np.array_equal(found.allowed(keys, purpose), (granted_UP & known)[:, place])


def test_ids_of_a_csv_are_text_and_a_table_without_rows_grants_nothing(tmp_path: Path) -> None:
    path = tmp_path / "consent.csv"
    path.write_text("user_id,purpose,granted,timestamp\n007,train,true,1700000000\n")
    consent = Consent.open(path, KEYS, NOW)
    assert consent.mask(KEYS.key("007")) == BITS["train"] and consent.mask(KEYS.key("7")) == 0
    path.write_text("user_id,purpose,granted,timestamp\n")
    nobody = Consent.open(path, KEYS, NOW)
    assert len(nobody) == 0 and nobody.mask(KEYS.key("007")) == 0 and not nobody.allowed(KEYS.keys(["007"]), "train").any()
