"""Declared features of a table of items or users: raw columns by name; what is no usable number or vector is missing and counted."""

from collections.abc import Iterable

import pyarrow as pa
import pyarrow.compute as pc

from towers.errors import DataError
from towers.schema import Feature
from towers.values import LARGEST_NUMBER
from training.sources.base import missing_column

_MOSTLY = 0.5
"""Share of a column's vectors past which it is the declaration that is wrong."""


def feature_values(rows: pa.Table, features: Iterable[Feature], where: str) -> tuple[dict[str, pa.ChunkedArray], dict[str, int]]:
    """Columns of the declared features.

    Args:
        rows: the table, with columns named by `Feature.source_column`.
        features: of its owner.
        where: the table's name in messages.

    Returns:
        raw values by feature name, and by feature name how many values are missing (none: no entry): those that are not there, numbers
            that are NaN, infinite or past towers.values.LARGEST_NUMBER, and vectors of another width than declared.

    Raises:
        DataError: a declared feature has no column, one of a type that its kind cannot take, or mostly vectors of another width.
    """
    values: dict[str, pa.ChunkedArray] = {}
    missing: dict[str, int] = {}
    for f in features:
        if f.source_column not in rows.column_names:
            raise missing_column(f.source_column, rows.column_names, where, f"data.features.{f.name} declares it")
        column = rows.column(f.source_column)
        check_kind(f, column.type, where)
        values[f.name], count = column, 0
        if pa.types.is_floating(column.type):
            values[f.name], count = _finite(column)
        elif f.kind == "dense":
            values[f.name], count = _vectors(column, f, where)
        if count + column.null_count:
            missing[f.name] = count + column.null_count
    return values, missing


def check_kind(f: Feature, kind: pa.DataType, where: str) -> None:
    """A column's type is one that the feature's kind can take.

    Raises:
        DataError: names the column, its type and the feature.
    """
    nested = bool(pa.types.is_nested(kind))
    number = pa.types.is_integer(kind) or pa.types.is_floating(kind) or pa.types.is_boolean(kind) or pa.types.is_decimal(kind)
    fits = {
        "numeric": number,
        "dense": nested,
        "time": pa.types.is_temporal(kind) or pa.types.is_integer(kind) or pa.types.is_string(kind),
        "multi_categorical": not pa.types.is_temporal(kind),
        "preferences": not pa.types.is_temporal(kind),
    }.get(f.kind, not nested and not pa.types.is_temporal(kind))
    if not (fits or pa.types.is_null(kind)):
        raise DataError(
            f"{where}: column {f.source_column!r} is of type {kind}, which data.features.{f.name} (kind {f.kind}) cannot take."
            " Convert the column, or declare another kind"
        )


def _finite(column: pa.ChunkedArray) -> tuple[pa.ChunkedArray, int]:
    numbers = column.cast(pa.float64())
    usable = pc.less_equal(pc.abs(numbers), LARGEST_NUMBER)  # NaN is not
    return pc.if_else(usable, numbers, None), _count(pc.invert(usable))


def _vectors(column: pa.ChunkedArray, f: Feature, where: str) -> tuple[pa.ChunkedArray, int]:
    wrong = pc.fill_null(pc.not_equal(pc.list_value_length(column), f.width), False)
    wrongs, there = _count(wrong), len(column) - column.null_count
    if wrongs > _MOSTLY * there:
        raise DataError(
            f"{where}: {wrongs:,} of {there:,} vectors in column {f.source_column!r} do not hold the {f.width} numbers that"
            f" data.features.{f.name} declares (width). Declare their width, or mend the column"
        )
    usable = pc.if_else(wrong, None, column)
    return usable, wrongs + _count(pc.invert(pc.is_finite(pc.list_flatten(usable).cast(pa.float64()))))


def _count(flags: pa.ChunkedArray | pa.Array) -> int:
    return int(pc.sum(flags).as_py() or 0)
