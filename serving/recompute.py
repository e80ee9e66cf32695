"""A list that was shown, computed again from its row of the impression log (towers.live_logs)."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any, TypeVar

import msgspec

from serving.asked import USED, Known
from serving.messages import Item, RecommendRequest
from serving.page_messages import BatchRequest, RerankRequest
from serving.policy import Policy
from serving.retriever import Retriever
from serving.shelves import answer_rerank, answer_rows
from towers.columns import USER_KEY
from towers.consent import BITS, EVERYTHING, PERSONALIZE
from towers.live_logs import ROW

_T = TypeVar("_T", bound=msgspec.Struct)


@dataclass(frozen=True)
class Recomputed:
    """A list as it would be shown, to the same person and as of the same moment, by the retriever that was asked.

    Attributes:
        moved: what has changed since the list was shown, in words; where there is nothing, the list is the one that was shown.
    """

    items: Sequence[Item]
    mode: str
    moved: tuple[str, ...]


def recompute(retriever: Retriever, row: Mapping[str, Any]) -> Recomputed:
    """Compute a list again; nothing is logged. Live events that came after it are left out of account.

    What cannot be told from the row: whether the histories that export wrote are still those of then, and whether live events that
    counted then have passed out of what is kept (serving.event_days, serving.user_events).

    Args:
        row: by column of `IMPRESSION_SCHEMA`, as `pyarrow.Table.to_pylist` gives it.
    """
    consent = (EVERYTHING if row["consent_mask"] is None else row["consent_mask"]) & _allowed_now(retriever, row)
    known = Known(row[USER_KEY], _microseconds(row["now"]), row["arrived"], consent)
    told, moved, policy = row["request"], _moved(retriever, row), Policy.from_row(msgspec.json.decode(row["policy"]))
    if row["kind"] == "recommend_batch":
        page = answer_rows(retriever, _request(told, BatchRequest), known=known, policy=policy)
        return Recomputed(page.rows[row[ROW]].items, page.mode, moved)
    if row["kind"] == "rerank":
        ranked = answer_rerank(retriever, _request(told, RerankRequest), known, policy)
        return Recomputed(ranked.items, ranked.mode, moved)
    reply = retriever.answer(_request(told, RecommendRequest), known, policy)
    return Recomputed(reply.items, reply.mode, moved)


def _allowed_now(retriever: Retriever, row: Mapping[str, Any]) -> int:
    return EVERYTHING if row[USER_KEY] is None else retriever.profiles.standing.mask(row[USER_KEY])


def _request(told: str, kind: type[_T]) -> _T:
    return msgspec.json.decode(told.encode(), type=kind)


def _microseconds(moment: datetime) -> int:
    return (moment - datetime(1970, 1, 1, tzinfo=UTC)) // timedelta(microseconds=1)


def _moved(retriever: Retriever, row: Mapping[str, Any]) -> tuple[str, ...]:
    now = retriever.versions()._asdict()
    moved = [f"{name}: {row.get(name)} then, {value} now" for name, value in now.items() if row.get(name) != value]
    if row["profile"] == USED and row[USER_KEY] is None:
        moved.append("user_key: what is stored of the person was used, and the row may not tell who it was")
    if row["profile"] == USED and not _allowed_now(retriever, row) & BITS[PERSONALIZE]:
        moved.append("consent: what is stored of the person was used then, and may not be used now")
    return tuple(moved)
