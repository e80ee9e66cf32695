"""Point-in-time history: which events a tower sees, and how old they are. The only code that decides it.

Histories are right-aligned: the newest event stands in the last of L columns, padding before the oldest.
"""

import numpy as np
from numpy.typing import NDArray

from towers.columns import FIRST_ROW, NO_TIME, PAD_ROW

AGE_ROWS = 32
"""Rows of an age table: 0 padding, 1 unknown, then one per power of two."""
REPEAT_ROWS = 12
"""Rows of a table of repeats: 0 padding, then one per power of two."""

_MICROSECONDS_A_MINUTE = 60_000_000

_AGES = np.array([NO_TIME + 1, *(((1 << power) - 1) * _MICROSECONDS_A_MINUTE for power in range(1, AGE_ROWS - 2))])
"""The least age in microseconds of each row from 2 on; below the first is NO_TIME, which stands for an unknown age."""


def gather(starts_B: NDArray[np.int64], ends_B: NDArray[np.int64], length: int) -> tuple[NDArray[np.int64], NDArray[np.bool_]]:
    """Positions of the last `length` events before each end.

    Args:
        starts_B: first position of each row's user in the user-sorted columns.
        ends_B: one past the newest event allowed (events strictly before a target at position p: p itself).
        length: L.

    Returns:
        index_BL int64, clipped to valid positions where masked; mask_BL, True where there is an event.
    """
    index_BL = np.asarray(ends_B, np.int64)[:, None] + np.arange(-length, 0, dtype=np.int64)
    mask_BL = index_BL >= np.asarray(starts_B, np.int64)[:, None]
    return np.where(mask_BL, index_BL, 0), mask_BL


def ages(order: str, now_B: NDArray[np.int64], then_BL: NDArray[np.int64], mask_BL: NDArray[np.bool_]) -> NDArray[np.int32]:
    """Age rows of history events: by time where there is time, by count of events where there is only order.

    Args:
        order: `time`, `position` or `set`.
        now_B: time of the request or target, microseconds UTC, NO_TIME where unknown.
        then_BL: times of the events.
        mask_BL: True where there is an event.

    Returns:
        int32 [B, L]: 0 padding, 1 unknown (always for `set`), else 2 + floor(log2(1 + age)), the age in minutes (`time`) or in
        events since (`position`), at most AGE_ROWS - 1. An event later than now counts as age 0.
    """
    if order == "time":
        rows_BL = _age_rows(now_B[:, None], then_BL)
    elif order == "position":
        length = mask_BL.shape[1]
        since_L = np.arange(length - 1, -1, -1)
        rows_BL = np.broadcast_to(np.minimum(2 + np.log2(1.0 + since_L).astype(np.int32), AGE_ROWS - 1), mask_BL.shape)
    else:
        rows_BL = np.ones(mask_BL.shape, np.int32)
    return (rows_BL * mask_BL).astype(np.int32)


def gaps(order: str, now_B: NDArray[np.int64], then_BL: NDArray[np.int64], mask_BL: NDArray[np.bool_]) -> NDArray[np.int32]:
    """Gap rows of history events: the time from each to the one after it, from the newest to the request.

    Where a history is a prefix of another, the request stands in the place of the event after it, so both say the same of the prefix.

    Args: as for `ages`.

    Returns:
        int32 [B, L]: 0 padding, 1 unknown (always without times), else as the ages by time.
    """
    if order != "time":
        return mask_BL.astype(np.int32)
    after_BL = np.concatenate([then_BL[:, 1:], now_B[:, None]], axis=1)
    return (_age_rows(after_BL, then_BL) * mask_BL).astype(np.int32)


def repeats(item_BL: NDArray[np.generic]) -> NDArray[np.int32]:
    """Repeat rows of history events: 0 padding, else 1 + floor(log2(events of the history with the same item)), at most REPEAT_ROWS - 1.

    Unknown items share a row and may all differ, so each of them counts as the only one.

    >>> repeats(np.array([[0, 5, 7, 5, 5], [0, 0, 1, 1, 5]])).tolist()
    [[0, 2, 1, 2, 2], [0, 0, 1, 1, 1]]
    """
    held_BL = item_BL != PAD_ROW
    row_N, item_N = np.nonzero(held_BL)[0], item_BL[held_BL].astype(np.int64)
    _, place_N, count_M = np.unique(row_N * (item_N.max(initial=0) + 1) + item_N, return_inverse=True, return_counts=True)
    rows_BL = np.zeros(item_BL.shape, np.int32)
    repeat_N = np.minimum(1 + np.log2(count_M).astype(np.int32), REPEAT_ROWS - 1)[place_N]
    rows_BL[held_BL] = np.where(item_N < FIRST_ROW, 1, repeat_N)
    return rows_BL


def kept_context(rows_BL: NDArray[np.integer], mask_BL: NDArray[np.bool_]) -> NDArray[np.int32]:
    """What events keep of a categorical context feature: its vocabulary's rows, 0 where there is no event or its value is unknown."""
    return np.where(mask_BL & (rows_BL >= FIRST_ROW), rows_BL, 0).astype(np.int32)


def _age_rows(later: NDArray[np.int64], then_BL: NDArray[np.int64]) -> NDArray[np.int64]:
    """2 + floor(log2(1 + minutes from then to later)), at most AGE_ROWS - 1; 1 where either is unknown."""
    unknown_BL = (then_BL == NO_TIME) | (later == NO_TIME)
    return 1 + np.searchsorted(_AGES, np.where(unknown_BL, NO_TIME, later - then_BL), side="right")
