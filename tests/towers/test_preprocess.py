"""Preprocessing: every kind, missing and unknown values, Arrow equal to Python, saved equal to fitted."""

import doctest
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from towers import fitting
from towers.batch import HISTORY_AGE, HISTORY_EVENT, HISTORY_ITEM
from towers.columns import MISSING_ROW, NO_TIME, OOV_ROW
from towers.errors import BundleError, RequestError
from towers.fitting import PreprocessorFit
from towers.preprocess import HOUR_ROW, NUMERIC_BOUND, WEEKDAY_ROW, Preprocessor
from towers.schema import Feature, Schema, make_schema

SCHEMA: Schema = make_schema(
    [
        Feature("categories", "multi_categorical", "item", max_values=3),
        Feature("title", "text", "item", buckets=64, max_values=4),
        Feature("price", "numeric", "item"),
        Feature("image", "dense", "item", width=2),
        Feature("likes", "preferences", "user", like="categories", max_values=2),
        Feature("device", "categorical", "context", min_count=2),
        Feature("moment", "time", "context", column="timestamp"),
    ],
    "time",
    {},
)


@pytest.fixture
def fitted() -> Preprocessor:
    fit = PreprocessorFit(SCHEMA)
    fit.see("item", {"item_id": ["a", "b"], "categories": [["x", "y"], ["z"]], "price": [1.0, 3.0], "title": ["A b", ""]})
    fit.see("context", {"device": pa.array(["tv", "phone", "tv", None])})
    fit.see("context", {"device": ["phone", "rare"]})
    fit.see_events(["view", "buy"])
    return fit.finish()


def test_items_of_every_kind(fitted: Preprocessor) -> None:
    columns: dict[str, Any] = {
        "item_id": ["b", "new", None],
        "categories": [["y", "none", "x", "z"], [], "z"],
        "price": [3.0, None, float("nan")],
        "image": [[1, 2], None, [float("nan"), 1]],
        "title": ["The b A", None, "the B a"],
    }
    got = fitted.encode("item", columns, 3)
    assert got["item.item_id"].tolist() == [4, OOV_ROW, MISSING_ROW]
    assert got["item.categories"].tolist() == [[4, OOV_ROW, 3], [MISSING_ROW, 0, 0], [5, 0, 0]]
    assert got["item.price"].tolist() == [[1, 0], [0, 1], [0, 1]]
    assert got["item.image"].tolist() == [[1, 2], [0, 0], [0, 1]]
    assert got["item.title"][0].tolist() == got["item.title"][2].tolist() and got["item.title"][0].min() > 0
    assert got["item.title"][1].tolist() == [0, 0, 0, 0]
    assert got["item.title"].max() <= 64


def test_text_rows_never_change(fitted: Preprocessor) -> None:
    # the rows are part of the bundle format: another hash would scramble every exported model
    assert fitted.encode("item", {"title": ["The Quiet Sea"]}, 1)["item.title"].tolist() == [[39, 37, 56, 53]]


def test_context_time_and_rare_values(fitted: Preprocessor) -> None:
    sunday_13h = 1_795_353_600_000_000 // 86_400_000_000 * 86_400_000_000 + 13 * 3_600_000_000
    got = fitted.encode("context", {"device": ["tv", "rare", None], "moment": [sunday_13h, NO_TIME, "1970-01-01T05:00:00Z"]}, 3)
    assert got["context.device"].tolist() == [4, OOV_ROW, MISSING_ROW]
    weekday = np.datetime64(sunday_13h, "us").item().weekday()
    assert got["context.moment"].tolist() == [[HOUR_ROW + 13, WEEKDAY_ROW + weekday], [2, 2], [HOUR_ROW + 5, WEEKDAY_ROW + 3]]


def test_missing_columns_are_missing_everywhere_and_likes_share_the_vocabulary(fitted: Preprocessor) -> None:
    assert fitted.encode("context", {}, 2)["context.device"].tolist() == [MISSING_ROW] * 2
    assert fitted.encode("user", {"likes": [["z", "x"]]}, 1)["user.likes"].tolist() == [[5, 3]]
    tables = {spec.name: (spec.table, spec.rows) for spec in fitted.inputs}
    assert tables["user.likes"] == tables["item.categories"] == ("categories", 6)


def test_arrow_columns_equal_python_values(fitted: Preprocessor) -> None:
    columns = {"item_id": ["a", None, "q", "a"], "price": [1.5, None, -4e9, 2.0], "categories": [["x"], None, [], ["y", "q"]]}
    arrow = {
        name: pa.chunked_array([pa.array(values[:2]), pa.array(values[2:], pa.array(values).type)]) for name, values in columns.items()
    }
    plain, mapped = fitted.encode("item", columns, 4), fitted.encode("item", arrow, 4)
    for name, array in plain.items():
        np.testing.assert_array_equal(array, mapped[name], err_msg=name)
    assert plain["item.price"][2, 0] == -NUMERIC_BOUND


