"""What evaluation asks: queries with their moment, history, context, and the held-out items that answer them.

Legend: Q queries, B queries of a block, N prepared rows, L history length.

A held-out event counts as an answer where its weight is above 0 (negative event types are history, never answers).

- unit `event`: one query per held-out answer, with its own time and context; one relevant item; the history is every event of the
  user strictly before it in (timestamp, ingest order), earlier held-out events included.
- unit `user`: one query per user at the first held-out answer, with that event's time and context; all of the user's distinct
  held-out answers are relevant. Data without order (`set`) has no "before": there the history is all events of earlier splits.

Seen items are those of the history; under the `given` split also every item of the user's earlier splits, as its protocols mask.
Items created after the query's moment stay candidates: the catalogue is taken as it is now.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from towers import history
from towers.columns import IS_HIDDEN, NO_TIME, SPLIT_NAMES
from towers.errors import DataError
from training import ragged
from training.batches import user_inputs
from training.interactions import BLOCK_ROWS, Interactions

_MASK_BLOCK = 4096


@dataclass(frozen=True)
class Spans:
    """Ranges of events, one a query: the events `events[start:end]`, or the prepared rows start..end where `events` is None."""

    start_Q: NDArray[np.int64]
    end_Q: NDArray[np.int64]
    events: NDArray[np.int64] | None = None

    def take(self, queries: NDArray[np.int64] | slice) -> "Spans":
        return Spans(self.start_Q[queries], self.end_Q[queries], self.events)

    def rows(self) -> ragged.Csr:
        """All prepared rows of each query."""
        offsets, index = ragged.ranges(self.start_Q, self.end_Q)
        return offsets, index if self.events is None else self.events[index]


@dataclass(frozen=True)
class Queries:
    """A set of queries on prepared data, ordered by user, then by event.

    Attributes:
        split: `valid` or `test`.
        unit: `user` or `event`.
        user_Q: user rows.
        event_Q: the prepared row that gives each query its time and context.
        history: what the user tower may read of each query.
        seen: what counts as seen, besides the history.
        relevant: distinct relevant item rows of each query.
    """

    data: Interactions
    split: str
    unit: str
    user_Q: NDArray[np.int64]
    event_Q: NDArray[np.int64]
    history: Spans
    seen: Spans | None
    relevant: ragged.Csr

    def __len__(self) -> int:
        return len(self.user_Q)

    @property
    def now_Q(self) -> NDArray[np.int64]:
        """Microseconds UTC of each query, NO_TIME where there is none."""
        if self.data.schema.order == "set":
            return np.full(len(self), NO_TIME, np.int64)
        return np.asarray(self.data.timestamp[self.event_Q])

    @property
    def relevant_Q(self) -> NDArray[np.int64]:
        """How many items are relevant to each query."""
        return np.diff(self.relevant[0])

    @property
    def history_Q(self) -> NDArray[np.int64]:
        """How many events each history holds, before it is cut to the tower's length."""
        return self.history.end_Q - self.history.start_Q

    @property
    def last_Q(self) -> NDArray[np.int64]:
        """The item row of the newest event of each history, -1 where it is empty."""
        last = self.history.end_Q - 1
        rows = last if self.history.events is None else self.history.events[np.maximum(last, 0)] if len(self.history.events) else last
        return np.where(self.history_Q > 0, self.data.item[np.maximum(rows, 0)], -1).astype(np.int64)

    def inputs(self, queries: slice, length: int) -> dict[str, NDArray[np.generic]]:
        """The user tower's inputs, made as the training loader makes them."""
        spans, event_B = self.history.take(queries), self.event_Q[queries]
        index_BL, mask_BL = history.gather(spans.start_Q, spans.end_Q, length)
        if spans.events is not None and len(spans.events):
            index_BL = spans.events[index_BL]
        context: Mapping[str, NDArray[Any]] = {name: array[event_B] for name, array in self.data.context.items()}
        index_BL = np.where(mask_BL, index_BL, -1)
        inputs = user_inputs(self.data, self.user_Q[queries], event_B, self.now_Q[queries], context, length, index_BL)
        self.data.release()
        return inputs

    def seen_items(self, queries: slice) -> ragged.Csr:
        """Distinct items that each query's user has seen."""
        parts = [spans.take(queries).rows() for spans in (self.history, self.seen) if spans is not None]
        owner = np.concatenate([ragged.owners(part) for part in parts])
        items = self.data.item[np.concatenate([part[1] for part in parts])]
        self.data.release()
        return ragged.group(owner, items, len(parts[0][0]) - 1)

    def take(self, chosen: NDArray[np.int64]) -> "Queries":
        """The chosen queries."""
        return replace(
            self,
            user_Q=self.user_Q[chosen],
            event_Q=self.event_Q[chosen],
            history=self.history.take(chosen),
            seen=None if self.seen is None else self.seen.take(chosen),
            relevant=ragged.select(self.relevant, chosen),
        )

    def unseen(self) -> "Queries":
        """The queries as they stand where seen items are masked: relevant items that the user has seen are dropped, and queries
        left without any with them."""
        unseen = np.ones(len(self.relevant[1]), bool)
        owner = ragged.owners(self.relevant)
        for start in range(0, len(self), _MASK_BLOCK):
            block = slice(start, min(len(self), start + _MASK_BLOCK))
            pairs = slice(self.relevant[0][block.start], self.relevant[0][block.stop])
            unseen[pairs] = ragged.find(self.seen_items(block), owner[pairs] - start, self.relevant[1][pairs], self.data.n_items) < 0
        kept = replace(self, relevant=ragged.keep(self.relevant, unseen))
        return kept.take(np.flatnonzero(kept.relevant_Q > 0))

    def masked(self) -> "Queries":
        """`unseen`, of which something has to be left.

        Raises:
            DataError: masking leaves nothing to find.
        """
        queries = self.unseen()
        if not len(queries):
            raise DataError(
                f"split {self.split!r}: every held-out item was seen before by its user, so nothing is left where seen items are masked."
                " Use evaluate.seen=unmasked"
            )
        return queries


