"""Which rows fulfil what a request asks of items: every clause of its filter, its own candidates, and nothing hidden.

Legend: I catalogue rows.
"""

from collections.abc import Iterator, Sequence
from datetime import datetime
from typing import Any

import numpy as np

from serving.attributes import Attributes, OrderedValues, ValueLists
from serving.index.rowset import Rows, RowSet, both, either, neither
from serving.messages import Clause
from towers.errors import RequestError
from towers.values import as_numbers, as_strings, as_times


class ItemFilter:
    """Turns what a request asks of items into rows.

    Args:
        attributes: of the bundle's items.
        hidden: rows never shown.
        size: I.
    """

    def __init__(self, attributes: Attributes, hidden: RowSet, size: int) -> None:
        self._attributes = attributes
        self._visible = neither(hidden) if hidden.count else None
        self._size = size

    def allowed(self, clauses: Sequence[Clause] = (), candidates: Rows | None = None) -> RowSet | None:
        """Rows that may be shown and fulfil every clause; None where all do.

        Args:
            candidates: rows to choose from; None = all.

        Raises:
            RequestError: names the clause and the field at fault.
        """
        sets = [] if candidates is None else [RowSet.of_rows(self._size, candidates)]
        for place, clause in enumerate(clauses):
            sets.extend(self._sets(f"filter[{place}]", clause))
        # A declared value keeps its name, and so the list that an index may hold for it; hidden items are in no such list.
        if self._visible is None or (len(sets) == 1 and sets[0].key):
            return both(sets) if sets else None
        return both([*sets, self._visible])

    def _sets(self, at: str, clause: Clause) -> Iterator[RowSet]:
        attribute = self._checked(at, clause)
        if isinstance(attribute, OrderedValues):
            yield attribute.between(*_bounds(at, clause, attribute.is_time))
            return
        for name, values in (("any_of", clause.any_of), ("none_of", clause.none_of)):
            if values is not None:
                found = either(attribute.sets(as_strings(f"{at}.{name}", values)), self._size)
                yield found if name == "any_of" else neither(found)

    def _checked(self, at: str, clause: Clause) -> ValueLists | OrderedValues:
        attribute = self._attributes.get(clause.field)
        if attribute is None:
            known = ", ".join(self._attributes) or "none"
            raise RequestError(f"{at}.field", f"got {clause.field[:60]!r}, expected a declared attribute of items: {known}")
        valued, bounded = (clause.any_of, clause.none_of) != (None, None), (clause.at_least, clause.below) != (None, None)
        ranged = isinstance(attribute, OrderedValues)
        if (valued, bounded) != (not ranged, ranged):
            expected = (
                "at_least or below, or both: it is a number or a time" if ranged else "any_of or none_of: it has values, not an order"
            )
            raise RequestError(at, f"{clause.field} takes {expected}")
        return attribute


def _bounds(at: str, clause: Clause, is_time: bool) -> tuple[float, float]:
    ends = []
    for name, bound, open_end in (("at_least", clause.at_least, -np.inf), ("below", clause.below, np.inf)):
        where = f"{at}.{name}"
        number: float | None = open_end
        if bound is not None:
            number = _microseconds(where, bound) if is_time else float(as_numbers(where, [bound])[0])
        if number is None or number != number:
            raise RequestError(where, "got a value that is no number, expected one")
        ends.append(number)
    return ends[0], ends[1]


def _microseconds(where: str, value: Any) -> float | None:
    """Of Unix seconds, RFC 3339 text or a datetime; None for seconds out of all bounds."""
    if isinstance(value, int | float):
        return round(value * 1_000_000) if abs(value) < 1e12 else None
    return int(as_times(where, [value if isinstance(value, datetime | str) else str(value)])[0])
