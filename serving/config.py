"""Typed settings of the serving jobs (index, serve, recommend)."""

from dataclasses import dataclass, field
from pathlib import Path

from hydra.core.config_store import ConfigStore
from omegaconf import MISSING, OmegaConf

from serving.policy import SelectorSettings
from serving.routes import listed
from towers.consent import PURPOSES
from towers.errors import ConfigError

INDEXES = ("auto", "exact", "ivf", "hnsw", "scann")

LARGEST_K = 1000
"""A list longer than this is a batch job's work, not a request's."""


@dataclass
class IndexConfig:
    """How the item index is built and when it is refused.

    Attributes:
        name: auto | exact | ivf | hnsw | scann. auto = exact up to `exact_up_to` items, ivf above. hnsw, a graph, took 5 to 7 times as
            long as ivf at equal recall on 59,000 items of 64 dimensions; it may pay where ivf does not reach the floor, as with vectors
            that have no clusters. scann needs the library of that name (pip install 'towers[scann]').
        recall_floor: least share of the exact top-k the index must return on held-out user vectors.
        k: of that comparison.
        queries: held-out user vectors it is judged on.
        parts: item attributes whose frequent values get an index of their own: a filter on one such value then costs no more than none.
        part_items: least items of such a value; fewer are scanned as fast.
        half_from: items from which on a service keeps item vectors in half precision: half of the memory, and scores that differ by a few
            ten-thousandths; the recall that is reported is of such searches, against exact ones. null = never.
        reach: share of the people whose first twenty every item is to reach where `reach` of the selector is turned on, such as 0.001:
            times the number of items, it is how many of the twenty places that takes at most. Needs `towers export
            export.held_out_queries=20000`. 0 = that dial cannot be turned.
    """

    name: str = "auto"
    exact_up_to: int = 20_000
    recall_floor: float = 0.95
    k: int = 100
    queries: int = 1000
    parts: list[str] = field(default_factory=lambda: ["categories"])
    part_items: int = 2000
    half_from: int | None = 200_000
    reach: float = 0.0


@dataclass
class ServeConfig:
    """The HTTP service.

    Attributes:
        host, port: where it listens; port 0 takes a free one.
        workers: processes that answer; they share what they read from files.
        api_keys: JSON file of who may ask for what (see serving/api_keys.py); null = whoever can connect may ask everything.
        access_log: a log line for every request, not only for those refused or failed.
        bundle: a bundle folder; null = the one that run_dir/bundles/CURRENT names.
        history: Parquet file of user histories, read anew with each new bundle; null = run_dir/export/histories.parquet where it exists.
        key_file: the HMAC key that training used; null = $TOWERS_KEY_FILE or ~/.towers/user_key.
        runtime: auto | onnx | torch, what runs the towers. auto = onnx on a CPU where the bundle has ONNX towers, else torch.
        device: cpu | cuda; a GPU needs torch.
        state_dir: folder of what the service itself writes down; null = run_dir/state.
        event_days: live events that happened longer ago are deleted; null = none is for its age.
        user_events: newest events of a user that are used; others are deleted from SQLite once they are in Parquet.
        consent: table of what users allow (user_id, purpose, granted, timestamp; Parquet or .csv), followed while it serves. null =
            everything that they have not refused here.
        receipts: file of who was forgotten and what was removed for it; null = beside the key file. Keep it where no backup of the run
            brings back an older one.
        retrain_days: until then, models that learned from a forgotten user are to be replaced; the receipt names them and the date.
        impression_days: rows of what was shown, a list each, are deleted when they are older; null = none is for its age, 0 = none is
            written.
        candidate_share: share of these rows that also tell all candidates that the list was chosen from.
        selector: how lists are made out of the best candidates.
        max_k: largest k answered; also the most items of all rows of a page together where a policy orders them.
        max_history: most history events accepted in a request.
        max_events: most events added at once.
        max_body_bytes: largest request body accepted.
        read_timeout_s: seconds that the service waits for the head of a request, and as long again for its body.
        max_values: most entries of one value that is a list: preferences, categories, a list in a context. A vector is as long as its
            feature's width.
        max_text: most characters of one text: a title, a text feature, a value.
    """

    host: str = "127.0.0.1"
    port: int = 8000
    workers: int = 1
    api_keys: str | None = None
    access_log: bool = False
    bundle: str | None = None
    history: str | None = None
    key_file: str | None = None
    runtime: str = "auto"
    device: str = "cpu"
    state_dir: str | None = None
    event_days: float | None = 365.0
    user_events: int = 1000
    consent: str | None = None
    receipts: str | None = None
    retrain_days: float = 30.0
    impression_days: float | None = 90.0
    candidate_share: float = 0.05
    selector: SelectorSettings = field(default_factory=SelectorSettings)
    max_k: int = 1000
    max_history: int = 10_000
    max_events: int = 1000
    max_body_bytes: int = 1_048_576
    read_timeout_s: float = 10.0
    max_values: int = 1000
    max_text: int = 10_000


