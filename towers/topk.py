"""Exact ranking: every item scored for every query, the best k kept, ties broken by row.

Legend: Q queries, B queries of a block, I items, H heads (interests), D dimensions, G items of a group, N groups.

The k best of a row of I scores are found through the maxima of contiguous groups of about sqrt(I / k) items: an item among the
best k lies in one of the k groups that come first by (maximum descending, position ascending), because each group before
its own holds an item that comes before it. So one pass over the scores takes maxima, and only I / G + k * G numbers are
ordered. Ordering is by one int64 key, made of the score's bits and the row, hence exact for any number of ties.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from towers.dot_products import DotProducts, Finder, dot_products
from towers.errors import DataError

Csr = tuple[NDArray[np.int64], NDArray[np.integer]]
"""Rows of a ragged table: (offsets [Q + 1], values); those of query q are `values[offsets[q]:offsets[q + 1]]`."""

Fill = Callable[[slice, Tensor], None]
"""`fill(queries, out_BI)` writes the float32 scores of a block of queries in place."""

_BLOCK_FLOATS = 8_000_000
"""Scores of a block (32 MB): large enough for the matrix product to run at full speed, small enough for any machine."""
_BLOCK_SCORES, _FEWEST_QUERIES = 5_000_000, 32
"""Approximate scores of a block; and its fewest queries, below which the product would be slow."""
_LOW_32 = 0xFFFFFFFF


@dataclass(frozen=True)
class TopK:
    """The best items of each query, best first.

    Attributes:
        rows_Qk: int32 item rows; -1 where fewer than k items may be recommended.
        scores_Qk: float32 scores; -inf where the row is -1.
    """

    rows_Qk: NDArray[np.int32]
    scores_Qk: NDArray[np.float32]


def exact_topk(
    user_QD: Tensor | NDArray[np.float32],
    item_ID: Tensor | NDArray[np.float32],
    k: int,
    excluded: Csr | None = None,
    allowed_I: NDArray[np.bool_] | None = None,
    block: int = 0,
    half: bool = False,
) -> TopK:
    """The k items of greatest dot product for each query: score descending, then item row ascending.

    Runs on the device of `item_ID`. Scores are dot products summed in float64 and rounded to float32.

    Args:
        user_QD: query vectors, [Q, D] or [Q, H, D]; with heads, an item's score is its greatest over the heads.
        item_ID: item vectors [I, D].
        k: how many; where fewer items remain the result is padded with row -1 and score -inf.
        excluded: items that each query must not get (its seen items).
        allowed_I: items that may be recommended at all.
        block: queries scored at a time; 0 = as many as stay near the processor.
        half: find candidates with bf16 products, where the processor has them; the result is the same.

    Raises:
        DataError: vectors are not finite, their products overflow, or their shapes do not fit.

    >>> user, items = np.ones((1, 1), np.float32), np.array([[1], [3], [3], [2]], np.float32)
    >>> exact_topk(user, items, k=3).rows_Qk.tolist()
    [[1, 2, 3]]
    >>> exact_topk(user, items, k=3, excluded=(np.array([0, 2]), np.array([1, 3]))).rows_Qk.tolist()
    [[2, 0, -1]]
    """
    return rank_products(dot_products(user_QD, item_ID, half), k, excluded, allowed_I, block)


def rank_products(
    products: DotProducts, k: int, excluded: Csr | None = None, allowed_I: NDArray[np.bool_] | None = None, block: int = 0
) -> TopK:
    """`exact_topk` of checked vectors: candidates by approximate products, ordered by exact scores (see towers.dot_products).

    Raises:
        DataError: k is below 1, or an excluded row is not an item.
    """
    queries, items, device = len(products), len(products.item_ID), products.item_ID.device
    _check(k, excluded, queries, items)
    rows_Qk, scores_Qk = _nothing(queries, k)
    block = block or max(_FEWEST_QUERIES, _BLOCK_SCORES // max(1, items * products.user_QHD.shape[1]))
    finder = Finder(products, k, max(1, min(block, queries)))
    banned, found = _banned(allowed_I, device), min(k, items)
    for start in range(0, queries, block):
        stop = min(queries, start + block)
        part = slice(start, stop)
        scores_BW = finder.approximate(part)
        _mask(scores_BW, banned, excluded, start, stop)
        query_P, item_P = finder.candidates(part, scores_BW)
        table = _padded(query_P, item_P, finder.exact(part, query_P, item_P), stop - start, found)
        rows, scores = _first(*table, found)
        rows_Qk[start:stop, :found] = torch.where(torch.isneginf(scores), -1, rows).cpu().numpy()
        scores_Qk[start:stop, :found] = scores.cpu().numpy()
    return TopK(rows_Qk, scores_Qk)


def rank(
    fill: Fill,
    queries: int,
    items: int,
    k: int,
    excluded: Csr | None = None,
    allowed_I: NDArray[np.bool_] | None = None,
    block: int = 0,
    device: torch.device | str = "cpu",
) -> TopK:
    """The k best of any scores, a block of queries at a time: score descending, then row ascending.

    Raises:
        DataError: a score is NaN, k is below 1, or an excluded row is not an item.
    """
    _check(k, excluded, queries, items)
    group = _group_size(items, k)
    groups = -(-items // group)
    block = block or max(1, min(queries, _BLOCK_FLOATS // max(1, items)))
    banned = _banned(allowed_I, device)
    buffer = torch.full((block, groups * group), -torch.inf, device=device)
    rows_Qk, scores_Qk = _nothing(queries, k)
    found = min(k, items)
    for start in range(0, queries, block):
        stop = min(queries, start + block)
        scores_BI = buffer[: stop - start]
        fill(slice(start, stop), scores_BI[:, :items])
        _mask(scores_BI, banned, excluded, start, stop)
        rows, scores = _select(scores_BI, found, group)
        rows_Qk[start:stop, :found] = rows.cpu().numpy()
        scores_Qk[start:stop, :found] = scores.cpu().numpy()
    return TopK(rows_Qk, scores_Qk)


def _select(scores_BI: Tensor, k: int, group: int) -> tuple[Tensor, Tensor]:
    """Rows and scores of the k best columns of each row; -inf columns come out as row -1."""
    scores_BNG = scores_BI.view(len(scores_BI), -1, group)
    maxima_BN = scores_BNG.amax(dim=2) if group > 1 else scores_BI
    if bool(torch.isnan(maxima_BN).any()):
        raise DataError("a score is NaN: the vectors' dot products overflow")
    positions_BN, _ = _first(maxima_BN, None, min(k, maxima_BN.shape[1]))
    if group == 1:
        rows_Bk, scores_Bk = positions_BN, maxima_BN.gather(1, positions_BN)
    else:
        within_G = torch.arange(group, device=scores_BI.device)
        candidates_BC = (positions_BN.unsqueeze(2) * group + within_G).flatten(1)
        rows_Bk, scores_Bk = _first(scores_BI.gather(1, candidates_BC), candidates_BC, k)
    return torch.where(torch.isneginf(scores_Bk), -1, rows_Bk), scores_Bk


def _first(scores_BC: Tensor, rows_BC: Tensor | None, k: int) -> tuple[Tensor, Tensor]:
    """The k first of each row by (score descending, row ascending): their rows and scores. `rows_BC` None = columns."""
    # A float's bits, read as an integer, order like the float where it is positive and backwards where it is negative;
    # adding 0 turns -0.0 into 0.0, which must tie with it.
    bits = (scores_BC + 0.0).view(torch.int32)
    ordered = torch.where(bits < 0, bits ^ 0x7FFFFFFF, bits).long()
    rows = torch.arange(scores_BC.shape[1], device=scores_BC.device) if rows_BC is None else rows_BC
    best = torch.topk(ordered * (_LOW_32 + 1) + (_LOW_32 - rows), k, dim=1).values
    high = (best >> 32).int()
    return _LOW_32 - (best & _LOW_32), torch.where(high < 0, high ^ 0x7FFFFFFF, high).view(torch.float32)


def _mask(scores_BI: Tensor, banned: Tensor | None, excluded: Csr | None, start: int, stop: int) -> None:
    if banned is not None and len(banned):
        scores_BI.index_fill_(1, banned, -torch.inf)
    if excluded is None:
        return
    offsets, rows = excluded
    low, high = int(offsets[start]), int(offsets[stop])
    query = np.repeat(np.arange(stop - start), np.diff(offsets[start : stop + 1]))
    flat = query * scores_BI.shape[1] + np.asarray(rows[low:high], np.int64)
    scores_BI.view(-1)[torch.as_tensor(flat, device=scores_BI.device)] = -torch.inf


def _banned(allowed_I: NDArray[np.bool_] | None, device: torch.device | str) -> Tensor | None:
    return None if allowed_I is None else torch.as_tensor(np.flatnonzero(~np.asarray(allowed_I, bool)), device=device)


def _nothing(queries: int, k: int) -> tuple[NDArray[np.int32], NDArray[np.float32]]:
    return np.full((queries, k), -1, np.int32), np.full((queries, k), -np.inf, np.float32)


def _padded(query_P: Tensor, item_P: Tensor, score_P: Tensor, queries: int, least: int) -> tuple[Tensor, Tensor]:
    """Pairs, ordered by query, as a table: scores (-inf where a query has no more) and items, [B, at least `least`]."""
    count_B = torch.bincount(query_P, minlength=queries)
    width = max(least, int(count_B.max()) if len(query_P) else 0)
    place_P = torch.arange(len(query_P), device=query_P.device) - (count_B.cumsum(0) - count_B)[query_P]
    scores = torch.full((queries, width), -torch.inf, device=query_P.device)
    items = torch.zeros((queries, width), dtype=torch.long, device=query_P.device)
    scores[query_P, place_P], items[query_P, place_P] = score_P, item_P
    return scores, items


def _group_size(items: int, k: int) -> int:
    """About sqrt(I / k), a power of two; 1 (no groups) where grouping would not leave out half of the items."""
    group = 1 << max(0, round(float(np.log2(max(1.0, items / k))) / 2))
    return group if 2 * k * group < items else 1


def _check(k: int, excluded: Csr | None, queries: int, items: int) -> None:
    if k < 1:
        raise DataError(f"k: got {k}, expected at least 1")
    if excluded is None:
        return
    offsets, rows = excluded
    if len(offsets) != queries + 1:
        raise DataError(f"excluded: got offsets for {len(offsets) - 1} queries, expected {queries}")
    if len(rows) and not 0 <= int(np.min(rows)) <= int(np.max(rows)) < items:
        raise DataError(f"excluded: rows reach from {int(np.min(rows))} to {int(np.max(rows))}, expected 0 to {items - 1}")
