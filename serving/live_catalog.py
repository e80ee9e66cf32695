"""A catalogue that items come to and go from: the bundle's, less what is gone, and a small one of what came.

Row n of what came is row `offset_of(I) + n` of the whole, as in `LiveIndex`. Legend: I items of the bundle, N items that came.
"""

import bisect
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TypeVar

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from serving.attribute_files import build_attributes
from serving.attributes import Attributes
from serving.catalog import Catalog, relative_popularity
from serving.filters import ItemFilter
from serving.index.interface import VectorIndex
from serving.index.live_index import LiveIndex, LiveRows, offset_of, vectors_of
from serving.index.rowset import Rows, RowSet, both, neither
from serving.item_texts import Items
from serving.messages import Clause
from serving.reach import open_reach
from serving.traits import BundleTraits, LiveTraits
from towers.bundle import Bundle
from towers.columns import ITEM_ID
from towers.schema import Schema

_T = TypeVar("_T")


class LiveCatalog:
    """See `Catalog`.

    Args:
        base: the bundle's.
        gone: rows of it that are no more, or stand anew in `came`.
        came: what came, in the order of ids.
        place_N: where each of them stands among the base's rows by its id.
    """

    def __init__(self, base: Catalog, gone: Rows, came: Catalog, place_N: NDArray[np.float64]) -> None:
        self._base, self._came, self._place_N = base, came, place_N
        self._alive = neither(RowSet.of_rows(base.size, gone))
        self._offset = offset_of(base.size)
        self.size = self._offset + came.size

    def __len__(self) -> int:
        return self._alive.count + len(self._came)

    def row(self, item_id: str) -> int | None:
        """Row of an item, None for an unknown id."""
        came = self._came.row(item_id)
        if came is not None:
            return self._offset + came
        row = self._base.row(item_id)
        return row if row is not None and self._alive.has(np.array([row]))[0] else None

    def rows(self, *item_ids: Sequence[str]) -> NDArray[np.int64]:
        """Distinct rows of the known ids among all of them, ascending."""
        base = self._base.rows(*item_ids)
        return np.concatenate([base[self._alive.has(base)], self._came.rows(*item_ids) + self._offset])

    def ids(self, rows: NDArray[np.integer]) -> list[str]:
        """Item ids of rows, in the order given."""
        return self._both(rows, self._base.ids, self._came.ids)

    def id_column(self, rows: NDArray[np.integer]) -> pa.StringArray:
        """The same as an Arrow array."""
        return pa.array(self.ids(rows), pa.string())

    def known(self, item_ids: Sequence[str | None]) -> list[memoryview | None]:
        """What a reply says of each id but a score, None where there is no such item or it is gone."""
        rows = [None if item_id is None else self.row(item_id) for item_id in item_ids]
        both = zip(rows, self._base.known(item_ids), self._came.known(item_ids), strict=True)
        return [None if row is None else there if row >= self._offset else here for row, here, there in both]

    def items(self, rows: NDArray[np.integer], scores: NDArray[np.floating], explanations: Sequence[Sequence[bytes]] = ()) -> Items:
        """What a reply says about each row, in the order given; see `Items`."""
        return Items(self._both(rows, self._base.texts, self._came.texts), scores, explanations)

    def _both(self, rows: NDArray[np.integer], base: Callable[[Rows], list[_T]], came: Callable[[Rows], list[_T]]) -> list[_T]:
        """What the base says of its rows and what came of the others, in the order given."""
        new = rows >= self._offset
        if not new.any():
            return base(rows)
        here, there = iter(base(rows[~new])), iter(came(rows[new] - self._offset))
        return [next(there) if one else next(here) for one in new.tolist()]

    def popularity(self, rows: NDArray[np.integer]) -> NDArray[np.float64]:
        """log(1 + training interactions) over that of the bundle's most chosen item."""
        return relative_popularity(self.share_I[rows], self._base)

    @cached_property
    def share_I(self) -> NDArray[np.float32]:
        """Share of all training interactions, by row; of a changed item as before, of a new one 0."""
        shares = np.zeros(self.size, np.float32)
        shares[: self._base.size] = self._base.share_I
        at = self._place_N.astype(np.int64)
        known = (self._place_N == at) & (self._place_N >= 0)
        shares[self._offset :][known] = self._base.share_I[at[known]]
        return shares

    @cached_property
    def popular_I(self) -> NDArray[np.int32]:
        """Rows, most popular first, ties by id."""
        shares, kept = self.share_I, self._base.popular_I[self._alive.has(self._base.popular_I)]
        share_N = shares[self._offset :]
        order = np.lexsort((self._place_N, -share_N))
        keys = ((-float(share_N[n]), float(self._place_N[n])) for n in order.tolist())
        at = [bisect.bisect(kept, key, key=lambda row: (-float(shares[row]), float(row))) for key in keys]
        return np.insert(kept, at, order + self._offset)


