"""Parquet and CSV files, or folders of them, read by row group or block: a log larger than memory streams through."""

import csv
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final
from urllib.parse import unquote

import pyarrow as pa
import pyarrow.csv as pacsv
import pyarrow.parquet as pq

from towers.errors import DataError
from training.sources.malformed_lines import MalformedLines

_PARQUET: Final = (".parquet", ".pq")
_TEXT: Final = (".csv", ".tsv", ".txt", ".inter", ".item", ".user")
_PACKED: Final = (".gz", ".zst", ".bz2")
_SEPARATORS: Final = ",\t;|"
_BLOCK: Final = 16 << 20  # a row must fit into a block
_TOLD: Final = 8
_HIVE_NULL: Final = "__HIVE_DEFAULT_PARTITION__"


@dataclass(frozen=True)
class TableFiles:
    """Shards of one table, in name order, all with the columns of the first.

    Attributes:
        name: what the table is for, in messages (`interactions`).
        root: the folder that was named, or that of the file.
        paths: the shards.
        columns: of the first shard, in file order, then those that its folders tell (`day=2026-11-01`) and it does not hold itself.
    """

    name: str
    root: Path
    paths: tuple[Path, ...]
    columns: tuple[str, ...]

    def told(self) -> str:
        """The shards, or the first of many, by their place under the root."""
        first = ", ".join(str(path.relative_to(self.root)) for path in self.paths[:_TOLD])
        return first + (f" and {len(self.paths) - _TOLD:,} more" if len(self.paths) > _TOLD else "")

    def read(self, columns: Sequence[str], chunk_rows: int) -> Iterator[pa.Table]:
        """Chunks of at most `chunk_rows` rows with just these columns; CSV columns are text.

        A malformed CSV line is a row of nulls in its place, and `_malformed_line` says what is wrong with it.

        Raises:
            DataError: a shard lacks a column or cannot be read.
        """
        for path in self.paths:
            inside = header(path)
            folders = {name: value for name, value in _folder_values(self.root, path).items() if name not in inside}
            found = [*inside, *folders]
            missing = [name for name in columns if name not in found]
            if missing:
                raise DataError(
                    f"{path}: no column {missing[0]!r}, which {self.paths[0].name} has; found are {', '.join(found)}."
                    f" All shards of {self.name} need the same columns"
                )
            read = _read_parquet if _is_parquet(path) else _read_csv
            try:
                # a file without a column to read would tell no rows
                for table in read(path, [name for name in columns if name in inside] or inside[:1], chunk_rows):
                    for name in folders.keys() & set(columns):
                        table = table.append_column(name, pa.repeat(pa.scalar(folders[name], pa.string()), len(table)))
                    yield table
            except (pa.ArrowInvalid, OSError) as error:
                if "straddling" in str(error):
                    raise DataError(
                        f"{path}: a line is longer than {_BLOCK >> 20} MiB. Is a quote left open, or the separator wrong?"
                    ) from error
                raise DataError(f"{path}: cannot be read ({error}). Write it again, as UTF-8 if it is CSV") from error


def open_files(name: str, place: Path, setting: str) -> TableFiles:
    """Find the shards of a table and read the first header.

    Args:
        name: `interactions`, `items`, `users` or `audit`.
        place: a file, or a folder of files of one kind, which may lie in folders named `column=value`.
        setting: the config key that named it.

    Raises:
        DataError: nothing there, unknown kind, or no header.
    """
    if place.is_dir():
        paths = tuple(_shards(place))
        if len({_is_parquet(p) for p in paths}) > 1:
            raise DataError(f"{setting}: {place} holds both Parquet and CSV; name one file or a folder of one kind")
    else:
        paths = (place,) if place.is_file() else ()
        if paths and not _known(place):
            raise DataError(f"{setting}: {place.name!r} is of an unknown kind; expected {', '.join(_PARQUET + _TEXT)}, or those packed")
    if not paths:
        here = place if place.is_dir() else place.parent
        have = ", ".join(sorted(p.name for p in here.iterdir())[:12]) if here.is_dir() else "no such folder"
        raise DataError(
            f"{setting}: no Parquet or CSV file at {place} ({have or 'empty folder'}). Check data.path and {setting}; folders inside are"
            " read where they are named column=value"
        )
    root = place if place.is_dir() else place.parent
    inside = header(paths[0])
    return TableFiles(name, root, paths, (*inside, *(n for n in _folder_values(root, paths[0]) if n not in inside)))


