"""Which bundle is in use: an export never takes an index away, and never waits where there is none to keep."""

import os
from pathlib import Path

import pytest

from towers.bundle import current, publish
from towers.errors import BundleError
from towers.pointers import point_current, waiting, waits_no_more


def export(folder: Path, version: str) -> None:
    publish(folder, version, {"a.txt": b"alpha"}, {})


def index(folder: Path, version: str) -> None:
    publish(folder, version, {"a.txt": b"alpha", "index.json": b"{}"}, {})


def names(folder: Path) -> tuple[str, str | None]:
    waits = waiting(folder)
    return current(folder).name, None if waits is None else waits.name


def test_an_export_waits_beside_an_index_and_nowhere_else(tmp_path: Path) -> None:
    export(tmp_path, "v1")
    assert names(tmp_path) == ("v1", None)
    export(tmp_path, "v2")
    assert names(tmp_path) == ("v2", None), "there was no index to keep"
    index(tmp_path, "v2-i1")
    export(tmp_path, "v3")
    export(tmp_path, "v4")
    assert names(tmp_path) == ("v2-i1", "v4"), "the newest one waits"
    index(tmp_path, "v3-i1")
    waits_no_more(tmp_path, "v3")
    assert names(tmp_path) == ("v3-i1", "v4"), "another one's index ends no wait"
    waits_no_more(tmp_path, "v4")
    assert names(tmp_path) == ("v3-i1", None)


@pytest.mark.parametrize("lost", ["pointer", "bundle", "manifest"])
def test_an_export_is_in_use_where_what_was_is_lost(tmp_path: Path, lost: str) -> None:
    index(tmp_path, "v1")
    export(tmp_path, "v2")
    path = {"pointer": tmp_path / "CURRENT", "bundle": tmp_path / "v1", "manifest": tmp_path / "v1" / "manifest.json"}[lost]
    os.rename(path, tmp_path / "elsewhere")
    export(tmp_path, "v3")
    assert names(tmp_path) == ("v3", None), "and the one before waits no longer"


def test_one_that_waits_and_is_gone_is_none(tmp_path: Path) -> None:
    index(tmp_path, "v1")
    for named in ("v2", "../v1", ""):
        (tmp_path / "WAITING").write_text(named)
        assert names(tmp_path) == ("v1", None)


def test_without_a_pointer_the_message_names_it_and_the_command(tmp_path: Path) -> None:
    index(tmp_path, "v1")
    (tmp_path / "CURRENT").unlink()
    with pytest.raises(BundleError, match=rf"{tmp_path / 'CURRENT'} cannot be read.*towers export"):
        current(tmp_path)
    point_current(tmp_path, "v1")
    assert names(tmp_path) == ("v1", None)
