"""The search for raw ids, against Python's own, and in files of every kind."""

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from serving import raw_scan
from serving.raw_scan import Found, RawIds, read_ids, scan
from towers.errors import DataError

_BYTES = st.text("ab1", max_size=60).map(str.encode)


@settings(max_examples=300, deadline=None)
@given(st.lists(st.text("ab1", min_size=2, max_size=12).map(str.encode), min_size=1, max_size=8, unique=True), _BYTES)
def test_it_finds_what_python_finds(ids: list[bytes], data: bytes) -> None:
    wanted = {text for text in ids if not text.isdigit()}
    assert {text for text in RawIds(ids).within(data) if not text.isdigit()} == {text for text in wanted if text in data}


def test_ids_across_the_border_of_two_blocks_are_found(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(raw_scan, "_CHUNK", 64)
    ids = [b"customer-0001", b"customer-0002", b"kunde-\xc3\xa4"]
    for place in range(40, 140):
        data = bytearray(b"." * 200)
        data[place : place + 13] = b"customer-0002"
        assert RawIds(ids).within(bytes(data)) == {b"customer-0002"}


def test_a_number_within_another_is_not_it() -> None:
    finder = RawIds([b"123456789"])
    assert finder.within(b'{"id":123456789}') == {b"123456789"} and finder.within(b"9123456789 1234567890") == set()


def test_files_of_every_kind_are_looked_through(tmp_path: Path) -> None:
    ids = [f"person-{i:04d}" for i in range(3000)]
    lists = pa.array([["x", "person-0001"]] * 50)
    pq.write_table(pa.table({"seen": lists}), tmp_path / "a.parquet", compression="zstd")
    pq.write_table(pa.table({"user_id": ["person-0002"] * 50}), tmp_path / "b.parquet", compression="zstd")
    table = pa.table({"name": pa.array(["person-0003", None]).dictionary_encode(), "number": [1, 2]})
    with pa.ipc.new_file(tmp_path / "c.arrow", table.schema) as sink:
        sink.write_table(table)
    np.save(tmp_path / "d.npy", np.frombuffer(b"person-0004" * 3, np.uint8))
    (tmp_path / "deep").mkdir()
    (tmp_path / "deep" / "e.json").write_text('{"who": "person-0005", "and": "person-0006"}')
    pq.write_table(pa.table({"n": [1.5]}, metadata={"made_for": "person-0007"}), tmp_path / "f.parquet")
    pq.write_table(pa.table({"n": [1.5]}), tmp_path / "g.parquet")
    found, unread, untold = scan(tmp_path, ids)
    places = {"a.parquet": 1, "c.arrow": 1, "d.npy": 1, "deep/e.json": 2, "f.parquet": 1}
    assert {place.place: place.ids for place in found if not place.asked_for} == places
    assert Found("b.parquet", 1, True) in found and untold == 0 and unread == {}


def test_ids_that_stand_everywhere_by_chance_are_not_looked_for(tmp_path: Path) -> None:
    pq.write_table(pa.table({"item_id": ["item-1"]}), tmp_path / "catalog.parquet")
    with pytest.raises(DataError, match="none of the 3 ids can be told from other content"):
        scan(tmp_path, ["42", "12345678", "item-1"])


def test_damaged_files_are_named_and_all_others_looked_through(tmp_path: Path) -> None:
    pq.write_table(pa.table({"item_id": ["item-1"]}), tmp_path / "catalog.parquet")
    for name in ("a.parquet", "b.arrow", "c/catalog.parquet"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes((tmp_path / "catalog.parquet").read_bytes()[:20])
    (tmp_path / "z.txt").write_text("person-1 chose item-1")
    found, unread, untold = scan(tmp_path, ["person-1", "item-1"])
    assert found == [Found("z.txt", 1, False)] and untold == 1
    assert sorted(unread) == ["a.parquet", "b.arrow", "c/catalog.parquet"] and all(unread.values())


def test_ids_come_from_files_of_three_kinds(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("ü 1\n\nb\n")
    (tmp_path / "a.csv").write_text("user_id,x\n007,1\n007,2\n8,3\n")
    pq.write_table(pa.table({"user_id": ["p", None], "x": [1, 2]}), tmp_path / "a.parquet")
    assert [read_ids(tmp_path / f"a.{kind}") for kind in ("txt", "csv", "parquet")] == [["ü 1", "b"], ["007", "8"], ["p"]]
    for name in ("absent.txt", "absent.parquet"):
        with pytest.raises(DataError, match="cannot be read"):
            read_ids(tmp_path / name)
    pq.write_table(pa.table({"who": ["p"]}), tmp_path / "b.parquet")
    with pytest.raises(DataError, match="a column user_id"):
        read_ids(tmp_path / "b.parquet")
