"""Declared features of a table of items or users: raw columns by feature name, with what is not finite made missing and counted."""

from collections.abc import Iterable

import pyarrow as pa
import pyarrow.compute as pc

from towers.errors import DataError
from towers.schema import Feature
from training.sources.base import missing_column


def feature_values(rows: pa.Table, features: Iterable[Feature], where: str) -> tuple[dict[str, pa.ChunkedArray], dict[str, int]]:
    """Columns of the declared features.

    Args:
        rows: the table, with columns named by `Feature.source_column`.
        features: of its owner.
        where: the table's name in messages.

    Returns:
        raw values by feature name, and by feature name how many NaN or infinite values became missing (none: no entry).

    Raises:
        DataError: a declared feature has no column, or one of a type that its kind cannot take.
    """
    values: dict[str, pa.ChunkedArray] = {}
    missing: dict[str, int] = {}
    for f in features:
        if f.source_column not in rows.column_names:
            raise missing_column(f.source_column, rows.column_names, where, f"data.features.{f.name} declares it")
        column = rows.column(f.source_column)
        check_kind(f, column.type, where)
        values[f.name] = column
        if pa.types.is_floating(column.type):
            values[f.name], count = _finite(column)
        elif f.kind == "dense":
            count = _not_finite(pc.list_flatten(column))
        else:
            continue
        if count:
            missing[f.name] = count
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
    return pc.if_else(pc.is_finite(numbers), numbers, None), _not_finite(numbers)


def _not_finite(numbers: pa.ChunkedArray | pa.Array) -> int:
    return int(pc.sum(pc.invert(pc.is_finite(numbers.cast(pa.float64())))).as_py() or 0)
