"""Your own Parquet or CSV: `data.interactions` and, if you have them, `data.items`, `data.users` and `data.audit`.

`data.columns` says how your columns are called, over a preset if one fits: `user_id: userId`. Where the same column has another name in
one table, say so with the table's name: `items.item_id: sku`.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import pyarrow as pa

from towers import columns as c
from towers.errors import ConfigError, DataError
from towers.schema import Schema
from training.data_config import DataConfig, schema_of
from training.sources import table_values as values
from training.sources.base import (
    BAD_TIMESTAMP,
    FIXED_TYPES,
    MALFORMED_LINE,
    TIME,
    TIMES_NEEDED,
    SourceTables,
    column_type,
    empty_table,
    feature_columns,
    find_folder,
    interactions_of,
    missing_column,
    near_miss,
    side_table,
)
from training.sources.table_files import TableFiles, open_files
from training.sources.table_presets import NO_PRESET, PRESETS, Preset
from training.sources.table_times import TimeReader

_TABLES: Final = ("interactions", "items", "users", "audit")


@dataclass(frozen=True)
class Mapped:
    """A table and which of its columns is which of ours.

    Attributes:
        files: the shards.
        theirs: our column -> the file's, for every column that will be read.
        unit: of timestamps that are plain numbers.
        separator: between the values of lists written as text.
    """

    files: TableFiles
    theirs: Mapping[str, str]
    unit: str
    separator: str

    def where(self, ours: str) -> str:
        return f"{self.files.name}: column {self.theirs[ours]!r} ({ours})"

    def dropped(self) -> list[str]:
        return [name for name in self.files.columns if name not in self.theirs.values()]


def open_table(data: DataConfig) -> SourceTables:
    """Open the user's tables; every header is checked before a row is read.

    Raises:
        ConfigError: `data.columns`, `data.preset` or a file setting is wrong.
        DataError: a file or a column is missing; says which line to write.
    """
    schema = schema_of(data)
    preset = _preset(data)
    _check_columns(data, schema)
    if data.interactions is None:
        raise ConfigError("data.interactions: not set; name the Parquet or CSV file of your log, such as data.interactions=log.csv")
    tables = {name: found for name in _TABLES if (found := _open(data, name)) is not None}
    log = _map(tables["interactions"], data, preset.interactions, preset, _log_columns(schema))
    kinds = {n: column_type(n, schema.owned_by("context")) for n in log.theirs}

    def interactions() -> Iterator[pa.Table]:
        times = {name: TimeReader(log.theirs[name], data.timestamp_unit) for name in log.theirs if kinds[name] == TIME}
        for chunk in log.files.read(list(dict.fromkeys(log.theirs.values())), data.chunk_rows):
            yield _log_chunk(chunk, log, kinds, times)

    notes = {name: found.told() for name, found in tables.items()}
    dropped = {"interactions": log.dropped()}
    side: dict[str, pa.Table] = {}
    for owner, name, names in (("item", "items", preset.items), ("user", "users", preset.users)):
        if name not in tables:
            side[owner] = empty_table(schema, owner, f"data.{name} is not set, so {owner}s have no table")
            continue
        mapped = _map(tables[name], data, names, preset, _side_columns(schema, owner))
        side[owner] = _side(mapped, schema, owner, data.chunk_rows)
        dropped[name] = mapped.dropped()
    audit, dropped["audit"] = _audit(tables, data, preset)
    notes |= {f"dropped_columns_of_{name}": ", ".join(columns) for name, columns in dropped.items() if columns}
    return SourceTables("table", schema, interactions, side["item"], side["user"], audit, notes)


def _preset(data: DataConfig) -> Preset:
    if data.preset is not None and data.preset not in PRESETS:
        raise ConfigError(f"data.preset: got {data.preset!r}, expected one of {', '.join(PRESETS)}, or null")
    return PRESETS[data.preset] if data.preset else NO_PRESET


def _check_columns(data: DataConfig, schema: Schema) -> None:
    """Every key of `data.columns` is a column of ours, with or without its table's name."""
    ours = sorted({*FIXED_TYPES, *(f.source_column for f in schema.features)} - {BAD_TIMESTAMP, MALFORMED_LINE})
    for key in data.columns:
        table, _, name = key.rpartition(".")
        if name not in ours or (table and table not in _TABLES):
            near = near_miss(name, ours)
            guess = f" Did you mean {near!r}?" if near else ""
            message = f"data.columns.{key}: {name!r} is no column of ours nor of data.features.{guess}"
            raise ConfigError(f"{message} Write `ours: yours`; ours are {', '.join(ours)}")


def _open(data: DataConfig, name: str) -> TableFiles | None:
    place = {"interactions": data.interactions, "items": data.items, "users": data.users, "audit": data.audit}[name]
    if place is None:
        return None
    path = Path(place).expanduser()
    if not path.is_absolute():
        folder = find_folder(data, "") if data.path else Path()
        path = (folder or Path()) / path
    return open_files(name, path, f"data.{name}")


