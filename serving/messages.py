"""What requests and replies look like: the same types for HTTP, for Python callers and for the OpenAPI document.

Unknown fields are refused (see serving.decoding).
"""

from collections.abc import Sequence
from datetime import datetime
from typing import Annotated

from msgspec import Meta, Struct

from serving.reasons import Explanation
from towers.columns import MAX_ID_BYTES

Id = Annotated[str, Meta(min_length=1, max_length=MAX_ID_BYTES, description=f"at most {MAX_ID_BYTES} bytes of UTF-8")]
"""Characters are counted as it is decoded; serving.decoding counts the bytes where they may be more."""
Moment = int | float | Annotated[datetime, Meta(tz=True)]
"""Unix seconds (fractions allowed) or RFC 3339 with a zone."""
Whole = Annotated[int, Meta(ge=-(2**63), le=2**63 - 1)]
Scalar = str | Whole | float | bool | None
Value = str | Whole | float | bool | None | list[Scalar]
"""Of a context feature. Whole numbers are bounded: Python refuses to print those of more than 4300 digits."""


class HistoryEvent(Struct, frozen=True, forbid_unknown_fields=True):
    """One event of a live history; a plain item id stands for an event without type and time. Of `context` only what the model's histories
    keep is read."""

    item_id: Id
    event_type: str | None = None
    timestamp: Moment | None = None
    context: dict[str, Value] = {}


Values = Annotated[list[Annotated[str, Meta(max_length=MAX_ID_BYTES)] | Whole | float | bool], Meta(min_length=1, max_length=256)]
Bound = Annotated[str, Meta(max_length=MAX_ID_BYTES)] | Whole | float


class Clause(Struct, frozen=True, forbid_unknown_fields=True):
    """What one attribute of an item must be. An item without the attribute fulfils `none_of` alone.

    Attributes:
        field: `categories`, `created_at`, or a declared item feature of values (categorical, multi_categorical), numbers or times.
        any_of: the item has at least one of these values.
        none_of: it has none of these.
        at_least, below: bounds of a number, or of a time in Unix seconds or RFC 3339; the first is inclusive.
    """

    field: Id
    any_of: Values | None = None
    none_of: Values | None = None
    at_least: Bound | None = None
    below: Bound | None = None


Clauses = Annotated[list[Clause], Meta(max_length=16)]


Seed = Annotated[int, Meta(ge=0, le=2**63 - 1)]
MOST_CAPS = 8
"""Attributes that a request may cap."""


