"""Tables and databases of people under other user keys: each is written beside its place, and nothing is changed yet.

A file in the order of user keys (histories, shards of vectors and lists) is in the order of the new ones; a log keeps its own.
"""

import os
import sqlite3
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from serving.cutting import secret_of
from serving.database import Database
from serving.rekey_map import Found, KeyMap
from serving.user_state import EVENTS, ITEMS, TIMES
from towers.columns import USER_KEY
from towers.errors import ConfigError, DataError
from towers.identity import KEY_BYTES, SECRET_FINGERPRINT
from towers.live_consent import MARK
from towers.rekeying import JOURNAL
from towers.shards import FINGERPRINT as SHARDS
from towers.shards import writing

BESIDE = ".rekeyed"
"""Ends the name of a file that is to take the place of another."""
_BATCH_ROWS = 20_000


class Rewritten(NamedTuple):
    """A file that now has another beside it.

    Attributes:
        path: the file.
        rows: with a user in them.
        unnamed: of these, rows of users whom nobody named: they are not in the other.
    """

    path: Path
    rows: int
    unnamed: int


def beside(path: Path) -> Path:
    """Where the file that is to take another's place is written."""
    return path.with_name(path.name + BESIDE)


def sweep(run_dir: Path, state_dir: Path, histories: Path | None) -> None:
    """Remove what an exchange left that died before it was decided: files beside those whose place they were to take, and nobody else's.
    Nothing where it was decided. None may be at work."""
    if (run_dir / JOURNAL).is_file():
        return
    for root in {run_dir, state_dir, *([histories.parent] if histories else [])}:
        for path in (*root.rglob(f"*{BESIDE}"), *root.rglob(f"*{BESIDE}-journal")):
            if path.with_name(path.name[: path.name.rindex(BESIDE)]).is_file():
                path.unlink()


def rekey_tables(paths: Sequence[Path], to: KeyMap) -> Iterator[Rewritten]:
    """Write tables under new keys beside those under old ones; those under new ones already are passed over.

    Raises:
        DataError: one cannot be read or written.
        ConfigError: one is keyed with a third secret.
    """
    old, new = to.old.fingerprint(), to.new.fingerprint()
    together: dict[Path, list[Path]] = {}
    for path in paths:
        secret = secret_of(path)
        if secret not in (None, old, new):
            raise ConfigError(f"{path}: its users are keyed with neither of the two secrets; subject.old_key names another than theirs")
        if secret != new:
            shards = (path.parent / SHARDS).is_file()
            together.setdefault(path.parent if shards else path, []).append(path)
    for group in together.values():
        try:
            names = set(pq.read_schema(group[0]).names)
            if USER_KEY not in names and MARK not in names:
                continue  # raw ids alone
            in_order = len(group) > 1 or (group[0].parent / SHARDS).is_file() or {ITEMS, EVENTS, TIMES} <= names
            yield from _sorted(group, to) if in_order else [_as_it_lies(group[0], to)]
        except (OSError, pa.ArrowException) as error:
            raise DataError(f"{group[0]}: cannot be written under other keys ({error}); put it back as it was, or delete it") from error


def rekey_database(path: Path, to: KeyMap) -> Rewritten | None:
    """The same for a SQLite file; None where it has no users, or is under the new secret already.

    Raises:
        DataError, ConfigError: see `rekey_tables`.
    """
    source = Database(path, ())
    try:
        tables = {str(name): source.read(f'PRAGMA table_info("{name}")') for (name,) in source.read(_TABLES)}
        named = {table: {str(row[1]): str(row[2]) for row in columns} for table, columns in tables.items()}
        of_users = {table: columns for table, columns in named.items() if {USER_KEY, MARK} & set(columns)}
        told = source.read("SELECT value FROM facts WHERE name = 'secret'") if "facts" in named else []
        if not of_users or told == [(to.new.fingerprint(),)]:
            return None
        if told not in ([], [(to.old.fingerprint(),)]):
            raise ConfigError(f"{path}: its users are keyed with neither of the two secrets; subject.old_key names another than theirs")
        os.close(os.open(beside(path), os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600))
        source.read("VACUUM INTO ?", (str(beside(path)),))
    except sqlite3.Error as error:
        raise DataError(f"{path}: cannot be read ({error})") from error
    finally:
        source.close()
    return _changed(path, of_users, "facts" in named, to)


_TABLES = "SELECT name FROM sqlite_master WHERE type = 'table'"


