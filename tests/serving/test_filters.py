"""Filters against a plain reading of every item, one at a time."""

from datetime import UTC, datetime
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from serving.attribute_files import build_attributes
from serving.filters import ItemFilter
from serving.index.rowset import RowSet
from serving.messages import Clause
from towers.errors import RequestError
from towers.schema import Feature, make_schema

ITEMS = 700
SCHEMA = make_schema(
    [
        Feature("categories", "multi_categorical", "item"),
        Feature("provider", "categorical", "item"),
        Feature("year", "categorical", "item"),
        Feature("price", "numeric", "item"),
        Feature("blurb", "text", "item"),
        Feature("origin", "categorical", "item", sensitive=True, purposes=("personalize",)),
    ],
    "time",
    {},
)


def catalogue() -> list[dict[str, Any]]:
    rng = np.random.default_rng(0)
    return [
        {
            "item_id": f"i{row:03d}",
            "categories": None if row % 11 == 0 else [f"c{c}" for c in rng.integers(0, 5, rng.integers(0, 4))],
            "provider": None if row % 7 == 0 else f"p{int(rng.exponential(4))}",
            "year": None if row % 13 == 0 else int(rng.integers(1990, 1994)),
            "price": None if row % 5 == 0 else float(rng.choice([0.0, 1.5, 2.0, 9.99, np.nan])),
            "blurb": "words",
            "origin": "here",
            "created_at": None if row % 17 == 0 else datetime.fromtimestamp(1_600_000_000 + int(rng.integers(0, 50)) * 3600, UTC),
            "is_hidden": row % 10 == 3,
        }
        for row in range(ITEMS)
    ]


ROWS = catalogue()
TABLE = pa.table(
    {name: [row[name] for row in ROWS] for name in ROWS[0] if name != "created_at"}
    | {"created_at": pa.array([row["created_at"] for row in ROWS], pa.timestamp("us", "UTC"))}
)
HIDDEN = RowSet.of_rows(ITEMS, np.flatnonzero([row["is_hidden"] for row in ROWS]))
FILTER = ItemFilter(build_attributes(TABLE, SCHEMA), HIDDEN, ITEMS)


def fulfils(row: dict[str, Any], clause: Clause) -> bool:
    value = row[clause.field]
    if clause.field in ("price", "created_at"):
        if value is None or value != value:
            return False
        number = value.timestamp() if isinstance(value, datetime) else value
        low, high = (datetime.fromisoformat(end).timestamp() if isinstance(end, str) else end for end in (clause.at_least, clause.below))
        return (low is None or number >= low) and (high is None or number < high)
    own = {str(entry) for entry in (value if isinstance(value, list) else [value] if value is not None else [])}
    some = clause.any_of is None or bool(own & {str(entry) for entry in clause.any_of})
    return some and not own & {str(entry) for entry in clause.none_of or ()}


VALUES = {
    "categories": [f"c{i}" for i in range(6)],
    "provider": [f"p{i}" for i in range(30)],
    "year": [1990, 1991, "1992", 1993, 2050],
}
BOUNDS = {
    "price": [-1, 0, 1.5, 2, 9.99, 10],
    "created_at": [0, 1_600_000_000, 1_600_036_000.5, "2020-09-14T00:00:00Z", "2020-09-15T02:00:00+02:00", 4_000_000_000],
}


@st.composite
def clauses(draw: st.DrawFn) -> Clause:
    field = draw(st.sampled_from([*VALUES, *BOUNDS]))
    if field in BOUNDS:
        ends = [draw(st.sampled_from([None, *BOUNDS[field]])) for _ in range(2)]
        return Clause(field, at_least=ends[0] if any(end is not None for end in ends) else 0, below=ends[1])
    lists = [draw(st.one_of(st.none(), st.lists(st.sampled_from(VALUES[field]), min_size=1, max_size=4))) for _ in range(2)]
    return Clause(field, lists[0] if lists[0] or lists[1] else ["c1"], lists[1])


@settings(max_examples=300, deadline=None)
@given(st.lists(clauses(), max_size=4), st.sampled_from([None, 0, 1, 5, 300]), st.integers(0, 1000))
def test_filters_equal_a_plain_reading(asked: list[Clause], candidates: int | None, seed: int) -> None:
    chosen = None if candidates is None else np.random.default_rng(seed).integers(0, ITEMS, candidates)
    found = FILTER.allowed(asked, chosen)
    assert found is not None
    among = set(range(ITEMS)) if chosen is None else set(chosen.tolist())
    expected = [r for r, row in enumerate(ROWS) if r in among and not row["is_hidden"] and all(fulfils(row, clause) for clause in asked)]
    assert found.rows().tolist() == expected


def test_nothing_asked_and_nothing_hidden() -> None:
    assert ItemFilter({}, RowSet.of_rows(9, np.empty(0, np.int64)), 9).allowed() is None


def test_one_declared_value_keeps_its_name() -> None:
    """An index may hold a list of its own for it."""
    one = FILTER.allowed([Clause("categories", ["c2"])])
    assert one is not None and one.key.startswith("categories/")
    for others in ([Clause("categories", ["c2", "c3"])], [Clause("categories", ["c2"], ["c3"])], [Clause("categories", none_of=["c2"])]):
        joined = FILTER.allowed(others)
        assert joined is not None and not joined.key


@pytest.mark.parametrize(
    ("clause", "field", "words"),
    [
        (Clause("colour", ["red"]), "filter[0].field", "got 'colour', expected a declared attribute of items: categories, created_at"),
        (Clause("blurb", ["words"]), "filter[0].field", "declared attribute"),
        (Clause("origin", ["here"]), "filter[0].field", "declared attribute"),
        (Clause("item_id", ["i001"]), "filter[0].field", "declared attribute"),
        (Clause("price", ["1.5"]), "filter[0]", "at_least"),
        (Clause("price"), "filter[0]", "at_least"),
        (Clause("provider", at_least=1), "filter[0]", "any_of"),
        (Clause("provider", ["p1"], below=1), "filter[0]", "any_of"),
        (Clause("price", at_least="cheap"), "filter[0].at_least", "number"),
        (Clause("price", below=float("nan")), "filter[0].below", "number"),
        (Clause("created_at", below="yesterday"), "filter[0].below", "expected a time"),
        (Clause("created_at", at_least=1e300), "filter[0].at_least", "no number"),
    ],
)
def test_what_cannot_be_asked(clause: Clause, field: str, words: str) -> None:
    with pytest.raises(RequestError, match=words) as caught:
        FILTER.allowed([clause])
    assert caught.value.field == field


def test_no_attributes_and_no_items_with_values() -> None:
    table = pa.table({"item_id": ["a", "b"], "is_hidden": [False, None], "categories": pa.nulls(2, pa.list_(pa.string()))})
    empty = ItemFilter(build_attributes(table, make_schema([], "time", {})), RowSet.of_rows(2, np.empty(0, np.int64)), 2)
    found = empty.allowed([Clause("categories", ["x"])])
    assert found is not None and found.count == 0
    rest = empty.allowed([Clause("categories", none_of=["x"])])
    assert rest is not None and rest.rows().tolist() == [0, 1]
