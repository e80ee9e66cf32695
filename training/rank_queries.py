"""Queries to ranked lists: block by block, with what each user has seen masked or not.

Legend: Q queries, H heads, D dimensions, I items.
"""

import sys

import numpy as np
import torch
from numpy.typing import NDArray
from tqdm import tqdm

from towers.batch import take
from towers.dot_products import DotProducts
from towers.encoder import Runtime
from towers.topk import Fill, TopK, rank, rank_products
from training.interactions import Interactions
from training.queries import Queries
from training.views import View

_BLOCK_ROWS, _BLOCK_QUERIES = 512, 4096
"""Items encoded at a time, and queries ranked at a time."""
_BLOCK_EVENTS = 1 << 14
"""History events encoded at a time: a transformer keeps some ten numbers by dimension of each, and 100 weights a head."""


def rank_queries(
    scores: Fill | DotProducts,
    queries: Queries,
    k: int,
    *,
    masked: bool,
    allowed_I: NDArray[np.bool_],
    label: str = "",
    device: torch.device | str = "cpu",
) -> TopK:
    """The k best items of each query.

    Args:
        scores: a model's vectors, or what writes the scores of a slice of queries.
        masked: leave out what each query's user has seen.
        allowed_I: items that may be recommended.
        label: names the progress bar on standard error; "" = no bar.
        device: where scores are written.
    """
    rows_Qk = np.empty((len(queries), k), np.int32)
    scores_Qk = np.empty((len(queries), k), np.float32)
    for block in _blocks(len(queries), label, _BLOCK_QUERIES):
        seen = queries.seen_items(block) if masked else None
        if isinstance(scores, DotProducts):
            top = rank_products(scores.part(block), k, seen, allowed_I)
        else:
            part = _from(scores, block.start)
            top = rank(part, block.stop - block.start, queries.data.n_items, k, seen, allowed_I, device=device)
        rows_Qk[block], scores_Qk[block] = top.rows_Qk, top.scores_Qk
    return TopK(rows_Qk, scores_Qk)


def _from(fill: Fill, start: int) -> Fill:
    """`fill` for the queries from `start` on."""
    return lambda queries, out_BI: fill(slice(start + queries.start, start + queries.stop), out_BI)


def encode_items(runtime: Runtime, data: Interactions, rows: NDArray[np.int64] | None = None) -> NDArray[np.float32]:
    """Vectors of the whole catalogue, or of some of its rows: float32 [I, D]."""
    wanted = np.arange(data.n_items) if rows is None else rows
    return np.concatenate([runtime.item(take(data.item_features, wanted[block])) for block in _blocks(len(wanted))])


def encode_users(runtime: Runtime, queries: Queries, length: int, label: str = "", view: View | None = None) -> NDArray[np.float32]:
    """Vectors of all queries: float32 [Q, H, D].

    Queries with histories about as long are encoded together, in no more columns than they need.

    Args:
        length: history events the user tower takes.
        label: names the progress bar on standard error; "" = no bar.
        view: what is kept from the tower; None = nothing.
    """
    length_Q = np.clip(queries.history_Q, 1, length)
    order_Q = np.argsort(length_Q, kind="stable")
    parts = []
    for block in _blocks(len(queries), label, max(1, _BLOCK_EVENTS // length)):
        rows_B = order_Q[block]
        parts.append(runtime.user(_inputs(queries.take(rows_B), int(length_Q[rows_B].max()), view)).vectors_BHD)
    vectors_QHD = np.concatenate(parts)
    vectors_QHD[order_Q] = vectors_QHD.copy()
    return vectors_QHD


def _inputs(queries: Queries, length: int, view: View | None) -> dict[str, NDArray[np.generic]]:
    inputs = queries.inputs(slice(0, len(queries)), length)
    return inputs if view is None else view.apply(inputs, queries.data.preprocessor)


def _blocks(rows: int, label: str = "", size: int = _BLOCK_ROWS) -> "tqdm[slice]":
    blocks = [slice(start, min(rows, start + size)) for start in range(0, rows, size)]
    return tqdm(blocks, desc=label, file=sys.stderr, disable=not (label and sys.stderr.isatty()), leave=False)
