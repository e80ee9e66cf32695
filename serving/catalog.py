"""Items by id and by catalogue row: what replies say of them, who is hidden, what is popular."""

from collections.abc import Sequence

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from serving.index.rowset import RowSet, distinct
from serving.item_texts import Items, Texts, item_texts
from towers.columns import FIRST_ROW, IS_HIDDEN, ITEM_ID
from towers.vocab import Vocabulary


class Catalog:
    """The catalogue of a bundle.

    Args:
        ids: item ids, numbered in row order.
        texts: of `item_texts`, by row.
        hidden: rows that are never shown.
        counts_I: training interactions of each row.

    Attributes:
        hidden: see above.
        popular_I: rows, most popular first, ties by row.
        share_I: float32 share of all training interactions, by row.
        interactions: all of them.
        vocabulary: the ids.
    """

    def __init__(self, ids: Vocabulary, texts: pa.LargeBinaryArray, hidden: RowSet, counts_I: NDArray[np.int64]) -> None:
        self.vocabulary = ids
        self._texts = Texts(texts)
        self.hidden = hidden
        self.popular_I = np.argsort(-counts_I, kind="stable").astype(np.int32)
        self.interactions = int(counts_I.sum())
        self.share_I = (counts_I / max(1, self.interactions)).astype(np.float32)

    @classmethod
    def of_table(cls, table: pa.Table, counts_I: NDArray[np.int64]) -> "Catalog":
        """From a catalogue's table, in row order."""
        return cls(Vocabulary.numbered(table.column(ITEM_ID).to_pylist()), item_texts(table), hidden_rows(table), counts_I)

    def __len__(self) -> int:
        return len(self._texts)

    @property
    def size(self) -> int:
        """One past the last row."""
        return len(self._texts)

    def row(self, item_id: str) -> int | None:
        """Catalogue row, None for an unknown id."""
        row = int(self.vocabulary.rows([item_id])[0]) - FIRST_ROW
        return row if row >= 0 else None

    def rows(self, *item_ids: Sequence[str]) -> NDArray[np.int64]:
        """Distinct rows of the known ids among all of them, ascending."""
        parts = [self.vocabulary.rows(part) for part in item_ids if len(part)]
        if not parts:
            return np.empty(0, np.int64)
        found = distinct(parts[0] if len(parts) == 1 else np.concatenate(parts))
        if found[0] < FIRST_ROW:  # ids that nobody knows stand first
            found = found[np.searchsorted(found, FIRST_ROW) :]
        return np.subtract(found, FIRST_ROW, dtype=np.int64)

    def ids(self, rows: NDArray[np.integer]) -> list[str]:
        """Item ids of rows, in the order given."""
        found: list[str] = self.id_column(rows).to_pylist()
        return found

    def id_column(self, rows: NDArray[np.integer]) -> pa.StringArray:
        """The same as an Arrow array: of many rows, a tenth of the time."""
        return self.vocabulary.values().take(pa.array(rows))

    def known(self, item_ids: Sequence[str | None]) -> list[memoryview | None]:
        """What a reply says of each id but a score, None where there is no such item."""
        rows = self.vocabulary.rows(item_ids) - FIRST_ROW
        if rows.min(initial=0) >= 0:
            return [*self.texts(rows)]
        known = iter(self.texts(rows[rows >= 0]))
        return [next(known) if row >= 0 else None for row in rows.tolist()]

    def popularity(self, rows: NDArray[np.integer]) -> NDArray[np.float64]:
        """log(1 + training interactions) over that of the most chosen item: 0 to 1."""
        return relative_popularity(self.share_I[rows], self)

    def texts(self, rows: NDArray[np.integer]) -> list[memoryview]:
        """What a reply says of each row but its score, in the order given."""
        return self._texts.of(rows)

    def items(self, rows: NDArray[np.integer], scores: NDArray[np.floating], explanations: Sequence[Sequence[bytes]] = ()) -> Items:
        """What a reply says about each row, in the order given; see `Items`."""
        return Items(self.texts(rows), scores, explanations)


def hidden_rows(table: pa.Table) -> RowSet:
    """Rows of a catalogue that are never shown."""
    return RowSet.of_rows(len(table), np.flatnonzero(table.column(IS_HIDDEN).fill_null(False).to_numpy()))


def relative_popularity(shares: NDArray[np.float32], catalog: Catalog) -> NDArray[np.float64]:
    """log(1 + interactions) over that of the catalogue's most chosen item, by shares of all its interactions."""
    greatest = float(catalog.share_I[catalog.popular_I[0]]) if len(catalog) else 0.0
    return np.log1p(shares.astype(np.float64) * catalog.interactions) / (np.log1p(greatest * catalog.interactions) or 1.0)
