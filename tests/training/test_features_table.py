"""Features of items and users: what is no usable number or vector is missing and counted, and moves nothing."""

import numpy as np
import pyarrow as pa
import pytest

from towers.errors import DataError
from towers.fitting import PreprocessorFit
from towers.schema import Feature, make_schema
from training.features_table import feature_values

PRICE, PLACE = Feature("price", "numeric", "item"), Feature("place", "dense", "item", width=2)


def test_numbers_past_float32_are_missing_and_leave_the_scale_alone() -> None:
    schema = make_schema([PRICE], "time", {})
    numbers = [*map(float, range(100)), 1e300, -1e300, float("inf"), float("nan"), None]
    values, missing = feature_values(pa.table({"price": numbers}), [PRICE], "items")
    assert missing == {"price": 5} and values["price"].null_count == 5
    for column in (values["price"], numbers):  # as prepare hands it over, and as a request could
        fit = PreprocessorFit(schema)
        fit.see("item", {"price": column})
        preprocessor = fit.finish()
        assert preprocessor.numbers["item.price"] == pytest.approx((49.5, np.std(range(100))))
        encoded = preprocessor.encode("item", {"price": column}, len(numbers))["item.price"]
        assert encoded[-5:, 1].tolist() == [1.0] * 5 and not encoded[:-5, 1].any() and np.ptp(encoded[:-5, 0]) > 3


def test_vectors_of_another_width_are_missing_and_counted() -> None:
    vectors = pa.array([[1.0, 2.0], [], [1.0], None, [1.0, float("nan")], [3.0, 4.0], [5.0, 6.0]], pa.list_(pa.float32()))
    values, missing = feature_values(pa.table({"place": vectors}), [PLACE], "items")
    assert missing == {"place": 4}
    assert [v is None for v in values["place"].to_pylist()] == [False, True, True, True, False, False, False]
    encoded = PreprocessorFit(make_schema([PLACE], "time", {})).finish().encode("item", {"place": values["place"]}, 7)["item.place"]
    assert encoded.tolist() == [[1, 2], [0, 0], [0, 0], [0, 0], [1, 0], [3, 4], [5, 6]]


def test_a_width_that_few_vectors_have_is_declared_wrongly() -> None:
    vectors = pa.array([[1.0, 2.0, 3.0]] * 3 + [[1.0, 2.0]], pa.list_(pa.float32()))
    with pytest.raises(DataError, match=r"items: 3 of 4 vectors in column 'place'.*the 2 numbers that data\.features\.place"):
        feature_values(pa.table({"place": vectors}), [PLACE], "items")
