"""What serving must know of users: their newest events and declared features by user key. A file beside the bundle, not in it."""

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from towers.columns import CATALOG, EVENT_TYPE, FIRST_ROW, ITEM_ID, ITEM_ROWS, MADE, NO_TIME, USER_KEY
from towers.schema import Feature
from towers.shards import Place, rename
from towers.vocab import digest_of
from training.interactions import Interactions

BLOCK_USERS = 50_000
_DICTIONARY_BYTES = 1 << 28
"""Of a block's distinct ids. Past Parquet's usual megabyte each event holds its id in full, and a server starts four times as slowly."""


def write_histories(
    path: Path, data: Interactions, users: Path, events: int, allowed_U: NDArray[np.bool_], made: int = 0, place: Place = rename
) -> None:
    """Write user_key, item_ids and their rows in the catalogue, event_types, timestamps, context that events keep and the users' declared
    features, sorted by key.

    Args:
        path: the Parquet file, replaced atomically.
        data: all prepared interactions, held-out ones included: serving continues where the log ends.
        users: prepared/users.parquet, raw declared features in user row order, and the fingerprint of the keys' secret.
        events: newest events kept of each user.
        allowed_U: users who may be personalized for; of others nothing is written.
        made: microseconds UTC when the export began, of before it asked what people allow.
        place: as in `towers.shards`.
    """
    features = pq.read_table(users).drop_columns([USER_KEY]) if users.is_file() else pa.table({})
    temporary = path.with_suffix(".tmp")
    # the users' features come with their file's metadata
    catalog = digest_of(data.catalog.column(ITEM_ID).combine_chunks())
    metadata = {**(features.schema.metadata or {}), MADE: str(made).encode(), CATALOG: catalog}
    writer: pq.ParquetWriter | None = None
    try:
        for start in range(0, data.n_users, BLOCK_USERS):
            stop = min(start + BLOCK_USERS, data.n_users)
            table = _block(data, start, stop, events, features).filter(pa.array(allowed_U[start:stop]))
            schema = table.schema.with_metadata(metadata)
            writer = writer or pq.ParquetWriter(temporary, schema, compression="zstd", dictionary_pagesize_limit=_DICTIONARY_BYTES)
            writer.write_table(table.replace_schema_metadata(metadata))
    finally:
        if writer:
            writer.close()
    place(temporary, path)


def _block(data: Interactions, start: int, stop: int, events: int, features: pa.Table) -> pa.Table:
    ends = data.offsets[start + 1 : stop + 1]
    begins = np.maximum(data.offsets[start:stop], ends - events)
    lengths = ends - begins
    offsets = np.concatenate([[0], np.cumsum(lengths)])
    index = np.arange(offsets[-1]) + np.repeat(begins - offsets[:-1], lengths)
    times = pa.array(data.timestamp[index], pa.int64(), mask=np.asarray(data.timestamp[index] == NO_TIME))
    columns = {
        USER_KEY: pa.array([key.tobytes() for key in data.user_keys[start:stop]], pa.binary(16)),
        "item_ids": _lists(offsets, data.catalog.column(ITEM_ID).take(pa.array(data.item[index]))),
        ITEM_ROWS: _lists(offsets, pa.array(data.item[index], pa.int32())),
        "event_types": _lists(offsets, _event_types(data, index)),
        "timestamps": _lists(offsets, times),
        **{f.input_name: _lists(offsets, _kept_context(data, f, index)) for f in data.schema.in_history},
    }
    block = pa.table(columns)
    for name in features.column_names:
        block = block.append_column(name, features.column(name).slice(start, stop - start))
    return block


def _event_types(data: Interactions, index: np.ndarray) -> pa.Array:
    """Names of the event types; one that no training event had is "", which serving finds as unknown as training did."""
    names = pa.concat_arrays([pa.array([""], pa.string()), data.preprocessor.vocabularies[EVENT_TYPE].values()])
    return names.take(pa.array(np.maximum(data.event[index] - FIRST_ROW + 1, 0)))


def _kept_context(data: Interactions, feature: Feature, index: np.ndarray) -> pa.Array:
    """Values of a context feature; null where they are missing, or were not in training."""
    place = np.asarray(data.context[feature.input_name][index], np.int64) - FIRST_ROW
    return data.preprocessor.vocabularies[feature.vocabulary].values().take(pa.array(place, mask=place < 0))


def _lists(offsets: np.ndarray, values: pa.Array | pa.ChunkedArray) -> pa.Array:
    flat = values.combine_chunks() if isinstance(values, pa.ChunkedArray) else values
    return pa.ListArray.from_arrays(pa.array(offsets, pa.int32()), flat)
