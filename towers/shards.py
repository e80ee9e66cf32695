"""Sharded Parquet for other systems (vectors, lists): deterministic bytes, finished shards kept on a re-run."""

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from towers.job import write_json

_DICTIONARY_BYTES = 1 << 28
"""Of a row group's distinct ids. Past Parquet's usual megabyte each event holds its id in full, and a server starts four times slower."""
Place = Callable[[Path, Path], None]
FINGERPRINT = "_shards.json"  # readers of a folder of Parquet pass over names that start with _


def embedding_column(vectors_BD: NDArray[np.float32]) -> pa.Array:
    """Vectors as a fixed-size list column."""
    flat = pa.array(np.ascontiguousarray(vectors_BD, np.float32).reshape(-1), pa.float32())
    return pa.FixedSizeListArray.from_arrays(flat, vectors_BD.shape[1])


def rename(temporary: Path, target: Path) -> None:
    """Put a file that is written in its place."""
    temporary.rename(target)


def write_shards(
    folder: Path, rows: int, rows_per_shard: int, fingerprint: str, make: Callable[[int, int], pa.Table], place: Place = rename
) -> Iterator[int]:
    """Write `part-00000.parquet`, ... under a folder; yields the rows of each shard as it is done or found done.

    A shard is written beside its place and renamed, so one that exists is whole. Shards of another fingerprint (another model,
    another shard size) are removed first.

    Args:
        folder: where the shards go.
        rows: rows in all.
        rows_per_shard: rows of each shard but the last.
        fingerprint: says what the content depends on.
        make: gives the table of rows [start, stop).
        place: puts each shard in its place, as `towers.last_look` does with those of users; rows may leave it before.
    """
    folder.mkdir(parents=True, exist_ok=True)
    marker = folder / FINGERPRINT
    wanted = {"fingerprint": fingerprint, "rows": rows, "rows_per_shard": rows_per_shard}
    if not marker.exists() or json.loads(marker.read_text()) != wanted:
        for old in folder.glob("part-*.parquet*"):
            old.unlink()
        write_json(marker, wanted)
    for number, start in enumerate(range(0, rows, rows_per_shard)):
        stop = min(start + rows_per_shard, rows)
        target = folder / f"part-{number:05d}.parquet"
        if not target.exists():
            _write(target, make(start, stop), place)
        yield stop - start


def _write(target: Path, table: pa.Table, place: Place) -> None:
    temporary = target.with_suffix(".parquet.tmp")
    pq.write_table(table, temporary, row_group_size=len(table), **writing(table.schema))
    place(temporary, target)


def writing(schema: pa.Schema) -> dict[str, Any]:
    """How tables for other systems are written: options of pyarrow's Parquet writer."""
    # floats of one vector component share their exponent bytes: splitting the streams lets zstd see it
    split = [f"{field.name}.list.element" for field in schema if pa.types.is_fixed_size_list(field.type)]
    plain = [field.name for field in schema if pa.types.is_string(field.type)]
    plain += [f"{field.name}.list.element" for field in schema if field.type == pa.list_(pa.string())]
    return {
        "compression": "zstd", "use_byte_stream_split": split, "use_dictionary": plain, "dictionary_pagesize_limit": _DICTIONARY_BYTES,
    }  # fmt: skip
