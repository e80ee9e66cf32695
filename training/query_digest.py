"""Whether two evaluations asked the same: a digest of queries that does not depend on how people are keyed."""

import hashlib

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from towers.columns import ITEM_ID
from training.queries import Queries

_BLOCK_IDS = 1 << 16


def query_digest(queries: Queries, allowed_I: NDArray[np.bool_]) -> str:
    """sha256 of the items that are ranked, and of each query its answers, its moment, and how many events and which item stand before it.

    Runs with other features have the same digest, and so have those that were prepared with another secret: neither changes what is asked.

    Args:
        queries: before seen items are masked.
        allowed_I: items that may be recommended, bool [I].
    """
    found = hashlib.sha256()
    ids = queries.data.catalog.column(ITEM_ID).filter(pa.array(allowed_I))
    for start in range(0, len(ids), _BLOCK_IDS):
        found.update("\n".join(map(str, ids.slice(start, _BLOCK_IDS).to_pylist())).encode() + b"\n")
    ends = np.zeros(len(queries.relevant[1]) + 1, np.uint64)
    np.cumsum(_mixed(queries.relevant[1]), out=ends[1:])  # wraps around, and so do differences of it
    answers_Q = ends[queries.relevant[0][1:]] - ends[queries.relevant[0][:-1]]
    columns = [answers_Q, queries.relevant_Q, queries.now_Q, queries.history_Q, queries.last_Q]
    told_QC = np.stack([np.asarray(column).astype(np.int64) for column in columns], axis=1)
    found.update(np.ascontiguousarray(told_QC[np.lexsort(told_QC.T)]).tobytes())
    return found.hexdigest()


def _mixed(rows: NDArray[np.integer]) -> NDArray[np.uint64]:
    """Rows as numbers whose sum tells which they were (the finalizer of splitmix64)."""
    mixed = np.asarray(rows).astype(np.uint64) + np.uint64(0x9E3779B97F4A7C15)
    mixed = (mixed ^ (mixed >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    mixed = (mixed ^ (mixed >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return np.asarray(mixed ^ (mixed >> np.uint64(31)), np.uint64)
