"""Popularity against a slow, obvious reference."""

import numpy as np
import pyarrow as pa

from serving.catalog import Catalog
from serving.fallback import most_popular
from serving.index.rowset import neither


def catalog(hidden: set[int], counts: list[int]) -> Catalog:
    rows = len(counts)
    table = pa.table(
        {
            "item_id": [f"i{row:03d}" for row in range(rows)],
            "title": pa.array([None] * rows, pa.string()),
            "categories": pa.array([None] * rows, pa.list_(pa.string())),
            "is_hidden": pa.array([True if row in hidden else None for row in range(rows)], pa.bool_()),
        }
    )
    return Catalog.of_table(table, np.array(counts, np.int64))


def test_most_popular_equals_a_sort() -> None:
    rng = np.random.default_rng(1)
    counts = rng.integers(0, 6, 50).tolist()
    hidden, excluded = {3, 4, 40}, np.array([7, 8, 9])
    items = catalog(hidden, counts)
    expected = sorted((row for row in range(50) if row not in hidden | {7, 8, 9}), key=lambda row: (-counts[row], row))
    for count in (1, 10, 44, 1000):
        found = most_popular(items, count, neither(items.hidden), excluded)
        assert found.rows_C.tolist() == expected[:count]
        assert np.allclose(found.scores_C, [counts[row] / sum(counts) for row in expected[:count]])


def test_a_catalogue_without_interactions_still_answers() -> None:
    found = most_popular(catalog(set(), [0, 0, 0]), 2, None, np.empty(0, np.int64))
    assert found.rows_C.tolist() == [0, 1] and found.scores_C.tolist() == [0.0, 0.0]


def test_a_catalogue_of_nothing_but_hidden_items_gives_an_empty_list() -> None:
    items = catalog({0, 1}, [1, 2])
    assert not len(most_popular(items, 2, neither(items.hidden), np.empty(0, np.int64)).rows_C)


def test_rows_of_ids_are_distinct_and_known() -> None:
    items = catalog(set(), [1, 2, 3])
    assert items.rows(["i002", "nope", "i000", "i002"]).tolist() == [0, 2]
    assert items.row("nope") is None and items.row("i001") == 1
