"""What a dataset's features are: declared once, kept in the bundle, read by training and serving."""

import hashlib
import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field
from functools import cached_property
from typing import Any

from towers.errors import ConfigError

KINDS = ("id", "categorical", "multi_categorical", "numeric", "text", "dense", "time", "preferences")
OWNERS = ("user", "item", "context")
ORDERS = ("time", "position", "set")


@dataclass(frozen=True)
class Feature:
    """One declared feature.

    Attributes:
        name: its name, and its column unless `column` says otherwise.
        kind: one of KINDS. `preferences` is a user's declared likes, in the vocabulary of an item feature (`like`).
        owner: `user`, `item` or `context` (of the request or event).
        column: the source column, after renaming.
        like: name of the feature whose vocabulary this one shares (`preferences` needs it).
        max_values: most values kept of a multi-valued or text feature.
        min_count: values seen fewer times in training become OOV.
        buckets: hash buckets of a text feature's n-grams.
        width: length of a dense feature's vectors.
        sensitive: refused as a model input unless `purposes` names `personalize`.
        purposes: purposes that allow a sensitive feature.
        in_history: of categorical context: each event of a history keeps the value it had, and events that agree with the request weigh
            differently (the mean).
    """

    name: str
    kind: str
    owner: str
    column: str = ""
    like: str = ""
    max_values: int = 8
    min_count: int = 1
    buckets: int = 4096
    width: int = 0
    sensitive: bool = False
    purposes: tuple[str, ...] = ()
    in_history: bool = False

    @property
    def source_column(self) -> str:
        return self.column or self.name

    @cached_property
    def input_name(self) -> str:
        """Its name in a FeatureBatch: `item.categories`."""
        return f"{self.owner}.{self.name}"

    @property
    def vocabulary(self) -> str:
        """Name of the vocabulary that its values are looked up in (kinds id, categorical, multi_categorical, preferences)."""
        return self.like or self.name


@dataclass(frozen=True)
class Schema:
    """All declared features of a dataset and how its histories are ordered.

    Attributes:
        features: in declaration order. `item_id` (kind id, owner item) is always among them.
        order: `time`, `position` (file order) or `set` (no order at all).
        event_weights: training weight by event type; negative kinds are not targets.
    """

    features: tuple[Feature, ...]
    order: str = "time"
    event_weights: Mapping[str, float] = field(default_factory=dict)

    def owned_by(self, owner: str) -> tuple[Feature, ...]:
        return tuple(f for f in self.features if f.owner == owner)

    @cached_property
    def in_history(self) -> tuple[Feature, ...]:
        """Context that events of a history keep."""
        return tuple(f for f in self.features if f.in_history)

    def feature(self, name: str) -> Feature:
        for f in self.features:
            if f.name == name:
                return f
        raise ConfigError(f"data.features: no feature named {name!r}; declared are {[f.name for f in self.features]}")

    def hash(self) -> str:
        """sha256 of the canonical JSON: equal for equal declarations."""
        return hashlib.sha256(json.dumps(self.to_json(), sort_keys=True).encode()).hexdigest()

    def to_json(self) -> dict[str, Any]:
        return {
            "features": [_declared(f) for f in self.features],
            "order": self.order,
            "event_weights": dict(self.event_weights),
        }

    @classmethod
    def from_json(cls, raw: Mapping[str, Any]) -> "Schema":
        features = tuple(Feature(**{**f, "purposes": tuple(f.get("purposes", ()))}) for f in raw["features"])
        return cls(features=features, order=raw["order"], event_weights=dict(raw["event_weights"]))


def _declared(f: Feature) -> dict[str, Any]:
    """`in_history` only where it is set, so that declarations without it keep the hash they had."""
    return {name: value for name, value in asdict(f).items() if name != "in_history" or value}


ITEM_ID_FEATURE = Feature(name="item_id", kind="id", owner="item")


def make_schema(features: Iterable[Feature], order: str, event_weights: Mapping[str, float]) -> Schema:
    """Check declarations and build the schema; `item_id` is added where it is not declared.

    Raises:
        ConfigError: names the feature, the setting and what is allowed.
    """
    declared = tuple(features)
    if all(f.name != "item_id" for f in declared):
        declared = (ITEM_ID_FEATURE, *declared)
    if order not in ORDERS:
        raise ConfigError(f"data.order: got {order!r}, expected one of {', '.join(ORDERS)}")
    names = [f.name for f in declared]
    for f in declared:
        _check_feature(f, names)
    by_name = {f.name: f for f in declared}
    for f in declared:
        if f.like and by_name[f.like].kind not in ("id", "categorical", "multi_categorical"):
            raise ConfigError(f"data.features.{f.name}.like: {f.like!r} has no vocabulary (kind {by_name[f.like].kind})")
    return Schema(declared, order, dict(event_weights))


def _check_feature(f: Feature, names: list[str]) -> None:
    where = f"data.features.{f.name}"
    if not re.fullmatch(r"[A-Za-z_][A-Za-z0-9_]*", f.name):
        raise ConfigError(f"data.features: name {f.name!r}: expected letters, digits and underscores")
    if names.count(f.name) > 1:
        raise ConfigError(f"{where}: declared {names.count(f.name)} times")
    if f.kind not in KINDS:
        raise ConfigError(f"{where}.kind: got {f.kind!r}, expected one of {', '.join(KINDS)}")
    if f.owner not in OWNERS:
        raise ConfigError(f"{where}.owner: got {f.owner!r}, expected one of {', '.join(OWNERS)}")
    if f.in_history and (f.kind, f.owner) != ("categorical", "context"):
        raise ConfigError(f"{where}.in_history: got {f.kind} of the {f.owner}, expected categorical context")
    if f.kind == "preferences" and (f.owner != "user" or not f.like):
        raise ConfigError(f"{where}: preferences belong to the user and need `like: <item feature>`")
    if f.like and f.like not in names:
        raise ConfigError(f"{where}.like: no feature named {f.like!r}; declared are {names}")
    if f.kind == "dense" and f.width < 1:
        raise ConfigError(f"{where}.width: a dense feature needs the length of its vectors, got {f.width}")
    for setting, value in (("max_values", f.max_values), ("min_count", f.min_count), ("buckets", f.buckets)):
        if value < 1:
            raise ConfigError(f"{where}.{setting}: got {value}, expected at least 1")
    if f.sensitive and "personalize" not in f.purposes:
        raise ConfigError(
            f"{where}: it is sensitive, so it may not be a model input. Remove it from data.features, put it among the"
            " audit columns, or allow it with `purposes: [personalize]`"
        )
