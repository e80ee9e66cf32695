"""Typed settings of where data comes from and how it is divided."""

from dataclasses import dataclass, field

from omegaconf import MISSING

from towers.schema import Feature, Schema, make_schema


@dataclass
class FeatureConfig:
    """A declared feature; see towers.schema.Feature."""

    name: str = MISSING
    kind: str = MISSING
    owner: str = MISSING
    column: str = ""
    like: str = ""
    max_values: int = 8
    min_count: int = 1
    buckets: int = 4096
    width: int = 0
    sensitive: bool = False
    purposes: list[str] = field(default_factory=list)
    in_history: bool = False


@dataclass
class SyntheticConfig:
    """Size and seed of the embedded synthetic world.

    Attributes:
        seed, users, items, days, events_per_user: of the world.
        pushed: share of events that no choice precedes (an autoplay, a push message): the item is what would have suited the taste
            before it turned, and the reaction tells what the user thinks of it now.
        tired: share of users who some day turn away from the category that they liked most.
    """

    seed: int = 0
    users: int = 2000
    items: int = 1200
    days: int = 60
    events_per_user: float = 40.0
    pushed: float = 0.0
    tired: float = 0.0


@dataclass
class DataConfig:
    """Where interactions come from and what their columns mean.

    Attributes:
        name: synthetic | ml_1m | ml_100k | lightgcn | frappe | sequences | table.
        path: folder of the dataset; null looks in $TOWERS_DATA_DIR/<folder>, then downloads where the publisher allows it.
        order: time | position | set.
        interactions, items, users, audit: files under `path` for `table` (Parquet or CSV).
        preset: movielens | personalize | recbole | gorse | rectools: a ready `columns` map.
        columns: our column name -> the file's, over the preset (`user_id: userId`).
        timestamp_unit: s | ms | us | auto, for timestamps that are plain numbers.
        features: declared features; other columns are dropped and counted.
        event_weights: training weight by event type (others weigh 1).
        phrases: how a reason is said, by event type and feature: what follows "because", `{}` where titles or values go
            (`view: you watched {}`, `device: you are on {}`). Plain words where there is none.
        min_user_events, min_item_events: users and items with fewer interactions are left out (counted).
        deduplicate: drop rows equal in user, item, timestamp and event type, and repeated event ids.
        max_rejected_share: share of bad rows past which prepare stops.
        chunk_rows: rows read at a time.
        live: folder of the events that a service was told (its state/events), read after the dataset's own log; null = none.
        live_consent: file of what people told a service to allow or refuse (its state/consent.parquet), which counts beside `consent`, the
            later decision of both; null = the one beside the folder `live`, else the one in run_dir/state, where there is one.
        retention_days: rows older than this are passed over, and counted; null = none is for its age.
        consent: table of what users allow (user_id, purpose, granted, timestamp; Parquet or .csv); null = everything. With one, rows of
            users who did not grant `train` are not prepared, those without `personalize` are not exported, audit columns need `measure`;
            `train` and `evaluate` refuse data of people who withdrew since.
    """

    name: str = "synthetic"
    path: str | None = None
    order: str = "time"
    interactions: str | None = None
    items: str | None = None
    users: str | None = None
    audit: str | None = None
    preset: str | None = None
    columns: dict[str, str] = field(default_factory=dict)
    timestamp_unit: str = "auto"
    features: list[FeatureConfig] = field(default_factory=list)
    event_weights: dict[str, float] = field(default_factory=dict)
    phrases: dict[str, str] = field(default_factory=dict)
    min_user_events: int = 1
    min_item_events: int = 1
    deduplicate: bool = True
    max_rejected_share: float = 0.05
    chunk_rows: int = 1_000_000
    live: str | None = None
    live_consent: str | None = None
    consent: str | None = None
    retention_days: float | None = None
    synthetic: SyntheticConfig = field(default_factory=SyntheticConfig)


@dataclass
class IdentityConfig:
    """How raw user ids become keys: HMAC-SHA256 under a secret kept outside every artefact.

    Attributes:
        key_file: null = $TOWERS_KEY_FILE or ~/.towers/user_key; made with mode 0600 where absent.
        keep_raw_ids: keep a table of raw user ids in the run, so that `export` may write them.
        receipts: file of who was forgotten (`towers subject`), whose rows of before are passed over; null = beside the key file.
    """

    key_file: str | None = None
    keep_raw_ids: bool = False
    receipts: str | None = None


@dataclass
class SplitConfig:
    """How interactions are divided.

    Attributes:
        name: global_temporal | leave_one_out | given | random | item_cold | user_cold.
        valid_share, test_share: of rows (global_temporal, random), of items (item_cold), of users (user_cold), or of each user's given
            training rows (given without a validation file: valid_share).
        seed: of the random choices of `given`, `random`, `item_cold` and `user_cold`.
        warm_too: with item_cold, hold out each user's last two events among the other items as well (the last tests, the one before
            validates), so that the same evaluation tells what measures for new items cost the others.
    """

    name: str = "global_temporal"
    valid_share: float = 0.1
    test_share: float = 0.1
    seed: int = 0
    warm_too: bool = False


def schema_of(data: DataConfig) -> Schema:
    """The declared Schema of a dataset's config."""
    features = [Feature(**{**vars(f), "purposes": tuple(f.purposes)}) for f in data.features]
    return make_schema(features, data.order, data.event_weights)
