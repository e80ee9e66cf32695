"""Live events of users: what every store of them does, and the store that lasts as long as the process.

An event is known by its user and its `event_id`, and by its user, time, item and type: `towers prepare` drops the same repetitions from a
log, so a user's history is one whether its events came in a file or one by one. Users are known by key, never by their raw id.
"""

import threading
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Protocol

DAY_US = 86_400_000_000


@dataclass(frozen=True, slots=True)
class StoredEvent:
    """One event of a user, as it is stored.

    Attributes:
        user_key: 16 bytes.
        event_id: sent again for the same user, the event changes nothing.
        timestamp: microseconds UTC.
        recommendation_id: of the list that the event answers.
        facts: JSON object of what else was said of it, in the words of the training log (value, session_id, channel, context).
    """

    user_key: bytes
    event_id: str
    item_id: str
    event_type: str
    timestamp: int
    recommendation_id: str | None = None
    facts: str | None = None


@dataclass(frozen=True, slots=True)
class LiveHistory:
    """A user's events by (timestamp, order of arrival), oldest first.

    Attributes:
        arrivals: a number of each event, growing in the order in which the store took them.
        facts: of each, see `StoredEvent`; none = no event has any.
    """

    items: Sequence[str]
    events: Sequence[str]
    timestamps: Sequence[int]
    arrivals: Sequence[int]
    facts: Sequence[str | None] = ()

    def after(self, moment: int) -> "LiveHistory":
        """The events after a moment, microseconds UTC."""
        facts = self.facts or [None] * len(self.items)
        rows = zip(self.items, self.events, self.timestamps, self.arrivals, facts, strict=True)
        kept = [row for row in rows if row[2] > moment]
        return LiveHistory(*zip(*kept, strict=True)) if kept else NOTHING


NOTHING = LiveHistory((), (), (), ())


@dataclass(frozen=True, slots=True)
class Retention:
    """What is kept of a user.

    Attributes:
        newest: most events, by (timestamp, order of arrival).
        ttl_days: events older than this are gone; None = no bound.
    """

    newest: int = 1000
    ttl_days: float | None = None

    def since(self, now: int) -> int:
        """Microseconds UTC of the oldest event kept."""
        return -(2**63) if self.ttl_days is None else now - round(self.ttl_days * DAY_US)


Settle = Callable[[StoredEvent], StoredEvent | None]


def as_it_is(event: StoredEvent) -> StoredEvent:
    """The same."""
    return event


class EventStore(Protocol):
    """Keeps users' newest events. Safe to call from several threads; those on disk also from several processes."""

    def append(self, events: Sequence[StoredEvent], now: int, settle: Settle = as_it_is) -> int:
        """Take a batch: all of it or, where this raises, nothing. Kept when this returns.

        Args:
            events: in the order of their arrival; their times may go back and forth. Repeated ones are ignored.
            now: microseconds UTC.
            settle: what is stored of each event, None = nothing; asked when the store can be written to and nobody else writes, which
                may be long after the call.

        Returns:
            how many of them were new and are now kept: by a store on disk also those that only wait to be copied elsewhere.
        """
        ...

    def history(self, user_key: bytes, now: int, arrived: int | None = None) -> LiveHistory:
        """A user's events.

        Args:
            arrived: only events up to this number of `LiveHistory.arrivals`; None = all.
        """
        ...

    def purge(self, now: int) -> int:
        """Delete expired events of all users; how many."""
        ...

    def close(self) -> None:
        """Release the file."""
        ...


class MemoryEvents:
    """Events that end with the process; see `EventStore`."""

    def __init__(self, retention: Retention | None = None) -> None:
        self._retention = retention or Retention()
        self._users: dict[bytes, dict[str, tuple[int, int, StoredEvent]]] = {}
        self._arrivals = 0
        self._lock = threading.Lock()

    def append(self, events: Sequence[StoredEvent], now: int, settle: Settle = as_it_is) -> int:
        since = self._retention.since(now)
        with self._lock:
            before = self._arrivals
            events = [settled for event in events if (settled := settle(event)) is not None]
            for event in events:
                known = self._users.setdefault(event.user_key, {})
                if event.timestamp >= since and event.event_id not in known and _content(event) not in map(_content, _of(known)):
                    self._arrivals += 1
                    known[event.event_id] = (event.timestamp, self._arrivals, event)
            for key in {event.user_key for event in events}:
                self._trim(key, since)
            kept = sum(arrival > before for key in {e.user_key for e in events} for _, arrival, _ in self._users.get(key, {}).values())
            return kept

    def history(self, user_key: bytes, now: int, arrived: int | None = None) -> LiveHistory:
        since = self._retention.since(now)
        with self._lock:
            rows = sorted((time, arrival, event) for time, arrival, event in self._users.get(user_key, {}).values() if time >= since)
        rows = [row for row in rows if arrived is None or row[1] <= arrived]
        return LiveHistory(
            [event.item_id for _, _, event in rows], [event.event_type for _, _, event in rows],
            [time for time, _, _ in rows], [arrival for _, arrival, _ in rows], [event.facts for _, _, event in rows],
        )  # fmt: skip

    def purge(self, now: int) -> int:
        since = self._retention.since(now)
        with self._lock:
            return sum(self._trim(key, since) for key in list(self._users))

    def close(self) -> None:
        """Nothing to release."""

    def _trim(self, key: bytes, since: int) -> int:
        known = self._users[key]
        newest = sorted(known.values(), key=lambda row: row[:2])[-self._retention.newest :]
        kept = {event.event_id: (time, arrival, event) for time, arrival, event in newest if time >= since}
        if kept:
            self._users[key] = kept
        else:
            del self._users[key]
        return len(known) - len(kept)


def _of(known: dict[str, tuple[int, int, StoredEvent]]) -> Iterable[StoredEvent]:
    return (event for _, _, event in known.values())


def _content(event: StoredEvent) -> tuple[int, str, str]:
    return event.timestamp, event.item_id, event.event_type
