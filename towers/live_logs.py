"""What a service leaves behind of what it showed and what people did: the rows of its two logs (files as in towers.partitions).

Of impressions there is a row for each list: who asked (by key), what was shown, how it was chosen, and what it takes to compute the list
again. Of events there is a row for each, in the words of the training log; feedback is an event with the `recommendation_id` of the list
that it answers.
"""

import pyarrow as pa

from towers import columns as c
from towers.identity import KEY_BYTES

IMPRESSIONS, EVENTS = "impressions", "events"
"""Folders of the logs in the service's state_dir."""
EVENTS_FILE = "events.db"
"""Beside them: events that are not in their log yet, and those that the service needs."""

ROW = "row"
_TIME = pa.timestamp("us", "UTC")
_KEY = pa.binary(KEY_BYTES)


def _needed(name: str, kind: pa.DataType) -> pa.Field:
    return pa.field(name, kind, nullable=False)


IMPRESSION_SCHEMA = pa.schema(
    [
        _needed(c.RECOMMENDATION_ID, pa.string()),
        _needed(ROW, pa.int32()),  # of a page of several lists; 0 elsewhere. Both together name a list
        _needed("kind", pa.string()),  # recommend, recommend_batch or rerank
        _needed(c.TIMESTAMP, _TIME),  # when it was shown
        pa.field("request_id", pa.string()),  # of the HTTP call; null for a Python caller's
        pa.field(c.USER_KEY, _KEY),  # null where nobody was named, or who was does not allow to be measured
        _needed("profile", pa.string()),  # what became of what is stored of the person: used, none, not_wanted or no_consent
        pa.field("consent_mask", pa.int32()),  # of the purposes allowed: towers.consent.BITS; null where nobody was named
        pa.field("surface", pa.string()),  # where it was shown, in the caller's words
        pa.field(c.CHANNEL, pa.string()),  # by which way, in the caller's words
        _needed("mode", pa.string()),  # personalized, cold or fallback
        _needed("model_version", pa.string()),
        _needed("index_version", pa.string()),
        _needed("item_changes", pa.int64()),  # generation of the last change of items that the catalogue knew
        pa.field("blocked", pa.string()),  # digest of the items that the service blocked; null where it blocked none
        _needed("config_hash", pa.string()),  # of the service's settings
        _needed("k", pa.int32()),
        _needed(c.ITEM_ID, pa.list_(pa.string())),  # best first
        _needed("score", pa.list_(pa.float32())),
        _needed("propensity", pa.list_(pa.float64())),  # of each item, given those before it
        pa.field("temperature", pa.float64()),  # of the draws; 0 = the best at each position was taken
        _needed("candidate_count", pa.int32()),  # what the list was chosen from
        pa.field("candidate_item_id", pa.list_(pa.string())),  # the same in full, best first, for a share of the lists; else null
        pa.field("candidate_score", pa.list_(pa.float32())),
        # what it takes to compute the list again
        _needed("policy", pa.string()),  # JSON: the selector's settings
        _needed("now", _TIME),  # the moment that the list is for
        pa.field("arrived", pa.int64()),  # number of the last live event that was known of the user; 0 = none
        _needed("request", pa.string()),  # JSON: as it was sent, but for the user's id
    ]
)
"""Of impressions. A later version may add nullable columns; files without them are read as if they held nulls."""

EVENT_SCHEMA = pa.schema(
    [
        _needed(c.USER_KEY, _KEY),
        _needed(c.ITEM_ID, pa.string()),
        _needed(c.TIMESTAMP, _TIME),
        _needed(c.EVENT_ID, pa.string()),
        _needed(c.EVENT_TYPE, pa.string()),
        pa.field(c.VALUE, pa.float64()),
        pa.field(c.SESSION_ID, pa.string()),
        pa.field(c.CHANNEL, pa.string()),
        pa.field(c.RECOMMENDATION_ID, pa.string()),
        pa.field("context", pa.string()),  # JSON: value by declared context feature
    ]
)
"""Of events, in the order in which the service took them. The metadata of a file hold the fingerprint of the users' secret."""
