"""Column names, split codes and reserved rows: the words every file format and signature shares."""

from typing import Final

USER_ID: Final = "user_id"
ITEM_ID: Final = "item_id"
TIMESTAMP: Final = "timestamp"
EVENT_ID: Final = "event_id"
EVENT_TYPE: Final = "event_type"
VALUE: Final = "value"
WEIGHT: Final = "weight"
SESSION_ID: Final = "session_id"
CHANNEL: Final = "channel"
RECOMMENDATION_ID: Final = "recommendation_id"
SPLIT: Final = "split"

TITLE: Final = "title"
CATEGORIES: Final = "categories"
CREATED_AT: Final = "created_at"
IS_HIDDEN: Final = "is_hidden"

USER_KEY: Final = "user_key"
"""16 bytes of HMAC-SHA256 of the raw user id; the only form of a user id that artefacts hold."""

MADE: Final = b"towers.made"
"""In the metadata of a file of histories: when the export began that wrote it, microseconds UTC. It knows of wishes told before alone."""

PURGED: Final = b"towers.purged"
"""There as well: up to when (microseconds UTC) everybody's events were taken out since; absent where none were."""

ITEM_ROWS: Final = "item_rows"
"""A column of a file of histories: the same items as `item_ids`, as rows of a catalogue, which are read in a fraction of the time."""

CATALOG: Final = b"towers.catalog"
"""In its metadata: `digest_of` the ids of that catalogue."""

DEFAULT_EVENT_TYPE: Final = "interaction"
NEGATIVE_EVENT_TYPES: Final = ("abandon", "skip")
"""Event types that tell what a person did not want: never a training target, part of the history."""

REMOVAL: Final = "remove_from_history"
"""Event type with which a person takes an item out of the history: all events with it before then are gone, and this one is no part of the
history either. What comes after counts again."""

INTERACTION_COLUMNS: Final = (
    USER_ID, ITEM_ID, TIMESTAMP, EVENT_ID, EVENT_TYPE, VALUE, WEIGHT, SESSION_ID, CHANNEL, RECOMMENDATION_ID, SPLIT,
)  # fmt: skip
ITEM_COLUMNS: Final = (ITEM_ID, TITLE, CATEGORIES, CREATED_AT, IS_HIDDEN)

PAD_ROW: Final = 0
OOV_ROW: Final = 1
MISSING_ROW: Final = 2
FIRST_ROW: Final = 3
"""Vocabulary rows start here, in id order, so that ties by row are ties by id."""

TRAIN, VALID, TEST = 0, 1, 2
SPLIT_NAMES: Final = ("train", "valid", "test")

MAX_ID_BYTES: Final = 256
NO_TIME: Final = -(2**63)
"""The int64 that stands for a missing timestamp in NumPy columns (NumPy's own NaT)."""
