"""Who asks, as the search and the log of impressions need to know."""

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray


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
