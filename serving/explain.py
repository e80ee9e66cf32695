"""Reasons of a list that was asked for with `explain`: what carried each score, and a sentence that says it.

Legend: k items, S sources, E events, M reasons told of an item, D dimensions.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import msgspec
import numpy as np
from numpy.typing import NDArray

from serving.asked import Asked
from serving.attribution import Carried, exact, left_out
from serving.item_texts import Items, pointers
from serving.live_catalog import AnyCatalog
from serving.reasons import CONTEXT, FEATURE, HISTORY, PREFERENCE, Explanation
from serving.selector import Selection
from serving.steering import without
from serving.wording import POPULAR, Source, Wording
from towers.columns import TIMESTAMP
from towers.encoder import Encoder, UserRow
from towers.schema import Feature
from towers.vocab import Coded

MOST_EVENTS, MOST_OTHERS = 3, 3
"""Reasons told of an item."""
MOST_EXPLAINED = 100
"""Of a list; items further down carry no explanation."""
_UNTOLD = ("id", "text", "time", "dense")

_FEW = 64
_JSON = msgspec.json.Encoder()
_HEADS = {kind: b'{"kind":"%b","part":' % kind.encode() for kind in (HISTORY, CONTEXT, PREFERENCE, FEATURE)}

Told = str | list[str] | None
Sourced = tuple[Source, bytes, bytes]
Floats = NDArray[np.float32]


class Explainer:
    """Explains lists of one model.

    Args:
        encoder: rows to vectors.
        phrases: how reasons are said, by event type and feature.
    """

    def __init__(self, encoder: Encoder, phrases: Mapping[str, str]) -> None:
        self._encoder, self._wording = encoder, Wording(phrases)
        self._inputs = {f.input_name: f for f in encoder.preprocessor.schema.features if f.owner != "item"}

    def explained(self, asked: Asked, chosen: Selection, item_kD: Floats, catalog: AnyCatalog, place: int = 0) -> Items:
        """What the reply says of each item, with its explanation.

        Args:
            item_kD: their vectors.
            place: which of the asked contexts.
        """
        rows_k, scores_k = chosen.rows_k, chosen.scores_k
        if asked.vectors_BHD is None:
            return catalog.items(rows_k, scores_k, [_JSON.encode(Explanation(POPULAR, [], score, False)) for score in scores_k.tolist()])
        row, item_kD = asked.rows[place], item_kD[:MOST_EXPLAINED]
        if asked.away:
            item_kD = without(item_kD, asked.away[place])
        given = self._given(row)
        carried = left_out(self._encoder, row, list(given), item_kD) if asked.parts is None else exact(asked.parts, place, item_kD)
        return catalog.items(rows_k, scores_k, self._explanations(carried, row, given, chosen, catalog))

    def _given(self, row: UserRow) -> dict[str, Told]:
        """Context and features that somebody gave, by input, and what may be said of each."""
        given: dict[str, Told] = {}
        for name, feature in self._inputs.items():
            if feature.owner == "context":
                value = row.context.get(feature.name, row.now if feature.source_column == TIMESTAMP else None)
            else:
                value = row.features.get(feature.name)
            if value is not None and not (isinstance(value, Sequence) and not value):
                given[name] = _said(feature, value)
        return given

    def _explanations(
        self, carried: Carried, row: UserRow, given: Mapping[str, Told], chosen: Selection, catalog: AnyCatalog
    ) -> list[bytes]:
        """JSON of `Explanation`. An event, or a value that was given, is a reason where it speaks for the item; all else is the rest."""
        best = _Best.of(carried, [carried.events + place for place, name in enumerate(carried.names) if name in given])
        sources = self._sources(carried, set(best.places), row, given, catalog)
        liked = any(source.kind == PREFERENCE for source, _, _ in sources.values())  # else nobody asks for the items' categories
        categories = [item.categories for item in catalog.items(chosen.rows_k, chosen.scores_k)] if liked else [()] * len(best.count_k)
        of = [sources[place] for place in best.places]
        pieces = [b',"share":'] * (5 * len(of))
        pieces[::5], pieces[4::5] = [head for _, head, _ in of], [tail for _, _, tail in of]
        pieces[1::5], pieces[3::5] = _numbers(best.parts), _numbers(best.shares)
        told = [(source, share) for (source, _, _), share in zip(of, best.shares, strict=True)]
        approximate, found, start = b"true" if carried.approximate else b"false", [], 0
        for count, lived, rest, labels in zip(best.count_k, best.lived_k, _numbers(best.rest_k), categories, strict=False):
            stop = start + count
            text = _JSON.encode(self._wording.sentence(told[start:stop], lived, labels))
            reasons = b"".join(pieces[5 * start : 5 * stop])[:-1]
            found.append(b'{"text":%b,"reasons":[%b],"rest":%b,"approximate":%b}' % (text, reasons, rest, approximate))
            start = stop
        return found

    def _sources(
        self, carried: Carried, wanted: set[int], row: UserRow, given: Mapping[str, Told], catalog: AnyCatalog
    ) -> dict[int, Sourced]:
        """What may be told, by source: in words, and JSON of `Reason` before and after its numbers."""
        lived = [source for source in wanted if source < carried.events]
        first = len(row.history_items) - carried.events  # below 0 where padding is counted among the events
        places = [first + source for source in lived]
        types = _at(row.history_events, places) if len(row.history_events) else [None] * len(lived)
        sources: dict[int, Sourced] = {}
        for source, event_type, (piece, called) in zip(lived, types, _items(_at(row.history_items, places), catalog), strict=True):
            tail = b"}," if event_type is None else b',"event_type":%b},' % _JSON.encode(event_type)
            sources[source] = (self._wording.event(called, event_type), _HEADS[HISTORY], b",%b%b" % (piece, tail))
        for source in wanted.difference(lived):
            name = carried.names[source - carried.events]
            kind, said, value = self._kind(name), name.partition(".")[2], given[name]
            tail = b"}," if value is None else b',"value":%b},' % _JSON.encode(value)
            sources[source] = (self._wording.value(kind, said, value), _HEADS[kind], b',"name":%b%b' % (_JSON.encode(said), tail))
        return sources

    def _kind(self, name: str) -> str:
        feature = self._inputs[name]
        if feature.owner == "context":
            return CONTEXT
        return PREFERENCE if feature.kind == "preferences" else FEATURE


@dataclass(frozen=True)
class _Best:
    """What speaks most for each item; of the reasons of all items, one after another, the greatest of each item first.

    Attributes:
        places: sources.
        parts, shares: of each reason.
        count_k: reasons of each item.
        lived_k: share of all its events together.
        rest_k: what its reasons leave of its score.
    """

    places: list[int]
    parts: list[float]
    shares: list[float]
    count_k: list[int]
    lived_k: list[float]
    rest_k: list[float]

    @classmethod
    def of(cls, carried: Carried, others: Sequence[int]) -> "_Best":
        """Among the events, and among `others` of the sources."""
        parts_kS, events = carried.parts_kS, carried.events
        other_S = np.array(others, np.int64)
        chosen_kM = np.concatenate([_best(parts_kS[:, :events], MOST_EVENTS), other_S[_best(parts_kS[:, other_S], MOST_OTHERS)]], axis=1)
        item_k1 = np.arange(len(parts_kS))[:, None]
        best_kM = parts_kS[item_k1, chosen_kM]
        order_kM = np.lexsort((chosen_kM, -best_kM))
        chosen_kM, part_kM = chosen_kM[item_k1, order_kM], best_kM[item_k1, order_kM].astype(np.float64)
        for_kS, told_kM = np.maximum(parts_kS, 0), part_kM > 0
        speaks_k = for_kS.sum(1).astype(np.float64)
        speaks_k[speaks_k == 0] = 1.0  # of an item that nothing speaks for no share is told
        whole_k = parts_kS.sum(1)
        if carried.rest_k is not None:
            whole_k = whole_k + carried.rest_k
        rest_k = np.subtract.reduce(np.concatenate([whole_k.astype(np.float64)[:, None], np.maximum(part_kM, 0.0)], axis=1), axis=1)
        flat = (values[told_kM].tolist() for values in (chosen_kM, part_kM, part_kM / speaks_k[:, None]))
        by_item = (values.tolist() for values in (told_kM.sum(1), for_kS[:, :events].sum(1) / speaks_k, rest_k))
        return cls(*flat, *by_item)


def _items(ids: Sequence[str | None], catalog: AnyCatalog) -> list[tuple[bytes, str | None]]:
    """Of items by id: JSON that points at each, and what it is called. Those that the catalogue does not know have their id alone."""
    known = catalog.known(ids)
    pieces, called = pointers([text for text in known if text is not None])
    found: list[tuple[bytes, str | None]] = list(zip(pieces, called, strict=True))
    if len(found) < len(known):
        told = iter(found)
        found = [(b'"item_id":%b' % _JSON.encode(i), None) if text is None else next(told) for i, text in zip(ids, known, strict=True)]
    return found


def _numbers(values: list[float]) -> list[bytes]:
    """JSON of each."""
    return _JSON.encode(values)[1:-1].split(b",")


def _at(values: Sequence[Any], places: list[int]) -> Sequence[Any]:
    """Those at the places; coded ones stay so, to be looked up together, unless so few are distinct that all are decoded at once."""
    if not isinstance(values, Coded):
        return [values[place] for place in places]
    codes = values.codes[places]
    if len(values.distinct) > _FEW:
        return Coded(codes, values.distinct)
    distinct = values.distinct.to_pylist()
    return [distinct[code] for code in codes.tolist()]


def _best(parts_kS: Floats, most: int) -> NDArray[np.int64]:
    """Places of the greatest parts of each item, in no order."""
    if parts_kS.shape[1] <= most:
        return np.broadcast_to(np.arange(parts_kS.shape[1]), parts_kS.shape)
    return np.argpartition(-parts_kS, most - 1, axis=1)[:, :most]


def _said(feature: Feature, value: object) -> Told:
    if feature.sensitive or feature.kind in _UNTOLD:
        return None
    if isinstance(value, str):
        return value
    if isinstance(value, Sequence):
        return [str(entry) for entry in value]
    return f"{value:g}" if isinstance(value, float) else str(value)
