"""What is known of a user at a moment: the history that export wrote and the events since, as one."""

import copy
import secrets
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import msgspec

from serving.events import EventStore, LiveHistory, MemoryEvents
from serving.standing import Standing
from serving.user_state import StoredUser, UserHistories, purged_of, seal_of
from towers.columns import DEFAULT_EVENT_TYPE, EVENT_TYPE, ITEM_ID, NO_TIME, REMOVAL
from towers.errors import ConfigError
from towers.identity import SECRET_BYTES, UserKeys
from towers.identity import key_file as secret_file
from towers.preprocess import Preprocessor
from towers.values import as_strings
from towers.vocab import Vocabulary


class _Facts(msgspec.Struct):
    context: dict[str, Any] = {}


_FACTS = msgspec.json.Decoder(_Facts)


class Profiles:
    """Finds users by their raw id, which goes no further than here.

    Args:
        keys: makes user keys.
        histories: what export wrote; None = nothing.
        events: what happened since; None = events of this process alone.
        newest: most events of a profile.
        standing: what users allow; None = everything.
    """

    def __init__(
        self,
        keys: UserKeys,
        histories: UserHistories | None = None,
        events: EventStore | None = None,
        newest: int = 1000,
        standing: Standing | None = None,
    ) -> None:
        self.keys = keys
        self.events = events or MemoryEvents()
        self.standing = standing or Standing()
        self._stores_events = events is not None
        self.stores_users = histories is not None or events is not None
        self._histories = histories
        self._seen, self._purged = None if histories is None else histories.seal, NO_TIME
        self._newest = newest

    @classmethod
    def open(cls, history: Path | str | None, key_file: str | None) -> "Profiles":
        """Read the histories that export wrote; without any, keys are made with a secret that ends with the process.

        Raises:
            DataError: the histories cannot be read.
            ConfigError: the secret cannot be read, or is not the one that the histories were keyed with.
        """
        if history is None:
            return cls(UserKeys(secrets.token_bytes(SECRET_BYTES)))
        return cls(*open_histories(history, key_file))

    def with_histories(self, path: Path | str | None) -> "Profiles":
        """The same people, with the histories that lie at `path` now; None = with none. A file that was not written since is not read.

        Raises:
            DataError, ConfigError: they cannot be read, or are of another secret.
        """
        known = None if path is None else self._histories
        if path is not None and (known is None or known.seal is None or known.seal != seal_of(path)):
            known = UserHistories.open(path, unnamed=True)
            _check_secret(known, self.keys, path, "user-key secret of this service")
        changed = copy.copy(self)
        changed._seen, changed._purged = None if known is None else known.seal, NO_TIME
        changed._histories, changed.stores_users = known, known is not None or self._stores_events
        return changed

    def follow(self, path: Path | str | None) -> None:
        """Pass over what was purged from the file of histories since it was read; costs a look at its size and time where it was not."""
        if path is not None and (seal := seal_of(path)) != self._seen:
            self._purged, self._seen = max(self._purged, purged_of(path)), seal

    def teach(self, preprocessor: Preprocessor, catalog: Vocabulary) -> None:
        """Have a model and a catalogue look up all items of the stored histories now, so that no request has to."""
        if self._histories is not None:
            self._histories.name(catalog)
            known = preprocessor.vocabularies
            for items in (known[ITEM_ID], catalog):
                self._histories.teach(items, known[EVENT_TYPE], {f.name: known[f.vocabulary] for f in preprocessor.schema.in_history})

    def stored(self, user_key: bytes) -> StoredUser | None:
        """What export wrote of a user and is not forgotten."""
        if self._histories is None:
            return None
        forgotten = self.standing.forgotten(user_key)
        found = self._histories.get(user_key) if forgotten is None else self._histories.left_of(user_key, forgotten)
        return found if found is None or self._purged == NO_TIME else found.newer(self._purged)

    def get(
        self, user_key: bytes, order: str, now: int, arrived: int | None = None, context: Sequence[str] = ()
    ) -> tuple[StoredUser | None, int]:
        """A user's profile, and the number of the last event in it that came live.

        Args:
            order: the schema's; see `joined`.
            now: microseconds UTC.
            arrived: see `EventStore.history`.
            context: features that events keep.

        Returns:
            None for a stranger; 0 where no event came live.
        """
        forgotten = self.standing.forgotten(user_key)
        stored, live = self.stored(user_key), self.events.history(user_key, now, arrived)
        live = live if forgotten is None else live.after(forgotten)
        if not live.items:
            return stored, 0
        return joined(stored or StoredUser([], [], []), live, order, self._newest, context), max(live.arrivals)


