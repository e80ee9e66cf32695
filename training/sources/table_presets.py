"""Ready `columns` maps of well-known formats: our column -> theirs, by table. All but the ids are taken only where the file has them."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Final

from towers import columns as c

Columns = Mapping[str, str]


@dataclass(frozen=True)
class Preset:
    """How a format names its columns.

    Attributes:
        interactions, items, users: our column -> theirs.
        typed_headers: headers read `name:type` (RecBole); the name alone counts.
        separator: between the values of a list written as text.
    """

    interactions: Columns
    items: Columns
    users: Columns = field(default_factory=dict)
    typed_headers: bool = False
    separator: str = "|"


NO_PRESET: Final = Preset({}, {})
PRESETS: Final[Mapping[str, Preset]] = {
    "movielens": Preset(
        interactions={c.USER_ID: "userId", c.ITEM_ID: "movieId", c.TIMESTAMP: "timestamp", c.VALUE: "rating"},
        items={c.ITEM_ID: "movieId", c.TITLE: "title", c.CATEGORIES: "genres"},
        users={c.USER_ID: "userId"},
    ),
    "personalize": Preset(
        interactions={
            c.USER_ID: "USER_ID",
            c.ITEM_ID: "ITEM_ID",
            c.TIMESTAMP: "TIMESTAMP",
            c.EVENT_TYPE: "EVENT_TYPE",
            c.VALUE: "EVENT_VALUE",
            c.RECOMMENDATION_ID: "RECOMMENDATION_ID",
        },
        items={c.ITEM_ID: "ITEM_ID", c.CREATED_AT: "CREATION_TIMESTAMP", c.CATEGORIES: "CATEGORIES", c.TITLE: "TITLE"},
        users={c.USER_ID: "USER_ID"},
    ),
    "recbole": Preset(
        interactions={c.USER_ID: "user_id", c.ITEM_ID: "item_id", c.TIMESTAMP: "timestamp", c.VALUE: "rating"},
        items={c.ITEM_ID: "item_id", c.TITLE: "title", c.CATEGORIES: "categories"},
        users={c.USER_ID: "user_id"},
        typed_headers=True,
        separator=" ",
    ),
    "gorse": Preset(
        interactions={c.USER_ID: "UserId", c.ITEM_ID: "ItemId", c.TIMESTAMP: "Timestamp", c.EVENT_TYPE: "FeedbackType"},
        items={
            c.ITEM_ID: "ItemId",
            c.IS_HIDDEN: "IsHidden",
            c.CATEGORIES: "Categories",
            c.CREATED_AT: "Timestamp",
            c.TITLE: "Comment",
        },
        users={c.USER_ID: "UserId"},
    ),
    "rectools": Preset(
        interactions={c.USER_ID: "user_id", c.ITEM_ID: "item_id", c.TIMESTAMP: "datetime", c.WEIGHT: "weight"},
        items={c.ITEM_ID: "item_id"},
        users={c.USER_ID: "user_id"},
    ),
}
