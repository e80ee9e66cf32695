"""A full disk is an error that is told; no process dies of it, and lists go on."""

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from serving.bell import Bell
from serving.live_users import LiveUsers
from tests.conftest import full
from towers.columns import NO_TIME
from towers.errors import DataError
from towers.prepared import COLUMNS, FACTS, remove_users

NOTE_ALL = """
import sys
from pathlib import Path
from serving.bell import Bell
from serving.live_users import LiveUsers
users, bell = LiveUsers(Path(sys.argv[1]) / "events.users"), Bell(Path(sys.argv[1]) / "bell")
users.note((number.to_bytes(2) + bytes(14) for number in range(1 << 16)), 1)
bell.ring()
print(users.may_have(bytes(16)), bell.rung())
"""


def test_files_that_are_mapped_have_their_place_on_the_disk(tmp_path: Path, small_disk: Callable[[Path], None]) -> None:
    disk = tmp_path / "small"
    small_disk(disk)
    for file in ("bell", "events.users"):  # as former versions made them: with holes
        (disk / file).touch()
    LiveUsers(disk / "events.users").close()
    Bell(disk / "bell").close()
    with full(disk):  # in a process of its own, which a write to a hole would end
        done = subprocess.run([sys.executable, "-c", NOTE_ALL, str(disk)], capture_output=True, text=True, timeout=120, check=False)
    assert (done.returncode, done.stdout) == (0, "True 1\n"), done.stderr


def test_where_there_is_no_place_that_is_told(tmp_path: Path, small_disk: Callable[[Path], None]) -> None:
    disk = tmp_path / "small"
    small_disk(disk)
    with full(disk):
        for opened in (LiveUsers, Bell):
            with pytest.raises(DataError, match="No space left"):
                opened(disk / opened.__name__)


REMOVE = """
import sys
from pathlib import Path
import numpy as np
from towers.errors import DataError
from towers.prepared import remove_users
try:
    remove_users(Path(sys.argv[1]), lambda keys: np.where(keys[:, 0] == 1, 10**9, -(1 << 63)))
except DataError as error:
    print(error)
"""


def prepared(folder: Path, users: int, rows: int) -> None:
    (folder / "context").mkdir(parents=True)
    keys_U = np.zeros((users, 16), np.uint8)
    keys_U[:, 0] = np.arange(users)
    columns = {"offsets": np.arange(users + 1) * rows, "user_keys": keys_U}
    for name in set(COLUMNS) - set(columns):
        columns[name] = np.arange(users * rows)
    for name, values in columns.items():
        np.save(folder / f"{name}.npy", values)
    (folder / FACTS).write_text('{"data": {"users": 3}}')


def test_who_cannot_be_taken_out_of_prepared_data_for_want_of_space_is_told_of(tmp_path: Path, small_disk: Callable[[Path], None]) -> None:
    disk = tmp_path / "small"
    small_disk(disk)
    prepared(disk / "prepared", 3, 12_000)  # five columns of 288 KB; the new ones take 192 KB each
    before = {path: path.read_bytes() for path in (disk / "prepared").rglob("*") if path.is_file()}
    done = subprocess.run([sys.executable, "-c", REMOVE, str(disk / "prepared")], capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0 and "No space left" in done.stdout and ".npy" in done.stdout, (done.returncode, done.stderr)
    assert {path: path.read_bytes() for path in (disk / "prepared").rglob("*") if path.is_file()} == before


@pytest.mark.parametrize("leaving", [(1,), (0, 1, 2)])
def test_columns_are_as_they_were_without_them(tmp_path: Path, leaving: tuple[int, ...]) -> None:
    prepared(tmp_path / "prepared", 3, 7)
    assert remove_users(tmp_path / "prepared", lambda keys: np.where(np.isin(keys[:, 0], leaving), 10**9, NO_TIME)) == 7 * len(leaving)
    stays = [row for user in range(3) if user not in leaving for row in range(7 * user, 7 * user + 7)]
    assert np.load(tmp_path / "prepared" / "item.npy").tolist() == stays
    assert len(np.load(tmp_path / "prepared" / "user_keys.npy")) == 3 - len(leaving)