@dataclass
class RecommendConfig:
    """Lists for every known user, written to files.

    Attributes:
        k: items of each list.
        exclude_seen: leave out every item of a user's history.
        now: the moment the lists are for, Unix seconds; null = when the job begins. Of histories, only events before it are used.
        users_per_shard: users in one Parquet file.
        block_users: users encoded and searched at once.
        purpose: personalize | train | marketing | measure: what the lists are for. Users who do not allow it, or do not allow to be
            personalized for, get none.
    """

    k: int = 100
    exclude_seen: bool = True
    now: float | None = None
    users_per_shard: int = 100_000
    block_users: int = 1024
    purpose: str = "personalize"


@dataclass
class SweepDials:
    """Values of each dial that are tried, one at a time.

    Attributes:
        popularity, reach, calibration, diversity, freshness, temperature: see serving.selector. reach (which needs a bundle of
            `index.reach`) and freshness (items with `created_at`) are tried where values are given.
    """

    popularity: list[float] = field(default_factory=lambda: [-0.05, -0.1, -0.2, -0.4])
    reach: list[float] = field(default_factory=list)
    calibration: list[float] = field(default_factory=lambda: [0.05, 0.1, 0.2, 0.4])
    diversity: list[float] = field(default_factory=lambda: [0.1, 0.2, 0.4])
    freshness: list[float] = field(default_factory=list)
    temperature: list[float] = field(default_factory=lambda: [0.01, 0.02, 0.05])


@dataclass
class SweepConfig:
    """What `towers recommend sweep=true` makes lists for.

    Attributes:
        split: valid | test, of the queries that `towers export` held out; choose by the first, then look at the second once.
            A model that was refitted (trainer.refit) has learned the answers of valid: test alone can judge it.
        k: items of each list.
        dials: values of each dial.
        together: several dials at once, tried after them: [{popularity: -0.1, calibration: 0.1}].
    """

    split: str = "valid"
    k: int = 50
    dials: SweepDials = field(default_factory=SweepDials)
    together: list[dict[str, float]] = field(default_factory=list)


@dataclass
class ServingConfig:
    """Everything the serving jobs share; `run_dir` is the run that training filled.

    Attributes:
        sweep: of `towers recommend`: lists for held-out queries at every value of every dial, in place of lists for users.
    """

    run_dir: str = MISSING
    seed: int = 0
    sweep: bool = False
    index: IndexConfig = field(default_factory=IndexConfig)
    serving: ServeConfig = field(default_factory=ServeConfig)
    recommend: RecommendConfig = field(default_factory=RecommendConfig)
    sweeping: SweepConfig = field(default_factory=SweepConfig)


def state_dir(config: ServingConfig) -> Path:
    """Folder of what the service itself writes down."""
    return Path(config.serving.state_dir) if config.serving.state_dir else Path(config.run_dir) / "state"


def register(**more: type) -> None:
    """Tell Hydra the schema that conf/index.yaml, conf/serve.yaml and conf/recommend.yaml start from, and others by name."""
    OmegaConf.register_new_resolver("towers.routes", listed, replace=True)
    for name, schema in {"serving_schema": ServingConfig, **more}.items():
        ConfigStore.instance().store(name=name, node=schema)


