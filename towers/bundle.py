"""The bundle: a sealed, immutable folder that carries a model from training to serving. No pickle, no code, no raw user ids.

`publish` writes into a temporary folder, syncs it, writes the manifest last and renames: a bundle is whole or not there. `Bundle.open`
compares every file with its checksum before any deserialiser sees a byte. Checksums find damage, not tampering: whoever can write the
folder can write a manifest.
"""

import hashlib
import json
import os
import shutil
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from towers.disk import sync
from towers.errors import BundleError, DataError, TowersError
from towers.model_config import ModelConfig, model_config_from_json
from towers.pointers import MANIFEST, VERSION, point
from towers.pointers import current as current  # where readers of bundles look for it
from towers.preprocess import Preprocessor

FORMAT_VERSION = 0


@dataclass(frozen=True)
class Bundle:
    """An opened, verified bundle.

    Attributes:
        folder: where it lies.
        manifest: format, name, version, created, parent, libraries, files (bytes and sha256 of each), metrics and other facts.
    """

    folder: Path
    manifest: Mapping[str, Any]

    @classmethod
    def open(cls, folder: Path | str) -> "Bundle":
        """Verify and open.

        Raises:
            BundleError: it is missing, damaged, of another format, or names files outside itself.
        """
        folder = Path(folder)
        manifest = _read_manifest(folder)
        files = manifest["files"]
        with ThreadPoolExecutor(os.cpu_count()) as pool:  # hashing leaves the interpreter to others
            list(pool.map(lambda name: _verify(folder, name, files[name]), files))
        return cls(folder, manifest)

    @property
    def version(self) -> str:
        return str(self.manifest["version"])

    @property
    def weights_sha256(self) -> str:
        """Hex digest of the weights' file: by it, files beside the bundle are known to be of its model. Empty where it holds none."""
        return str(self.manifest["files"].get("weights.safetensors", {}).get("sha256", ""))

    def has(self, name: str) -> bool:
        """Whether an optional part is there."""
        return name in self.manifest["files"]

    def path(self, name: str) -> Path:
        """Path of a verified file.

        Raises:
            BundleError: the manifest does not list it.
        """
        if not self.has(name):
            raise BundleError(f"bundle {self.folder} has no {name}; it holds {', '.join(sorted(self.manifest['files']))}")
        return self.folder / name

    def item_vectors(self) -> NDArray[np.float32]:
        """float32 [I, D], memory-mapped, in catalogue row order."""
        with self.reading("item_vectors.arrow") as path:
            return read_vectors(path)

    def catalog(self, columns: Sequence[str] | None = None) -> pa.Table:
        """Item ids, titles, categories and declared attributes, in catalogue row order; some of these columns, or all."""
        # pq.read_table would import pandas first: a third of a second of a server's start
        with self.reading("catalog.parquet") as path, pq.ParquetFile(path, memory_map=True) as file:
            return file.read(columns)

    def popularity(self) -> NDArray[np.int64]:
        """Training interactions of each catalogue row: int64 [I]."""
        with self.reading("popularity.parquet") as path, pq.ParquetFile(path) as file:
            return np.asarray(file.read(["count"]).column("count").to_numpy(), np.int64)

    def preprocessor(self) -> Preprocessor:
        """The preprocessing that training fitted; vocabularies are memory-mapped."""
        self.path("schema.json")
        with self.reading("preprocess.json") as path:
            # It opens files by name, and what the manifest does not list was not verified.
            for name in json.loads(path.read_text())["vocabularies"]:
                self.path(f"vocab/{name}.arrow")
                self.path(f"vocab/{name}.npy")
            return Preprocessor.open(self.folder)

    def model_config(self) -> ModelConfig:
        with self.reading("model_config.json") as path:
            return model_config_from_json(json.loads(path.read_text()))

    @contextmanager
    def reading(self, name: str) -> Iterator[Path]:
        """Path of a part; inside the block, whatever a deserialiser has to say about the part becomes a BundleError.

        The checksum tells that a file is as it was written, not that it was written well; libraries raise a dozen kinds of errors.
        """
        path = self.path(name)
        try:
            yield path
        except TowersError:
            raise
        except Exception as error:
            reason = str(error).partition("\n")[0][:200] or type(error).__name__
            raise BundleError(f"bundle {self.folder}: {name} cannot be read ({reason}); export the bundle anew") from error


