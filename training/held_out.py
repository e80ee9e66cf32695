"""Held-out queries for the jobs of serving: see towers.held_out."""

from pathlib import Path

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from towers.columns import ITEM_ID
from towers.held_out import HeldOut, key_column, write_held_out
from towers.runtime import TorchRuntime
from training import ragged
from training.config import TrainingConfig
from training.interactions import Interactions
from training.queries import Queries, make_queries
from training.rank_queries import encode_users


def write_queries(
    path: Path, data: Interactions, runtime: TorchRuntime, allowed_U: NDArray[np.bool_], config: TrainingConfig, weights_sha256: str
) -> None:
    """Write validation and test queries, at most `export.held_out_queries` of each, of users who allow it.

    They are those of `towers evaluate` with seen items masked.

    Raises:
        DataError: a split has nothing to find.
    """
    splits = {}
    for split in ("valid", "test"):
        queries = make_queries(data, split, config.evaluate.unit, config.split.name, config.export.held_out_queries, config.seed)
        queries = queries.take(np.flatnonzero(allowed_U[queries.user_Q])).masked()
        splits[split] = _held(queries, encode_users(runtime, queries, runtime.model.config.history.length, f"held-out {split}"))
    write_held_out(path, splits, weights_sha256)


def _held(queries: Queries, vectors_QHD: NDArray[np.float32]) -> HeldOut:
    offsets, rows = queries.history.rows()
    liked = ragged.keep((offsets, queries.data.item[rows]), np.asarray(queries.data.weight[rows]) > 0)
    ids = queries.data.catalog.column(ITEM_ID)
    seen = queries.seen_items(slice(0, len(queries)))
    return HeldOut(
        user_keys=key_column(queries.data.user_keys[queries.user_Q]),
        vectors_QHD=vectors_QHD,
        now_Q=queries.now_Q,
        liked=_lists(liked, ids),
        seen=_lists(seen, ids),
        relevant=_lists(queries.relevant, ids),
    )


def _lists(table: ragged.Csr, ids: pa.ChunkedArray) -> pa.ListArray:
    return pa.ListArray.from_arrays(pa.array(table[0], pa.int32()), ids.take(pa.array(table[1], pa.int64())).combine_chunks())
