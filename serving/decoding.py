"""JSON or Python values to requests. A field at fault is named the way the caller wrote it: `history[3].timestamp`."""

import json
import math
import re
from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime
from typing import Any, TypeVar

import msgspec

from serving.bounds import Limits
from serving.messages import Asker, EventsRequest, ItemRequest, Moment, RecommendRequest
from serving.page_messages import BatchRequest, RerankRequest
from serving.people_messages import ConsentRequest
from towers.columns import MAX_ID_BYTES
from towers.errors import RequestError

_END_OF_TIME_S = 7_258_118_400  # 2200-01-01: later numbers are milli- or microseconds by mistake
REQUESTS = (RecommendRequest, BatchRequest, RerankRequest, EventsRequest, ItemRequest, ConsentRequest)
_DECODERS: dict[type[msgspec.Struct], msgspec.json.Decoder[Any]] = {kind: msgspec.json.Decoder(kind) for kind in REQUESTS}
_FREE = ("context", "preferences", "attributes")
"""Fields that hold no ids, but what features are given."""
_LENGTH = f"expected 1 to {MAX_ID_BYTES} bytes of UTF-8"
_TOO_LONG = (f"Expected `str` of length <= {MAX_ID_BYTES}", "Expected `str` of length >= 1")
_T = TypeVar("_T", bound=msgspec.Struct)


def decode(body: bytes, kind: type[_T], most: int | None = None) -> _T:
    """A request from JSON.

    Args:
        kind: one of the request types of serving.messages.
        most: entries of a list past which it is refused anyway, so that nobody looks into it here.

    Raises:
        RequestError: 400 for text that is not JSON, 422 naming the field for JSON that does not fit.
    """
    try:
        decoded: _T = _DECODERS[kind].decode(body)
    except msgspec.ValidationError as error:
        raise _misfit(error, _loose(body), kind) from None
    except RecursionError:
        raise RequestError("body", "nested too deeply; a request needs at most 4 levels") from None
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        field = _not_finite(_loose(body), "")
        if field:
            raise RequestError(field, "NaN and Infinity are not numbers in JSON; leave the field out if it is unknown") from None
        raise RequestError("body", f'not JSON: {error}. Expected an object such as {{"user_id": "42", "k": 10}}', 400) from None
    if _has_long_bytes(body):
        _check_ids(decoded, most)
    return decoded


def from_python(fields: Mapping[str, Any], kind: type[_T]) -> _T:
    """A request from Python values, checked as strictly as JSON.

    Raises:
        RequestError: names the field.
    """
    try:
        converted = msgspec.convert(dict(fields), kind)
    except msgspec.ValidationError as error:
        raise _misfit(error, dict(fields), kind) from None
    except RecursionError:
        raise RequestError("request", "nested too deeply; a request needs at most 4 levels") from None
    _check_ids(converted)
    return converted


def check_id(field: str, text: str) -> None:
    """Raises RequestError unless it is 1 to MAX_ID_BYTES bytes of UTF-8, as every id must be."""
    if not text or _is_long(text):
        raise RequestError(field, _LENGTH)


def check_limits(request: Asker, limits: Limits) -> None:
    """Bounds that depend on the deployment.

    Raises:
        RequestError: names the field.
    """
    for field, entries in (("history", request.history), ("exclude", request.exclude)):
        check_length(field, entries, limits)


def check_length(field: str, entries: Sequence[object], limits: Limits) -> None:
    """Raises RequestError where there are more entries than max_history."""
    if len(entries) > limits.max_history:
        advice = "; send the newest" if field == "history" else ""
        raise RequestError(field, f"got {len(entries)} entries, expected at most {limits.max_history}{advice}")


def check_k(k: int, limits: Limits) -> None:
    """Raises RequestError unless 1 <= k <= max_k."""
    if not 1 <= k <= limits.max_k:
        shown = k if abs(k) < 10**18 else "a number of more than 18 digits"
        raise RequestError("k", f"got {shown}, expected 1 to {limits.max_k}")


def microseconds(field: str, moment: Moment) -> int:
    """Microseconds UTC of a moment.

    Raises:
        RequestError: it is not finite, negative or absurdly late.
    """
    seconds = moment.timestamp() if isinstance(moment, datetime) else moment
    if not 0 <= seconds < _END_OF_TIME_S:  # NaN compares false
        shown = seconds if isinstance(seconds, float) or abs(seconds) < 10**18 else "a number of more than 18 digits"
        advice = "; milliseconds are to be divided by 1000" if seconds >= _END_OF_TIME_S else ""
        raise RequestError(field, f"got {shown}, expected Unix seconds from 1970 to 2199 or RFC 3339 text{advice}")
    return round(seconds * 1_000_000)


def _has_long_bytes(body: bytes) -> bool:
    """Whether a text may have more than MAX_ID_BYTES bytes though it has no more characters, which msgspec has counted. It then is as long
    in the body: escapes are longer than what they stand for."""
    if body.isascii() and b"\\u" not in body:
        return False
    return b'\\"' in body or max(map(len, body.split(b'"'))) > MAX_ID_BYTES


