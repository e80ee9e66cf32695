"""Events that a service was told (towers.live_logs), read after a dataset's own log: what a refresh trains on.

People stand there by key. What a dataset's log and the events have in common, equal in person, item, time and type, counts once.
"""

import json
import sys
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from tqdm import tqdm

from towers import columns as c
from towers.errors import ConfigError, DataError, RequestError
from towers.identity import SECRET_FINGERPRINT, UserKeys
from towers.live_logs import EVENT_SCHEMA, EVENTS, EVENTS_FILE
from towers.partitions import Reading, parts
from towers.schema import Feature, Schema
from towers.values import as_dense, as_lists, as_numbers, as_strings, as_times
from training.sources.base import FIXED_TYPES, SourceTables, column_type

KEYED = b"towers.user_ids"
"""In the metadata of a chunk whose `user_id` holds user keys, in hexadecimal digits."""
_TAKEN = (c.EVENT_ID, c.EVENT_TYPE)
"""Columns of events that are read also where the dataset's log has none."""


def with_live(source: SourceTables, live: str | None, keys: UserKeys) -> SourceTables:
    """The dataset followed by the live events of a folder; as it is where there is none, or where a service has written none yet.

    Args:
        live: the log's folder, `state/events` of a service.
        keys: whose secret the events' users must be keyed with.

    Raises:
        DataError: there is no such folder.
        ConfigError: its users were keyed with another secret.
    """
    if live is None:
        return source
    root = Path(live).expanduser()
    if not root.is_dir() and root.name == EVENTS and (root.parent / EVENTS_FILE).is_file():
        print(f"data.live: no events in {live} yet; a service writes them there once an hour", flush=True)
        return source
    if not root.is_dir():
        raise DataError(f"data.live: no folder {live!r}; `towers serve` fills run_dir/state/events with the events that it is told")
    _check_secret(root, keys)
    notes = dict(source.notes)

    def interactions() -> Iterator[pa.Table]:
        layout: pa.Schema | None = None
        for chunk in source.interactions():
            whole = _with_columns(chunk)
            layout = layout or whole.schema
            yield whole
        reading, rows = Reading(root, EVENT_SCHEMA), 0
        for table in reading:
            rows += len(table)
            if layout is not None:
                yield _chunk(table, layout, source.schema)
        notes["live_events"] = f"{rows:,} in {reading.read} files of {root.name}/"
        if reading.skipped:
            tqdm.write(f"warning: data.live: {reading.told()}", file=sys.stderr)
            notes["live_files_skipped"] = "; ".join(f"{Path(path).name}: {why}" for path, why in reading.skipped.items())

    return replace(source, interactions=interactions, notes=notes)


def _check_secret(root: Path, keys: UserKeys) -> None:
    for path in parts(root):
        try:
            secret = (pq.read_schema(path).metadata or {}).get(SECRET_FINGERPRINT)
        except (OSError, pa.ArrowException):
            continue  # skipped and told of when it is read
        if secret != keys.fingerprint():
            raise ConfigError(
                f"{path}: its users were keyed with another secret, so every one of them would be a stranger. Point identity.key_file or"
                " $TOWERS_KEY_FILE at the file that the service used"
            )


def _with_columns(chunk: pa.Table) -> pa.Table:
    """A chunk of the log with the columns that events need; those it lacks are null."""
    for name in _TAKEN:
        if name not in chunk.column_names:
            chunk = chunk.append_column(name, pa.nulls(len(chunk), FIXED_TYPES[name]))
    return chunk


def _chunk(events: pa.Table, layout: pa.Schema, schema: Schema) -> pa.Table:
    """Events with the log's columns, null where events have none."""
    told = [json.loads(text) if text else {} for text in events.column("context").to_pylist()]
    context = {f.source_column: f for f in schema.owned_by("context")}
    columns = []
    for field in layout:
        if field.name == c.USER_ID:
            columns.append(pa.array([key.hex() for key in events.column(c.USER_KEY).to_pylist()], pa.string()))
        elif field.name in context:
            feature = context[field.name]
            values = [row.get(feature.name) for row in told]
            if field.name in events.column_names:  # such as `channel`, which an event may tell in either place
                known = events.column(field.name).to_pylist()
                values = [there if value is None else value for value, there in zip(values, known, strict=True)]
            columns.append(_values(feature, values, column_type(field.name, [feature])))
        elif field.name in events.column_names:
            columns.append(events.column(field.name).cast(field.type))
        else:
            columns.append(pa.nulls(len(events), field.type))
    return pa.table(columns, names=layout.names).replace_schema_metadata({KEYED: b"hex"})


def _values(feature: Feature, values: Sequence[Any], kind: pa.DataType) -> pa.Array:
    """Values as the towers understand them; one that no longer fits, because the feature was declared otherwise then, is missing."""
    try:
        return _typed(feature, values, kind)
    except RequestError:
        return pa.concat_arrays([_one(feature, value, kind) for value in values])


def _one(feature: Feature, value: Any, kind: pa.DataType) -> pa.Array:
    try:
        return _typed(feature, [value], kind)
    except RequestError:
        return pa.nulls(1, kind)


def _typed(feature: Feature, values: Sequence[Any], kind: pa.DataType) -> pa.Array:
    name = feature.name
    missing = [value is None for value in values]
    if pa.types.is_timestamp(kind):
        times = [None if time == c.NO_TIME else time for time in as_times(name, values).tolist()]
        return pa.array(times, pa.int64()).cast(kind)
    if pa.types.is_floating(kind):
        return pa.array([None if number != number else number for number in as_numbers(name, values).tolist()], kind)
    if feature.kind == "dense":
        vectors = as_dense(name, values, feature.width).tolist()
        return pa.array([None if gone else vector for gone, vector in zip(missing, vectors, strict=True)], kind)
    if pa.types.is_list(kind):
        flat, lengths = as_lists(name, values)
        ends = lengths.cumsum().tolist()
        lists = [flat[end - length : end] for end, length in zip(ends, lengths.tolist(), strict=True)]
        return pa.array([None if gone else row for gone, row in zip(missing, lists, strict=True)], kind)
    return pa.array(as_strings(name, values), kind)
