"""Columns of users' own files to our types. Ids keep their text exactly; values that cannot be read become NaN or null, for prepare."""

import ast
import json
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from towers.errors import DataError

_MOSTLY = 0.5  # a column of which more than this share is unreadable is the wrong column


def as_text(values: pa.ChunkedArray, where: str) -> pa.Array:
    """Text as it is; whole numbers, also those stored as floats, in digits (1.0 -> "1"); NaN is null.

    Raises:
        DataError: the column holds lists, structs or raw bytes that are not UTF-8.
    """
    array = plain(values)
    kind = array.type
    if pa.types.is_string(kind):
        return array
    if pa.types.is_floating(kind):
        array = pc.if_else(pc.is_nan(array), pa.scalar(None, kind), array)
        whole = array.cast(pa.int64(), safe=False)
        if pc.all(pc.equal(whole.cast(kind), array)).as_py() in (True, None):
            return whole.cast(pa.string())
        return pa.array([None if v is None else str(int(v)) if float(v).is_integer() else repr(v) for v in array.to_pylist()], pa.string())
    if pa.types.is_nested(kind):
        raise DataError(f"{where} is of type {kind}, expected text or numbers. Map another column, or write one value a row")
    try:
        return array.cast(pa.string())
    except (pa.ArrowInvalid, pa.ArrowNotImplementedError) as error:
        raise DataError(f"{where} is of type {kind}, expected text or numbers ({error})") from error


def as_numbers(values: pa.ChunkedArray, where: str) -> pa.Array:
    """float64; NaN where a value is there and is no number.

    Raises:
        DataError: most of the values are no numbers.
    """
    array = plain(values)
    try:
        return array.cast(pa.float64())
    except (pa.ArrowInvalid, pa.ArrowNotImplementedError):
        if not pa.types.is_string(array.type):
            raise DataError(f"{where} is of type {array.type}, expected numbers. Convert it, or map another column") from None
    numbers = [_number(text) for text in array.to_pylist()]
    wrong = [text for text, number in zip(array.to_pylist(), numbers, strict=True) if number is not None and number != number]
    if len(wrong) > _MOSTLY * (len(array) - array.null_count):
        raise DataError(f"{where} holds text such as {wrong[0][:40]!r}, expected numbers. Convert it, or declare it categorical")
    return pa.array(numbers, pa.float64())


def as_lists(values: pa.ChunkedArray, where: str, separator: str) -> pa.Array:
    """list<string>: lists as they are, also those written as text (`["a", "b"]`); other text split at the separator; an empty text is
    an empty list."""
    array = plain(values)
    if pa.types.is_list(array.type) or pa.types.is_large_list(array.type) or pa.types.is_fixed_size_list(array.type):
        return pa.array([None if v is None else [str(x) for x in v if x is not None] for v in array.to_pylist()], pa.list_(pa.string()))
    texts = as_text(values, where).to_pylist()
    return pa.array([None if t is None else _split(t, separator) for t in texts], pa.list_(pa.string()))


def as_vectors(values: pa.ChunkedArray, where: str) -> pa.Array:
    """list<float>: lists of numbers, or text such as `[0.1, 0.2]` or `0.1 0.2`; empty, which no width fits, where a text is neither.

    Raises:
        DataError: most of the texts are no lists of numbers.
    """
    array = plain(values)
    if not pa.types.is_string(array.type):
        try:
            return array.cast(pa.list_(pa.float32()))
        except (pa.ArrowInvalid, pa.ArrowNotImplementedError) as error:
            raise DataError(f"{where} is of type {array.type}, expected lists of numbers ({error})") from error
    texts = array.to_pylist()
    vectors = [_vector(text) for text in texts]
    wrong = [text for text, vector in zip(texts, vectors, strict=True) if vector == []]
    if len(wrong) > _MOSTLY * (len(array) - array.null_count):
        raise DataError(f"{where} holds {wrong[0][:40]!r}, expected numbers such as [0.1, 0.2]")
    return pa.array(vectors, pa.list_(pa.float32()))


def as_flags(values: pa.ChunkedArray, where: str) -> pa.Array:
    """bool: true/false, yes/no, 1/0 in any case; anything else is null."""
    array = plain(values)
    if pa.types.is_boolean(array.type):
        return array
    known = {"true": True, "1": True, "yes": True, "t": True, "false": False, "0": False, "no": False, "f": False}
    return pa.array([known.get((text or "").strip().lower()) for text in as_text(values, where).to_pylist()], pa.bool_())


def where_text(values: pa.ChunkedArray, wanted_n: NDArray[np.bool_]) -> pa.Array:
    """The values of some rows as text; null elsewhere."""
    return pc.if_else(pa.array(wanted_n), plain(values).cast(pa.string()), pa.scalar(None, pa.string()))


def mostly_times(values: pa.ChunkedArray, bad_n: NDArray[np.bool_], where: str) -> None:
    """A column of a declared time is one: a few values that cannot be read are missing ones.

    Raises:
        DataError: most of the values are no times.
    """
    if np.count_nonzero(bad_n) > _MOSTLY * (len(values) - values.null_count):
        example = plain(values)[int(np.argmax(bad_n))].as_py()
        raise DataError(
            f"{where} holds values such as {str(example)[:40]!r}, expected times: ISO 8601 text, or numbers of one unit"
            " (data.timestamp_unit). Convert it, or declare another kind"
        )


def plain(values: pa.ChunkedArray) -> pa.Array:
    """One array, dictionaries decoded, large strings as strings."""
    array = values.combine_chunks()
    if isinstance(array, pa.ChunkedArray):
        array = pa.concat_arrays(array.chunks)
    if pa.types.is_dictionary(array.type):
        array = array.dictionary_decode()
    return array.cast(pa.string()) if pa.types.is_large_string(array.type) or pa.types.is_string_view(array.type) else array


def _split(text: str, separator: str) -> list[str]:
    if text.startswith("[") and text.endswith("]"):  # as JSON and as pandas write a list into a CSV
        for read in (json.loads, ast.literal_eval):
            try:
                found: Any = read(text)
            except (ValueError, SyntaxError, RecursionError, MemoryError):
                continue
            return [str(x) for x in found if x is not None]
    return [x.strip() for x in text.split(separator) if x.strip()]


def _number(text: str | None) -> float | None:
    if text is None or not text.strip():
        return None
    try:
        return float(text)
    except ValueError:
        return float("nan")


def _vector(text: str | None) -> list[float] | None:
    if text is None or not text.strip():
        return None
    try:
        raw: Any = json.loads(text) if text.lstrip().startswith("[") else text.replace(",", " ").replace("|", " ").split()
        return [float(x) for x in np.asarray(raw, np.float64)]
    except (TypeError, ValueError, OverflowError):
        return []