def make_queries(
    data: Interactions,
    split: str,
    unit: str,
    split_name: str,
    max_queries: int = 0,
    seed: int = 0,
    max_history: int = 0,
    allowed_U: NDArray[np.bool_] | None = None,
) -> Queries:
    """The queries of a held-out split.

    Args:
        data: the prepared interactions.
        split: `valid` or `test`.
        unit: `user`, `event` or `auto` (`user` for the given split and for data without order, else `event`).
        split_name: how the data was split (`config.split.name`).
        max_queries: most queries, drawn without replacement by `seed`; 0 = all.
        max_history: queries with more events before them are left out; 0 = none is.
        allowed_U: whose queries may be asked, bool [U], which may leave none; None = everybody's.

    Raises:
        DataError: the split holds no answer, or none with so little before it.
    """
    if unit == "auto":
        unit = "user" if split_name == "given" or data.schema.order == "set" else "event"
    code = SPLIT_NAMES.index(split)
    answers = _answers(data, code)
    if not len(answers):
        raise DataError(
            f"split {split!r} has no event that counts as an answer (weight above 0), so there is nothing to evaluate."
            f" Raise split.{split}_share, or give a longer log, and run `towers prepare` again"
        )
    if allowed_U is not None:
        answers = answers[allowed_U[data.users_of(answers)]]
    if unit == "event" and max_history:
        answers = answers[answers - data.offsets[data.users_of(answers)] <= max_history]
    if unit == "event" and 0 < max_queries < len(answers):
        # before anything is made of them: a tenth of a large log are millions, of which thousands are asked
        answers = answers[np.sort(np.random.default_rng(seed).choice(len(answers), max_queries, replace=False))]
    user_A = data.users_of(answers)
    if unit == "event":
        user_Q, event_Q = user_A, answers
        relevant: ragged.Csr = (np.arange(len(answers) + 1), np.asarray(data.item[answers]))
    else:
        user_Q, first = np.unique(user_A, return_index=True)
        event_Q = answers[first]
        relevant = ragged.group(np.searchsorted(user_Q, user_A), data.item[answers], len(user_Q))
    before = Spans(np.asarray(data.offsets[user_Q]), event_Q)
    ordered = data.schema.order != "set"
    earlier = None if ordered and split_name != "given" else _earlier_splits(data, code, user_Q)
    queries = Queries(
        data=data,
        split=split,
        unit=unit,
        user_Q=user_Q,
        event_Q=event_Q,
        history=before if ordered or earlier is None else earlier,
        seen=earlier if ordered else None,
        relevant=relevant,
    )
    if max_history:
        queries = queries.take(np.flatnonzero(queries.history_Q <= max_history))
        if not len(queries):
            raise DataError(f"split {split!r} has no answer with at most {max_history} events before it: raise evaluate.max_history")
    if 0 < max_queries < len(queries):
        chosen = np.random.default_rng(seed).choice(len(queries), max_queries, replace=False)
        return queries.take(np.sort(chosen))
    return queries


def recommendable(data: Interactions) -> NDArray[np.bool_]:
    """bool [I]: items that may be recommended, which hidden ones may not."""
    if IS_HIDDEN not in data.catalog.column_names:
        return np.ones(data.n_items, bool)
    hidden = np.array(data.catalog[IS_HIDDEN].to_pylist(), dtype=object)
    return ~np.array([bool(value) for value in hidden])


def _answers(data: Interactions, code: int) -> NDArray[np.int64]:
    """Rows that are answers, found block by block."""
    found = [np.empty(0, np.int64)]
    for start in range(0, len(data), BLOCK_ROWS):
        rows = slice(start, start + BLOCK_ROWS)
        found.append(np.flatnonzero((data.split[rows] == code) & (data.weight[rows] > 0)) + start)
        data.release()
    return np.concatenate(found)


def _earlier_splits(data: Interactions, code: int, user_Q: NDArray[np.int64]) -> Spans:
    """All events of the splits before `code`, as spans of each query's user."""
    events = np.flatnonzero(data.split < code).astype(np.int64)
    bounds = np.searchsorted(events, data.offsets)
    return Spans(bounds[user_Q], bounds[user_Q + 1], events)
