"""An exchange of secrets that was interrupted goes on where the run lies now, and touches no other run and nobody else's files."""

import os
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from serving import rekey as job
from serving.rekey_files import beside
from serving.rights import places_of
from towers.errors import DataError
from towers.identity import UserKeys
from towers.receipts import Receipts
from towers.rekeying import JOURNAL

NEW, USER = UserKeys(b"n" * 32), "user-4"


def raises(*_: Any) -> None:
    raise KeyboardInterrupt


@pytest.fixture
def interrupted(used: Any, world: Any, monkeypatch: pytest.MonkeyPatch) -> Any:
    """A run whose exchange was decided, and no more."""

    with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
        patched.setattr(job, "_finish", raises)
        job.rekey(places_of(used.config), used.keys, NEW, sorted(world.users))
    assert (used.dir / JOURNAL).is_file()
    return used


def content(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_it_goes_on_in_a_copy_and_leaves_the_run_that_was_copied(interrupted: Any, world: Any, tmp_path: Path) -> None:
    before, copied = content(interrupted.dir), tmp_path / "copied"
    shutil.copytree(interrupted.dir, copied)
    places = replace(places_of(interrupted.config), run_dir=copied, state_dir=copied / "state")
    job.rekey(places, interrupted.keys, NEW, sorted(world.users))
    assert content(interrupted.dir) == before
    assert not (copied / JOURNAL).exists() and not list(copied.rglob("*.rekeyed"))
    assert not any(interrupted.keys.key(user) in held for held in content(copied).values() for user in world.users)


def test_it_does_not_end_without_all_of_its_files(interrupted: Any, world: Any) -> None:
    keys = interrupted.dir / "prepared" / "user_keys.npy"
    os.rename(keys, keys.with_suffix(".away"))
    os.rename(beside(keys), beside(keys).with_suffix(".away"))
    before = content(interrupted.dir)
    with pytest.raises(DataError, match=r"are gone: .*user_keys\.npy"):
        job.rekey(places_of(interrupted.config), interrupted.keys, NEW, sorted(world.users))
    assert content(interrupted.dir) == before and not list(Receipts(interrupted.receipts).fresh())


def test_files_of_such_a_name_that_are_not_its_own_stay(used: Any, world: Any, tmp_path: Path) -> None:
    elsewhere = tmp_path / "shared"
    elsewhere.mkdir()
    histories = elsewhere / "histories.parquet"
    shutil.move(used.dir / "export" / "histories.parquet", histories)
    for name in ("customers.rekeyed.csv", "notes.rekeyed"):
        (elsewhere / name).write_text("kept")
    (used.dir / "before.rekeyed").mkdir()
    beside(histories).write_text("left by one that died")
    job.rekey(replace(places_of(used.config), histories=histories), used.keys, NEW, sorted(world.users))
    assert sorted(path.name for path in elsewhere.iterdir()) == ["customers.rekeyed.csv", "histories.parquet", "notes.rekeyed"]


def test_who_is_forgotten_after_an_exchange_was_given_up_is_not_in_what_it_left(
    used: Any, world: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
        patched.setattr(job, "sweep", lambda *_: None)  # as where it is killed
        patched.setattr(job, "_note", raises)
        job.rekey(places_of(used.config), used.keys, NEW, sorted(world.users))
    assert beside(used.dir / "export" / "histories.parquet").is_file()
    with used.served() as (_, rights):
        rights.subjects.forget([used.keys.key(USER)])
    assert not any(NEW.key(USER) in held for held in content(used.dir).values()) and not list(used.dir.rglob("*.rekeyed*"))
