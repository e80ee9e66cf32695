"""Whom the demo asks for: a known user, one the model has never seen, and a visitor with only this session's history."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq

from towers.columns import CATEGORIES, EVENT_TYPE, FIRST_ROW, ITEM_ID, NO_TIME, TITLE, USER_ID, USER_KEY
from training.interactions import Interactions

RECENT = 5
FEWEST_EVENTS = 12


@dataclass(frozen=True)
class Ask:
    """A request body, and what a person may know of who asks."""

    who: str
    body: dict[str, Any]
    known: list[str] = field(default_factory=list)


def asks(run_dir: Path, k: int) -> list[Ask]:
    """Three requests that fit the run's data."""
    data = Interactions.open(run_dir / "prepared")
    context, base = _context(data), {"k": k, "explain": True, **_moment(data)}
    return [_warm(data, run_dir, base, context), cold(data, base), _visitor(data, base, context)]


def show_reply(asked: dict[str, Any]) -> None:
    """Print one request and its list."""
    reply = asked["reply"]
    print(f"\n{asked['who']}  ({reply['mode']}, {asked['latency_ms']:.1f} ms)")
    for line in asked["known"]:
        print(f"   knows: {line}")
    if reply.get("fallback"):
        print(f"   fallback: {reply['fallback']['strategy']}, because {reply['fallback']['reason'].replace('_', ' ')}")
    for place, item in enumerate(reply["items"], start=1):
        title = item.get("title") or item["item_id"]
        categories = ", ".join(item.get("categories") or [])
        print(f"  {place:2d}. {item['score']:7.4f}  {title}" + (f"  [{categories}]" if categories else ""))
        if item.get("explanation"):
            print(f"{'':15}{item['explanation']['text']}")


def _warm(data: Interactions, run_dir: Path, base: dict[str, Any], context: dict[str, str]) -> Ask:
    lengths = np.diff(data.offsets)
    enough = np.flatnonzero(lengths >= min(FEWEST_EVENTS, lengths.max()))
    user = int(enough[len(enough) // 2])
    table = pq.read_table(run_dir / "prepared" / "raw_user_ids.parquet")
    at = table.column(USER_KEY).to_pylist().index(data.user_keys[user].tobytes())
    recent = data.item[data.offsets[user + 1] - min(RECENT, lengths[user]) : data.offsets[user + 1]]
    body = {"user_id": table.column(USER_ID)[at].as_py(), **base} | ({"context": context} if context else {})
    return Ask(f"A known user with {lengths[user]} events", body, [f"lately {', '.join(_titles(data, recent))}", *_said(context)])


def cold(data: Interactions, base: dict[str, Any]) -> Ask:
    """Somebody whom the model has never seen, with declared likes where it reads any."""
    body: dict[str, Any] = {"user_id": "someone-new", **base}
    likes = next((f for f in data.schema.features if f.kind == "preferences"), None)
    if likes is None:
        return Ask("A new user of whom nothing is known", body)
    wanted = data.preprocessor.vocabularies[likes.vocabulary].values()[:2].to_pylist()
    return Ask("A new user who declared likes", body | {"preferences": {likes.name: wanted}}, [f"likes {', '.join(wanted)}"])


def _visitor(data: Interactions, base: dict[str, Any], context: dict[str, str]) -> Ask:
    """A history of three well-known items that share a category, so that a person can judge the list."""
    counts = data.train_counts()
    order = np.argsort(-counts, kind="stable")
    categories = data.catalog.column(CATEGORIES).to_pylist()
    first = int(order[len(order) // 20])
    shared = set(categories[first] or [])
    alike = [int(row) for row in order[: max(3, len(order) // 4)] if shared & set(categories[int(row)] or [])]
    chosen = alike[:3] if len(alike) >= 3 else [int(row) for row in order[:3]]
    ids = [str(data.catalog.column(ITEM_ID)[row].as_py()) for row in chosen]
    kind = data.preprocessor.vocabularies[EVENT_TYPE].values()[int(np.bincount(data.event[data.weight > 0]).argmax()) - FIRST_ROW].as_py()
    body = {"history": [{"item_id": item, "event_type": kind} for item in ids], **base} | ({"context": context} if context else {})
    return Ask("A visitor with this session's history only", body, [f"now {', '.join(_titles(data, chosen))}", *_said(context)])


def _moment(data: Interactions) -> dict[str, float]:
    """The end of the log as the request's time, in seconds: on an old log, today would make every history decades old."""
    latest = data.newest()
    return {} if latest == NO_TIME else {"now": latest / 1e6}


def _context(data: Interactions) -> dict[str, str]:
    """The last value, in alphabetical order, of each categorical context feature."""
    named = {f.name: data.preprocessor.vocabularies[f.vocabulary] for f in data.schema.owned_by("context") if f.kind == "categorical"}
    return {name: str(vocabulary.values()[-1].as_py()) for name, vocabulary in named.items() if len(vocabulary.values())}


def _said(context: dict[str, str]) -> list[str]:
    return [f"context {', '.join(f'{name} {value}' for name, value in context.items())}"] if context else []


def _titles(data: Interactions, rows: Any) -> list[str]:
    titles, ids = data.catalog.column(TITLE), data.catalog.column(ITEM_ID)
    return [str(titles[int(row)].as_py() or ids[int(row)].as_py()) for row in rows]
