"""A context column that streamed through codes equals what the preprocessor makes of the raw values at once."""

from datetime import UTC, datetime
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from towers.fitting import PreprocessorFit
from towers.schema import Feature, make_schema
from training.raw_codes import Codes, ContextColumn, ContextEncoder, hash_ids

ODD = float("inf")
NAN = float("nan")


def feature(kind: str, **settings: Any) -> Feature:
    return Feature("f", kind, "context", **settings)


CASES: list[tuple[Feature, pa.DataType, list[Any]]] = [
    (feature("categorical"), pa.string(), ["a", None, "b", "", "a", "ü b", "c"]),
    (feature("categorical"), pa.int64(), [3, None, 5, 3, 3, 1, 3]),
    (feature("categorical"), pa.float64(), [3.0, None, 5.5, NAN, 3.0, 1.0, 3.0]),
    (feature("categorical", min_count=2), pa.string(), ["a", "a", "b", "c", "c", "d", "e"]),
    (feature("id"), pa.bool_(), [True, False, None, True, True, False, True]),
    (feature("multi_categorical", max_values=2), pa.list_(pa.string()), [["a", "b", "c"], None, [], ["c"], [None, "a", "b"], ["a"], [""]]),
    (feature("multi_categorical", max_values=3, min_count=2), pa.list_(pa.int64()), [[1, 2], [2], [3], [3, 1], [4], None, []]),
    (feature("multi_categorical"), pa.string(), ["a", None, "b", "a", "c", "", "b"]),
    (feature("numeric"), pa.float64(), [1.0, None, NAN, 4.0, -2.0, 8.0, 1e9]),
    (feature("numeric"), pa.int32(), [1, None, 3, 4, -2, 8, 100]),
    (feature("text", max_values=3, buckets=50), pa.string(), ["red shoes", None, "", "shoes", "red shoes for men", "a", "b"]),
    (feature("dense", width=2), pa.list_(pa.float32()), [[1, 2], None, [3, ODD], [NAN, 1], [0, 0], [5, 6], [7, 8]]),
    (feature("time"), pa.timestamp("s"), [datetime(2024, 1, day, day) for day in range(1, 7)] + [None]),
]


@pytest.mark.parametrize(("declared", "kind", "values"), CASES, ids=lambda value: str(getattr(value, "kind", value))[:24])
def test_streamed_context_equals_encoding_at_once(declared: Feature, kind: pa.DataType, values: list[Any]) -> None:
    column = pa.chunked_array([pa.array(values, kind)])
    fit = PreprocessorFit(make_schema([declared], "time", {}))
    fit.see("context", {"f": column})
    fit.see_events([])
    preprocessor = fit.finish()
    expected = preprocessor.encode_feature(declared, column)
    streamed = ContextColumn(declared)
    spilled = np.concatenate([streamed.collect(column.slice(0, 3)), streamed.collect(column.slice(3))])
    assert spilled.dtype == streamed.dtype
    assert spilled.shape[1:] == streamed.tail
    encoder = ContextEncoder(streamed, preprocessor)
    got = np.concatenate([encoder.encode(spilled[:2]), encoder.encode(spilled[2:])])
    assert np.array_equal(got, expected)
    assert got.dtype == expected.dtype


def test_missing_numbers_are_counted() -> None:
    column = ContextColumn(Feature("f", "numeric", "context"))
    column.collect(pa.chunked_array([[1.0, None, float("nan")]]))
    assert column.missing == 2


def test_codes_grow_with_distinct_values_and_keep_their_order() -> None:
    codes = Codes("x")
    assert codes.of(pa.array(["b", "a", None, "b"])).tolist() == [0, 1, -1, 0]
    assert codes.of(pa.chunked_array([["c"], ["a"]])).tolist() == [2, 1]
    assert codes.texts == ["b", "a", "c"]


def test_event_ids_hash_equal_only_where_equal() -> None:
    hashed = hash_ids(pa.chunked_array([["a", None, "b"], ["a"]]))
    assert hashed[0] == hashed[3] != hashed[2]
    assert hashed[1] == 0


def test_time_features_see_utc() -> None:
    column = ContextColumn(Feature("f", "time", "context"))
    moment = datetime(2024, 5, 6, 7, 8, 9, tzinfo=UTC)
    spilled = column.collect(pa.chunked_array([pa.array([moment], pa.timestamp("ms", "Europe/Berlin"))]))
    assert spilled.tolist() == [int(moment.timestamp() * 1e6)]
