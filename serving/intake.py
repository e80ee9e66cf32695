"""Live events as callers send them, checked and made ready to be stored."""

import hashlib
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

import msgspec
import numpy as np

from serving.bounds import Limits
from serving.decoding import microseconds
from serving.events import StoredEvent
from serving.messages import Event, EventsAdded, EventsRequest
from serving.profiles import Profiles
from serving.signals import check_context, check_types
from serving.standing import Standing
from towers.columns import DEFAULT_EVENT_TYPE, FIRST_ROW, ITEM_ID, REMOVAL
from towers.consent import BITS, MEASURE, PERSONALIZE, TRAIN
from towers.errors import RequestError
from towers.preprocess import Preprocessor

CLOCK_SKEW_S = 300
"""An event may lie this far ahead of the server's clock; the clocks of callers differ."""

_JSON = msgspec.json.Encoder()
_USES = BITS[PERSONALIZE] | BITS[TRAIN] | BITS[MEASURE]
"""What an event can be of use for: a person who allows none of it leaves none."""


def add_events(request: EventsRequest, profiles: Profiles, preprocessor: Preprocessor, limits: Limits) -> EventsAdded:
    """Store what people did.

    Raises:
        RequestError: names the field at fault; nothing was stored.
    """
    if len(request.events) > limits.max_events:
        raise RequestError("events", f"got {len(request.events)}, expected at most {limits.max_events} at once")
    now = time.time_ns() // 1000
    events = stored_events(request.events, profiles.keys.key, preprocessor, now, limits)

    def settled(event: StoredEvent) -> StoredEvent | None:
        return _tied_to_no_list(event, profiles.standing) if _may_be_kept(event, profiles.standing, now) else None

    kept = [event for event in events if _may_be_kept(event, profiles.standing, now)]
    kept = [_after_all(event, kept[:at], profiles, now) if event.event_type == REMOVAL else event for at, event in enumerate(kept)]
    # asked again where it is written: a store that was busy until now may have been so for longer than a removal waits for requests
    added = profiles.events.append(kept, now, settled) if kept else 0
    unknown = np.count_nonzero(preprocessor.vocabularies[ITEM_ID].rows([event.item_id for event in events]) < FIRST_ROW)
    return EventsAdded(added, len(events) - added, int(unknown))


def stored_events(
    events: Sequence[Event], key: Callable[[str], bytes], preprocessor: Preprocessor, now: int, limits: Limits
) -> list[StoredEvent]:
    """What a store is given; items that the model does not know are taken, as they are in histories: they may be known tomorrow.

    Args:
        key: makes the user's key.
        now: microseconds UTC.
        limits: of one request.

    Raises:
        RequestError: an event type that the model does not know, a time in the future, context that does not fit, or an event that would
            count twice when it is sent again; names the field. No event is to be stored then.
    """
    check_types([(f"events[{i}].event_type", e.event_type) for i, e in enumerate(events) if e.event_type != REMOVAL], preprocessor)
    return [_stored(f"events[{i}]", event, key(event.user_id), preprocessor, now, limits) for i, event in enumerate(events)]


def _stored(field: str, event: Event, user_key: bytes, preprocessor: Preprocessor, now: int, limits: Limits) -> StoredEvent:
    if event.timestamp is None and event.event_id is None:
        raise RequestError(
            f"{field}.event_id", "an event has an event_id or a timestamp or both; sent again without either, it would count twice"
        )
    time = now if event.timestamp is None else microseconds(f"{field}.timestamp", event.timestamp)
    if time > now + CLOCK_SKEW_S * 1_000_000:
        raise RequestError(f"{field}.timestamp", f"lies {(time - now) / 1e6:,.0f} s in the future, expected at most {CLOCK_SKEW_S}")
    _check_context(field, event.context, preprocessor, limits)
    kind = event.event_type or DEFAULT_EVENT_TYPE
    event_id = event.event_id or hashlib.blake2b(f"{time}\n{kind}\n{event.item_id}".encode(), digest_size=16).hexdigest()
    facts = {name: value for name in ("value", "session_id", "channel") if (value := getattr(event, name)) is not None}
    facts |= {"context": event.context} if event.context else {}
    told = _JSON.encode(facts).decode() if facts else None
    return StoredEvent(user_key, event_id, event.item_id, kind, time, event.recommendation_id, told)


def _after_all(removal: StoredEvent, before: Sequence[StoredEvent], profiles: Profiles, now: int) -> StoredEvent:
    """A removal of this moment, not earlier than anything known of its user and item: clocks may be ahead of the server's, those of callers
    by minutes, that of a log by hours."""
    if removal.timestamp < now:
        return removal
    known = [event.timestamp for event in before if event.user_key == removal.user_key]
    for history in (profiles.stored(removal.user_key), profiles.events.history(removal.user_key, now)):
        if history is not None:
            known += [time for time, item in zip(history.timestamps, history.items, strict=True) if item == removal.item_id]
    return replace(removal, timestamp=max([removal.timestamp, *known]))


def _may_be_kept(event: StoredEvent, standing: Standing, arrived: int) -> bool:
    """Its user allows some use of it, and has not asked to forget the time it is of; nothing was done later than it arrived."""
    forgotten = standing.forgotten(event.user_key)
    # a removal is of use even to somebody who allows nothing now: what he removed stays out should he allow it again
    of_use = event.event_type == REMOVAL or standing.mask(event.user_key) & _USES
    return bool(of_use) and (forgotten is None or min(event.timestamp, arrived) > forgotten)


def _tied_to_no_list(event: StoredEvent, standing: Standing) -> StoredEvent:
    """Without the list that it answers where its user may not be measured: that list was noted without a key, and this would tell whose."""
    if event.recommendation_id is None or standing.mask(event.user_key) & BITS[MEASURE]:
        return event
    return replace(event, recommendation_id=None)


def _check_context(field: str, context: Mapping[str, object], preprocessor: Preprocessor, limits: Limits) -> None:
    if not context:
        return
    try:
        check_context(context, preprocessor, limits)
        preprocessor.encode("context", {name: [value] for name, value in context.items()}, 1)
    except RequestError as error:
        raise RequestError(f"{field}.{error.field}", error.message) from None