def _log_columns(schema: Schema) -> dict[str, str]:
    """Our columns of a log, and why each is needed; an empty reason means it is taken where it is there."""
    needed = dict.fromkeys(c.INTERACTION_COLUMNS, "")
    needed[c.USER_ID] = needed[c.ITEM_ID] = "every log needs it"
    if schema.order == "time":
        needed[c.TIMESTAMP] = TIMES_NEEDED
    needed |= {name: "data.features declares it for the context" for name in feature_columns(schema, "context")}
    return needed


def _side_columns(schema: Schema, owner: str) -> dict[str, str]:
    needed = dict.fromkeys(c.ITEM_COLUMNS if owner == "item" else (c.USER_ID,), "")
    needed[c.ITEM_ID if owner == "item" else c.USER_ID] = f"it says which {owner} a row is of"
    return needed | {name: f"data.features declares it for the {owner}" for name in feature_columns(schema, owner)}


def _map(files: TableFiles, data: DataConfig, names: Mapping[str, str], preset: Preset, needed: Mapping[str, str]) -> Mapped:
    """Find each column: as `data.columns` names it, else as the preset does, else by our own name."""
    actual = {name: name for name in files.columns}
    if preset.typed_headers:
        actual = {name.partition(":")[0]: name for name in files.columns} | actual
    theirs = {}
    for ours, why in needed.items():
        scoped, flat = data.columns.get(f"{files.name}.{ours}"), data.columns.get(ours)
        named = scoped or (flat if files.name == "interactions" or flat in actual else None)
        found = next((actual[n] for n in (named, *((names.get(ours), ours) if named is None else ())) if n in actual), None)
        if found is not None:
            theirs[ours] = found
        elif named or why:
            reason = f"data.columns names it {named!r}" if named else why
            raise missing_column(ours, files.columns, f"{files.name} ({files.paths[0].name})", reason)
    return Mapped(files, theirs, data.timestamp_unit, preset.separator)


def _log_chunk(chunk: pa.Table, log: Mapped, kinds: Mapping[str, pa.DataType], times: Mapping[str, TimeReader]) -> pa.Table:
    columns = {}
    for ours, theirs in log.theirs.items():
        if ours in times:
            columns[ours], bad_n = times[ours].read(chunk[theirs])
            if ours == c.TIMESTAMP:
                columns[BAD_TIMESTAMP] = values.where_text(chunk[theirs], bad_n)
            else:
                values.mostly_times(chunk[theirs], bad_n, log.where(ours))
        else:
            columns[ours] = _convert(chunk[theirs], kinds[ours], log, ours)
    if MALFORMED_LINE in chunk.column_names:
        columns[MALFORMED_LINE] = chunk[MALFORMED_LINE]
    return interactions_of(columns)


def _side(mapped: Mapped, schema: Schema, owner: str, chunk_rows: int) -> pa.Table:
    wanted = list(dict.fromkeys(mapped.theirs.values()))
    parts = list(mapped.files.read(wanted, chunk_rows))
    if not parts:
        return empty_table(schema, owner, known=feature_columns(schema, owner))
    raw = pa.concat_tables(parts, promote_options="permissive")
    have = {}
    for ours, theirs in mapped.theirs.items():
        kind = column_type(ours, schema.owned_by(owner))
        if kind == TIME:
            have[ours], bad_n = TimeReader(theirs, mapped.unit).read(raw[theirs])
            values.mostly_times(raw[theirs], bad_n, mapped.where(ours))
        else:
            have[ours] = _convert(raw[theirs], kind, mapped, ours)
    return side_table(schema, owner, have, mapped.files.name, mappable=True)


def _audit(tables: Mapping[str, TableFiles], data: DataConfig, preset: Preset) -> tuple[pa.Table | None, list[str]]:
    """user_id and every other column as text: slices need names, not types. Beside it the columns of lists, which name no group."""
    if "audit" not in tables:
        return None, []
    mapped = _map(tables["audit"], data, preset.users, preset, {c.USER_ID: "it says which user a row is of"})
    parts = list(mapped.files.read(mapped.files.columns, data.chunk_rows))
    if not parts:
        raise DataError(f"data.audit: {mapped.files.paths[0]} has no rows. Remove the setting or give a table with rows")
    raw = pa.concat_tables(parts, promote_options="permissive")
    nested = [name for name in mapped.dropped() if pa.types.is_nested(raw[name].type)]
    columns = {c.USER_ID: raw[mapped.theirs[c.USER_ID]]} | {n: raw[n] for n in mapped.dropped() if n not in nested}
    return pa.table({name: values.as_text(column, f"audit: column {name!r}") for name, column in columns.items()}), nested


def _convert(column: pa.ChunkedArray, kind: pa.DataType, mapped: Mapped, ours: str) -> pa.Array:
    where = mapped.where(ours)
    if kind == pa.float64():
        return values.as_numbers(column, where)
    if kind == pa.list_(pa.string()):
        return values.as_lists(column, where, mapped.separator)
    if kind == pa.list_(pa.float32()):
        return values.as_vectors(column, where)
    if kind == pa.bool_():
        return values.as_flags(column, where)
    return values.as_text(column, where)