class Steer(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """How this list shall differ from what the service usually makes. What is not given stays as usual; each weight stands against
    relevance, which is 1 for the best candidate and 0 for the last, and has bounds that the service sets.

    Attributes:
        popularity: below 0 holds popular items back, above 0 favours them.
        reach: shows items that no list would hold to the few people whom they suit best.
        calibration: brings the list's categories to the shares that they have in the history.
        diversity: keeps items apart that are like each other.
        freshness: favours new items.
        temperature: 0 = the best item at each position; above, from 1e-6 on, each position is drawn.
        near_duplicates: of items whose vectors have at least this cosine, the list holds one. A stricter value of the service stands.
        caps: by attribute, how many items of the list may share a value. Stricter ones of the service stand.
        seed: of the draws, to get the same list again; chosen by the service otherwise.
    """

    popularity: float | None = None
    reach: float | None = None
    calibration: float | None = None
    diversity: float | None = None
    freshness: float | None = None
    temperature: float | None = None
    near_duplicates: Annotated[float, Meta(gt=0, le=1)] | None = None
    caps: Annotated[dict[Id, Annotated[int, Meta(ge=1)]], Meta(max_length=MOST_CAPS)] = {}
    seed: Seed | None = None


class Asker(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Who asks, and in which situation.

    Attributes:
        user_id: the caller's id of a person; its stored history is used where there is one.
        history: events to be used now, oldest first, after the stored ones. Sorted by time where every event has one.
        context: value by declared context feature.
        preferences: liked values by declared preferences feature; a plain list where exactly one is declared.
        exclude: item ids never returned.
        exclude_seen: leave out every item of the stored and the live history.
        filter: clauses that every item must fulfil.
        less_like: ids of items that this list should have less of: what is near to them gives way, and they themselves are left out.
            Under a fallback their neighbours come after everything else. It holds for this request; unknown ones are passed over.
        explain: tell why each item is in the list.
        policy: how the list shall be chosen from the best candidates.
        now: time of the request; the server's clock by default. Give it to replay a past moment: of the stored history only events
            before it are used.
        personalize: false reads nothing that is stored of the person and notes no key of theirs; what the request itself says is used.
        surface, channel: where and by which way the list will be shown, in the caller's words; noted with it, and of no other effect.
    """

    user_id: Id | None = None
    history: list[Id | HistoryEvent] = []
    context: dict[str, Value] = {}
    preferences: list[str] | dict[str, list[str]] = {}
    exclude: list[Id] = []
    exclude_seen: bool = True
    filter: Clauses = []
    less_like: Annotated[list[Id], Meta(max_length=20)] = []
    explain: bool = False
    policy: Steer | None = None
    now: Moment | None = None
    personalize: bool = True
    surface: Id | None = None
    channel: Id | None = None


class RecommendRequest(Asker, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """One list.

    Attributes:
        k: items wanted.
        candidate_items: the only items that may be returned; all by default. Unknown ones are passed over.
    """

    k: int = 20
    candidate_items: list[Id] | None = None


class Item(Struct, frozen=True, omit_defaults=True):
    """One recommended item.

    Attributes:
        score: the model's similarity; under a fallback the share of training interactions.
        explanation: where the request asked for it.
    """

    item_id: str
    title: str | None
    score: float
    categories: list[str]
    explanation: Explanation | None = None


class Fallback(Struct, frozen=True):
    """Why the list is not the tower's.

    Attributes:
        strategy: `most_popular`.
        reason: `no_history` (nothing was sent or stored), `unknown_user`, `no_user_histories` (the service was started without any),
            `unknown_history_items` or `unknown_preferences` (the model knows none of them), `not_wanted` or `no_consent` (see `profile`).
    """

    strategy: str
    reason: str


class Recommendations(Struct, frozen=True):
    """The answer to a RecommendRequest.

    Attributes:
        recommendation_id: names this list.
        mode: `personalized` (from a history), `cold` (from declared preferences alone) or `fallback`.
        items: best first, no duplicates.
        returned: how many.
        shortage: why they are fewer than `k`, else null: `items` where no more are left after exclusions and filters, `policy` where its
            caps and near-duplicates leave no more, however deep was searched.
        unknown_history_items: history events whose item the model was not trained on; to it they all look alike.
        profile: what is stored of the person was `used`, there is `none`, it was `not_wanted` (`personalize: false`), or the person has not
            allowed to be personalized for (`no_consent`) and it was not read.
    """

    recommendation_id: str
    model_version: str
    index_version: str
    mode: str
    fallback: Fallback | None
    items: Sequence[Item]
    returned: int
    k: int
    unknown_history_items: int
    profile: str
    shortage: str | None = None


class Event(Struct, frozen=True, forbid_unknown_fields=True):
    """Something a person did, in the words of the training log; it counts from the next list on.

    Attributes:
        event_type: one that the model was trained with; `interaction` by default. `remove_from_history` takes all of the person's events
            with the item before then out of the history, for every list and the next training; what comes after counts again. The item is
            then none that the person has seen, and may be recommended.
        timestamp: when; the server's clock by default. Needed where there is no `event_id`.
        event_id: names the event: sent again for the same person, it changes nothing. Named or not, events equal in person, item, type and
            time count once.
        value, session_id, channel, context: kept with it.
        recommendation_id: of the list that it answers; not kept of a person who does not allow measuring.
    """

    user_id: Id
    item_id: Id
    event_type: str | None = None
    timestamp: Moment | None = None
    event_id: Id | None = None
    value: float | None = None
    session_id: Id | None = None
    channel: Id | None = None
    recommendation_id: Id | None = None
    context: dict[str, Value] = {}


class EventsRequest(Struct, frozen=True, forbid_unknown_fields=True):
    """Events to be added: all of them or, where one does not fit, none. They may come in any order, and again."""

    events: list[Event]


class EventsAdded(Struct, frozen=True):
    """Told once they are stored.

    Attributes:
        added: new events.
        ignored: repeated ones, those too old to be kept, and those of people who allow no use of them.
        unknown_items: events whose item the model was not trained on; they are kept, and all look alike to it until it is.
    """

    added: int
    ignored: int
    unknown_items: int


class ItemRequest(Struct, frozen=True, forbid_unknown_fields=True):
    """An item, new or anew.

    Attributes:
        attributes: `title` (text), `categories` (a list of text), `created_at` (Unix seconds or RFC 3339 text), `is_hidden` (true or
            false) and the model's item features (times as `created_at`); what is not given is missing.
    """

    attributes: dict[str, Value]


class ItemChanged(Struct, frozen=True):
    """Told once an item's change is stored; within a second every list knows of it.

    Attributes:
        generation: number of the change; later changes have higher ones.
    """

    item_id: str
    generation: int


class SimilarItems(Struct, frozen=True):
    """Items nearest to `item_id`, best first, itself left out."""

    item_id: str
    model_version: str
    index_version: str
    items: Sequence[Item]
    returned: int
    k: int


class Problem(Struct, frozen=True, omit_defaults=True):
    """RFC 9457 problem document; `field` is the request field at fault."""

    title: str
    status: int
    detail: str
    type: str = "about:blank"
    field: str | None = None
    request_id: str | None = None
