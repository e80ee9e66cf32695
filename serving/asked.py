"""Who asks, as the search and the log of impressions need to know."""

import time
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from serving.decoding import microseconds
from serving.messages import Asker
from serving.profiles import Profiles
from serving.user_state import StoredUser


class Known(NamedTuple):
    """Who asked and when, and what stored events were read.

    Attributes:
        user_key: None where nobody was named.
        now: microseconds UTC.
        arrived: number of the last live event that was stored for the user; later ones came after the list. None = all there are.
    """

    user_key: bytes | None
    now: int
    arrived: int | None


@dataclass(frozen=True, slots=True)
class Asked:
    """Who asks, ready for a search.

    Attributes:
        mode, reason, unknown_items: see `Signals`.
        known: who asked and when.
        excluded: rows left out, ascending.
        vectors_BHD: a vector for each context asked for; None under a fallback.
    """

    mode: str
    reason: str
    unknown_items: int
    known: Known
    excluded: NDArray[np.int64]
    vectors_BHD: NDArray[np.float32] | None


def look_up(request: Asker, profiles: Profiles, order: str, known: Known | None) -> tuple[Known, StoredUser | None]:
    """Who asks and when, and what is stored of them.

    Args:
        order: the schema's.
        known: of a list that is computed again; None = as the request says, and now.

    Raises:
        RequestError: an absurd time.
    """
    if known is None:
        now = time.time_ns() // 1000 if request.now is None else microseconds("now", request.now)
        key, arrived = None if request.user_id is None else profiles.keys.key(request.user_id), None
    else:
        key, now, arrived = known
    if key is None:
        return Known(None, now, 0), None
    stored, last = profiles.get(key, order, now, arrived)
    return Known(key, now, last), stored
