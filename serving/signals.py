"""What is known about the person who asks, from the request and from what is stored, and whether it is enough for the tower."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from serving.bounds import Limits, check_value
from serving.decoding import microseconds
from serving.messages import Asker, HistoryEvent
from serving.user_state import StoredUser
from towers.columns import DEFAULT_EVENT_TYPE, EVENT_TYPE, FIRST_ROW, ITEM_ID, NO_TIME
from towers.encoder import UserRow
from towers.errors import RequestError
from towers.preprocess import Preprocessor
from towers.schema import Feature
from towers.values import as_strings

PERSONALIZED, COLD, FALLBACK = "personalized", "cold", "fallback"
NOTHING_KNOWN = ("no_history", "unknown_user", "no_user_histories")
"""Reasons of a fallback that lie in what is stored, not in what was sent."""

USUAL = Limits()


class Signals(NamedTuple):
    """Everything the retriever needs to know about the asker.

    Attributes:
        row: what the user tower is given: the newest events that fit it (none where the model knows no item of theirs), context, user
            features.
        seen: item ids of the whole history, stored and live.
        events: event type of each, None where unknown.
        mode: `personalized`, `cold` or `fallback`.
        reason: of the fallback, "" otherwise.
        unknown_items: of the newest events that fit the tower, those whose item the model was not trained on.
    """

    row: UserRow
    seen: Sequence[str]
    events: Sequence[str | None]
    mode: str
    reason: str
    unknown_items: int


def read_signals(
    request: Asker,
    stored: StoredUser | None,
    stores_users: bool,
    preprocessor: Preprocessor,
    length: int,
    now: int,
    limits: Limits = USUAL,
) -> Signals:
    """Join the stored and the live history, check context and preferences, and decide the mode.

    Args:
        stored: the known user, None for strangers.
        stores_users: whether there is a store that could have known them.
        length: events the tower takes.
        now: microseconds UTC of the request.
        limits: of one request.

    Raises:
        RequestError: names the field.
    """
    check_context(request.context, preprocessor, limits)
    live = live_history(request.history, preprocessor, limits)
    known = stored or StoredUser([], [], [])
    if request.now is not None:  # a moment replayed must not know what came after; the server's own clock may well be behind the log's
        known = known.before(now)
    items, events, times, contexts = known.items, known.events, known.timestamps, known.contexts
    if live.items:
        items, events, times = [*items, *live.items], [*events, *live.events], [*times, *live.timestamps]
        contexts = {name: [*(contexts.get(name) or [None] * len(known.items)), *live.contexts[name]] for name in live.contexts}
    seen, kinds = items, events
    if len(items) > length:
        items, events, times = items[-length:], events[-length:], times[-length:]
        contexts = {name: values[-length:] for name, values in contexts.items()}
    rows = preprocessor.vocabularies[ITEM_ID].rows(items)
    features = known.features
    if request.preferences:
        features = {**features, **declared_preferences(request.preferences, preprocessor, limits)}
    trained = int(np.count_nonzero(rows >= FIRST_ROW))
    unknown = len(rows) - trained
    mode, reason = PERSONALIZED, ""
    if not trained:
        mode, reason = (COLD, "") if _has_preferences(features, preprocessor) else (FALLBACK, _reason(request, stored, stores_users, seen))
        # items that the model was not taught say nothing, and what was declared may be silent beside them (model.own_preferences)
        items, events, times, contexts, rows = [], [], [], {}, rows[:0]
    row = UserRow(
        history_items=items,
        history_events=events,
        history_timestamps=times,
        now=now,
        context=request.context,
        features=features,
        history_context=contexts,
        history_rows=rows,
    )
    return Signals(row, seen, kinds, mode, reason, unknown)


def live_history(entries: Sequence[str | HistoryEvent], preprocessor: Preprocessor, limits: Limits) -> StoredUser:
    """The request's own events, oldest first: in time order where every event has a time, else in the order given.

    Raises:
        RequestError: an event type that the model does not know, an absurd time or context that does not fit; names the event.
    """
    if not entries:
        return StoredUser([], [], [])
    events = [HistoryEvent(entry) if isinstance(entry, str) else entry for entry in entries]
    kinds = [event.event_type or DEFAULT_EVENT_TYPE for event in events]
    for i, event in enumerate(events):
        check_context(event.context, preprocessor, limits, f"history[{i}].context")
    check_types([(f"history[{i}].event_type", event.event_type) for i, event in enumerate(events)], preprocessor)
    times = [
        NO_TIME if event.timestamp is None else microseconds(f"history[{i}].timestamp", event.timestamp) for i, event in enumerate(events)
    ]
    order = list(range(len(events)))
    if NO_TIME not in times:
        order.sort(key=times.__getitem__)
    contexts = {f.name: [_text(i, events[i], f.name) for i in order] for f in preprocessor.schema.in_history}
    return StoredUser([events[i].item_id for i in order], [kinds[i] for i in order], [times[i] for i in order], {}, contexts)


def _text(place: int, event: HistoryEvent, feature: str) -> str | None:
    return as_strings(f"history[{place}].context.{feature}", [event.context.get(feature)])[0]


def check_types(named: Sequence[tuple[str, str | None]], preprocessor: Preprocessor) -> None:
    """Raises RequestError at the first (field, event type) that the model does not know; None is the default type."""
    types = preprocessor.vocabularies[EVENT_TYPE]
    given = list({kind for _, kind in named if kind})
    unknown = {kind for kind, row in zip(given, types.rows(given).tolist(), strict=True) if row < FIRST_ROW}
    for field, kind in named if unknown else ():
        if kind in unknown:
            raise RequestError(field, f"got {str(kind)[:60]!r}, expected one of {', '.join(types.values().to_pylist()[:20])}")


def declared_preferences(given: list[str] | Mapping[str, list[str]], preprocessor: Preprocessor, limits: Limits) -> dict[str, list[str]]:
    """Liked values by preferences feature.

    Raises:
        RequestError: the model has no such feature, or several and a plain list was given, or too many values.
    """
    if not given:
        return {}
    declared = [f.name for f in _preferences(preprocessor)]
    if not isinstance(given, Mapping):
        if len(declared) != 1:
            raise RequestError("preferences", f"a plain list needs exactly one declared preferences feature; this model has {declared}")
        check_value("preferences", given, limits)
        return {declared[0]: list(given)}
    for name, values in given.items():
        if name not in declared:
            raise RequestError(f"preferences.{name[:60]}", f"not declared; this model's preferences features are {declared}")
        check_value(f"preferences.{name}", values, limits)
    return {name: list(values) for name, values in given.items()}


def check_context(context: Mapping[str, Any], preprocessor: Preprocessor, limits: Limits, field: str = "context") -> None:
    """Raises RequestError at the first name that is no declared context feature, or whose value holds too much."""
    declared = preprocessor.declared["context"]
    for name, value in context.items():
        feature = declared.get(name)
        if feature is None:
            raise RequestError(f"{field}.{name[:60]}", f"not declared; this model's context features are {[*declared]}")
        if isinstance(value, str | list):
            check_value(f"{field}.{name}", value, limits, feature.width)


def _has_preferences(features: Mapping[str, Any], preprocessor: Preprocessor) -> bool:
    """Whether a declared like is one that the model knows."""
    for f in _preferences(preprocessor):
        liked = preprocessor.vocabularies[f.vocabulary].rows(list(features.get(f.name) or ()))
        if np.any(liked >= FIRST_ROW):
            return True
    return False


def _preferences(preprocessor: Preprocessor) -> list[Feature]:
    return [f for f in preprocessor.declared["user"].values() if f.kind == "preferences"]


def _reason(request: Asker, stored: StoredUser | None, stores_users: bool, items: Sequence[str]) -> str:
    if items:
        return "unknown_history_items"
    if request.preferences:
        return "unknown_preferences"
    if request.user_id is None or stored is not None:
        return "no_history"
    return "unknown_user" if stores_users else "no_user_histories"
