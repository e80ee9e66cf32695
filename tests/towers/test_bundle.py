"""Bundles: whole or absent, verified before use, immutable, carried over to children."""

import errno
import json
import os
from pathlib import Path

import numpy as np
import pytest

from towers import bundle
from towers.bundle import Bundle, current, publish, read_vectors, write_vectors
from towers.errors import BundleError, DataError
from towers.preprocess import Preprocessor
from towers.schema import make_schema
from towers.vocab import Vocabulary


def make(folder: Path, version: str = "v1") -> Path:
    return publish(folder, version, {"a.txt": b"alpha", "sub/b.bin": bytes(1000)}, {"name": "toy"})


def test_published_bundle_opens_and_is_current(tmp_path: Path) -> None:
    made = make(tmp_path)
    assert current(tmp_path) == made
    opened = Bundle.open(made)
    assert opened.version == "v1" and opened.manifest["name"] == "toy"
    assert opened.path("sub/b.bin").read_bytes() == bytes(1000)
    assert not opened.has("index.faiss")
    with pytest.raises(BundleError, match=r"no index.faiss; it holds a.txt"):
        opened.path("index.faiss")


def test_child_carries_the_parents_files(tmp_path: Path) -> None:
    parent = Bundle.open(make(tmp_path))
    child = Bundle.open(publish(tmp_path, "v2", {"a.txt": b"changed"}, {"name": "toy"}, parent))
    assert child.manifest["parent"] == "v1"
    assert child.path("a.txt").read_bytes() == b"changed" and child.has("sub/b.bin")
    assert Bundle.open(tmp_path / "v1").path("a.txt").read_bytes() == b"alpha"
    assert current(tmp_path).name == "v2"


@pytest.mark.parametrize("damage", ["truncated", "edited", "swapped", "missing"])
def test_damaged_files_are_refused_by_name(tmp_path: Path, damage: str) -> None:
    file = make(tmp_path) / "sub" / "b.bin"
    if damage == "truncated":
        file.write_bytes(bytes(999))
    elif damage == "edited":
        file.write_bytes(bytes(500) + b"x" + bytes(499))
    elif damage == "swapped":
        (file.parent.parent / "a.txt").replace(file)
    else:
        file.unlink()
    with pytest.raises(BundleError, match=r"sub/b.bin|a.txt"):
        Bundle.open(tmp_path / "v1")


@pytest.mark.parametrize(
    "manifest",
    [
        "",
        "[]",
        "{}",
        '{"format_version": 99, "files": {}}',
        "[" * 100_000,
        '{"format_version": 0, "files": {}}',
        '{"format_version": 0, "version": ["v1"], "files": {}}',
        '{"format_version": 0, "version": "../v1", "files": {}}',
        '{"format_version": 0, "version": "v1", "files": {"a.txt": 5}}',
        '{"format_version": 0, "version": "v1", "files": {"a.txt": ["bytes", "sha256"]}}',
        '{"format_version": 0, "version": "v1", "files": {"../../etc/passwd": {"bytes": 1, "sha256": "x"}}}',
        '{"format_version": 0, "version": "v1", "files": {"%s": {"bytes": 1, "sha256": "x"}}}' % ("a" * 5000),
        '{"format_version": 0, "version": "v1", "files": {"a\\u0000b": {"bytes": 1, "sha256": "x"}}}',
    ],
    ids=lambda text: text[-60:],
)
def test_hostile_manifests_are_refused(tmp_path: Path, manifest: str) -> None:
    (make(tmp_path) / "manifest.json").write_text(manifest)
    with pytest.raises(BundleError):
        Bundle.open(tmp_path / "v1")


def test_full_disk_publishes_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make(tmp_path)

    def full(handle: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(bundle.os, "fsync", full)
    with pytest.raises(DataError, match="No space left on device. Nothing was published"):
        make(tmp_path, "v2")
    assert current(tmp_path).name == "v1"
    assert not [p for p in tmp_path.iterdir() if "v2" in p.name]


def test_an_interrupted_publish_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(handle: int) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(bundle.os, "fsync", interrupted)
    with pytest.raises(KeyboardInterrupt):
        make(tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_what_a_library_says_about_a_part_is_said_of_the_bundle(tmp_path: Path) -> None:
    """Checksums fit, content does not: a bundle that was made wrong, not one that was damaged."""
    parts = {name: b"garbage" for name in ("item_vectors.arrow", "catalog.parquet", "popularity.parquet", "model_config.json")}
    parts |= {"preprocess.json": b"[" * 100_000, "schema.json": b"{}"}
    opened = Bundle.open(publish(tmp_path, "v1", parts, {}))
    for read in (opened.item_vectors, opened.catalog, opened.popularity, opened.model_config, opened.preprocessor):
        with pytest.raises(BundleError, match=r"v1: [a-z_.]+ cannot be read \(.+\); export the bundle anew"):
            read()


def test_no_file_is_read_that_the_manifest_does_not_list(tmp_path: Path) -> None:
    """What is not listed was not verified."""
    Preprocessor(make_schema([], "time", {}), {name: Vocabulary.fit(["a"]) for name in ("item_id", "event_type")}, {}).save(tmp_path / "p")
    files = {path.relative_to(tmp_path / "p").as_posix(): path for path in (tmp_path / "p").rglob("*") if path.is_file()}
    made = publish(tmp_path / "b", "v1", files, {})
    assert set(Bundle.open(made).preprocessor().vocabularies) == {"item_id", "event_type"}
    manifest = json.loads((made / "manifest.json").read_text())
    for name in files:
        fewer = {**manifest, "files": {other: facts for other, facts in manifest["files"].items() if other != name}}
        (made / "manifest.json").write_text(json.dumps(fewer))
        with pytest.raises(BundleError, match=f"has no {name}"):
            Bundle.open(made).preprocessor()


def test_versions_are_immutable_and_well_named(tmp_path: Path) -> None:
    make(tmp_path)
    with pytest.raises(DataError, match="immutable"):
        make(tmp_path)
    with pytest.raises(DataError, match="expected letters"):
        make(tmp_path, "../evil")


def test_pointer_to_nothing_says_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(BundleError, match="towers export"):
        current(tmp_path)
    for wrong in (b"../..\n", b"..", b"v1", b"", b"\xff\xfe", b"v1\0"):
        (tmp_path / "CURRENT").write_bytes(wrong)
        with pytest.raises(BundleError, match="not a bundle there"):
            current(tmp_path)


def test_vectors_are_mapped_as_written(tmp_path: Path) -> None:
    vectors = np.random.default_rng(0).normal(size=(7, 5)).astype(np.float32)
    write_vectors(tmp_path / "v.arrow", vectors)
    np.testing.assert_array_equal(read_vectors(tmp_path / "v.arrow"), vectors)


def test_manifest_lists_every_file_with_its_digest(tmp_path: Path) -> None:
    made = make(tmp_path)
    manifest = json.loads((made / "manifest.json").read_text())
    assert set(manifest["files"]) == {"a.txt", "sub/b.bin"}
    assert manifest["files"]["a.txt"] == {"bytes": 5, "sha256": bundle.sha256(made / "a.txt")}
