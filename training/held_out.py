"""Held-out queries for the jobs of serving: see towers.held_out."""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from towers.columns import ITEM_ID
from towers.consent import MEASURE, PERSONALIZE
from towers.errors import DataError
from towers.held_out import HeldOut, key_column, write_held_out
from towers.runtime import TorchRuntime
from towers.shards import Place, rename
from training import ragged
from training.config import TrainingConfig
from training.interactions import Interactions
from training.queries import Queries, make_queries
from training.rank_queries import encode_users


def held_out_queries(data: Interactions, allowed_U: NDArray[np.bool_], config: TrainingConfig) -> dict[str, Queries]:
    """Validation and test queries, at most `export.held_out_queries` of each, of users who allow it.

    They are those of `towers evaluate` with seen items masked.

    Raises:
        DataError: a split has nothing to find, or nothing of users who allow it.
    """
    found, most = {}, config.export.held_out_queries
    for split in ("valid", "test"):
        queries = make_queries(data, split, config.evaluate.unit, config.split.name, most, config.seed, allowed_U=allowed_U)
        if not len(queries):
            raise DataError(
                f"export.held_out_queries: nobody with an event in split {split!r} allows both `{PERSONALIZE}` and `{MEASURE}`"
                f" (data.consent, or what they told a service); of {data.n_users:,} people {int(allowed_U.sum()):,} do. Set it to 0"
            )
        found[split] = queries.masked()
    return found


def write_queries(
    path: Path, splits: Mapping[str, Queries], runtime: TorchRuntime, weights_sha256: str, learned: bool, place: Place = rename
) -> None:
    """Write queries of `held_out_queries`, with the vectors of the model that these weights are of; `place` as in `towers.shards`.

    Args:
        learned: the model, or what it started from, was trained on the validation rows too, so what judges by them has to know.
    """
    length = runtime.model.config.history.length
    held = {
        split: replace(_held(queries, encode_users(runtime, queries, length, f"held-out {split}")), learned=learned and split == "valid")
        for split, queries in splits.items()
    }
    if learned:
        print(
            "   held-out queries: the model has learned from the validation rows, so those of `valid` cannot judge it: sweeping.split=test",
            flush=True,
        )
    write_held_out(path, held, weights_sha256, place)


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
