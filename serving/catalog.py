"""Items by id and by catalogue row: titles, categories, who is hidden, what is popular."""

from collections.abc import Iterable, Sequence

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from serving.index.rowset import RowSet, distinct
from serving.messages import Item
from towers.columns import CATEGORIES, IS_HIDDEN, ITEM_ID, TITLE


class Catalog:
    """The catalogue of a bundle.

    Args:
        table: catalogue in row order.
        counts_I: training interactions of each row.

    Attributes:
        hidden: rows that are never shown.
        popular_I: rows, most popular first, ties by row.
        share_I: float32 share of all training interactions, by row.
        interactions: all of them.
    """

    def __init__(self, table: pa.Table, counts_I: NDArray[np.int64]) -> None:
        self._ids: list[str] = table.column(ITEM_ID).to_pylist()
        self._rows = {item_id: row for row, item_id in enumerate(self._ids)}
        self._titles = table.column(TITLE).combine_chunks()
        self._categories = table.column(CATEGORIES).combine_chunks()
        hidden_I = table.column(IS_HIDDEN).fill_null(False).to_numpy()
        self.hidden = RowSet.of_rows(len(table), np.flatnonzero(hidden_I))
        self.popular_I = np.argsort(-counts_I, kind="stable").astype(np.int64)
        self.interactions = int(counts_I.sum())
        self.share_I = (counts_I / max(1, self.interactions)).astype(np.float32)

    def __len__(self) -> int:
        return len(self._ids)

    @property
    def size(self) -> int:
        """One past the last row."""
        return len(self._ids)

    def row(self, item_id: str) -> int | None:
        """Catalogue row, None for an unknown id."""
        return self._rows.get(item_id)

    def rows(self, item_ids: Iterable[str]) -> NDArray[np.int64]:
        """Distinct rows of the known ids, ascending."""
        find = self._rows.get
        found = np.array([row for item_id in item_ids if (row := find(item_id)) is not None], np.int64)
        return np.asarray(distinct(found), np.int64)

    def ids(self, rows: NDArray[np.integer]) -> list[str]:
        """Item ids of rows, in the order given."""
        return [self._ids[row] for row in rows.tolist()]

    def titles(self, item_ids: Sequence[str]) -> list[str | None]:
        """Title of each id, None where there is none."""
        titles: list[str | None] = self._titles.take(pa.array(map(self._rows.get, item_ids), pa.int64())).to_pylist()
        return titles

    def popularity(self, rows: NDArray[np.integer]) -> NDArray[np.float64]:
        """log(1 + training interactions) over that of the most chosen item: 0 to 1."""
        return relative_popularity(self.share_I[rows], self)

    def items(self, rows: NDArray[np.integer], scores: NDArray[np.floating]) -> list[Item]:
        """What a reply says about each row, in the order given."""
        chosen = pa.array(rows, pa.int64())
        titles: Sequence[str | None] = self._titles.take(chosen).to_pylist()
        lists = self._categories.take(chosen)
        labels: list[str] = lists.flatten().to_pylist()  # those of all items in a row: a list for each costs more to convert
        ends = lists.offsets.to_numpy().tolist()
        ids = self.ids(rows)
        return [
            Item(item_id, title, score, labels[start:end])
            for item_id, title, score, start, end in zip(ids, titles, scores.tolist(), ends, ends[1:], strict=False)
        ]


def relative_popularity(shares: NDArray[np.float32], catalog: Catalog) -> NDArray[np.float64]:
    """log(1 + interactions) over that of the catalogue's most chosen item, by shares of all its interactions."""
    greatest = float(catalog.share_I[catalog.popular_I[0]]) if len(catalog) else 0.0
    return np.log1p(shares.astype(np.float64) * catalog.interactions) / (np.log1p(greatest * catalog.interactions) or 1.0)
