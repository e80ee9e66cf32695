"""What every source hands to prepare: raw interactions in chunks, items, users and a sealed-off audit table.

Feature columns are named by `Feature.source_column`, the fixed ones by `towers.columns`. Rows are as the file has them, bad ones
included: prepare validates, counts and rejects. A source raises only when the dataset as a whole cannot be read.
"""

import difflib
import os
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, Protocol

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from towers import columns as c
from towers.errors import ConfigError, DataError
from towers.schema import Feature, Schema
from training.data_config import DataConfig

TIME: Final = pa.timestamp("us", "UTC")
BAD_TIMESTAMP: Final = "_bad_timestamp"
"""Text column beside `timestamp` where a source parses times: the value as it stands, where it could not be read."""
MALFORMED_LINE: Final = "_malformed_line"
"""Text column where a source parses lines: what is wrong with the line that this row of nulls stands for."""
TIMES_NEEDED: Final = "data.order is 'time'; without times use data.order=position split=leave_one_out, or data.order=set split=random"

KIND_TYPES: Final[Mapping[str, pa.DataType]] = {
    "id": pa.string(),
    "categorical": pa.string(),
    "multi_categorical": pa.list_(pa.string()),
    "preferences": pa.list_(pa.string()),
    "numeric": pa.float64(),
    "text": pa.string(),
    "dense": pa.list_(pa.float32()),
    "time": TIME,
}
FIXED_TYPES: Final[Mapping[str, pa.DataType]] = {
    c.USER_ID: pa.string(),
    c.ITEM_ID: pa.string(),
    c.TIMESTAMP: TIME,
    c.EVENT_ID: pa.string(),
    c.EVENT_TYPE: pa.string(),
    c.VALUE: pa.float64(),
    c.WEIGHT: pa.float64(),
    c.SESSION_ID: pa.string(),
    c.CHANNEL: pa.string(),
    c.RECOMMENDATION_ID: pa.string(),
    c.SPLIT: pa.string(),
    c.TITLE: pa.string(),
    c.CATEGORIES: pa.list_(pa.string()),
    c.CREATED_AT: TIME,
    c.IS_HIDDEN: pa.bool_(),
    BAD_TIMESTAMP: pa.string(),
    MALFORMED_LINE: pa.string(),
}


class Oracle(Protocol):
    """Knows the true utilities: only a simulated world has one."""

    def utilities(
        self, user_ids: Sequence[str], timestamps_us: Sequence[int] | NDArray[np.int64], context: Mapping[str, Sequence[str | None]]
    ) -> NDArray[np.float32]:
        """True utility of every item, [Q, I] in ascending item_id order; -inf for items that do not exist yet.

        Args:
            user_ids: one per query; unknown ones have no taste.
            timestamps_us: UTC microseconds, one per query.
            context: context column -> one value per query; columns or values left out do not contribute.
        """
        ...


@dataclass(frozen=True)
class SourceTables:
    """A dataset as prepare reads it.

    Attributes:
        name: of the source.
        schema: declared features, order and event weights.
        interactions: makes a fresh iterator over chunks in file order. Always user_id, item_id (string) and timestamp
            (UTC us, null where there is none); event_id, event_type, value, weight, session_id, channel, recommendation_id and
            split where the dataset has them; declared context columns; `_bad_timestamp` and `_malformed_line` where times and lines
            were parsed.
        items: item_id, title, categories, created_at, is_hidden and declared item features; may be empty.
        users: user_id and declared user features; may be empty.
        audit: user_id and columns for audits only, which the training loader never opens.
        notes: for the data card: url, licence, protocol, dropped columns.
        oracle: true utilities, where the world is simulated.
    """

    name: str
    schema: Schema
    interactions: Callable[[], Iterator[pa.Table]]
    items: pa.Table
    users: pa.Table
    audit: pa.Table | None = None
    notes: dict[str, str] = field(default_factory=dict)
    oracle: Oracle | None = None


