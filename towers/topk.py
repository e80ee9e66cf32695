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

from towers.errors import DataError

Csr = tuple[NDArray[np.int64], NDArray[np.integer]]
"""Rows of a ragged table: (offsets [Q + 1], values); those of query q are `values[offsets[q]:offsets[q + 1]]`."""

Fill = Callable[[slice, Tensor], None]
"""`fill(queries, out_BI)` writes the float32 scores of a block of queries in place."""

_BLOCK_FLOATS = 8_000_000
"""Scores of a block (32 MB): large enough for the matrix product to run at full speed, small enough for any machine."""
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
) -> TopK:
    """The k items of greatest dot product for each query: score descending, then item row ascending.

    Runs on the device of `item_ID`, in float32.

    Args:
        user_QD: query vectors, [Q, D] or [Q, H, D]; with heads, an item's score is its greatest over the heads.
        item_ID: item vectors [I, D].
        k: how many; where fewer items remain the result is padded with row -1 and score -inf.
        excluded: items that each query must not get (its seen items).
        allowed_I: items that may be recommended at all.
        block: queries scored at a time; 0 = as many as 32 MB of scores hold.

    Raises:
        DataError: vectors are not finite, or their shapes do not fit.

    >>> user, items = np.ones((1, 1), np.float32), np.array([[1], [3], [3], [2]], np.float32)
    >>> exact_topk(user, items, k=3).rows_Qk.tolist()
    [[1, 2, 3]]
    >>> exact_topk(user, items, k=3, excluded=(np.array([0, 2]), np.array([1, 3]))).rows_Qk.tolist()
    [[2, 0, -1]]
    """
    item = torch.as_tensor(item_ID)
    return rank(dot_products(user_QD, item), len(user_QD), len(item), k, excluded, allowed_I, block, item.device)


def dot_products(user_QD: Tensor | NDArray[np.float32], item_ID: Tensor | NDArray[np.float32]) -> Fill:
    """A model's scores as `rank` takes them; the arguments and errors of `exact_topk`."""
    item = torch.as_tensor(item_ID).detach().float()
    user = torch.as_tensor(user_QD).detach().to(item.device).float()
    if item.ndim != 2 or user.ndim not in (2, 3) or user.shape[-1] != item.shape[-1]:
        raise DataError(f"user vectors {tuple(user.shape)} and item vectors {tuple(item.shape)}: expected [Q, D] or [Q, H, D] and [I, D]")
    for name, vectors in (("user", user), ("item", item)):
        bad = int((~torch.isfinite(vectors)).flatten(1).any(1).sum())
        if bad:
            raise DataError(f"{bad} of {len(vectors)} {name} vectors hold NaN or infinity, so nothing can be ranked. Did training diverge?")
    if user.ndim == 3 and user.shape[1] == 1:
        user = user[:, 0]
    item_DI = item.T

    def fill(queries: slice, out_BI: Tensor) -> None:
        if user.ndim == 2:
            torch.mm(user[queries], item_DI, out=out_BI)
        else:
            torch.amax(user[queries] @ item_DI, dim=1, out=out_BI)

    return fill


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
    """`exact_topk` for any scores, a block of queries at a time.

    Raises:
        DataError: a score is NaN, k is below 1, or an excluded row is not an item.
    """
    if k < 1:
        raise DataError(f"k: got {k}, expected at least 1")
    _check_excluded(excluded, queries, items)
    group = _group_size(items, k)
    groups = -(-items // group)
    block = block or max(1, min(queries, _BLOCK_FLOATS // max(1, items)))
    banned = None if allowed_I is None else torch.as_tensor(np.flatnonzero(~np.asarray(allowed_I, bool)), device=device)
    buffer = torch.full((block, groups * group), -torch.inf, device=device)
    rows_Qk = np.full((queries, k), -1, np.int32)
    scores_Qk = np.full((queries, k), -np.inf, np.float32)
    found = min(k, items)
    for start in range(0, queries, block):
        stop = min(queries, start + block)
        scores_BI = buffer[: stop - start]
        fill(slice(start, stop), scores_BI[:, :items])
        if banned is not None and len(banned):
            scores_BI.index_fill_(1, banned, -torch.inf)
        if excluded is not None:
            _mask(scores_BI, excluded, start, stop)
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


def _mask(scores_BI: Tensor, excluded: Csr, start: int, stop: int) -> None:
    offsets, rows = excluded
    low, high = int(offsets[start]), int(offsets[stop])
    query = np.repeat(np.arange(stop - start), np.diff(offsets[start : stop + 1]))
    flat = query * scores_BI.shape[1] + np.asarray(rows[low:high], np.int64)
    scores_BI.view(-1)[torch.as_tensor(flat, device=scores_BI.device)] = -torch.inf


def _group_size(items: int, k: int) -> int:
    """About sqrt(I / k), a power of two; 1 (no groups) where grouping would not leave out half of the items."""
    group = 1 << max(0, round(float(np.log2(max(1.0, items / k))) / 2))
    return group if 2 * k * group < items else 1


def _check_excluded(excluded: Csr | None, queries: int, items: int) -> None:
    if excluded is None:
        return
    offsets, rows = excluded
    if len(offsets) != queries + 1:
        raise DataError(f"excluded: got offsets for {len(offsets) - 1} queries, expected {queries}")
    if len(rows) and not 0 <= int(np.min(rows)) <= int(np.max(rows)) < items:
        raise DataError(f"excluded: rows reach from {int(np.min(rows))} to {int(np.max(rows))}, expected 0 to {items - 1}")
