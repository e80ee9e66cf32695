"""What the selector knows of items by catalogue row: values of their attributes, age, unit vectors.

Legend: R catalogue rows, C rows asked for, N values of all rows, E values of the rows asked for, V distinct values, D dimensions.
An attribute is turned into rows when it is first asked for, and kept: 8 bytes a row and 4 a value.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from serving.attributes import Attributes, OrderedValues, ValueLists
from towers.columns import CREATED_AT, FIRST_ROW
from towers.vocab import Vocabulary

Rows = NDArray[np.integer]
Array = NDArray[Any]


@dataclass(frozen=True)
class Codes:
    """Values of some rows, as numbers.

    Attributes:
        count_C: how many each row has.
        codes_E: those of the first row, then of the second, and so on.
        one_each: told where every row is known to have exactly one, so that nobody needs to count.
    """

    count_C: NDArray[np.int64]
    codes_E: NDArray[np.int64]
    one_each: bool = False

    @cached_property
    def owner_E(self) -> NDArray[np.int64]:
        """Whose each value is, by place among the rows."""
        places_C = np.arange(len(self.count_C))
        return places_C if self.one_each else np.repeat(places_C, self.count_C)

    @cached_property
    def start_C(self) -> NDArray[np.int64]:
        """Where the values of each row begin."""
        return self.owner_E if self.one_each else self.count_C.cumsum() - self.count_C


class Traits(Protocol):
    """What is known of items."""

    def valued(self) -> list[str]:
        """Attributes of values (categorical, multi_categorical) that some item has."""
        ...

    def codes(self, attribute: str, rows_C: Rows) -> Codes:
        """Values of rows, of one of the attributes in `valued`."""
        ...

    def created(self, rows_C: Rows) -> NDArray[np.float64]:
        """Microseconds UTC, NaN where unknown."""
        ...

    def unit_vectors(self, rows_C: Rows) -> NDArray[np.float32]:
        """Item vectors, made 1 long: [C, D]."""
        ...

    @property
    def has_reach(self) -> bool:
        """Whether `lacking` is known."""
        ...

    def lacking(self, rows_C: Rows) -> NDArray[np.float64]:
        """What items lack to be seen; see serving.reach."""
        ...


class BundleTraits:
    """Of the items of one catalogue.

    Args:
        attributes: values by row.
        vectors_RD: item vectors, float32 or float16.
        lacks_R: see serving.reach; None where nobody computed it.
    """

    def __init__(self, attributes: Attributes, vectors_RD: NDArray[np.floating[Any]], lacks_R: NDArray[np.float32] | None = None) -> None:
        self._attributes, self._vectors_RD, self._lacks_R = attributes, vectors_RD, lacks_R
        self._values: dict[str, _RowValues] = {}
        self._last: tuple[str, Rows, Codes] | None = None

    def valued(self) -> list[str]:
        return [name for name, found in self._attributes.items() if isinstance(found, ValueLists) and len(found.rows_N)]

    def vocabulary(self, attribute: str) -> Vocabulary | None:
        """The values that codes stand for, in their order; None for an attribute that no item has."""
        found = self._attributes.get(attribute)
        return found.vocabulary if isinstance(found, ValueLists) else None

    def codes(self, attribute: str, rows_C: Rows) -> Codes:
        last = self._last
        if last is not None and last[0] == attribute and last[1] is rows_C:  # a cap and calibration ask for the same
            return last[2]
        if attribute not in self._values:
            found = self._attributes[attribute]
            assert isinstance(found, ValueLists)
            self._values[attribute] = _RowValues.of(found)
        codes = self._values[attribute].at(rows_C)
        self._last = (attribute, rows_C, codes)
        return codes

    def created(self, rows_C: Rows) -> NDArray[np.float64]:
        return self._created_R[rows_C]

    def unit_vectors(self, rows_C: Rows) -> NDArray[np.float32]:
        vectors_CD = np.asarray(self._vectors_RD[rows_C], np.float32)
        length_C = np.sqrt(np.einsum("cd,cd->c", vectors_CD, vectors_CD))
        return np.asarray(vectors_CD / np.maximum(length_C, np.float32(1e-12))[:, None], np.float32)

    @property
    def has_reach(self) -> bool:
        return self._lacks_R is not None

    def lacking(self, rows_C: Rows) -> NDArray[np.float64]:
        return np.zeros(len(rows_C)) if self._lacks_R is None else self._lacks_R[rows_C].astype(np.float64)

    @cached_property
    def _created_R(self) -> NDArray[np.float64]:
        created_R = np.full(len(self._vectors_RD), np.nan)
        known = self._attributes.get(CREATED_AT)
        if isinstance(known, OrderedValues):
            created_R[known.rows_N] = known.values_N
        return created_R


class LiveTraits:
    """Of a catalogue that items came to.

    Args:
        base: the bundle's.
        came: of what came.
        offset: row of the first of them; lower rows are the base's.
    """

    def __init__(self, base: BundleTraits, came: BundleTraits, offset: int) -> None:
        self._base, self._came, self._offset = base, came, offset
        self._codes: dict[str, NDArray[np.int64]] = {}

    def valued(self) -> list[str]:
        return list(dict.fromkeys([*self._base.valued(), *self._came.valued()]))

    def codes(self, attribute: str, rows_C: Rows) -> Codes:
        new_C = rows_C >= self._offset
        if not new_C.any():
            return self._base.codes(attribute, rows_C)
        here = self._base.codes(attribute, rows_C[~new_C])
        there = self._came.codes(attribute, rows_C[new_C] - self._offset)
        count_C = np.empty(len(rows_C), np.int64)
        count_C[~new_C], count_C[new_C] = here.count_C, there.count_C
        new_E = np.repeat(new_C, count_C)
        codes_E = np.empty(len(new_E), np.int64)
        codes_E[~new_E], codes_E[new_E] = here.codes_E, self._known(attribute)[there.codes_E]
        return Codes(count_C, codes_E)

    @property
    def has_reach(self) -> bool:
        return self._base.has_reach

    def lacking(self, rows_C: Rows) -> NDArray[np.float64]:
        """Of what came nobody knows; it lacks nothing."""
        return self._joined(rows_C, self._base.lacking, self._came.lacking, np.empty(len(rows_C)))

    def created(self, rows_C: Rows) -> NDArray[np.float64]:
        return self._joined(rows_C, self._base.created, self._came.created, np.empty(len(rows_C)))

    def unit_vectors(self, rows_C: Rows) -> NDArray[np.float32]:
        width = self._base.unit_vectors(rows_C[:0]).shape[1]
        return self._joined(rows_C, self._base.unit_vectors, self._came.unit_vectors, np.empty((len(rows_C), width), np.float32))

    def _joined(self, rows_C: Rows, base: Callable[[Rows], Array], came: Callable[[Rows], Array], out: Array) -> Array:
        new_C = rows_C >= self._offset
        out[~new_C], out[new_C] = base(rows_C[~new_C]), came(rows_C[new_C] - self._offset)
        return out

    def _known(self, attribute: str) -> NDArray[np.int64]:
        """The base's code of each code of what came; values that the base does not have get codes after all of its."""
        if attribute not in self._codes:
            base, came = self._base.vocabulary(attribute), self._came.vocabulary(attribute)
            assert base is not None and came is not None
            codes = base.rows(came.values().to_pylist()).astype(np.int64) - FIRST_ROW
            codes[codes < 0] = len(base.values()) + np.arange(np.count_nonzero(codes < 0))
            self._codes[attribute] = codes
        return self._codes[attribute]


