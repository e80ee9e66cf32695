"""What people did with what they were shown: feedback events joined to the lists that they answer.

An event answers an item of a list where it carries the list's `recommendation_id` and the item's id, and is not somebody else's than the
list. What it says stands beside a list of the same person alone: a removal finds that row by the list's key. Of a list that is nobody's it
is only told whether somebody answered it.

Legend: E events that carry an id, by (item of a list, time); A distinct items of lists that they name; L lists of a table; S slots, the
items of all lists of a table; F pairs of a slot and an event that names it.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from towers import columns as c
from towers.live_logs import EVENT_SCHEMA, ROW

EVENT_COLUMNS = [c.RECOMMENDATION_ID, c.ITEM_ID, c.TIMESTAMP, c.EVENT_TYPE, c.VALUE, c.USER_KEY]
LIST_COLUMNS = [
    c.RECOMMENDATION_ID, ROW, c.TIMESTAMP, c.USER_KEY, "surface", c.CHANNEL, "mode", "model_version", "index_version", "config_hash",
]  # fmt: skip
"""Of the impression log: what every slot says of its list."""
LISTS_READ = [*LIST_COLUMNS, c.ITEM_ID, "score", "propensity"]
"""Of the impression log: all that `Answers.join` reads."""
_NO_CLICKS = (*c.NEGATIVE_EVENT_TYPES, c.REMOVAL)
"""Event types that do not tell that an item was wanted."""


@dataclass
class Counts:
    """How events and lists fitted together.

    Attributes:
        events: read, `with_id` those of them that name a list, `joined` those whose item stands in it.
        not_in_list: events that name a list which is there, and an item which is not in it; the rest name a list that is not there.
        of_others: events that name an item of a list which was shown to somebody else; none is joined.
        slots: items of all lists, `clicked` those with an event that is neither negative nor takes the item out of the history.
    """

    events: int = 0
    with_id: int = 0
    joined: int = 0
    not_in_list: int = 0
    of_others: int = 0
    lists: int = 0
    slots: int = 0
    clicked: int = 0


class Answers:
    """The events that answer lists, ready to be joined to tables of lists.

    Args:
        events: tables of the event log with `EVENT_COLUMNS`.
    """

    def __init__(self, events: Iterable[pa.Table]) -> None:
        self.counts = Counts()
        kept = [pa.schema([EVENT_SCHEMA.field(name) for name in EVENT_COLUMNS]).empty_table()]
        for table in events:
            self.counts.events += len(table)
            kept.append(table.filter(pc.is_valid(table.column(c.RECOMMENDATION_ID))))
        table = pa.concat_tables(kept).combine_chunks()
        self.counts.with_id = len(table)
        named = _names(table.column(c.RECOMMENDATION_ID), table.column(c.ITEM_ID)).dictionary_encode().combine_chunks()
        code_E = named.indices.to_numpy()
        order_E = np.lexsort((table.column(c.TIMESTAMP).cast(pa.int64()).to_numpy(), code_E))
        self._events = table.take(pa.array(order_E))
        self._names_A = named.dictionary
        self._starts_A1 = np.concatenate([[0], np.cumsum(np.bincount(code_E, minlength=len(self._names_A)))])
        self._positive_E = ~pc.is_in(self._events.column(c.EVENT_TYPE), value_set=pa.array(_NO_CLICKS)).to_numpy()
        self._joined_E, self._others_E, self._list_known_E = (np.zeros(len(table), bool) for _ in range(3))

    def join(self, lists: pa.Table) -> pa.Table:
        """A row for each slot of a table of the impression log: its list, its place in it, and what people did with it.

        Returns:
            `LIST_COLUMNS` of the list; `position` (from 1), `item_id`, `score`, `propensity`; `clicked`, whether somebody who wanted the
            item answers the slot; and of the events that do, first to last, `event_type`, `value` and `event_time`, none where the list
            has no key.
        """
        lists = lists.combine_chunks()
        length_L = pc.list_value_length(lists.column(c.ITEM_ID)).to_numpy()
        list_S = np.repeat(np.arange(len(lists)), length_L)
        position_S = np.arange(len(list_S)) - np.repeat(np.cumsum(length_L) - length_L, length_L) + 1
        items = _flat(lists, c.ITEM_ID)
        of_list = lists.select(LIST_COLUMNS).take(pa.array(list_S))
        found = pc.index_in(_names(of_list.column(c.RECOMMENDATION_ID), items), value_set=self._names_A)
        answer_S = pc.fill_null(found, -1).to_numpy()
        known = pc.is_in(self._events.column(c.RECOMMENDATION_ID), value_set=pc.unique(lists.column(c.RECOMMENDATION_ID)))
        self._list_known_E |= known.to_numpy()
        event_F, slot_F = self._events_of(answer_S)
        same_F = pc.equal(of_list.column(c.USER_KEY).take(pa.array(slot_F)), self._events.column(c.USER_KEY).take(pa.array(event_F)))
        own_F, others_F = (pc.fill_null(of, False).to_numpy() for of in (same_F, pc.invert(same_F)))
        self._joined_E[event_F[~others_F]] = True
        self._others_E[event_F[others_F]] = True
        clicked_S = np.bincount(slot_F[~others_F & self._positive_E[event_F]], minlength=len(list_S)) > 0
        offsets_S1 = np.concatenate([[0], np.cumsum(np.bincount(slot_F[own_F], minlength=len(list_S)))])
        told = self._events.take(pa.array(event_F[own_F]))
        columns: dict[str, Any] = dict(zip(of_list.column_names, of_list.columns, strict=True))
        columns |= {"position": pa.array(position_S, pa.int32()), c.ITEM_ID: items}
        columns |= {name: _flat(lists, name) for name in ("score", "propensity")}
        columns |= {"clicked": clicked_S}
        for name, source in ((c.EVENT_TYPE, c.EVENT_TYPE), (c.VALUE, c.VALUE), ("event_time", c.TIMESTAMP)):
            values = told.column(source).combine_chunks()
            columns[name] = pa.ListArray.from_arrays(pa.array(offsets_S1, pa.int32()), values)
        self._count(len(lists), clicked_S)
        return pa.table(columns)

    def _events_of(self, answer_S: NDArray[np.integer]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Events of each slot one after the other, and the slot of each."""
        at_S = np.maximum(answer_S, 0)
        count_S = np.where(answer_S >= 0, np.diff(self._starts_A1)[at_S], 0) if len(self._names_A) else np.zeros(len(answer_S), np.int64)
        first_F = np.repeat(self._starts_A1[at_S] - (np.cumsum(count_S) - count_S), count_S)
        return first_F + np.arange(len(first_F)), np.repeat(np.arange(len(answer_S)), count_S)

    def _count(self, lists: int, clicked_S: NDArray[np.bool_]) -> None:
        others_E = self._others_E & ~self._joined_E
        self.counts.joined = int(self._joined_E.sum())
        self.counts.of_others = int(others_E.sum())
        self.counts.not_in_list = int((self._list_known_E & ~self._joined_E & ~others_E).sum())
        self.counts.lists += lists
        self.counts.slots += len(clicked_S)
        self.counts.clicked += int(clicked_S.sum())


def _names(lists: pa.ChunkedArray, items: Any) -> pa.ChunkedArray:
    """An item of a list in one word; it begins with the length of the list's id, so that no two pairs share a word."""
    return pc.binary_join_element_wise(pc.binary_length(lists).cast(pa.string()), lists, items, " ")


def _flat(lists: pa.Table, name: str) -> pa.Array:
    return pc.list_flatten(lists.column(name)).combine_chunks()
