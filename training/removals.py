"""What people took out of their histories: an event of the reserved type takes its user's earlier events with its item along.

Legend: n records of a bucket.
"""

import numpy as np
from numpy.typing import NDArray

from training.spill import Records, user_starts


def taken_out(sorted_n: Records, removal: int) -> NDArray[np.bool_]:
    """Which records of a sorted bucket are no part of a history: removals, and what comes before one of the same user and item.

    Args:
        sorted_n: in the order of histories; see `sort_bucket`.
        removal: code of the event type REMOVAL; -1 where the log has none.
    """
    place_n = np.arange(len(sorted_n))
    removing = np.flatnonzero(sorted_n["event"] == removal)
    if not len(removing):
        return np.zeros(len(sorted_n), np.bool_)
    starts = user_starts(sorted_n)
    user_n = np.repeat(np.arange(len(starts) - 1), np.diff(starts))
    _, pair_n = np.unique((user_n << 32) | sorted_n["item"], return_inverse=True)
    last = np.full(len(sorted_n), -1)
    last[pair_n[removing]] = removing  # of several, the last assigned stays, and they ascend
    return np.asarray(place_n <= last[pair_n])
