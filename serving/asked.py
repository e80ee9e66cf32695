"""Who asks, as the search and the log of impressions need to know."""

import time
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from serving.decoding import microseconds
from serving.messages import Asker
from serving.profiles import Profiles
from serving.signals import NOTHING_KNOWN, Signals
from serving.user_state import StoredUser
from towers.batch import UserParts
from towers.consent import BITS, EVERYTHING, MEASURE, PERSONALIZE
from towers.encoder import UserRow
from towers.schema import Schema

USED, NO_PROFILE, NOT_WANTED, NO_CONSENT = "used", "none", "not_wanted", "no_consent"
_NOTHING = np.empty(0, np.int64)


class Known(NamedTuple):
    """Who asked and when, and what stored events were read.

    Attributes:
        user_key: None where nobody was named.
        now: microseconds UTC.
        arrived: number of the last live event that was stored for the user; later ones came after the list. None = all there are.
        consent: bits of the purposes that the user allowed; see `towers.consent.BITS`.
    """

    user_key: bytes | None
    now: int
    arrived: int | None
    consent: int = EVERYTHING

    @property
    def logged_key(self) -> bytes | None:
        """The key that a log may hold."""
        return self.user_key if self.consent & BITS[MEASURE] else None


class Asked(NamedTuple):
    """Who asks, ready for a search.

    Attributes:
        mode, reason, unknown_items: see `Signals`.
        profile: see `messages.Recommendations`.
        known: who asked and when.
        excluded: rows left out.
        vectors_BHD: a vector for each context asked for; None under a fallback.
        signals: what is known of them.
        rows: what the vectors are of.
        parts: what they are the sums of, where reasons are wanted and the tower tells.
        away: for each vector, the directions that were taken out of it; see serving.steering.
        last: rows that come after all others where no vector orders the list; see serving.steering.
    """

    mode: str
    reason: str
    unknown_items: int
    profile: str
    known: Known
    excluded: NDArray[np.int64]
    vectors_BHD: NDArray[np.float32] | None
    signals: Signals
    rows: Sequence[UserRow] = ()
    parts: UserParts | None = None
    away: Sequence[NDArray[np.float32]] = ()
    last: NDArray[np.int64] = _NOTHING


def look_up(request: Asker, profiles: Profiles, schema: Schema, known: Known | None) -> tuple[Known, StoredUser | None, str]:
    """Who asks and when, what is stored of them, and what became of it (`messages.Recommendations.profile`).

    Args:
        schema: the model's.
        known: of a list that is computed again; None = as the request says, and now.

    Raises:
        RequestError: an absurd time.
    """
    if known is None:
        now = time.time_ns() // 1000 if request.now is None else microseconds("now", request.now)
        named = request.user_id is not None and request.personalize
        key, arrived = profiles.keys.key(request.user_id) if named and request.user_id is not None else None, None
        consent = EVERYTHING if key is None else profiles.standing.mask(key)
    else:
        key, now, arrived, consent = known
    if key is None or not consent & BITS[PERSONALIZE]:
        return Known(key, now, 0, consent), None, NOT_WANTED if not request.personalize else NO_CONSENT if key is not None else NO_PROFILE
    stored, last = profiles.get(key, schema.order, now, arrived, [f.name for f in schema.in_history])
    return Known(key, now, last, consent), stored, NO_PROFILE if stored is None else USED


def reason_of(signals: Signals, profile: str) -> str:
    """Why the fallback: where a profile may not be read, that is the reason for there being nothing to go by."""
    return profile if signals.reason in NOTHING_KNOWN and profile in (NOT_WANTED, NO_CONSENT) else signals.reason
