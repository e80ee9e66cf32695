"""The service's log: one JSON object a line, on standard error."""

import json
import logging
import sys
import traceback
from contextvars import ContextVar
from datetime import UTC, datetime
from types import TracebackType

import msgspec

from serving.decoding import REQUESTS
from towers.columns import ITEM_COLUMNS

REQUEST_ID: ContextVar[str | None] = ContextVar("request_id", default=None)
"""Of the HTTP call that is being answered."""

LOGGER = "towers.serving"
"""The service's own."""

_ORDINARY = frozenset(vars(logging.makeLogRecord({}))) | {"message", "asctime"}


_SCHEMAS = msgspec.json.schema_components(REQUESTS)[1].values()
_OTHERS = ("id", "body", "authorization", "x-request-timeout-ms")
_NAMES = {*ITEM_COLUMNS, *_OTHERS, *(name for schema in _SCHEMAS for name in schema["properties"])}
"""The service's own words for what a request holds."""


def loggable(field: str) -> str:
    """The field at fault without what its caller made up, which may be an id or private: `history[3].colour` is `history[].*`."""
    names = [(name, place) for name, place, _ in (step.partition("[") for step in field.split("."))]
    return ".".join(name + place.replace("[", "[]") if name in _NAMES else "*" for name, place in names)


class JsonLines(logging.Formatter):
    """Time, level, event, process, whatever a call gave as `extra`, and of an exception its kind and where it came from: what it says may
    quote a person's data. Of what libraries log it keeps what they always say, and not the values in it, which may be of a request."""

    def format(self, record: logging.LogRecord) -> str:
        event = record.getMessage()
        facts = {name: value for name, value in vars(record).items() if name not in _ORDINARY and value not in ("", None)}
        if record.name != LOGGER:
            event, facts = str(record.msg).partition("\n")[0], {"logger": record.name}
        kind, _, trace = record.exc_info or (None, None, None)
        if kind is not None:
            facts |= {"error": kind.__name__, "trace": steps(trace)}
        when = datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds")
        return json.dumps({"time": when, "level": record.levelname.lower(), "event": event, "pid": record.process, **facts})


def steps(trace: TracebackType | None) -> list[str]:
    """File, line and function of each step that led to an exception."""
    return [f"{step.filename}:{step.lineno} {step.name}" for step in traceback.extract_tb(trace)]


def log_to_stderr() -> None:
    """Send there what the service logs, and from warnings on what libraries do: all of it as JSON, and none of it anywhere else."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(JsonLines())
    logging.getLogger().handlers[:] = [handler]
    logging.getLogger().setLevel(logging.WARNING)
    logging.getLogger(LOGGER).setLevel(logging.INFO)
    logging.captureWarnings(True)
