"""Timestamps of users' own files, whatever they are written as, to UTC microseconds; what cannot be read is marked, never guessed.

The first chunk decides what a column holds: seconds, milliseconds, microseconds or nanoseconds by the size of most of its numbers, or
ISO 8601 text by most of its values. Later values of another kind are marked bad, so that a mixed column cannot shift by 10^3.
"""

from datetime import UTC, datetime
from typing import Any, Final

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from towers.errors import ConfigError, DataError
from training.sources.base import TIME

_PER_US: Final = {"s": 1e6, "ms": 1e3, "us": 1.0, "ns": 1e-3}
_UNIT_UP_TO: Final = (("s", 1e11), ("ms", 1e14), ("us", 1e17), ("ns", 1e20))
"""A number below the bound has that unit: 1e11 is the year 5138 in seconds and 1973 in milliseconds."""
_US_LIMIT: Final = 2.0**62
_LETTERS_OF_ISO: Final = 10  # 2024-01-31


class TimeReader:
    """Reads one timestamp column chunk by chunk.

    Args:
        column: its name in the file, for messages.
        unit: s | ms | us | auto, for plain numbers.
    """

    def __init__(self, column: str, unit: str) -> None:
        if unit not in ("s", "ms", "us", "auto"):
            raise ConfigError(f"data.timestamp_unit: got {unit!r}, expected s, ms, us or auto")
        self._column = column
        self._unit = None if unit == "auto" else unit
        self._fixed = unit != "auto"
        self._is_text: bool | None = None

    def read(self, values: pa.ChunkedArray) -> tuple[pa.Array, NDArray[np.bool_]]:
        """Times [n] (UTC us; null where missing or unreadable) and where a value was there but could not be read."""
        array = values.combine_chunks()
        kind = array.type
        if pa.types.is_dictionary(kind):
            array = array.dictionary_decode()
            kind = array.type
        if pa.types.is_timestamp(kind) or pa.types.is_date(kind):
            return _calendar(array)
        if pa.types.is_integer(kind) or pa.types.is_floating(kind) or pa.types.is_decimal(kind):
            return self._numbers(array.cast(pa.float64()) if not pa.types.is_integer(kind) else array)
        if pa.types.is_null(kind):
            return pa.nulls(len(array), TIME), np.zeros(len(array), bool)
        if pa.types.is_string(kind) or pa.types.is_large_string(kind):
            return self._text(array)
        raise DataError(f"column {self._column!r} is of type {kind}, expected times: numbers, ISO 8601 text or timestamps")

    def _numbers(self, array: pa.Array) -> tuple[pa.Array, NDArray[np.bool_]]:
        present_n = _numpy(pc.is_valid(array))
        raw_n = _numpy(pc.fill_null(array, 0))
        size_n = np.abs(raw_n.astype(np.float64))
        readable_n = present_n & np.isfinite(size_n)
        if self._unit is None and readable_n.any():
            sizes = np.sort(size_n[readable_n])
            self._unit = _unit_of(float(sizes[(len(sizes) - 1) // 2]))
        unit = self._unit or "s"
        scale = _PER_US[unit]
        readable_n &= size_n * scale < _US_LIMIT
        if not self._fixed:  # numbers of another size are of another unit
            readable_n &= (size_n < dict(_UNIT_UP_TO)[unit]) & ((size_n >= _least(unit)) | (size_n == 0))
        whole_n = np.where(readable_n, raw_n, 0)
        if whole_n.dtype.kind in "iu":  # exact where floats are not
            us_n = whole_n.astype(np.int64) * int(scale) if scale >= 1 else whole_n.astype(np.int64) // 1000
        else:
            us_n = np.rint(whole_n * scale).astype(np.int64)
        bad_n = present_n & ~readable_n & ~np.isnan(size_n)  # NaN is how floats write a missing time
        return pa.array(us_n, mask=~readable_n).cast(TIME), bad_n

    def _text(self, array: pa.Array) -> tuple[pa.Array, NDArray[np.bool_]]:
        array = pc.utf8_trim_whitespace(array.cast(pa.string()))
        array = pc.if_else(pc.equal(array, ""), pa.scalar(None, pa.string()), array)
        numbers = _as_numbers(array)
        if self._is_text is None and array.null_count < len(array):
            self._is_text = numbers.null_count - array.null_count > (len(array) - array.null_count) / 2
        if not self._is_text:
            times, bad_n = self._numbers(numbers)
            return times, bad_n | _numpy(pc.and_(pc.is_valid(array), pc.is_null(numbers)))
        times = _iso(array)
        return times, _numpy(pc.and_(pc.is_valid(array), pc.is_null(times)))


def _calendar(array: pa.Array) -> tuple[pa.Array, NDArray[np.bool_]]:
    """Arrow's own times; a naive one is UTC. Times before 1678 or after 2262 in other units may not fit and are marked."""
    try:
        if pa.types.is_date(array.type):
            array = array.cast(pa.timestamp("s" if pa.types.is_date32(array.type) else "ms"))
        if array.type.unit == "ns":  # finer than we keep
            array = pc.floor_temporal(array, unit="microsecond")
        return array.cast(pa.timestamp("us", array.type.tz)).cast(TIME), np.zeros(len(array), bool)
    except pa.ArrowInvalid:
        raw_n = _numpy(pc.fill_null(array.cast(pa.int64()), 0)).astype(np.float64)
        fits = pa.array(np.abs(raw_n) * _PER_US[array.type.unit] < _US_LIMIT)
        kept = pc.if_else(fits, array, pa.scalar(None, array.type))
        return kept.cast(pa.timestamp("us", array.type.tz)).cast(TIME), _numpy(pc.and_(pc.is_valid(array), pc.is_null(kept)))


def _as_numbers(array: pa.Array) -> pa.Array:
    """Whole or decimal numbers of a text column; null where a value is none."""
    for kind in (pa.int64(), pa.float64()):
        try:
            return array.cast(kind)
        except pa.ArrowInvalid:
            continue
    return pa.array([_float(text) for text in array.to_pylist()], pa.float64())


def _float(text: str | None) -> float | None:
    try:
        return None if text is None else float(text)
    except ValueError:
        return None


def _iso(array: pa.Array) -> pa.Array:
    """ISO 8601 text to times; null where a value is none. Whole columns of one form are parsed by Arrow, others one by one."""
    for kind in (pa.timestamp("us"), TIME):
        try:
            return array.cast(kind).cast(TIME)
        except pa.ArrowInvalid:
            continue
    return pa.array([_moment(text) for text in array.to_pylist()], pa.int64()).cast(TIME)


def _moment(text: str | None) -> int | None:
    if text is None or len(text) < _LETTERS_OF_ISO or text[4] != "-":
        return None
    try:
        moment = datetime.fromisoformat(text.replace(" +0000 UTC", "+00:00").replace(" UTC", "+00:00"))
    except ValueError:
        return None
    moment = moment if moment.tzinfo else moment.replace(tzinfo=UTC)
    since = moment - datetime(1970, 1, 1, tzinfo=UTC)
    return (since.days * 86_400 + since.seconds) * 10**6 + since.microseconds


def _unit_of(size: float) -> str:
    return next((unit for unit, bound in _UNIT_UP_TO if size < bound), "ns")


def _least(unit: str) -> float:
    """Below it a number is of a coarser unit; seconds have no coarser one."""
    names = [name for name, _ in _UNIT_UP_TO]
    return 0.0 if unit == "s" else _UNIT_UP_TO[names.index(unit) - 1][1]


def _numpy(values: Any) -> NDArray[Any]:
    array: NDArray[Any] = values.to_numpy(zero_copy_only=False)
    return array