def refuse_audited(source: SourceTables) -> None:
    """What is for audits alone is no feature, unless it is declared sensitive (the schema checks for what purpose).

    Raises:
        ConfigError: names the feature.
    """
    audited = set() if source.audit is None else set(source.audit.column_names) - {c.USER_ID}
    for f in source.schema.owned_by("user"):
        if f.source_column in audited and not f.sensitive:
            raise ConfigError(
                f"data.features.{f.name}: {f.source_column!r} is an audit column here. Remove the feature, or declare it with"
                " `sensitive: true` and `purposes: [personalize]`"
            )


def column_type(name: str, features: Sequence[Feature]) -> pa.DataType:
    """Arrow type of a fixed or declared column. A fixed column keeps its own type, whatever features read it.

    Raises:
        ConfigError: two features read the column as values of two types.
    """
    if name in FIXED_TYPES:
        return FIXED_TYPES[name]
    first, *others = (f for f in features if f.source_column == name)
    for f in others:
        if KIND_TYPES[f.kind] != KIND_TYPES[first.kind]:
            raise ConfigError(
                f"data.features.{f.name}: column {name!r} cannot be both {f.kind} and {first.kind}, as data.features.{first.name} declares"
                " it. Declare one of them, or give the data the column twice"
            )
    return KIND_TYPES[first.kind]


def feature_columns(schema: Schema, owner: str) -> list[str]:
    """Source columns of an owner's declared features, without those every table has anyway."""
    names = dict.fromkeys(f.source_column for f in schema.owned_by(owner))
    fixed = c.ITEM_COLUMNS if owner == "item" else (c.USER_ID, c.ITEM_ID, c.TIMESTAMP)
    return [n for n in names if n not in fixed]


def side_table(schema: Schema, owner: str, have: Mapping[str, Any], where: str, mappable: bool = False) -> pa.Table:
    """An items or users table: the fixed columns (null where absent) and the declared features, typed.

    Args:
        schema: the declarations.
        owner: `item` or `user`.
        have: column name -> Arrow array or list, all of one length, with item_id or user_id among them.
        where: what the columns came from, for messages.
        mappable: whether `data.columns` could name the column.

    Raises:
        DataError: a declared feature has no column.
    """
    key = c.ITEM_ID if owner == "item" else c.USER_ID
    rows = len(have[key])
    fields = {}
    for name in c.ITEM_COLUMNS if owner == "item" else (c.USER_ID,):
        fields[name] = _array(have[name], FIXED_TYPES[name]) if name in have else pa.nulls(rows, FIXED_TYPES[name])
    for name in feature_columns(schema, owner):
        if name not in have:
            raise missing_column(name, list(have), where, f"data.features declares it for the {owner}", mappable)
        fields[name] = _array(have[name], column_type(name, schema.owned_by(owner)))
    return pa.table(fields)


def empty_table(schema: Schema, owner: str, where: str = "", known: Sequence[str] = ()) -> pa.Table:
    """An items or users table without rows, with the columns of a full one.

    Args:
        schema: the declarations.
        owner: `item` or `user`.
        where: what has no such table, for messages.
        known: feature columns that the source could have had; others are mistakes.

    Raises:
        DataError: a declared feature can have no column.
    """
    features = feature_columns(schema, owner)
    for name in features:
        if name not in known:
            raise missing_column(name, known, where or f"{owner}s", f"data.features declares it for the {owner}", mappable=False)
    names = [*(c.ITEM_COLUMNS if owner == "item" else (c.USER_ID,)), *features]
    return pa.schema([(n, column_type(n, schema.owned_by(owner))) for n in names]).empty_table()


def interactions_of(columns: Mapping[str, Any]) -> pa.Table:
    """One chunk of interactions from columns; a missing `timestamp` becomes nulls."""
    rows = len(columns[c.USER_ID])
    fields = {n: _array(v, FIXED_TYPES[n]) if n in FIXED_TYPES else v for n, v in columns.items()}
    fields.setdefault(c.TIMESTAMP, pa.nulls(rows, TIME))
    return pa.table(fields)