def validate(config: ServingConfig) -> None:
    """Checks across fields, before any work.

    Raises:
        ConfigError: names the knob to turn.
    """
    config.serving.selector.validate()
    if config.index.name not in INDEXES:
        raise ConfigError(f"index.name: got {config.index.name!r}, expected one of {', '.join(INDEXES)}")
    if not 0 <= config.index.recall_floor <= 1:
        raise ConfigError(f"index.recall_floor: got {config.index.recall_floor}, expected a share in [0, 1]")
    if config.recommend.purpose not in PURPOSES:
        raise ConfigError(f"recommend.purpose: got {config.recommend.purpose!r}, expected one of {', '.join(PURPOSES)}")
    for key, got, known in (
        ("runtime", config.serving.runtime, ("auto", "onnx", "torch")),
        ("device", config.serving.device, ("cpu", "cuda")),
    ):
        if got not in known:
            raise ConfigError(f"serving.{key}: got {got!r}, expected one of {', '.join(known)}")
    if (config.serving.runtime, config.serving.device) == ("onnx", "cuda"):
        raise ConfigError("serving.runtime=onnx runs on the CPU alone; for serving.device=cuda take serving.runtime=torch or leave it out")
    if config.serving.workers > 1 and config.serving.device == "cuda":
        raise ConfigError("serving.workers: a GPU is used by one process; take serving.workers=1, or serving.device=cpu")
    for key, value in (
        ("index.k", config.index.k),
        ("index.queries", config.index.queries),
        ("index.part_items", config.index.part_items),
        ("serving.workers", config.serving.workers),
        ("recommend.k", config.recommend.k),
        ("sweeping.k", config.sweeping.k),
        ("recommend.users_per_shard", config.recommend.users_per_shard),
        ("recommend.block_users", config.recommend.block_users),
        ("serving.max_k", config.serving.max_k),
        ("serving.max_history", config.serving.max_history),
        ("serving.max_events", config.serving.max_events),
        ("serving.user_events", config.serving.user_events),
        ("serving.max_body_bytes", config.serving.max_body_bytes),
        ("serving.max_values", config.serving.max_values),
        ("serving.max_text", config.serving.max_text),
    ):
        if value < 1:
            raise ConfigError(f"{key}: got {value}, expected at least 1")
    if config.serving.max_k > LARGEST_K:
        raise ConfigError(f"serving.max_k: got {config.serving.max_k}, expected at most {LARGEST_K}")
    if not 0 < config.serving.read_timeout_s <= 3600:
        raise ConfigError(f"serving.read_timeout_s: got {config.serving.read_timeout_s}, expected seconds above 0, at most 3600")
    if not config.serving.retrain_days > 0:
        raise ConfigError(f"serving.retrain_days: got {config.serving.retrain_days}, expected a number above 0")
    if config.serving.impression_days is not None and not config.serving.impression_days >= 0:
        raise ConfigError(
            f"serving.impression_days: got {config.serving.impression_days}, expected above 0, 0 to keep no impressions, or null to delete"
            " none for its age"
        )
    if not 0 <= config.serving.candidate_share <= 1:
        raise ConfigError(f"serving.candidate_share: got {config.serving.candidate_share}, expected a share in [0, 1]")
    if config.serving.event_days is not None and not config.serving.event_days > 0:
        raise ConfigError(f"serving.event_days: got {config.serving.event_days}, expected above 0, or null to delete none for its age")
    for key, k in (("recommend.k", config.recommend.k), ("sweeping.k", config.sweeping.k)):
        if k > LARGEST_K:
            raise ConfigError(f"{key}: got {k}, expected at most {LARGEST_K}")
    if config.sweeping.split not in ("valid", "test"):
        raise ConfigError(f"sweeping.split: got {config.sweeping.split!r}, expected valid or test")
    if config.recommend.now is not None and not 0 <= config.recommend.now < 7_258_118_400:
        raise ConfigError(f"recommend.now: got {config.recommend.now}, expected Unix seconds from 1970 to 2199, or null")
    if not 0 <= config.index.reach < 1:
        raise ConfigError(f"index.reach: got {config.index.reach}, expected a share in [0, 1)")
    if config.index.half_from is not None and config.index.half_from < 0:
        raise ConfigError(f"index.half_from: got {config.index.half_from}, expected a number of items, or null for none")
    if config.index.exact_up_to < 0:
        raise ConfigError(f"index.exact_up_to: got {config.index.exact_up_to}, expected 0 (never by size) or more")
    if not 0 <= config.serving.port <= 65535:
        raise ConfigError(f"serving.port: got {config.serving.port}, expected 0 to 65535")