def _changed(path: Path, of_users: dict[str, dict[str, str]], facts: bool, to: KeyMap) -> Rewritten:
    copy, rows, unnamed = sqlite3.connect(beside(path), isolation_level=None), 0, 0
    try:
        copy.create_function("changed_key", 1, to.key, deterministic=True)
        copy.create_function("changed_mark", 1, to.mark, deterministic=True)
        copy.execute("PRAGMA journal_mode=DELETE")
        copy.execute("BEGIN")
        for table, columns in of_users.items():
            column, changed = (USER_KEY, "changed_key") if USER_KEY in columns else (MARK, "changed_mark")
            rows += copy.execute(f'SELECT count("{column}") FROM "{table}"').fetchone()[0]
            nobody = f'"{column}" IS NOT NULL AND {changed}("{column}") IS NULL'
            unnamed += copy.execute(f'DELETE FROM "{table}" WHERE {nobody}').rowcount
            for text in (name for name, kind in columns.items() if kind == "TEXT" and column == USER_KEY):  # rows as JSON hold digits
                digits = f'lower(hex("{column}")), lower(hex({changed}("{column}")))'
                copy.execute(f'UPDATE "{table}" SET "{text}" = replace("{text}", {digits}) WHERE "{column}" IS NOT NULL')
            copy.execute(f'UPDATE "{table}" SET "{column}" = {changed}("{column}") WHERE "{column}" IS NOT NULL')
        if facts:
            copy.execute("INSERT OR REPLACE INTO facts VALUES ('secret', ?)", (to.new.fingerprint(),))
        copy.execute("COMMIT")
        copy.execute("VACUUM")
    except sqlite3.Error as error:
        raise DataError(f"{path}: cannot be written under other keys ({error})") from error
    finally:
        copy.close()
    return Rewritten(path, rows, unnamed)


def _as_it_lies(path: Path, to: KeyMap) -> Rewritten:
    rows = unnamed = 0
    with pq.ParquetFile(path) as source:
        schema = _told(source.schema_arrow, to)
        with _writer(path, schema) as sink:
            for batch in source.iter_batches(_BATCH_ROWS):
                table = pa.Table.from_batches([batch])
                changed, nobody = _with_new(table, to)
                rows += len(table) - table.column(_column(table)).null_count
                unnamed += nobody
                sink.write_table(changed.replace_schema_metadata(schema.metadata))
    return Rewritten(path, rows, unnamed)


def _sorted(paths: Sequence[Path], to: KeyMap) -> Iterator[Rewritten]:
    """Files that hold one table in the order of keys, all read at once: a row may move from any to any."""
    tables = [pq.ParquetFile(path).read() for path in paths]
    found = [_new_keys(table, to) for table in tables]
    keys_n, known_n = np.concatenate([one.keys_n for one in found]), np.concatenate([one.known_n for one in found])
    order = np.flatnonzero(known_n)
    order = order[np.argsort(np.ascontiguousarray(keys_n[order]).view(f"S{KEY_BYTES}").reshape(-1), kind="stable")]
    whole, done = pa.concat_tables(tables), 0
    for path, table, one in zip(paths, tables, found, strict=True):
        schema, mine = _told(table.schema, to), order[done : done + len(table)]
        done += len(table)
        with _writer(path, schema) as sink:
            for start in range(0, len(mine), _BATCH_ROWS):
                rows = mine[start : start + _BATCH_ROWS]
                block = whole.take(pa.array(rows))
                sink.write_table(_replaced(block, keys_n[rows], np.ones(len(rows), bool)).replace_schema_metadata(schema.metadata))
        yield Rewritten(path, len(table), int(np.count_nonzero(~one.known_n)))


def _writer(path: Path, schema: pa.Schema) -> pq.ParquetWriter:
    os.close(os.open(beside(path), os.O_WRONLY | os.O_CREAT | os.O_TRUNC, path.stat().st_mode & 0o777))
    return pq.ParquetWriter(beside(path), schema, write_page_checksum=True, **writing(schema))


def _told(schema: pa.Schema, to: KeyMap) -> pa.Schema:
    return schema.with_metadata({**(schema.metadata or {}), SECRET_FINGERPRINT: to.new.fingerprint()})


def _column(table: pa.Table) -> str:
    return USER_KEY if USER_KEY in table.column_names else MARK


def _with_new(table: pa.Table, to: KeyMap) -> tuple[pa.Table, int]:
    """The rows of nobody and of people who are named, under new keys; and how many others there were."""
    found = _new_keys(table, to)
    nobody_n = table.column(_column(table)).is_null().to_numpy()
    changed = _replaced(table, found.keys_n, ~nobody_n).filter(pa.array(found.known_n | nobody_n))
    return changed, int(np.count_nonzero(~found.known_n & ~nobody_n))


def _new_keys(table: pa.Table, to: KeyMap) -> Found:
    name = _column(table)
    keys = table.column(name).fill_null(bytes(KEY_BYTES)).to_pylist()
    if name == USER_KEY:
        return to.find(np.frombuffer(b"".join(keys), np.uint8).reshape(-1, KEY_BYTES))
    marks = [to.mark(key) for key in keys]
    joined = b"".join(of or bytes(KEY_BYTES) for of in marks)
    return Found(np.frombuffer(joined, np.uint8).reshape(-1, KEY_BYTES), np.array([of is not None for of in marks], bool))


def _replaced(table: pa.Table, keys_n: NDArray[np.uint8], there_n: NDArray[np.bool_]) -> pa.Table:
    name = _column(table)
    kind = table.schema.field(name)
    values = [key.tobytes() if there else None for key, there in zip(keys_n, there_n, strict=True)]
    return table.set_column(table.column_names.index(name), kind, pa.array(values, kind.type))