def chunks(table: pa.Table, rows: int) -> Iterator[pa.Table]:
    """Slices of at most `rows` rows; an empty table is one empty chunk, so that its columns are seen."""
    for start in range(0, max(1, len(table)), rows):
        yield table.slice(start, rows)


def near_miss(name: str, found: Sequence[str]) -> str | None:
    """The found column that `name` may stand for: `userId` for `user_id`."""
    plain = {_plain(f): f for f in reversed(found)}
    close = difflib.get_close_matches(_plain(name), list(plain), n=1, cutoff=0.6)
    return plain[close[0]] if close else None


def missing_column(name: str, found: Sequence[str], where: str, why: str, mappable: bool = True) -> DataError:
    """The error for a column that is not there: names it, what was found, the likely one and the line to write."""
    message = f"{where}: no column for {name!r} ({why}); found are {', '.join(found) or 'none'}."
    near = near_miss(name, found)
    guess = f" Is it {near!r}?" if near else ""
    if not mappable:
        return DataError(f"{message}{guess} Correct data.features, or remove the feature from it")
    theirs = near or "<its column>"
    setting = f"+data.columns.{name}={theirs}"
    if near and not re.fullmatch(r"[A-Za-z_][A-Za-z0-9_.]*", near):  # neither a shell nor Hydra nor YAML would take it as it is
        theirs = f'"{near}"'
        setting = f"'+data.columns.{name}={theirs}'"
    return DataError(f"{message}{guess} Name it: {setting} (in YAML, under data: `columns: {{{name}: {theirs}}}`)")


def find_folder(data: DataConfig, default: str) -> Path | None:
    """The dataset's folder: `data.path` as given, else under $TOWERS_DATA_DIR, where `default` is its usual name.

    Returns:
        The folder, or None where `data.path` is null and the usual folder is not there.

    Raises:
        DataError: `data.path` is given and is no folder.
    """
    root = os.environ.get("TOWERS_DATA_DIR")
    tried = [Path(data.path or default).expanduser()] if data.path else []
    if root:
        tried.append(Path(root).expanduser() / (data.path or default))
    for folder in tried:
        if folder.is_dir():
            return folder
    if data.path:
        raise DataError(
            f"data.path: no folder {data.path!r}; looked at {', '.join(dict.fromkeys(map(str, tried)))}. Give the folder of {data.name}"
        )
    return None


def find_file(path: str) -> Path | None:
    """The file that `data.path` names, as given or under $TOWERS_DATA_DIR; None where it is no file."""
    roots = [Path(), *(Path(root).expanduser() for root in [os.environ.get("TOWERS_DATA_DIR")] if root)]
    found = [root / Path(path).expanduser() for root in roots]
    return next((file for file in found if file.is_file()), None)


def require_folder(data: DataConfig, default: str, holds: str) -> Path:
    """`find_folder` for datasets that cannot be downloaded."""
    folder = find_folder(data, default)
    if folder is None:
        raise DataError(
            f"data.path: not set, and there is no {default}/ under $TOWERS_DATA_DIR"
            f" ({os.environ.get('TOWERS_DATA_DIR') or 'not set'}). Set data.path to a folder that holds {holds}"
        )
    return folder


def require_file(folder: Path, name: str, of: str) -> Path:
    """`folder/name`, or a DataError that says what belongs there."""
    path = folder / name
    if not path.is_file():
        have = ", ".join(sorted(p.name for p in folder.iterdir())[:12]) or "nothing"
        raise DataError(f"{folder}: no file {name!r}, which {of} needs; the folder holds {have}. Check data.path")
    return path


def _array(values: Any, kind: pa.DataType) -> Any:
    if isinstance(values, pa.Array | pa.ChunkedArray):
        return values if values.type == kind else values.cast(kind)
    # numbers may be declared as categories: a year
    return pa.array(values).cast(kind) if kind == pa.string() else pa.array(values, kind)


def _plain(name: str) -> str:
    return name.lower().replace("_", "").replace("-", "").replace(" ", "")
