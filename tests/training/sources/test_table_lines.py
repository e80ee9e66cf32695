"""Lines and values of users' own files that are not what the header or the declarations promise."""

import errno
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from towers.errors import ConfigError, DataError
from towers.schema import Feature, make_schema
from training.npy_stream import NpyWriter
from training.sources import open_source, table_files
from training.spill import Spill

HEADER = "user_id,item_id,timestamp\n"


@pytest.fixture
def opened(data_config: Any, tmp_path: Path) -> Any:
    def make(log: str, **settings: Any) -> Any:
        (tmp_path / "log.csv").write_text(log)
        return open_source(data_config("table", path=str(tmp_path), interactions="log.csv", **settings))

    return make


def rows(source: Any) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = pa.concat_tables(source.interactions()).to_pylist()
    return found


def test_a_malformed_line_is_a_row_that_says_so_and_not_who(opened: Any) -> None:
    bad, good = rows(opened(HEADER + "ann,x\nbob,y,1706702400\n"))
    assert good["user_id"] == "bob" and good["_malformed_line"] is None
    assert bad["user_id"] is None and bad["_malformed_line"] == "2 fields, expected 3; line 2 of log.csv"


@pytest.mark.parametrize(("block", "chunk_rows"), [(1 << 10, 7), (1 << 10, 1000), (16 << 20, 1000)])
def test_malformed_lines_stand_where_they_stood(opened: Any, monkeypatch: pytest.MonkeyPatch, block: int, chunk_rows: int) -> None:
    monkeypatch.setattr(table_files, "_BLOCK", block)
    lines = [f"user{n},item,1706702400" for n in range(300)]
    wrong = {0: "a,b", 57: "a", 58: "a,b,c,d", 150: "a", 299: "end,"[:-1]}
    for place, line in wrong.items():
        lines[place] = line
    lines[40] = 'user40,"an\nitem",1706702400'
    lines.insert(100, "")
    found = rows(opened(HEADER + "\n".join(lines) + "\n", chunk_rows=chunk_rows))
    assert [row["user_id"] for row in found] == [None if n in wrong else f"user{n}" for n in range(300)]
    told = {n: row["_malformed_line"].rpartition("; ")[2] for n, row in enumerate(found) if row["_malformed_line"]}
    assert told == {
        0: "line 2 of log.csv", 57: "line 60 of log.csv", 58: "line 61 of log.csv", 150: "line 154 of log.csv", 299: "line 303 of log.csv",
    }  # fmt: skip


def test_no_line_is_told_where_a_stray_quote_hides_it(opened: Any) -> None:
    log = HEADER + 'ann,5" nail,1706702400\n' + "bad,line\n" + "bob,y,1706702400\n"
    assert [row["_malformed_line"] for row in rows(opened(log))] == [None, "2 fields, expected 3", None]


def test_an_endless_line_is_named(opened: Any) -> None:
    with pytest.raises(DataError, match="a line is longer than 16 MiB"):
        rows(opened(HEADER + "a," + "x" * (40 << 20) + ",1\n"))


@pytest.mark.parametrize("text", ['"[""a"", ""b""]"', "\"['a', 'b']\"", "a|b", "[a|b]"])
def test_lists_written_as_text(opened: Any, tmp_path: Path, text: str) -> None:
    (tmp_path / "items.csv").write_text(f"item_id,categories\nx,{text}\n")
    found = opened(HEADER, items="items.csv").items["categories"].to_pylist()
    assert found == [["[a", "b]"] if text == "[a|b]" else ["a", "b"]]


def test_a_declared_time_that_is_none_is_refused(opened: Any, tmp_path: Path) -> None:
    when = {"name": "when", "kind": "time", "owner": "context"}
    with pytest.raises(DataError, match=r"'when' \(when\) holds values such as 'red', expected times"):
        rows(
            opened("user_id,item_id,timestamp,when\na,x,1706702400,red\nb,x,1706702400,2024-01-01\nc,x,1706702400,blue\n", features=[when])
        )
    (tmp_path / "items.csv").write_text("item_id,created_at\nx,new\ny,old\n")
    with pytest.raises(DataError, match=r"'created_at' .*'new', expected times"):
        opened(HEADER, items="items.csv")


def test_a_time_as_go_writes_it(opened: Any, tmp_path: Path) -> None:
    (tmp_path / "items.csv").write_text("item_id,created_at\nx,2024-01-31 12:00:00 +0000 UTC\n")
    assert opened(HEADER, items="items.csv").items["created_at"][0].as_py().isoformat() == "2024-01-31T12:00:00+00:00"


@pytest.mark.parametrize("setting", ["max_values", "min_count", "buckets"])
def test_sizes_of_a_feature_are_at_least_one(setting: str) -> None:
    with pytest.raises(ConfigError, match=rf"data\.features\.words\.{setting}: got 0, expected at least 1"):
        make_schema([Feature("words", "text", "item", **{setting: 0})], "time", {})


def test_a_full_disk_is_told_apart(tmp_path: Path) -> None:
    """/dev/full takes no byte, as a full disk does; the message of ndarray.tofile would not say why."""
    with pytest.raises(OSError) as told, NpyWriter(Path("/dev/full"), np.int64) as writer:
        writer.append(np.zeros(1 << 20, np.int64))
    assert told.value.errno == errno.ENOSPC
    spill = Spill(tmp_path, np.dtype([("key_hi", "<u8"), ("rest", "<i8", (2,))]))
    (tmp_path / "00.records").symlink_to("/dev/full")
    with pytest.raises(OSError) as told:
        spill.append(np.zeros(1 << 18, spill.dtype))
    assert told.value.errno == errno.ENOSPC


@pytest.mark.parametrize("kinds", [("numeric", "categorical"), ("categorical", "numeric"), ("text", "multi_categorical")])
@pytest.mark.parametrize("owner", ["item", "context"])
def test_a_column_declared_as_two_kinds_of_value_is_told(opened: Any, tmp_path: Path, kinds: tuple[str, str], owner: str) -> None:
    (tmp_path / "items.csv").write_text("item_id,year\nx,1999\ny,2001\n")
    features = [{"name": f"f{kind}", "kind": kind, "owner": owner, "column": "year"} for kind in kinds]
    with pytest.raises(ConfigError, match=rf"data\.features\.f{kinds[1]}: column 'year' cannot be both {kinds[1]} and {kinds[0]}"):
        list(opened("user_id,item_id,timestamp,year\na,x,1,1999\n", items="items.csv", features=features).interactions())


def test_a_column_may_be_read_in_two_ways_of_one_type(opened: Any, tmp_path: Path) -> None:
    (tmp_path / "items.csv").write_text("item_id,maker\nx,Acme Ltd\ny,Acme\n")
    features = [{"name": f"f{kind}", "kind": kind, "owner": "item", "column": "maker"} for kind in ("text", "categorical")]
    assert opened("user_id,item_id,timestamp\na,x,1\n", items="items.csv", features=features).items["maker"].to_pylist()[0] == "Acme Ltd"