def _check_ids(request: msgspec.Struct, most: int | None = None) -> None:
    """Raises RequestError at the first id, or other text of an id's length, that is too long once it is written as UTF-8."""
    found = _long(request, most)
    if found is not None:
        raise RequestError(found.lstrip("."), _LENGTH)


def _long(value: Any, most: int | None) -> str | None:
    """Path to the first text in it that is too long; lists of more than `most` entries are passed over."""
    if isinstance(value, str):
        return "" if _is_long(value) else None
    pairs: Iterable[tuple[str, Any]] = ()
    if isinstance(value, msgspec.Struct):
        pairs = ((f".{name}", getattr(value, name)) for name in value.__struct_fields__ if name not in _FREE)
    elif isinstance(value, list) and (most is None or len(value) <= most):
        pairs = ((f"[{place}]", entry) for place, entry in enumerate(value))
    elif isinstance(value, dict):
        if any(map(_is_long, value)):
            return ""
        pairs = ((f".{key}", entry) for key, entry in value.items())
    return next((step + found for step, entry in pairs if (found := _long(entry, most)) is not None), None)


def _is_long(text: str) -> bool:
    """Past MAX_ID_BYTES of UTF-8, or none at all: a Python caller can hold text that cannot be written."""
    if text.isascii():
        return len(text) > MAX_ID_BYTES
    try:
        return len(text.encode()) > MAX_ID_BYTES
    except UnicodeEncodeError:
        return True


def _misfit(error: msgspec.ValidationError, raw: Any, kind: type[msgspec.Struct]) -> RequestError:
    """msgspec's message as field and reason; mapping keys, which msgspec leaves out, are looked up in `raw`."""
    text = str(error)
    reason, of_key, path = text.partition(" - at `key` in `$")
    if not of_key:
        reason, _, path = text.partition(" - at `$")
    field = path.rstrip("`").lstrip(".")
    unknown = re.search(r"(?:unknown|required) field `(.*)`$", reason)
    if unknown:
        field = f"{field}.{unknown[1][:MAX_ID_BYTES]}".lstrip(".")
        reason = reason.replace(unknown[1], unknown[1][:MAX_ID_BYTES])
        if not path and "unknown field" in reason:
            reason += f"; expected are {', '.join(known.encode_name for known in msgspec.structs.fields(kind))}"
    if reason in _TOO_LONG:
        reason = _LENGTH
    if of_key:
        reason = f"a name in it does not fit: {reason}"
    elif "[...]" in field:
        field = _keyed(field.partition("[...]")[0], raw, kind)
    return RequestError(field or "body", reason)


def _keyed(path: str, raw: Any, kind: type[msgspec.Struct]) -> str:
    """`context` -> `context.hour`: the first entry that fails; `context` where the body cannot be read at all."""
    steps = re.findall(r"\w+", path)
    try:
        entries = raw
        for step in steps:
            entries = entries[int(step)] if isinstance(entries, list) else entries[step]
        pairs = list(entries.items())
    except (AttributeError, LookupError, TypeError, ValueError, RecursionError):
        return path
    if not _fails(raw, steps, pairs, kind):
        return path
    while len(pairs) > 1:  # one by one, a body of a megabyte would take seconds
        half = pairs[: len(pairs) // 2]
        pairs = half if _fails(raw, steps, half, kind) else pairs[len(half) :]
    return f"{path}.{str(pairs[0][0])[:MAX_ID_BYTES]}" if pairs else path


def _fails(raw: Any, steps: Sequence[str], pairs: Sequence[tuple[str, Any]], kind: type[msgspec.Struct]) -> bool:
    try:
        msgspec.convert(_narrowed(raw, steps, dict(pairs)), kind)
    except (msgspec.ValidationError, RecursionError):
        return True
    return False


def _narrowed(value: Any, steps: Sequence[str], entries: Mapping[str, Any]) -> Any:
    """A request with these entries at the end of a path, and little beside it: of other lists the first entry."""
    if not steps:
        return entries
    if isinstance(value, list):
        return [_narrowed(value[int(steps[0])], steps[1:], entries)]
    cut = {key: entry[:1] if isinstance(entry, list) else entry for key, entry in value.items()}
    return cut | {steps[0]: _narrowed(value[steps[0]], steps[1:], entries)}


def _loose(body: bytes) -> Any:
    """The body as forgiving JSON, only to find the field at fault; None where there is none."""
    try:
        # Python refuses to read whole numbers of more than 4300 digits; the first 400 are as far out of bounds
        return json.loads(body, parse_int=lambda digits: int(digits[:400]))
    except (ValueError, RecursionError):
        return None


def _not_finite(value: Any, path: str) -> str | None:
    """Path of the first NaN or infinity."""
    if isinstance(value, float):
        return path if not math.isfinite(value) else None
    pairs: Any = ()
    if isinstance(value, Mapping):
        pairs = ((f"{path}.{key}".lstrip("."), entry) for key, entry in value.items())
    elif isinstance(value, list):
        pairs = ((f"{path}[{i}]", entry) for i, entry in enumerate(value))
    try:
        return next((found for at, entry in pairs if (found := _not_finite(entry, at))), None)
    except RecursionError:
        return None
