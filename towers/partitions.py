"""Append-only logs as Parquet, a folder an hour: `date=2026-11-25/hour=13/part-<writer>-<last>.parquet`.

`<writer>` names the store that the rows come from, `<last>` the number of the last of its rows in the file. A process that dies between
writing a file and taking its rows out of the store finds out from the names what it has written, so no row is there twice.
"""

import contextlib
import fcntl
import os
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from towers.disk import sync
from towers.errors import listed

HOUR_US = 3_600_000_000
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_TEMPORARY = ".tmp"


def hour_folder(root: Path, moment: int) -> Path:
    """The folder of the hour of a moment (microseconds UTC).

    >>> hour_folder(Path("log"), 1_795_612_345_000_000).as_posix()
    'log/date=2026-11-25/hour=13'
    """
    when = _EPOCH + timedelta(microseconds=moment)
    return root / f"date={when:%Y-%m-%d}" / f"hour={when:%H}"


def write_part(folder: Path, writer: str, last: int, table: pa.Table) -> Path:
    """Write a file, whole or not at all and on the disk when this returns; readable by this user alone.

    Args:
        folder: of an hour.
        writer: letters and digits.
        last: number of the last row, at least 1.
    """
    folder.mkdir(parents=True, exist_ok=True)
    target = folder / f"part-{writer}-{last:015d}.parquet"
    replace_part(target, table)
    for entry in (folder, folder.parent, folder.parent.parent):  # new folders are entries of those above
        sync(entry)
    return target


def replace_part(target: Path, table: pa.Table) -> None:
    """Write a file or write it anew, as `write_part` does."""
    temporary = target.with_name(f".{target.name}{_TEMPORARY}")
    try:
        with open(os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "wb") as sink:
            pq.write_table(table, sink, compression="zstd", write_page_checksum=True)
            sink.flush()
            os.fsync(sink.fileno())
        os.replace(temporary, target)
    finally:
        temporary.unlink(missing_ok=True)  # only there where the disk was full


def last_written(root: Path, writer: str) -> int:
    """Number of the last row of a writer in the files below a folder (the log's or an hour's); 0 where there is none."""
    names = (path.stem.rpartition("-") for path in root.glob(f"**/part-{writer}-*.parquet"))
    return max((int(number) for _, _, number in names), default=0)


def parts(root: Path, since: int | None = None, until: int | None = None) -> list[Path]:
    """The files of a log, hour by hour.

    Args:
        since, until: of the hours, microseconds UTC; the hour of `until` is left out where it begins there.
    """
    found = []
    for folder in sorted(root.glob("date=*/hour=*")):
        began = _began(folder)
        if began is not None and (since is None or began + HOUR_US > since) and (until is None or began < until):
            found += sorted(folder.glob("part-*.parquet"))
    return found


def purge(root: Path, before: int) -> int:
    """Delete the files of hours that ended before a moment (microseconds UTC), and folders left empty; how many files."""
    gone = parts(root, None, before - HOUR_US + 1)
    for path in gone:
        remove_part(path)
    return len(gone)


def remove_part(path: Path) -> None:
    """Delete a file, and folders left empty."""
    path.unlink(missing_ok=True)
    for folder in (path.parent, path.parent.parent):
        with contextlib.suppress(OSError):  # not empty yet
            folder.rmdir()


def remove_left(root: Path) -> None:
    """Delete what a process that was killed left beside its files, and folders left empty; none may be writing."""
    for path in root.glob(f"date=*/hour=*/.part-*{_TEMPORARY}"):
        remove_part(path)


@contextlib.contextmanager
def only_one(root: Path, wait: bool) -> Iterator[bool]:
    """Whether this process is the one that may add files or change them, until the block ends (or the process does).

    Args:
        wait: until it is; else False where another is at it.
    """
    root.mkdir(parents=True, exist_ok=True)
    with open(root / ".lock", "w") as handle:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
        except BlockingIOError:
            yield False
            return
        yield True


class Reading:
    """The tables of a log, file by file. A file that cannot be read is skipped, and a job that skips some says so (`told`).

    Args:
        root: the log's folder; one that is not there is empty.
        schema: what the tables are to look like. A nullable column that a file lacks (older ones may) is null throughout.
        since, until: see `parts`.
        columns: those wanted; all by default.

    Attributes:
        read: files read so far.
        skipped: what was wrong with each file that was skipped, by its path.
    """

    def __init__(
        self, root: Path, schema: pa.Schema, since: int | None = None, until: int | None = None, columns: Sequence[str] | None = None
    ) -> None:
        self._root, self._paths = root, parts(root, since, until)
        self._schema = schema if columns is None else pa.schema([schema.field(name) for name in columns])
        self.read = 0
        self.skipped: dict[str, str] = {}

    def __iter__(self) -> Iterator[pa.Table]:
        for path in self._paths:
            try:
                table = self._table(path)
            except FileNotFoundError:
                continue  # its time was over while others were read
            except (OSError, pa.ArrowException) as error:
                self.skipped[str(path)] = str(error).partition("\n")[0]
                continue
            self.read += 1
            yield table

    def told(self) -> str:
        """What was skipped so far, in words; empty where nothing was."""
        files = f"{len(self.skipped):,} of {len(self.skipped) + self.read:,} files of {self._root}"
        reasons = listed(f"{path}: {why}" for path, why in self.skipped.items())
        return f"{files} cannot be read and are left out:{reasons}" if self.skipped else ""

    def _table(self, path: Path) -> pa.Table:
        with pq.ParquetFile(path, page_checksum_verification=True) as file:
            there = set(file.schema_arrow.names)
            table = file.read([field.name for field in self._schema if field.name in there])
        columns = []
        for field in self._schema:
            if field.name not in there and not field.nullable:
                raise pa.ArrowInvalid(f"no column {field.name!r}")
            columns.append(table.column(field.name).cast(field.type) if field.name in there else pa.nulls(len(table), field.type))
        return pa.table(columns, schema=self._schema)


def _began(folder: Path) -> int | None:
    """Microseconds UTC at which the hour of a folder begins; None for a folder of another kind."""
    try:
        when = datetime.strptime(f"{folder.parent.name} {folder.name} +0000", "date=%Y-%m-%d hour=%H %z")
    except ValueError:
        return None
    return (when - _EPOCH) // timedelta(microseconds=1)
