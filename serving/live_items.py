"""Changes of items, applied to the retriever of one bundle."""

from collections.abc import Mapping

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from serving.item_changes import Attributes, ItemChanges, check_item, item_columns, item_table
from serving.retriever import Retriever
from towers.errors import RequestError


def count_items(base: Retriever, changes: ItemChanges) -> int:
    """Items of a bundle's catalogue after all changes, told without encoding any: one without a finite vector counts too.

    Args:
        base: of the bundle alone.
    """
    last = {change.item_id: change.attributes for change in changes.since(changes.held(base.bundle))}
    known = sum(base.catalog.row(item_id) is not None for item_id in last)
    return len(base.catalog) - known + sum(attributes is not None for attributes in last.values())


def came(base: Retriever, changes: ItemChanges) -> set[str]:
    """Ids of items that came or changed since the bundle, less what went."""
    last = {change.item_id: change.attributes for change in changes.since(changes.held(base.bundle))}
    return {item_id for item_id, attributes in last.items() if attributes is not None}


class LiveItems:
    """What came to a bundle's catalogue and went from it.

    Args:
        base: of the bundle alone.
        changes: where they are stored.

    Attributes:
        generation: of the last change taken in.
    """

    def __init__(self, base: Retriever, changes: ItemChanges) -> None:
        self._base, self._changes = base, changes
        self.generation = changes.held(base.bundle)
        changes.go_on_from(self.generation)
        self._now: dict[str, Attributes | None] = {}
        self._vectors: dict[str, NDArray[np.float32]] = {}

    def refreshed(self) -> Retriever | None:
        """A retriever that knows all changes; None where there was none since this was last asked."""
        return self._base.with_items(self.gone, *self.came(), self.generation) if self.read() else None

    def read(self) -> bool:
        """Take in the changes since this was last asked; whether there were any."""
        changes = self._changes.since(self.generation)
        if not changes:
            return False
        self.generation = changes[-1].generation
        new = {c.item_id: self._fitting(c.item_id, c.attributes) for c in changes if c.attributes is not None}
        self._vectors.update(zip(sorted(new, key=str.encode), self._encoded(new), strict=True))
        for change in changes:
            attributes = new.get(change.item_id)
            # an item without a finite vector is not shown rather than shown anywhere
            self._now[change.item_id] = attributes if attributes is not None and np.isfinite(self._vectors[change.item_id]).all() else None
        return True

    @property
    def gone(self) -> list[str]:
        """Ids that are no more, or stand anew in what came."""
        return list(self._now)

    def came(self) -> tuple[pa.Table, NDArray[np.float32]]:
        """Items that came, as rows of a catalogue in the order of their ids' bytes, and their vectors."""
        there = {item_id: attributes for item_id, attributes in self._now.items() if attributes is not None}
        table = item_table(there, self._base.stock.table.schema, self._base.encoder.preprocessor)
        came_ND = np.empty((len(there), self._base.stock.vectors_ID.shape[1]), np.float32)
        for n, item_id in enumerate(sorted(there, key=str.encode)):
            came_ND[n] = self._vectors[item_id]
        return table, came_ND

    def check(self, item_id: str, attributes: Attributes) -> None:
        """Raises RequestError, naming the attribute, unless the item can be encoded."""
        check_item(item_id, attributes, self._base.encoder.preprocessor, self._base.limits)
        if not np.isfinite(self._encoded({item_id: attributes})).all():
            raise RequestError("attributes", "they give no finite vector; are its numbers within reason?")

    def _encoded(self, items: Mapping[str, Attributes]) -> NDArray[np.float32]:
        """Vectors of items, in the order of their ids' bytes."""
        if not items:
            return np.empty((0, self._base.stock.vectors_ID.shape[1]), np.float32)
        preprocessor = self._base.encoder.preprocessor
        table = item_table(items, self._base.stock.table.schema, preprocessor)
        return self._base.encoder.items(item_columns(table, preprocessor), len(table))

    def _fitting(self, item_id: str, attributes: Attributes) -> Attributes:
        """An item put under another bundle's schema: what this one does not take is missing."""
        kept = {}
        for name, value in attributes.items():
            try:
                check_item(item_id, {name: value}, self._base.encoder.preprocessor)
            except RequestError:
                continue
            kept[name] = value
        return kept