def test_numbers_and_text_of_one_value_are_one() -> None:
    fit = PreprocessorFit(make_schema([Feature("year", "categorical", "item")], "time", {}))
    fit.see("item", {"item_id": ["a"], "year": pa.array([1999, 2001])})
    rows = fit.finish().encode("item", {"year": [1999, 1999.0, "1999", True]}, 4)["item.year"]
    assert rows.tolist() == [3, 3, 3, OOV_ROW]


def test_history_is_right_aligned_and_newest(fitted: Preprocessor) -> None:
    now = np.array([2 * 3_600_000_000, NO_TIME])
    got = fitted.history([["a", "b", "new"], []], [["view", None, "buy"], []], [[0, 3_600_000_000, 3_600_000_000], []], now, 2)
    assert got[HISTORY_ITEM].tolist() == [[4, OOV_ROW], [0, 0]]
    assert got[HISTORY_EVENT].tolist() == [[MISSING_ROW, 3], [0, 0]]
    assert got[HISTORY_AGE].tolist() == [[7, 7], [0, 0]]


@pytest.mark.parametrize(
    ("owner", "columns", "named"),
    [
        ("item", {"price": ["dear"]}, "item.price: got 'dear', expected a number"),
        ("item", {"image": [[1, 2, 3]]}, r"item.image: got a vector of shape \(3,\), expected 2 numbers"),
        ("context", {"device": [["tv"]]}, "context.device: got .*expected text or a number"),
        ("context", {"moment": ["yesterday"]}, "context.moment: got 'yesterday', expected a time"),
    ],
)
def test_wrong_types_name_the_feature(fitted: Preprocessor, owner: str, columns: dict[str, Any], named: str) -> None:
    with pytest.raises(RequestError, match=named):
        fitted.encode(owner, columns, 1)


def test_saved_preprocessing_is_the_same(fitted: Preprocessor, tmp_path: Path) -> None:
    fitted.save(tmp_path)
    opened = Preprocessor.open(tmp_path)
    columns = {"item_id": ["b", "?"], "price": [9.0, 1.0], "categories": [["x"], ["z", "y"]]}
    for name, array in fitted.encode("item", columns, 2).items():
        np.testing.assert_array_equal(array, opened.encode("item", columns, 2)[name])
    assert opened.inputs == fitted.inputs and opened.schema == fitted.schema
    (tmp_path / "preprocess.json").write_text("{}")
    with pytest.raises(BundleError, match="cannot be read"):
        Preprocessor.open(tmp_path)


def test_doctests() -> None:
    assert doctest.testmod(fitting).failed == 0


def test_one_absurd_number_does_not_own_the_scale() -> None:
    prices = np.random.default_rng(0).lognormal(2.0, 1.0, 1000)
    for spread in (prices, -prices, np.where(np.arange(1000) % 20, 0.0, prices), np.where(np.arange(1000) % 20, 1.0, 1e5)):
        fit = PreprocessorFit(SCHEMA)
        fit.see("item", {"price": spread[:500]})
        fit.see("item", {"price": np.array([-3e38])})
        fit.see("item", {"price": spread[500:]})
        assert fit.finish().numbers["item.price"] == pytest.approx((spread.mean(), spread.std()), rel=1e-9)


@pytest.mark.parametrize(("mean", "deviation"), [(1.7e9, 10.0), (-1e10, 1.0), (3.0, 1e-6), (2.0**31, 300.0), (0.0, 5.0)])
def test_a_small_spread_around_a_large_mean_keeps_its_scale(mean: float, deviation: float) -> None:
    """Unix times of a few seconds apart, in rows that come in chunks of any size and order; 2^31 lies between two powers of 2."""
    rng = np.random.default_rng(1)
    values = mean + deviation * rng.standard_normal(20_000)
    about = values - values[0]  # exact, or nearly: what is left of the mean is small
    wanted = values[0] + about.mean(), about.std()
    for cuts in ([], [1, 2, 10_000], np.sort(rng.integers(0, 20_000, 300))):
        fit = PreprocessorFit(SCHEMA)
        chunks = np.split(values, cuts)
        for chunk in rng.permutation(len(chunks)):
            fit.see("item", {"price": chunks[chunk]})
        assert fit.finish().numbers["item.price"] == pytest.approx(wanted, rel=1e-6, abs=1e-12)


@pytest.mark.parametrize(
    ("prices", "fitted"),
    [([], (0, 1)), ([0.0, 0.0], (0, 1)), ([7.0], (7, 1)), ([1.7e9 + 0.1] * 999, (1.7e9 + 0.1, 1)), ([0.25, -3e38], (0.25, 1))],
)
def test_numbers_without_spread_stay_finite(prices: list[float], fitted: tuple[float, float]) -> None:
    fit = PreprocessorFit(SCHEMA)
    fit.see("item", {"price": np.array(prices)})
    assert fit.finish().numbers["item.price"] == pytest.approx(fitted)