@dataclass(frozen=True)
class _RowValues:
    """An attribute turned back into rows: values of row r are codes_N[offsets_R[r] : offsets_R[r + 1]], ascending."""

    offsets_R: NDArray[np.int64]
    codes_N: NDArray[np.int32]
    one_each: bool

    @classmethod
    def of(cls, lists: ValueLists) -> "_RowValues":
        code_N = np.repeat(np.arange(len(lists.offsets_V) - 1, dtype=np.int32), np.diff(lists.offsets_V))
        count_R = np.bincount(lists.rows_N, minlength=lists.size)
        offsets_R = np.concatenate([[0], count_R.cumsum()]).astype(np.int64)
        return cls(offsets_R, code_N[np.argsort(lists.rows_N, kind="stable")], bool((count_R == 1).all()))

    def at(self, rows_C: Rows) -> Codes:
        if self.one_each:
            return Codes(np.ones(len(rows_C), np.int64), self.codes_N[rows_C].astype(np.int64), True)
        start_C = self.offsets_R[rows_C]
        count_C = self.offsets_R[rows_C + 1] - start_C
        before_C = count_C.cumsum() - count_C
        index_E = np.repeat(start_C - before_C, count_C) + np.arange(int(count_C.sum()))
        return Codes(count_C, self.codes_N[index_E].astype(np.int64))
