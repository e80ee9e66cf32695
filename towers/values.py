"""Raw values of a column, from Python sequences or Arrow arrays, to the few shapes that preprocessing takes."""

import re
import zlib
from collections.abc import Sequence
from datetime import UTC, date, datetime
from itertools import pairwise
from typing import Any, TypeAlias

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from towers.columns import NO_TIME
from towers.errors import RequestError

Column: TypeAlias = Any
"""Values of one feature over rows: a list, a NumPy array or an Arrow column; None or null is missing."""

ARROW = (pa.Array, pa.ChunkedArray)
ARRAYS = (*ARROW, np.ndarray)

_WORD = re.compile(r"\w+")


def as_strings(name: str, values: Column) -> list[str | None]:
    """Each value as the text its vocabulary knows: 5, 5.0 and "5" are one value, true and True too; None, NaN and "" are missing.

    Raises:
        RequestError: a value is a list or a mapping.
    """
    return [_text(name, value) for value in plain(values)]


def as_lists(name: str, values: Column) -> tuple[list[str | None], NDArray[np.int64]]:
    """Values of a multi-valued column, flattened, and how many each row has. A plain value counts as a list of one."""
    flat: list[str | None] = []
    lengths = np.zeros(len(values), np.int64)
    for row, value in enumerate(plain(values)):
        entries = value if isinstance(value, list | tuple | set | frozenset | np.ndarray) else [value]
        texts = [text for text in (_text(name, entry) for entry in entries) if text is not None]
        flat.extend(texts)
        lengths[row] = len(texts)
    return flat, lengths


LARGEST_NUMBER = float(np.finfo(np.float32).max)
"""Of a numeric feature: what is greater in size is somebody's mark for "none" or an overflow, and counts as missing."""


def as_numbers(name: str, values: Column) -> NDArray[np.float64]:
    """float64 [B]; missing, not finite and past LARGEST_NUMBER is NaN.

    Raises:
        RequestError: a value is no number.
    """
    if isinstance(values, ARRAYS):
        array = values if isinstance(values, np.ndarray) else values.to_numpy(zero_copy_only=False)
        if array.dtype.kind in "iufb":
            return _within(array.astype(np.float64))
    numbers = np.empty(len(values), np.float64)
    for row, value in enumerate(plain(values)):
        try:
            numbers[row] = np.nan if value is None else float(value)
        except (TypeError, ValueError, OverflowError):
            raise RequestError(name, f"got {_shown(value)}, expected a number") from None
    return _within(numbers)


def as_dense(name: str, values: Column, width: int) -> NDArray[np.float32]:
    """float32 [B, width]; a missing vector and numbers that are not finite become 0.

    Raises:
        RequestError: a vector has another length or holds something else than numbers.
    """
    vectors = np.zeros((len(values), width), np.float32)
    for row, value in enumerate(plain(values)):
        if value is None:
            continue
        try:
            with np.errstate(over="ignore"):  # past float32 it is infinite, and becomes 0 below
                vector = np.asarray(value, np.float32)
        except (TypeError, ValueError):
            raise RequestError(name, f"got {_shown(value)}, expected {width} numbers") from None
        if vector.shape != (width,):
            raise RequestError(name, f"got a vector of shape {vector.shape}, expected {width} numbers")
        vectors[row] = np.nan_to_num(vector, nan=0.0, posinf=0.0, neginf=0.0)
    return vectors


def as_times(name: str, values: Column) -> NDArray[np.int64]:
    """Microseconds UTC, int64 [B]; missing is NO_TIME. Takes integers (microseconds), datetimes (naive = UTC) and ISO 8601 text.

    Raises:
        RequestError: a value is none of these.
    """
    if isinstance(values, ARROW) and pa.types.is_timestamp(values.type):
        stamps = values.cast(pa.timestamp("us", values.type.tz)).cast(pa.int64()).fill_null(NO_TIME)
        return np.asarray(stamps.to_numpy(zero_copy_only=False), np.int64)
    if isinstance(values, np.ndarray) and values.dtype.kind == "i":
        return values.astype(np.int64)
    return np.array([_microseconds(name, value) for value in plain(values)], np.int64)


def text_buckets(name: str, values: Column, buckets: int, width: int) -> NDArray[np.int32]:
    """Hash buckets of each text's words and word pairs: int32 [B, width], 1..buckets, 0 = padding; no text is all padding.

    CRC-32 rather than Python's `hash`: the same text must take the same rows in every process, for ever.
    """
    rows_BM = np.zeros((len(values), width), np.int32)
    for row, text in enumerate(as_strings(name, values)):
        words = _WORD.findall(text.casefold()) if text else []
        grams = words + [f"{a} {b}" for a, b in pairwise(words)]
        chosen = list(dict.fromkeys(1 + zlib.crc32(gram.encode()) % buckets for gram in grams))[:width]
        rows_BM[row, : len(chosen)] = chosen
    return rows_BM


def plain(values: Column) -> Sequence[Any]:
    """Python values of any column."""
    if isinstance(values, ARROW):
        plain_values: Sequence[Any] = values.to_pylist()
        return plain_values
    return list(values.tolist()) if isinstance(values, np.ndarray) else values


def _within(numbers: NDArray[np.float64]) -> NDArray[np.float64]:
    return np.where(np.abs(numbers) <= LARGEST_NUMBER, numbers, np.nan)


def _text(name: str, value: Any) -> str | None:
    if value is None or value == "" or value != value:
        return None
    if isinstance(value, str):
        return value
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, float) and value.is_integer():
        return str(int(value))
    if isinstance(value, int | float):
        return str(value)
    raise RequestError(name, f"got {_shown(value)}, expected text or a number")


def _microseconds(name: str, value: Any) -> int:
    if value is None:
        return NO_TIME
    if isinstance(value, int) and not isinstance(value, bool) and NO_TIME <= value < -NO_TIME:
        return value
    if isinstance(value, str):
        try:
            value = datetime.fromisoformat(value)
        except ValueError:
            raise RequestError(name, f"got {_shown(value)}, expected a time such as 2026-01-31T12:00:00Z") from None
    if isinstance(value, datetime):
        moment = value if value.tzinfo else value.replace(tzinfo=UTC)
        return round(moment.timestamp() * 1e6)
    if isinstance(value, date):
        return round(datetime(value.year, value.month, value.day, tzinfo=UTC).timestamp() * 1e6)
    raise RequestError(name, f"got {_shown(value)}, expected a time such as 2026-01-31T12:00:00Z")


def _shown(value: Any) -> str:
    shown = repr(value)
    return shown if len(shown) <= 60 else shown[:57] + "..."
