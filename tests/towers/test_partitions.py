"""Logs in hourly files: what is written is there whole, what is damaged is told of, what is old goes."""

from pathlib import Path

import pyarrow as pa
import pytest

from towers.partitions import HOUR_US, Reading, hour_folder, last_written, only_one, parts, purge, write_part

START = 1_795_564_800_000_000  # midnight UTC
SCHEMA = pa.schema([pa.field("n", pa.int64(), nullable=False), pa.field("words", pa.list_(pa.string()))])


def table(*numbers: int) -> pa.Table:
    return pa.table({"n": list(numbers), "words": [["a word"] * 50 for _ in numbers]}, schema=SCHEMA)


def fill(root: Path, hours: int) -> None:
    for hour in range(hours):
        write_part(hour_folder(root, START + hour * HOUR_US), "w", hour + 1, table(hour))


def numbers(reading: Reading) -> list[int]:
    return [n for part in reading for n in part.column("n").to_pylist()]


def test_what_was_written_is_read_hour_by_hour(tmp_path: Path) -> None:
    fill(tmp_path, 30)
    assert numbers(Reading(tmp_path, SCHEMA)) == list(range(30))
    assert numbers(Reading(tmp_path, SCHEMA, START + 25 * HOUR_US + 5, START + 27 * HOUR_US)) == [25, 26]
    assert [part.column_names for part in Reading(tmp_path, SCHEMA, columns=["words"])] == [["words"]] * 30
    assert numbers(Reading(tmp_path / "nothing here", SCHEMA)) == []


@pytest.mark.parametrize("damage", ["half", "empty", "bit", "foreign"])
def test_a_damaged_file_is_skipped_and_named(tmp_path: Path, damage: str) -> None:
    fill(tmp_path, 3)
    path = parts(tmp_path)[1]
    content = path.read_bytes()
    other = bytearray(content)
    other[60] ^= 1  # in the first page
    path.write_bytes({"half": content[: len(content) // 2], "empty": b"", "bit": bytes(other), "foreign": b"PAR1 or so"}[damage])
    reading = Reading(tmp_path, SCHEMA)
    assert numbers(reading) == [0, 2] and reading.read == 2
    assert list(reading.skipped) == [str(path)] and all(reading.skipped.values())


def test_columns_that_came_later_are_null_in_older_files(tmp_path: Path) -> None:
    fill(tmp_path, 1)
    newer = SCHEMA.append(pa.field("since", pa.float32()))
    (part,) = Reading(tmp_path, newer)
    assert part.schema == newer and part.column("since").null_count == 1
    reading = Reading(tmp_path, SCHEMA.append(pa.field("needed", pa.int32(), nullable=False)))
    assert list(reading) == [] and list(reading.skipped.values()) == ["no column 'needed'"]


def test_files_of_hours_that_are_too_old_go_with_their_folders(tmp_path: Path) -> None:
    fill(tmp_path, 30)
    assert purge(tmp_path, START + 25 * HOUR_US + HOUR_US // 2) == 25
    assert numbers(Reading(tmp_path, SCHEMA)) == [25, 26, 27, 28, 29]
    assert [folder.name for folder in tmp_path.iterdir()] == ["date=2026-11-26"]


def test_names_tell_what_a_writer_has_written(tmp_path: Path) -> None:
    folder = hour_folder(tmp_path, START)
    for writer, last in (("a", 9), ("a", 10), ("b", 3)):
        path = write_part(folder, writer, last, table(1))
        assert path.stat().st_mode & 0o077 == 0, "others can read it"
    assert (last_written(tmp_path, "a"), last_written(folder, "b"), last_written(tmp_path, "c")) == (10, 3, 0)
    assert last_written(hour_folder(tmp_path, START + HOUR_US), "a") == 0


def test_one_process_at_a_time_changes_files(tmp_path: Path) -> None:
    with only_one(tmp_path, wait=True) as first, only_one(tmp_path, wait=False) as second:
        assert (first, second) == (True, False)
    with only_one(tmp_path, wait=False) as again:
        assert again
