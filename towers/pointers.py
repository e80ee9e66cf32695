"""Pointer files beside bundles: which version is in use, and which was exported and waits for its index.

An exported bundle is searched by scanning all of its items. Beside a current one that has an index it would answer far more slowly, or not
be served at all where no index of it reaches the recall floor: it waits until `towers index` has made its own, and the other one stays
current.
"""

import json
import os
import re
from pathlib import Path

from towers.disk import sync
from towers.errors import BundleError

MANIFEST = "manifest.json"
CURRENT = "CURRENT"
WAITING = "WAITING"
INDEX_FILE = "index.json"
"""The part that says what a bundle's index is; without it there is none."""

VERSION = re.compile(r"[A-Za-z0-9_-][A-Za-z0-9._-]{0,199}")


def current(bundles_dir: Path) -> Path:
    """Folder of the current bundle.

    Raises:
        BundleError: none was published, or the pointer names none.
    """
    path = bundles_dir / CURRENT
    version = _read(path)
    if version is None:
        raise BundleError(
            f"{path} cannot be read, so no bundle there is in use: run `towers export` (then `towers index`) with the same run_dir first,"
            " or write the name of a bundle that lies there into it"
        )
    if not _is_bundle(bundles_dir, version):
        raise BundleError(f"{path} names {version[:100]!r}, which is not a bundle there; write the name of one that is")
    return bundles_dir / version


def waiting(bundles_dir: Path) -> Path | None:
    """Folder of the bundle that waits for its index; None = none does."""
    version = _read(bundles_dir / WAITING)
    return bundles_dir / version if version is not None and _is_bundle(bundles_dir, version) else None


def point(bundles_dir: Path, version: str) -> None:
    """Make a new bundle the current one, or have it wait where that would take an index away."""
    if _has_index(bundles_dir / version):
        point_current(bundles_dir, version)
        return
    try:
        waits = _has_index(current(bundles_dir))
    except BundleError:
        waits = False
    if waits:
        _write(bundles_dir / WAITING, version)
    else:
        point_current(bundles_dir, version)
        (bundles_dir / WAITING).unlink(missing_ok=True)  # an older one's turn is over


def point_current(bundles_dir: Path, version: str) -> None:
    """Make `version` the current one, atomically."""
    _write(bundles_dir / CURRENT, version)


def waits_no_more(bundles_dir: Path, version: str) -> None:
    """A bundle has its index; another that was exported meanwhile goes on waiting."""
    if _read(bundles_dir / WAITING) == version:
        (bundles_dir / WAITING).unlink()


def _read(path: Path) -> str | None:
    try:
        return path.read_bytes().strip().decode(errors="replace")
    except OSError:
        return None


def _write(path: Path, version: str) -> None:
    temporary = path.with_name(f".{path.name}.tmp")
    with temporary.open("wb") as sink:
        sink.write(version.encode() + b"\n")
        sink.flush()
        os.fsync(sink.fileno())
    temporary.rename(path)
    sync(path.parent)


def _is_bundle(bundles_dir: Path, version: str) -> bool:
    return VERSION.fullmatch(version) is not None and (bundles_dir / version).is_dir()


def _has_index(folder: Path) -> bool:
    try:
        return INDEX_FILE in json.loads((folder / MANIFEST).read_text(encoding="utf-8"))["files"]
    except (OSError, ValueError, KeyError, TypeError, RecursionError):  # no bundle to go on with
        return False
