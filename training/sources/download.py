"""Fetching a dataset from its publisher: progress bar, sha256, and either the whole folder or nothing."""

import hashlib
import http.client
import os
import shutil
import tempfile
import urllib.error
import urllib.request
import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from tqdm import tqdm

from towers.errors import DataError

_BLOCK: Final = 1 << 18
_TIMEOUT_S: Final = 30


@dataclass(frozen=True)
class Archive:
    """A published zip file with one folder in it.

    Attributes:
        folder: the folder inside, and the dataset's name under $TOWERS_DATA_DIR and in the cache.
        url: where the publisher offers it.
        sha256: of the zip file.
        holds: files that the loader needs from the folder.
    """

    folder: str
    url: str
    sha256: str
    holds: tuple[str, ...]


def cache_dir() -> Path:
    """Where downloads are kept: $XDG_CACHE_HOME/towers or ~/.cache/towers."""
    return Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "towers"


def fetch(archive: Archive, cache: Path) -> Path:
    """The dataset's folder under `cache`, downloaded first where it is not there.

    The zip is checked before anything of it is read, unpacked beside its place and renamed into it, so an interrupted fetch leaves
    nothing behind.

    Raises:
        DataError: no connection, a wrong digest, or no space; says what to do by hand.
    """
    target = cache / archive.folder
    if target.is_dir():
        return target
    try:
        cache.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=cache, prefix=f".{archive.folder}-") as work:
            packed = Path(work) / "download.zip"
            _download(archive, packed)
            unpacked = _unpack(archive, packed, Path(work))
            try:
                os.rename(unpacked, target)
            except OSError:
                if not target.is_dir():  # else another process was faster, and its folder is as good
                    raise
    except urllib.error.HTTPError as error:
        error.close()  # it holds the connection
        raise DataError(f"{archive.url}: cannot download (HTTP {error.code} {error.reason}). {by_hand(archive)}") from error
    except (urllib.error.URLError, http.client.HTTPException, TimeoutError, ConnectionError) as error:
        raise DataError(f"{archive.url}: cannot download ({error}). {by_hand(archive)}") from error
    except OSError as error:
        raise DataError(f"{cache}: cannot keep the download ({error}). Free the space or set XDG_CACHE_HOME. {by_hand(archive)}") from error
    return target


def by_hand(archive: Archive) -> str:
    """What to do where the download does not work."""
    return (
        f"Without a connection: fetch {archive.url} on another machine, unpack it, and either set data.path to the folder"
        f" {archive.folder}/ or put the folder into $TOWERS_DATA_DIR ({os.environ.get('TOWERS_DATA_DIR') or 'not set'})"
    )


def _download(archive: Archive, packed: Path) -> None:
    digest = hashlib.sha256()
    request = urllib.request.Request(archive.url, headers={"User-Agent": "towers"})
    with urllib.request.urlopen(request, timeout=_TIMEOUT_S) as reply, packed.open("wb") as out:
        size = int(reply.headers.get("Content-Length") or 0)
        with tqdm(total=size or None, unit="B", unit_scale=True, desc=archive.folder) as bar:
            while block := reply.read(_BLOCK):
                digest.update(block)
                out.write(block)
                bar.update(len(block))
    got = packed.stat().st_size
    if size and got != size:
        raise DataError(f"{archive.url}: the connection ended after {got:,} of {size:,} bytes. Run it again. {by_hand(archive)}")
    if digest.hexdigest() != archive.sha256:
        raise DataError(
            f"{archive.url}: sha256 is {digest.hexdigest()}, expected {archive.sha256}. The file is damaged or was replaced, and nothing"
            f" of it was used; try again, or check the publisher's page. {by_hand(archive)}"
        )


def _unpack(archive: Archive, packed: Path, work: Path) -> Path:
    """Take the needed files, and the publisher's README with its licence, out of the zip: no other path is ever written."""
    folder = work / archive.folder
    folder.mkdir()
    with zipfile.ZipFile(packed) as zipped:
        inside = set(zipped.namelist())
        for name in (*archive.holds, "README"):
            member = f"{archive.folder}/{name}"
            if member in inside:
                with zipped.open(member) as source, (folder / name).open("wb") as out:
                    shutil.copyfileobj(source, out)
            elif name in archive.holds:
                raise DataError(f"{archive.url}: the archive has no {member}. {by_hand(archive)}")
    return folder
