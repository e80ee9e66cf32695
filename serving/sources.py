"""What carried a score, ready to be told of several items: words for a sentence, and the JSON of a reason around its numbers.

What was told once is kept until there are other items: people have events with the same items, and telling anew takes longer than all
else that is done for a reason.
"""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import msgspec

from serving.item_texts import pointers
from serving.live_catalog import AnyCatalog
from serving.reasons import CONTEXT, FEATURE, HISTORY, PREFERENCE
from serving.wording import Source, Wording
from towers.columns import FIRST_ROW
from towers.encoder import UserRow
from towers.schema import Feature
from towers.vocab import Coded

MOST_KEPT = 20_000
"""Sources kept, of about 0.5 kB; past that all are told anew."""
LONGEST_KEPT = 100
"""Characters of a given value; longer ones are told anew each time: people send what they like."""

_FEW = 64
_JSON = msgspec.json.Encoder()
_HEADS = {kind: b',{"kind":"%b","part":' % kind.encode() for kind in (HISTORY, CONTEXT, PREFERENCE, FEATURE)}

Told = str | list[str] | None


class Sourced(NamedTuple):
    """A source of scores.

    Attributes:
        source: in words.
        head, tail: JSON of `Reason` before its part and after its share, a comma before it.
        name: of an event: what stands in its phrase, as JSON without quotes.
        frame: its phrase before and after the name, the same; None where the name stands there not once.
    """

    source: Source
    head: bytes
    tail: bytes
    name: bytes = b""
    frame: tuple[bytes, bytes] | None = None


class Sources:
    """Tells sources.

    Args:
        inputs: features of people and moments, by input.
        wording: how they are said.
    """

    def __init__(self, inputs: Mapping[str, Feature], wording: Wording) -> None:
        self._inputs, self._wording = inputs, wording
        self._events: tuple[AnyCatalog | None, dict[tuple[int, str | None], Sourced]] = None, {}
        self._values: dict[tuple[str, str | None], Sourced] = {}

    def events(self, row: UserRow, places: Sequence[int], catalog: AnyCatalog) -> list[Sourced]:
        """Of events of a history, by their places in it."""
        types = at(row.history_events, places) if len(row.history_events) else [None] * len(places)
        rows = [-1] * len(places) if row.history_rows is None else row.history_rows[places].tolist()
        of, kept = self._events  # read once: another thread may have another catalogue
        if of is not catalog or len(kept) > MOST_KEPT:
            self._events = _, kept = catalog, {}
        keys = list(zip(rows, types, strict=True))
        found = [kept.get(key) for key in keys]
        new = [n for n, sourced in enumerate(found) if sourced is None]
        if new:
            told = _items(at(row.history_items, [places[n] for n in new]), catalog)
            for n, (piece, called) in zip(new, told, strict=True):
                found[n] = sourced = self._event(types[n], piece, called)
                if rows[n] >= FIRST_ROW:  # of others no row says which item it is
                    kept[keys[n]] = sourced
        return found  # type: ignore[return-value]  # none is None any more

    def value(self, name: str, value: Told) -> Sourced:
        """Of something that was given, by the name of its input."""
        if isinstance(value, list) or (value is not None and len(value) > LONGEST_KEPT):
            return self._value(name, value)
        found = self._values.get((name, value))
        if found is None:
            if len(self._values) > MOST_KEPT:
                self._values = {}
            found = self._values[name, value] = self._value(name, value)
        return found

    def _event(self, event_type: str | None, piece: bytes, called: str | None) -> Sourced:
        tail = b"}" if event_type is None else b',"event_type":%b}' % _JSON.encode(event_type)
        said = self._wording.event(called, event_type)
        before, *after = (_JSON.encode(text)[1:-1] for text in said.phrase.split("{}"))
        frame = (before, after[0]) if len(after) == 1 else None
        return Sourced(said, _HEADS[HISTORY], b",%b%b" % (piece, tail), _JSON.encode(said.names[0])[1:-1], frame)

    def _value(self, name: str, value: Told) -> Sourced:
        kind, said = self._kind(name), name.partition(".")[2]
        tail = b"}" if value is None else b',"value":%b}' % _JSON.encode(value)
        return Sourced(self._wording.value(kind, said, value), _HEADS[kind], b',"name":%b%b' % (_JSON.encode(said), tail))

    def _kind(self, name: str) -> str:
        feature = self._inputs[name]
        if feature.owner == "context":
            return CONTEXT
        return PREFERENCE if feature.kind == "preferences" else FEATURE


def sentence_of(one: Sourced, other: Sourced) -> tuple[bytes, ...]:
    """JSON of `Wording.sentence` of two events alone, as most sentences are, from what is kept, in pieces; none where they are not said
    alike."""
    if one.frame is None or one.frame != other.frame:
        return ()
    before, after = one.frame
    if one.name == other.name:
        return (b'"because ', before, one.name, after, b'"')
    return (b'"because ', before, one.name, b" and ", other.name, after, b'"')


def at(values: Sequence[Any], places: Sequence[int]) -> Sequence[Any]:
    """Those at the places; coded ones stay so, to be looked up together, unless so few are distinct that all are decoded at once."""
    if not isinstance(values, Coded):
        return [values[place] for place in places]
    codes = values.codes[places]
    if len(values.distinct) > _FEW:
        return Coded(codes, values.distinct)
    distinct = values.distinct.to_pylist()
    return [distinct[code] for code in codes.tolist()]


def _items(ids: Sequence[str | None], catalog: AnyCatalog) -> list[tuple[bytes, str | None]]:
    """Of items by id: JSON that points at each, and what it is called. Those that the catalogue does not know have their id alone."""
    known = catalog.known(ids)
    pieces, called = pointers([text for text in known if text is not None])
    found: list[tuple[bytes, str | None]] = list(zip(pieces, called, strict=True))
    if len(found) < len(known):
        told = iter(found)
        found = [(b'"item_id":%b' % _JSON.encode(i), None) if text is None else next(told) for i, text in zip(ids, known, strict=True)]
    return found