def publish(
    bundles_dir: Path,
    version: str,
    files: Mapping[str, Path | bytes],
    facts: Mapping[str, Any],
    parent: Bundle | None = None,
    make_current: bool = True,
) -> Path:
    """Seal a new bundle and make it the current one, or have it wait for its index where the current one has one: see `towers.pointers`.

    Args:
        bundles_dir: folder of versions.
        version: a new folder's name: letters, digits, `.`, `_`, `-`.
        files: content by name inside the bundle; paths are copied. Over a parent's files of the same names.
        facts: what the manifest says besides: name, metrics, git_commit, libraries.
        parent: bundle whose other files are carried over (hard-linked where the disk allows).
        make_current: False leaves both pointers as they are.

    Returns:
        the bundle's folder.

    Raises:
        DataError: the disk is full or not writable; nothing was published and CURRENT is as it was.
    """
    if not VERSION.fullmatch(version):
        raise DataError(f"bundle version {version!r}: expected letters, digits, '.', '_' and '-', at most 200, the first no '.'")
    target = bundles_dir / version
    if target.exists():
        raise DataError(f"bundle {target} exists already; bundles are immutable, choose another version")
    temporary = bundles_dir / f".{version}.tmp"
    shutil.rmtree(temporary, ignore_errors=True)
    try:
        temporary.mkdir(parents=True)
        _carry_over(parent, files, temporary)
        for name, content in files.items():
            _write(temporary / name, content)
        _seal(temporary, version, facts, parent)
        temporary.rename(target)
        sync(bundles_dir)
        if make_current:
            point(bundles_dir, version)
    except OSError as error:
        raise DataError(
            f"publishing {target}: {error.strerror or error}. Nothing was published; what CURRENT names is unchanged. Free some space or"
            " choose another run_dir, then run the job again"
        ) from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)  # gone already where all went well; Ctrl-C leaves nothing either
    return target


def write_vectors(path: Path, vectors_ID: NDArray[np.float32]) -> None:
    """Write float32 [I, D] as an Arrow file of one record batch, so that readers map it without a copy."""
    width = vectors_ID.shape[1]
    flat = pa.array(np.ascontiguousarray(vectors_ID, np.float32).reshape(-1), pa.float32())
    table = pa.table({"vector": pa.FixedSizeListArray.from_arrays(flat, width)})
    with pa.OSFile(str(path), "wb") as sink, pa.ipc.new_file(sink, table.schema) as writer:
        writer.write_table(table, max_chunksize=max(1, len(table)))


def read_vectors(path: Path) -> NDArray[np.float32]:
    """float32 [I, D], memory-mapped and read-only."""
    column = pa.ipc.open_file(pa.memory_map(str(path))).read_all().column("vector")
    width = column.type.list_size
    flat = column.chunk(0).flatten() if column.num_chunks else pa.array([], pa.float32())
    return np.asarray(flat.to_numpy(zero_copy_only=True), np.float32).reshape(-1, width)


def sha256(path: Path) -> str:
    """Hex digest of a file."""
    with path.open("rb") as source:
        return hashlib.file_digest(source, "sha256").hexdigest()


def _read_manifest(folder: Path) -> dict[str, Any]:
    try:
        manifest = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
        found, version, files = manifest["format_version"], manifest["version"], dict(manifest["files"])
        complete = all(isinstance(facts["bytes"], int) and isinstance(facts["sha256"], str) for facts in files.values())
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise BundleError(
            f"{folder} is not a bundle, or its {MANIFEST} is damaged ({error!r}); expected a folder that `towers export` or"
            " `towers index` made"
        ) from error
    if found != FORMAT_VERSION:
        raise BundleError(f"bundle {folder} has format {found!r}, this version of Towers reads {FORMAT_VERSION}; export it again")
    if not isinstance(version, str) or not VERSION.fullmatch(version):
        raise BundleError(f"bundle {folder}: {MANIFEST} has version {str(version)[:100]!r}; expected a folder's name")
    if not complete or any(".." in Path(name).parts or Path(name).is_absolute() for name in files):
        raise BundleError(f"bundle {folder}: {MANIFEST} lists files without checksums or outside the bundle")
    return dict(manifest)


def _verify(folder: Path, name: str, facts: Mapping[str, Any]) -> None:
    path = folder / name
    try:
        if not path.is_file():
            raise BundleError(f"bundle {folder}: {name} is missing; copy the bundle again or export it anew")
        size = path.stat().st_size
        if size != facts["bytes"]:
            raise BundleError(f"bundle {folder}: {name} has {size} bytes, the manifest says {facts['bytes']}; it is truncated or changed")
        if sha256(path) != facts["sha256"]:
            raise BundleError(f"bundle {folder}: {name} differs from its checksum; it was changed or damaged. Export the bundle anew")
    except OSError as error:
        raise BundleError(f"bundle {folder}: {name[:100]} cannot be read ({error.strerror or error})") from error


def _carry_over(parent: Bundle | None, files: Mapping[str, Path | bytes], folder: Path) -> None:
    for name in parent.manifest["files"] if parent else ():
        if parent is None or name in files:
            continue
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        try:
            os.link(parent.path(name), folder / name)
        except OSError:
            _write(folder / name, parent.path(name))


def _seal(folder: Path, version: str, facts: Mapping[str, Any], parent: Bundle | None) -> None:
    members = sorted(path for path in folder.rglob("*") if path.is_file())
    manifest = {
        "format_version": FORMAT_VERSION,
        "version": version,
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
        "parent": parent.version if parent else None,
        **facts,
        "files": {p.relative_to(folder).as_posix(): {"bytes": p.stat().st_size, "sha256": sha256(p)} for p in members},
    }
    _write(folder / MANIFEST, (json.dumps(manifest, indent=2) + "\n").encode())
    for inner in {path.parent for path in members} | {folder}:
        sync(inner)


def _write(path: Path, content: Path | bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("wb") as sink:
        if isinstance(content, bytes):
            sink.write(content)
        else:
            with content.open("rb") as source:
                shutil.copyfileobj(source, sink, 1 << 20)
        sink.flush()
        os.fsync(sink.fileno())
