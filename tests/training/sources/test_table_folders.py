import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from towers.errors import DataError
from training.sources import open_source

NOON_S = 1_706_702_400


def rows(source):
    return pa.concat_tables(source.interactions()).to_pylist()


def test_a_log_partitioned_by_day_and_type_is_read_with_what_its_folders_say(data_config, tmp_path):
    for day in range(1, 4):
        for kind in ("view", "caf%C3%A9", "__HIVE_DEFAULT_PARTITION__"):
            folder = tmp_path / "log" / f"day=2024-01-0{day}" / f"kind={kind}"
            folder.mkdir(parents=True)
            pq.write_table(pa.table({"user_id": [f"u{day}"] * 2, "item_id": ["a", "b"], "n": [1, 2]}), folder / "part-0.parquet")
    hidden = tmp_path / "log" / "_temporary" / "day=2024-01-09"
    hidden.mkdir(parents=True)
    (hidden / "part-0.parquet").write_bytes(b"half a file")
    source = open_source(
        data_config("table", path=str(tmp_path), interactions="log", columns={"timestamp": "day", "event_type": "kind"}, chunk_rows=1)
    )
    found = rows(source)
    assert len(found) == 18 and {row["event_type"] for row in found} == {"view", "café", None}
    assert {(row["user_id"], str(row["timestamp"].date())) for row in found} == {(f"u{d}", f"2024-01-0{d}") for d in (1, 2, 3)}
    assert source.notes["dropped_columns_of_interactions"] == "n"
    told = source.notes["interactions"]
    assert told.startswith("day=2024-01-01/kind=__HIVE_DEFAULT_PARTITION__/part-0.parquet, ") and told.endswith(" and 1 more")


def test_a_csv_in_folders_keeps_its_own_column_and_a_malformed_line_its_place(data_config, tmp_path):
    folder = tmp_path / "log" / "user_id=42" / "timestamp=1"
    folder.mkdir(parents=True)
    (folder / "0.csv").write_text(f"item_id,timestamp\na,{NOON_S}\nb\nc,{NOON_S}\n")
    found = rows(open_source(data_config("table", path=str(tmp_path), interactions="log")))
    assert [(row["user_id"], row["item_id"]) for row in found] == [("42", "a"), ("42", None), ("42", "c")]
    assert [row["timestamp"].year if row["timestamp"] else None for row in found] == [2024, None, 2024]


def test_other_folders_are_told_of(data_config, tmp_path):
    (tmp_path / "log" / "2024").mkdir(parents=True)
    with pytest.raises(DataError, match=r"no Parquet or CSV file at .*\(2024\).* named column=value"):
        open_source(data_config("table", path=str(tmp_path), interactions="log"))
