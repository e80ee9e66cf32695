"""Reasons of a list that was asked for with `explain`: what carried each score, and a sentence that says it.

Legend: k items, S sources, E events, M reasons told of an item, D dimensions.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from serving.asked import Asked
from serving.attribution import Carried, exact, left_out
from serving.live_catalog import AnyCatalog
from serving.messages import Item
from serving.reasons import CONTEXT, FEATURE, HISTORY, PREFERENCE, Explanation, Reason
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

Told = str | list[str] | None
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

    def explained(self, asked: Asked, items: Sequence[Item], item_kD: Floats, catalog: AnyCatalog, place: int = 0) -> list[Item]:
        """The same items with their explanations.

        Args:
            item_kD: their vectors.
            place: which of the asked contexts.
        """
        if asked.vectors_BHD is None:
            return [_with(item, Explanation(POPULAR, [], item.score, False)) for item in items]
        row, item_kD = asked.rows[place], item_kD[:MOST_EXPLAINED]
        if asked.away:
            item_kD = without(item_kD, asked.away[place])
        given = self._given(row)
        carried = left_out(self._encoder, row, list(given), item_kD) if asked.parts is None else exact(asked.parts, place, item_kD)
        found = self._explanations(carried, row, given, items, catalog)
        return [*map(_with, items, found), *items[len(found) :]]

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
        self, carried: Carried, row: UserRow, given: Mapping[str, Told], items: Sequence[Item], catalog: AnyCatalog
    ) -> list[Explanation]:
        """An event, or a value that was given, is a reason where it speaks for the item; all else is the rest."""
        parts_kS, events = carried.parts_kS, carried.events
        others = np.array([events + place for place, name in enumerate(carried.names) if name in given], np.int64)
        event_kM, other_kM = _best(parts_kS[:, :events], MOST_EVENTS), others[_best(parts_kS[:, others], MOST_OTHERS)]
        chosen_kM = np.concatenate([event_kM, other_kM], axis=1)
        best_kM, for_kS = parts_kS[np.arange(len(parts_kS))[:, None], chosen_kM], np.maximum(parts_kS, 0)
        speaks_k, lived_k, whole_k = for_kS.sum(1), for_kS[:, :events].sum(1), parts_kS.sum(1)
        if carried.rest_k is not None:
            whole_k = whole_k + carried.rest_k
        sources = self._sources(carried, set(chosen_kM[best_kM > 0].tolist()), row, given, catalog)
        found = []
        columns = (column.tolist() for column in (chosen_kM, best_kM, speaks_k, lived_k, whole_k))
        for item, chosen, best, speaks, lived, rest in zip(items, *columns, strict=False):
            reasons, told = [], []
            for part, place in sorted(zip(best, chosen, strict=True), key=_by_part):
                if part > 0:
                    source = sources[place]
                    rest -= part
                    reasons.append(Reason(source.kind, part, part / speaks, *source.fields))
                    told.append((source, part / speaks))
            text = self._wording.sentence(told, lived / speaks if speaks else 0.0, item.categories)
            found.append(Explanation(text, reasons, rest, carried.approximate))
        return found

    def _sources(
        self, carried: Carried, wanted: set[int], row: UserRow, given: Mapping[str, Told], catalog: AnyCatalog
    ) -> dict[int, Source]:
        """What may be told, by source."""
        lived = [source for source in wanted if source < carried.events]
        first = len(row.history_items) - carried.events  # below 0 where padding is counted among the events
        places = [first + source for source in lived]
        ids = _at(row.history_items, places)
        types = _at(row.history_events, places) if len(row.history_events) else [None] * len(lived)
        named = zip(lived, ids, catalog.titles(ids), types, strict=True)
        sources = {source: self._wording.source(HISTORY, (item_id, title, kind)) for source, item_id, title, kind in named}
        for source in wanted.difference(lived):
            name = carried.names[source - carried.events]
            sources[source] = self._wording.source(self._kind(name), (None, None, None, name.partition(".")[2], given[name]))
        return sources

    def _kind(self, name: str) -> str:
        feature = self._inputs[name]
        if feature.owner == "context":
            return CONTEXT
        return PREFERENCE if feature.kind == "preferences" else FEATURE


def _by_part(pair: tuple[float, int]) -> tuple[float, int]:
    return -pair[0], pair[1]


def _at(values: Sequence[Any], places: list[int]) -> Sequence[Any]:
    """Those at the places; coded ones stay so, to be looked up and decoded together."""
    if isinstance(values, Coded):
        return Coded(values.codes[places], values.distinct)
    return [values[place] for place in places]


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


def _with(item: Item, explanation: Explanation) -> Item:
    return Item(item.item_id, item.title, item.score, item.categories, explanation)