class LiveFilter:
    """See `ItemFilter`."""

    def __init__(self, base: ItemFilter, gone: Rows, came: ItemFilter, base_size: int, came_size: int) -> None:
        self._base, self._came = base, came
        self._alive = neither(RowSet.of_rows(base_size, gone))
        self._every = RowSet.of_rows(came_size, np.arange(came_size))
        self._offset = offset_of(base_size)

    def allowed(self, clauses: Sequence[Clause] = (), candidates: Rows | None = None) -> LiveRows | None:
        """Rows that may be shown and fulfil every clause; None where all do."""
        here, there = None, None
        if candidates is not None:
            here, there = candidates[candidates < self._offset], candidates[candidates >= self._offset] - self._offset
        base, came = self._base.allowed(clauses, here), self._came.allowed(clauses, there)
        if base is None and came is None:
            return None
        # a set that has a name is the bundle's list of a declared value, and holds what is gone
        if base is None or (base.key and self._alive.count < self._alive.size):
            base = self._alive if base is None else both([base, self._alive])
        return LiveRows(base, self._every if came is None else came)


AnyCatalog = Catalog | LiveCatalog
AnyFilter = ItemFilter | LiveFilter


@dataclass(frozen=True)
class Stock:
    """All that a retriever knows of items.

    Attributes:
        bundle: which they are of.
        vectors_ID: item vectors, float32 or, as they may be served, float16.
    """

    bundle: Bundle
    vectors_ID: NDArray[np.float32] | NDArray[np.float16]
    attributes: Attributes
    catalog: Catalog
    index: VectorIndex

    def vectors(self, rows: NDArray[np.integer], came_ND: NDArray[np.float32]) -> NDArray[np.float32]:
        """Vectors of catalogue rows, in the order given, where items with these vectors came."""
        return vectors_of(rows, self.vectors_ID, came_ND)

    @cached_property
    def traits(self) -> BundleTraits:
        """What the selector knows of the items."""
        return BundleTraits(self.attributes, self.vectors_ID, open_reach(self.bundle, self.catalog.size))

    def traits_with(self, came: pa.Table, came_ND: NDArray[np.float32], schema: Schema) -> LiveTraits:
        """The same after items came; see `with_changes`."""
        return LiveTraits(self.traits, BundleTraits(build_attributes(came, schema), came_ND), offset_of(self.catalog.size))

    @cached_property
    def table(self) -> pa.Table:
        """The catalogue as it was exported; no request needs it."""
        return self.bundle.catalog()

    def with_changes(
        self, gone: Sequence[str], came: pa.Table, came_ND: NDArray[np.float32], schema: Schema
    ) -> tuple[LiveCatalog, LiveFilter, LiveIndex]:
        """The same after items went and others came.

        Args:
            gone: ids that are no more, or stand anew in `came`; unknown ones are passed over.
            came: rows as of a catalogue, in ascending order of their ids' bytes.
            came_ND: their vectors.
        """
        size, rows = self.catalog.size, self.catalog.rows(gone)
        hidden = RowSet.of_rows(size, np.concatenate([self.catalog.hidden.rows(), rows]))
        place_N = places(came.column(ITEM_ID).to_pylist(), self.catalog.vocabulary.values())
        small = Catalog.of_table(came, np.zeros(len(came), np.int64))
        filters = ItemFilter(build_attributes(came, schema), small.hidden, len(came))
        return (
            LiveCatalog(self.catalog, rows, small, place_N),
            LiveFilter(ItemFilter(self.attributes, hidden, size), rows, filters, size, len(came)),
            LiveIndex(self.index, rows, came_ND, place_N),
        )


def places(ids: Sequence[str], values: pa.StringArray) -> NDArray[np.float64]:
    """Where ids (in ascending order) stand among a catalogue's: the row of a known one, between two rows for the others.

    >>> places(["a", "b", "bb", "bc"], pa.array(["b", "c"])).tolist()
    [-0.5, 0.0, 0.3333333333333333, 0.6666666666666666]
    """
    place_N = np.empty(len(ids), np.float64)
    between: dict[int, list[int]] = {}
    for n, item_id in enumerate(ids):
        row = bisect.bisect_left(values, item_id.encode(), key=lambda scalar: scalar.as_py().encode())
        place_N[n] = row
        if row == len(values) or values[row].as_py() != item_id:
            between.setdefault(row, []).append(n)
    for row, members in between.items():
        place_N[members] = row - np.arange(len(members), 0, -1) / (len(members) + 1)
    return place_N
