"""What each event, context value and feature of a person adds to the scores of items.

Exact where the user tower is a weighted sum: `score = sum of <part, item>` (see towers.parts). For other towers each event and value is
left out in turn, all in one run of the tower, and what the score loses is its part: an approximation, as parts of such a tower do not add
up (leave-one-out; Li, Monroe & Jurafsky 2016, Understanding Neural Networks through Representation Erasure).

Legend: k items, S sources (events, then context and features), N events, D dimensions.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from towers.batch import UserParts
from towers.encoder import Encoder, UserRow
from towers.vocab import Coded

LEFT_OUT_EVENTS = 50
"""Newest events that are left out one by one: each is a row more for the tower."""


@dataclass(frozen=True)
class Carried:
    """What carried scores.

    Attributes:
        parts_kS: float32; events are the newest ones of the history, oldest first, and the other sources follow.
        events: how many of the sources are events.
        names: of the other sources: inputs (`context.device`), and of a weighted sum NO_HISTORY.
        rest_k: what else makes up the scores.
    """

    parts_kS: NDArray[np.float32]
    events: int
    names: Sequence[str]
    rest_k: NDArray[np.float32] | None = None

    @property
    def approximate(self) -> bool:
        return self.rest_k is not None


def by_item(carried: Carried, row: UserRow) -> Carried:
    """What all events with one item add, as the part of that one among them which adds most to the list: a reason names an item once."""
    items, padding = row.history_items[-carried.events :] if carried.events else (), max(0, carried.events - len(row.history_items))
    keys = items.codes.tolist() if isinstance(items, Coded) else items
    if len(set(keys)) == len(keys):
        return carried
    parts_kS = carried.parts_kS.copy()
    events_kN = parts_kS[:, padding : carried.events]
    added_N = events_kN.sum(0).tolist()
    told = {key: n for _, n, key in sorted(zip(added_N, range(len(keys)), keys, strict=True), key=lambda event: event[:2])}
    place_N = np.array([told[key] for key in keys])
    order_N = place_N.argsort(kind="stable")
    kept, starts = np.unique(place_N[order_N], return_index=True)
    sums = np.add.reduceat(events_kN[:, order_N], starts, axis=1)
    events_kN[:] = 0
    events_kN[:, kept] = sums
    return replace(carried, parts_kS=parts_kS)


def exact(parts: UserParts, place: int, item_kD: NDArray[np.float32]) -> Carried:
    """Of the row `place` of an encoding."""
    parts_SD = parts.parts_BSD[place]
    return Carried(item_kD @ parts_SD.T, len(parts_SD) - len(parts.names), parts.names)


def left_out(encoder: Encoder, row: UserRow, names: Sequence[str], item_kD: NDArray[np.float32]) -> Carried:
    """Of a row, by asking the tower again without each source.

    Args:
        names: inputs to be left out, those with a value.
    """
    events = min(len(row.history_items), LEFT_OUT_EVENTS)
    start = len(row.history_items) - events
    rows = [row, *(_without_event(row, start + n) for n in range(events)), *(_without_value(row, name) for name in names)]
    vectors_VHD = encoder.users(rows).vectors_BHD
    scores_kV = (item_kD @ vectors_VHD.transpose(0, 2, 1)).max(2).T
    parts_kS = scores_kV[:, :1] - scores_kV[:, 1:]
    return Carried(parts_kS, events, names, scores_kV[:, 0] - parts_kS.sum(1))


def _without_event(row: UserRow, place: int) -> UserRow:
    rows = None if row.history_rows is None else np.delete(row.history_rows, place)
    items, events, times = (
        [*entries[:place], *entries[place + 1 :]] for entries in (row.history_items, row.history_events, row.history_timestamps)
    )
    contexts = {name: [*values[:place], *values[place + 1 :]] for name, values in row.history_context.items()}
    return row._replace(history_items=items, history_events=events, history_timestamps=times, history_context=contexts, history_rows=rows)


def _without_value(row: UserRow, name: str) -> UserRow:
    owner, _, feature = name.partition(".")
    if owner == "context":
        return row._replace(context={**row.context, feature: None})
    return row._replace(features={**row.features, feature: None})
