"""What each event, context value and feature of a person adds to the scores of items.

Exact where the user tower is a weighted sum: `score = sum of <part, item>` (see towers.parts). For other towers each event and value is
left out in turn, all in one run of the tower, and what the score loses is its part: an approximation, as parts of such a tower do not add
up (leave-one-out; Li, Monroe & Jurafsky 2016, Understanding Neural Networks through Representation Erasure).

Legend: k items, S sources (events, then context and features), N events, D dimensions.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from towers.batch import UserParts
from towers.encoder import Encoder, UserRow

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