def _shards(folder: Path) -> Iterator[Path]:
    """Files in name order, those of folders named `column=value` among them."""
    for path in sorted(folder.iterdir()):
        if path.name.startswith((".", "_")):
            continue
        if path.is_dir() and "=" in path.name:
            yield from _shards(path)
        elif _known(path):
            yield path


def _folder_values(root: Path, path: Path) -> dict[str, str | None]:
    """What the folders between the root and a shard tell of all its rows, as Hive and Spark write it."""
    parts = (part.partition("=") for part in path.relative_to(root).parts[:-1])
    return {unquote(name): None if value == _HIVE_NULL else unquote(value) for name, _, value in parts}


def header(path: Path) -> list[str]:
    """Column names of a file.

    Raises:
        DataError: it is empty, damaged, or names a column twice.
    """
    try:
        names = pq.read_schema(path).names if _is_parquet(path) else _first_fields(path)
    except (pa.ArrowInvalid, OSError, UnicodeDecodeError) as error:
        raise DataError(f"{path}: cannot read its header ({error}). Is it {'Parquet' if _is_parquet(path) else 'UTF-8 text'}?") from error
    if not names:
        raise DataError(f"{path}: empty; expected a header line with column names")
    twice = [name for name in names if names.count(name) > 1]
    if twice:
        raise DataError(f"{path}: column {twice[0]!r} is there {names.count(twice[0])} times. Rename one")
    return list(names)


def _read_parquet(path: Path, columns: list[str], chunk_rows: int) -> Iterator[pa.Table]:
    # pre_buffer would keep what was read of the file until it is closed
    with pq.ParquetFile(path, pre_buffer=False) as file:
        for batch in file.iter_batches(batch_size=chunk_rows, columns=columns):
            yield pa.Table.from_batches([batch])


def _read_csv(path: Path, columns: list[str], chunk_rows: int) -> Iterator[pa.Table]:
    separator = _separator(path)
    quoted = separator != "\t"  # tab-separated files write quotes as plain characters
    malformed = MalformedLines(path, quoted)
    held: list[pa.Table] = []
    rows = 0
    with _open_csv(path, columns, separator, quoted, malformed.skip) as reader:
        for batch in reader:
            held.append(malformed.between(pa.Table.from_batches([batch])))
            rows += len(held[-1])
            while rows >= chunk_rows:
                table = pa.concat_tables(held)
                yield table.slice(0, chunk_rows)
                held = [table.slice(chunk_rows)]
                rows -= chunk_rows
        last = pa.concat_tables([*held, malformed.after(reader.schema)])
    if len(last):
        yield last


def _open_csv(
    path: Path, columns: list[str], separator: str, quoted: bool, skip: Callable[[pacsv.InvalidRow], str]
) -> pacsv.CSVStreamingReader:
    """Everything is read as text: types are ours to choose, so that "007" stays an id. Only an empty field is null."""
    return pacsv.open_csv(
        pa.input_stream(path, compression="detect"),
        read_options=pacsv.ReadOptions(block_size=_BLOCK, use_threads=False),  # with threads, skipped rows have no number
        parse_options=pacsv.ParseOptions(
            delimiter=separator, quote_char='"' if quoted else False, newlines_in_values=quoted, invalid_row_handler=skip
        ),
        convert_options=pacsv.ConvertOptions(
            include_columns=columns, column_types=dict.fromkeys(columns, pa.string()), null_values=[""], strings_can_be_null=True
        ),
    )


def _first_line(path: Path) -> str:
    with pa.input_stream(path, compression="detect") as file:
        start: bytes = file.read(1 << 20)
    return start.split(b"\n", 1)[0].decode("utf-8-sig").rstrip("\r")


def _separator(path: Path) -> str:
    line = _first_line(path)
    return max(_SEPARATORS, key=line.count)


def _first_fields(path: Path) -> list[str]:
    line, separator = _first_line(path), _separator(path)
    return next(csv.reader([line], delimiter=separator)) if line.strip() else []


def _known(path: Path) -> bool:
    suffixes = [s.lower() for s in path.suffixes if s.lower() not in _PACKED]
    return path.is_file() and bool(suffixes) and suffixes[-1] in _PARQUET + _TEXT


def _is_parquet(path: Path) -> bool:
    return path.suffix.lower() in _PARQUET
