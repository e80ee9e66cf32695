"""Reasons of a list that was asked for with `explain`: what carried each score, and a sentence that says it.

Legend: k items, D dimensions.
"""

from collections.abc import Mapping, Sequence

import msgspec
import numpy as np
from numpy.typing import NDArray

from serving.asked import Asked
from serving.attribution import Carried, by_item, exact, left_out
from serving.best_reasons import Best
from serving.item_texts import Items
from serving.live_catalog import AnyCatalog
from serving.reasons import PREFERENCE, Explanation
from serving.selector import Selection
from serving.sources import Sourced, Sources, Told, sentence_of
from serving.steering import without
from serving.wording import POPULAR, Wording
from towers.columns import TIMESTAMP
from towers.encoder import Encoder, UserRow
from towers.schema import Feature

MOST_EXPLAINED = 100
"""Of a list; items further down carry no explanation."""
_UNTOLD = ("id", "text", "time", "dense")

_JSON = msgspec.json.Encoder()

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
        self._sources = Sources(self._inputs, self._wording)

    def explained(self, asked: Asked, chosen: Selection, item_kD: Floats, catalog: AnyCatalog, place: int = 0) -> Items:
        """What the reply says of each item, with its explanation.

        Args:
            item_kD: their vectors.
            place: which of the asked contexts.
        """
        rows_k, scores_k = chosen.rows_k, chosen.scores_k
        if asked.vectors_BHD is None:
            return catalog.items(rows_k, scores_k, [[_JSON.encode(Explanation(POPULAR, [], score, False))] for score in scores_k.tolist()])
        row, item_kD = asked.rows[place], item_kD[:MOST_EXPLAINED]
        if asked.away:
            item_kD = without(item_kD, asked.away[place])
        given = self._given(row)
        carried = left_out(self._encoder, row, list(given), item_kD) if asked.parts is None else exact(asked.parts, place, item_kD)
        return catalog.items(rows_k, scores_k, self._explanations(by_item(carried, row), row, given, chosen, catalog))

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
    ) -> list[list[bytes]]:
        """JSON of `Explanation`, in pieces. An event, or a value given, is a reason where it speaks for the item; all else is the rest."""
        best = Best.of(carried, [carried.events + place for place, name in enumerate(carried.names) if name in given])
        sources = self._told(carried, set(best.places), row, given, catalog)
        liked = any(sourced.source.kind == PREFERENCE for sourced in sources.values())  # else nobody asks for the items' categories
        categories = [item.categories for item in catalog.items(chosen.rows_k, chosen.scores_k)] if liked else [()] * len(best.count_k)
        of = [sources[place] for place in best.places]
        pieces = [b',"share":'] * (5 * len(of))
        pieces[::5], pieces[4::5] = [sourced.head for sourced in of], [sourced.tail for sourced in of]
        pieces[1::5], pieces[3::5] = _numbers(best.parts), _numbers(best.shares)
        end, found, start = b',"approximate":true}' if carried.approximate else b',"approximate":false}', [], 0
        by_item = zip(best.count_k, best.lived_k, best.pair_k2, _numbers(best.rest_k), categories, strict=False)
        for count, lived, pair, rest, labels in by_item:
            stop = start + count
            text = () if pair is None else sentence_of(sources[pair[0]], sources[pair[1]])
            if not text:
                told = [(sourced.source, share) for sourced, share in zip(of[start:stop], best.shares[start:stop], strict=True)]
                text = (_JSON.encode(self._wording.sentence(told, lived, labels)),)
            reasons = pieces[5 * start : 5 * stop]
            if count:
                reasons[0] = reasons[0][1:]  # of a list the first entry follows no comma
            found.append([b'{"text":', *text, b',"reasons":[', *reasons, b'],"rest":', rest, end])
            start = stop
        return found

    def _told(self, carried: Carried, wanted: set[int], row: UserRow, given: Mapping[str, Told], catalog: AnyCatalog) -> dict[int, Sourced]:
        """What may be told, by source."""
        lived = [source for source in wanted if source < carried.events]
        first = len(row.history_items) - carried.events  # below 0 where padding is counted among the events
        sources = dict(zip(lived, self._sources.events(row, [first + source for source in lived], catalog), strict=True))
        for source in wanted.difference(lived):
            name = carried.names[source - carried.events]
            sources[source] = self._sources.value(name, given[name])
        return sources


def _numbers(values: list[float]) -> list[bytes]:
    """JSON of each."""
    return _JSON.encode(values)[1:-1].split(b",") if values else []


def _said(feature: Feature, value: object) -> Told:
    if feature.sensitive or feature.kind in _UNTOLD:
        return None
    if isinstance(value, str):
        return value
    if isinstance(value, Sequence):
        return [str(entry) for entry in value]
    return f"{value:g}" if isinstance(value, float) else str(value)
