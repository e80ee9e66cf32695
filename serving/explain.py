"""Reasons of a list that was asked for with `explain`: what carried each score, and a sentence that says it.

Legend: k items, M reasons told of an item, D dimensions.
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
from serving.wording import POPULAR, sentence
from towers.columns import TIMESTAMP
from towers.encoder import Encoder, UserRow
from towers.schema import Feature

MOST_REASONS = 5
MOST_EXPLAINED = 100
"""Of a list; items further down carry no explanation."""
_UNTOLD = ("id", "text", "time", "dense")

Told = str | list[str] | None


class Explainer:
    """Explains lists of one model.

    Args:
        encoder: rows to vectors.
        phrases: how reasons are said, by event type and feature.
    """

    def __init__(self, encoder: Encoder, phrases: Mapping[str, str]) -> None:
        self._encoder, self._phrases = encoder, phrases
        self._inputs = {f.input_name: f for f in encoder.preprocessor.schema.features if f.owner != "item"}

    def explained(
        self, asked: Asked, items: Sequence[Item], item_kD: NDArray[np.float32], catalog: AnyCatalog, place: int = 0
    ) -> list[Item]:
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
        told = [*range(events), *(events + place for place, name in enumerate(carried.names) if name in given)]
        told_kT = parts_kS[:, told]
        order_kM = np.argsort(-told_kT, axis=1, kind="stable")[:, :MOST_REASONS]
        best_kM = np.take_along_axis(told_kT, order_kM, 1)
        speaks_k = np.maximum(parts_kS, 0).sum(1)
        rest_k = parts_kS.sum(1) - np.maximum(best_kM, 0).sum(1) + (0 if carried.rest_k is None else carried.rest_k)
        chosen_kM = np.array(told, np.int64)[order_kM]
        sources = self._sources(carried, set(chosen_kM[best_kM > 0].tolist()), row, given, catalog)
        found = []
        for item, chosen, best, speaks, rest in zip(
            items, chosen_kM.tolist(), best_kM.tolist(), speaks_k.tolist(), rest_k.tolist(), strict=False
        ):
            reasons = []
            for source, part in zip(chosen, best, strict=True):
                if part > 0:
                    kind, *what = sources[source]
                    reasons.append(Reason(kind, part, part / speaks, *what))
            found.append(Explanation(sentence(reasons, item.categories, self._phrases), reasons, rest, carried.approximate))
        return found

    def _sources(
        self, carried: Carried, wanted: set[int], row: UserRow, given: Mapping[str, Told], catalog: AnyCatalog
    ) -> dict[int, tuple[Any, ...]]:
        """Kind and further fields of a `Reason`, by source."""
        events = [source for source in wanted if source < carried.events]
        first = len(row.history_items) - carried.events  # below 0 where padding is counted among the events
        ids = [row.history_items[first + source] for source in events]
        types = [row.history_events[first + source] if row.history_events else None for source in events]
        sources: dict[int, tuple[Any, ...]] = {
            source: (HISTORY, *what) for source, *what in zip(events, ids, catalog.titles(ids), types, strict=True)
        }
        for source in wanted.difference(events):
            name = carried.names[source - carried.events]
            sources[source] = self._kind(name), None, None, None, name.partition(".")[2], given[name]
        return sources

    def _kind(self, name: str) -> str:
        feature = self._inputs[name]
        if feature.owner == "context":
            return CONTEXT
        return PREFERENCE if feature.kind == "preferences" else FEATURE


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