def open_histories(history: Path | str, key_file: str | None) -> tuple[UserKeys, UserHistories]:
    """Histories and the secret of their keys. The histories' items may still lack their ids: see `Profiles.teach`.

    Raises:
        DataError, ConfigError: they cannot be read, or do not belong together.
    """
    histories, keys = UserHistories.open(history, unnamed=True), UserKeys.open(key_file)
    _check_secret(histories, keys, history, f"user-key secret {secret_file(key_file)}")
    return keys, histories


def _check_secret(histories: UserHistories, keys: UserKeys, path: Path | str, secret: str) -> None:
    if histories.secret_fingerprint not in (None, keys.fingerprint()):
        raise ConfigError(
            f"{secret}: not the one that the users of {path} were keyed with, so every user would be unknown. Point serving.key_file or"
            " $TOWERS_KEY_FILE at the file that `towers prepare` used"
        )


def joined(stored: StoredUser, live: LiveHistory, order: str, newest: int, context: Sequence[str] = ()) -> StoredUser:
    """The history that `towers prepare` would make of the stored events followed by the live ones.

    Repetitions (equal in time, item and type) count once. Ordered by (timestamp, order of arrival) where the schema's order is `time`, else
    by order of arrival alone; what the user removed is left out (see `REMOVAL`); the newest are kept.
    """
    items, events, times = [*stored.items, *live.items], [*stored.events, *live.events], [*stored.timestamps, *live.timestamps]
    places: Iterable[int] = range(len(items))
    known = len(stored.items)
    if order != "time":
        places = [*range(known), *sorted(range(known, len(items)), key=lambda place: live.arrivals[place - known])]
    last = max(stored.timestamps, default=live.timestamps[0] - 1)
    if last >= live.timestamps[0]:  # else every live event lies after all stored ones: nothing to compare or to sort
        before = {(times[i], items[i], events[i] or DEFAULT_EVENT_TYPE) for i in range(known)}
        places = [i for i in places if i < known or (times[i], items[i], events[i]) not in before]
        if order == "time":
            places.sort(key=times.__getitem__)
    if REMOVAL in live.events:
        places = _without_removed(list(places), items, events, times)
    kept = list(places)[-newest:]
    contexts = {name: [values[i] for i in kept] for name, values in _contexts(stored, live, context).items()}
    return StoredUser([items[i] for i in kept], [events[i] for i in kept], [times[i] for i in kept], stored.features, contexts)


def _contexts(stored: StoredUser, live: LiveHistory, context: Sequence[str]) -> dict[str, list[str | None]]:
    """What stored and live events, in this order, keep of each context feature."""
    if not context:
        return {}
    unknown: list[str | None] = [None] * len(stored.items)
    told = [{} if facts is None else _FACTS.decode(facts).context for facts in live.facts or [None] * len(live.items)]
    return {name: [*(stored.contexts.get(name) or unknown), *(_text(one.get(name)) for one in told)] for name in context}


def _text(value: object) -> str | None:
    """As a vocabulary knows it; a list, of a feature that was declared otherwise once, is unknown."""
    return None if isinstance(value, list) else as_strings("context", [value])[0]


def _without_removed(places: Sequence[int], items: Sequence[str], events: Sequence[str | None], times: Sequence[int]) -> list[int]:
    """Places of a history, in its order, without removals and what each of them removes: what stands before it, unless its time is later
    (an order of arrival puts what was exported before all that came live, removals made before the export too)."""
    last = {items[place]: at for at, place in enumerate(places) if events[place] == REMOVAL}

    def stays(at: int, place: int) -> bool:
        removal = last.get(items[place], -1)
        return at > removal or (at < removal and events[place] != REMOVAL and times[place] > times[places[removal]])

    return [place for at, place in enumerate(places) if stays(at, place)]
