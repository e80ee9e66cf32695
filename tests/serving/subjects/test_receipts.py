"""The chain of receipts: every changed byte is found, and who is forgotten is known by a mark alone."""

import json
from collections.abc import Callable
from itertools import product
from pathlib import Path

import numpy as np
import pytest

from serving.receipt_writer import write_receipt
from serving.standing import Standing
from serving.subjects import verify
from tests.conftest import full
from towers.columns import NO_TIME
from towers.errors import ConfigError, DataError, StorageError
from towers.identity import UserKeys, mark
from towers.receipts import FORGET, REMOVED, Erasures, Receipts, receipts_file

KEYS = UserKeys(b"k" * 32)


def written(path: Path, users: int = 3) -> bytes:
    for user in range(users):
        write_receipt(path, {"what": FORGET, "moment": 1000 + user, "marks": [mark(KEYS.key(f"u{user}")).hex()]})
        write_receipt(path, {"what": REMOVED, "rows": {"export/histories.parquet": user}, "found": bool(user)})
    return path.read_bytes()


def test_a_chain_is_read_as_it_was_written(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "receipts.jsonl"
    written(path)
    receipts = Receipts(path)
    assert [line["what"] for line in receipts.fresh()] == [FORGET, REMOVED] * 3 and receipts.count == 6
    assert json.loads(path.read_text().splitlines()[-1])["hash"] == receipts.last
    assert receipts.fresh() == []
    told = write_receipt(path, {"what": REMOVED})
    assert (told.number, len(receipts.fresh()), receipts.last) == (7, 1, told.hash)
    assert path.stat().st_mode & 0o777 == 0o600


@pytest.mark.parametrize("xor", [0x01, 0x20, 0x80])
def test_every_changed_byte_is_found(tmp_path: Path, xor: int) -> None:
    path = tmp_path / "receipts.jsonl"
    content = written(path, 2)
    for place in range(len(content)):
        changed = bytearray(content)
        changed[place] ^= xor
        path.write_bytes(changed)
        line = content[:place].count(b"\n") + 1
        with pytest.raises(DataError, match=f"line {line} is not what was written"):
            Receipts(path).fresh()


def test_lines_taken_out_or_put_elsewhere_are_found(tmp_path: Path) -> None:
    path = tmp_path / "r.jsonl"
    lines = written(path, 2).splitlines(keepends=True)
    for one, other in product(range(4), range(4)):
        changed = list(lines)
        changed[one], changed[other] = changed[other], changed[one]
        if one == other:
            del changed[one]
        path.write_bytes(b"".join(changed))
        if one == other == 3:
            assert len(Receipts(path).fresh()) == 3, "what is cut off at the end leaves no trace in what is left"
            continue
        with pytest.raises(DataError, match=f"line {min(one, other) + 1} is not"):
            Receipts(path).fresh()


def test_a_chain_that_became_shorter_while_it_was_read_is_told_of(tmp_path: Path) -> None:
    path = tmp_path / "r.jsonl"
    content = written(path)
    receipts = Receipts(path)
    receipts.fresh()
    path.write_bytes(content[:-200])
    with pytest.raises(DataError, match="shorter than it was"):
        receipts.fresh()
    path.unlink()
    with pytest.raises(DataError, match="is gone"):
        receipts.fresh()


def test_nothing_is_added_to_a_chain_that_was_changed(tmp_path: Path) -> None:
    path = tmp_path / "r.jsonl"
    content = written(path)
    path.write_bytes(content.replace(b"1001", b"1002"))
    with pytest.raises(DataError, match="line 3"):
        write_receipt(path, {"what": REMOVED})
    (tmp_path / "file").touch()
    with pytest.raises(ConfigError, match="Set serving.receipts"):
        write_receipt(tmp_path / "file" / "r.jsonl", {"what": REMOVED})


def test_who_is_forgotten_is_known_by_a_mark(tmp_path: Path) -> None:
    path = tmp_path / "r.jsonl"
    erasures = Erasures(Receipts(path))
    assert not erasures.refresh() and erasures.moment(KEYS.key("u1")) is None
    content = written(path)
    assert erasures.refresh() and len(erasures) == 3 and not erasures.refresh()
    assert [erasures.moment(KEYS.key(f"u{user}")) for user in range(4)] == [1000, 1001, 1002, None]
    assert erasures.moments(KEYS.keys(["u2", "other", "u0"])).tolist() == [1002, NO_TIME, 1000]
    assert erasures.moments(np.empty((0, 16), np.uint8)).tolist() == []
    write_receipt(path, {"what": FORGET, "moment": 5000, "marks": [mark(KEYS.key("u1")).hex()]})
    assert erasures.refresh() and erasures.moment(KEYS.key("u1")) == 5000, "forgotten again, later"
    keys = [KEYS.key(f"u{user}") for user in range(3)]
    assert not any(key in content or key.hex().encode() in content for key in keys)


def test_a_chain_of_another_secret_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "r.jsonl"
    write_receipt(path, {"what": FORGET, "moment": 1, "secret": KEYS.fingerprint().decode(), "marks": [mark(KEYS.key("u1")).hex()]})
    assert Erasures(Receipts(path), KEYS.fingerprint()).refresh()
    with pytest.raises(ConfigError, match="under another user-key secret"):
        Erasures(Receipts(path), UserKeys(b"x" * 32).fingerprint()).refresh()


def test_the_chain_lies_beside_the_secret(tmp_path: Path) -> None:
    assert receipts_file(None, str(tmp_path / "user_key")) == tmp_path / "user_key.receipts.jsonl"
    assert receipts_file(str(tmp_path / "r"), None) == tmp_path / "r"


def test_a_receipt_that_a_full_disk_takes_in_part_leaves_nothing(tmp_path: Path, small_disk: Callable[[Path], None]) -> None:
    small_disk(tmp_path / "small")
    path = tmp_path / "small" / "r.jsonl"
    written(path)
    before = path.read_bytes()
    with full(tmp_path / "small"):
        for _ in range(2):
            with pytest.raises(StorageError, match="No space left"):
                write_receipt(path, {"what": FORGET, "moment": 1, "marks": ["ab" * 8] * 1000})
    assert path.read_bytes() == before
    assert write_receipt(path, {"what": REMOVED}).number == 7 and len(Receipts(path).fresh()) == 7


@pytest.mark.parametrize("left", [1, 8, 20, 74, 75, 76, 120])
def test_the_beginning_of_a_receipt_is_not_a_change(tmp_path: Path, left: int) -> None:
    """A death, or a disk that took a part of it, leaves one at the end: it is told of, and makes room for the next."""
    path = tmp_path / "r.jsonl"
    lines = written(path).splitlines(keepends=True)
    torn = lines[-2][:left]
    path.write_bytes(b"".join(lines[:-2]) + torn)
    receipts, erasures = Receipts(path), Erasures(Receipts(path))
    assert len(receipts.fresh()) == 4 and receipts.torn == len(torn) and erasures.refresh() and len(erasures) == 2
    assert verify(path) == {"receipts": 4, "last_hash": receipts.last, "forgotten": 2, "torn_bytes": len(torn)}
    assert write_receipt(path, {"what": FORGET, "moment": 9, "marks": ["ab" * 8]}).number == 5
    assert len(receipts.fresh()) == 1 and receipts.torn == 0 and erasures.refresh() and len(erasures) == 3
    assert "torn_bytes" not in verify(path)


def test_a_receipt_that_lost_its_end_alone_still_counts(tmp_path: Path) -> None:
    """As where an editor or a transfer leaves the end of a file away; who asked for it was told that it is written."""
    path = tmp_path / "r.jsonl"
    content = written(path)
    reader, last = Receipts(path), Receipts(path)
    last.fresh()
    path.write_bytes(content[:-1])
    assert len(reader.fresh()) == 6 and verify(path) == {"receipts": 6, "last_hash": last.last, "forgotten": 3}
    path.write_bytes(content[:-1] + b" ")
    for receipts in (reader, Receipts(path)):
        with pytest.raises(DataError, match="is not what was written"):
            receipts.fresh()
    path.write_bytes(content[:-1])
    assert write_receipt(path, {"what": FORGET, "moment": 9, "marks": ["ab" * 8]}).number == 7
    assert path.read_bytes().startswith(content) and verify(path)["forgotten"] == 4
    assert [line["moment"] for line in reader.fresh()] == [9]


def test_what_begins_otherwise_is_a_change(tmp_path: Path) -> None:
    path = tmp_path / "r.jsonl"
    content = written(path)
    for tail in (b"x", b'{"hash":"XY', b'{"hash":"' + b"0" * 64 + b'"}', b'{"cash":"' + b"0" * 80, b"\x00" * 40):
        path.write_bytes(content + tail)
        with pytest.raises(DataError, match="line 7 is not what was written"):
            Receipts(path).fresh()


def test_receipts_that_cannot_be_followed_are_told_of_once(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = tmp_path / "r.jsonl"
    content = written(path)
    standing = Standing(erasures=Erasures(Receipts(path)))
    added = write_receipt(path, {"what": FORGET, "moment": 9, "marks": [mark(KEYS.key("u9")).hex()]})
    whole = path.read_bytes()
    path.write_bytes(content + b"no receipt\n" + whole[len(content) :])
    for _ in range(5):
        standing.refresh()
    assert [record.message for record in caplog.records] == ["receipts refused"] and "line 7" in standing.receipts_refused
    path.write_bytes(whole)
    standing.refresh()
    assert standing.receipts_refused == "" and standing.forgotten(KEYS.key("u9")) == 9 and added.number == 7
