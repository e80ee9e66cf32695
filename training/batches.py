"""From prepared columns to the user tower's inputs: the one function that the training loader and the evaluation share.

Legend: B rows, L history length.
"""

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from towers import history
from towers.batch import HISTORY_AGE, HISTORY_EVENT, HISTORY_GAP, HISTORY_ITEM, event_context
from towers.columns import NO_TIME
from training.interactions import Interactions


def user_inputs(
    data: Interactions,
    users_B: NDArray[np.integer],
    ends_B: NDArray[np.integer],
    now_B: NDArray[np.int64] | None,
    context: Mapping[str, NDArray[np.generic]],
    length: int,
    index_BL: NDArray[np.int64] | None = None,
) -> dict[str, NDArray[np.generic]]:
    """What the user tower reads for B (user, moment) pairs; the history is strictly before the moment.

    Args:
        data: the prepared interactions.
        users_B: user rows.
        ends_B: absolute row of the prepared columns where each history ends, itself excluded: `offsets[user] + position`.
        now_B: moment of the request in UTC microseconds; None or NO_TIME = unknown, and the ages are then unknown.
        context: encoded context inputs by input name (`context.hour`), passed through as they are.
        length: most recent events kept.
        index_BL: rows of the prepared columns to use as history instead of the newest `length` before `ends_B`; -1 = padding.

    Returns:
        `history.item`, `history.event`, `history.age`, `history.gap` and what events keep of their context (int32 [B, L], right-aligned,
        0 = padding), the user features of `users_B` and the given context.
    """
    if index_BL is None:
        index_BL, mask_BL = history.gather(data.offsets[users_B], np.asarray(ends_B, np.int64), length)
    else:
        mask_BL = index_BL >= 0
    safe_BL = np.where(mask_BL, index_BL, 0)
    now_B = np.full(len(users_B), NO_TIME, np.int64) if now_B is None else np.asarray(now_B, np.int64)
    timed = data.schema.order, now_B, data.timestamp[safe_BL], mask_BL
    id_rows_I = data.item_features["item.item_id"]
    batch: dict[str, NDArray[np.generic]] = {
        HISTORY_ITEM: _masked(id_rows_I[data.item[safe_BL]], mask_BL),
        HISTORY_EVENT: _masked(data.event[safe_BL], mask_BL),
        HISTORY_AGE: history.ages(*timed),
        HISTORY_GAP: history.gaps(*timed),
    }
    for f in data.schema.in_history:
        batch[event_context(f.name)] = history.kept_context(np.asarray(data.context[f.input_name][safe_BL], np.int32), mask_BL)
    batch.update({name: array[users_B] for name, array in data.user_features.items()})
    batch.update(context)
    return batch


def _masked(rows_BL: NDArray[np.generic], mask_BL: NDArray[np.bool_]) -> NDArray[np.int32]:
    return np.where(mask_BL, rows_BL, 0).astype(np.int32)
