"""The model's shape: the one declaration of its hyper-parameters, kept in the bundle and enough to rebuild it."""

import dataclasses
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from towers.errors import BundleError, ConfigError


@dataclass
class HistoryConfig:
    """How a user's history becomes a vector.

    Attributes:
        name: `mean` (weighted mean: linear, exact reasons) or `transformer` (causal, for ordered data).
        length: most recent events kept; 0 = from the data: as many as any user has, at most 1000 (mean), or as 95 % of the users have,
            at most 100 (transformer).
        share_item_table: look history items up in the item tower's id table instead of one of their own.
        content: a history row is its item's id row and the item's content, as the item tower sums them; for training it goes with
            share_item_table. A trained model has these sums in a table of the history's own.
        use_event_type: events of different types weigh differently.
        signed_events: of the mean: the weight of an event type may become negative, so that what was abandoned pushes away. Still a
            weighted sum, so reasons stay exact.
        negative_push: of the mean: an `abandon` or `skip` counts this many times an equally old event of neutral weight, against its
            item's like. 0 = its weight is learned as any type's: choosing something at all speaks for it, so training alone may find
            that what was abandoned is still liked more than most.
        use_age: newer events weigh differently (mean), pauses between events tell (transformer); needs timestamps.
        use_repeats: of the mean: events weigh differently by how many of the history are of the same item, so that what was chosen a
            hundred times need not drown all else.
        associations: of the mean: events have a second row each, in a table of their own, that is added to the first. Where the first
            is shared with the items (share_item_table) it says that an item is liked again; the second says what goes with it. Second
            rows weigh by repeats apart (use_repeats), and not by what events share with the request.
        layers, heads, dropout: of the transformer.
        token_dropout: share of history events hidden in training.
        shorten: share of training rows whose history is cut to a number of newest events drawn from 0 up, so that users with few events
            or none get lists as good.
    """

    name: str = "mean"
    length: int = 50
    share_item_table: bool = False
    content: bool = False
    use_event_type: bool = True
    signed_events: bool = False
    negative_push: float = 0.0
    use_age: bool = True
    use_repeats: bool = False
    associations: bool = False
    layers: int = 2
    heads: int = 2
    dropout: float = 0.2
    token_dropout: float = 0.0
    shorten: float = 0.0


@dataclass
class SpectralConfig:
    """A part of both vectors that is computed, not learned: who took what, seen through its strongest patterns (a low-pass filter of the
    item graph), or where events have an order what follows what. It stands beside the learned part,
    `[user, weight x sum of history rows] . [item, item row]`, so the score is one dot product and still a sum over history events.
    Training leaves it alone and joins it at the end (training/join.py).

    Attributes:
        dim: dimensions it adds to model.dim; 0 = no such part.
        weight: of its scores against those of the learned part; 0 = chosen on validation.
        narrow_to: numbers of a whole vector, at least model.dim; 0 = as many as both parts have. With less, both are joined at full width
            and then projected so that the scores of training users change least (training/narrow.py): `[user, zeros] + weight x sum of
            history rows`, times `item map of the item + item row`. The rows have as many numbers then.
        newest: events of a history that speak in it, the newest ones; 0 = all, as data without order need it: every event counts alike.
            With an order, where its vectors are of what came right after an item, 1; the weight is then divided by the root of how many
            events the tower has read.
    """

    dim: int = 0
    weight: float = 0.0
    narrow_to: int = 0
    newest: int = 0


@dataclass
class HeadConfig:
    """What follows the sum of a tower's inputs: `linear` (nothing: the sum is the vector) or `mlp`."""

    name: str = "linear"
    hidden: list[int] = field(default_factory=lambda: [128])
    dropout: float = 0.0


@dataclass
class ModelConfig:
    """Both towers.

    Attributes:
        dim: length of user and item vectors, without a spectral part.
        similarity: `cosine` (both normalised) or `dot`.
        temperature: divides the scores in the loss.
        learn_temperature: train it (bounded to 0.01..1).
        use_user_id: add an embedding of the user's key. Off by default: new users have none, and it leaks more.
        own_preferences: declared preferences have rows of their own and speak while a history is empty, the first named most, as training
            finds. Else they share the rows of the item feature that they are `like`, and speak beside a history too.
        id_dropout: share of item ids replaced by the OOV row in training, so that a new item's content has a voice.
        context_dropout: share of rows whose context is hidden in training, and with own_preferences what they declared, so that its absence
            does no harm.
    """

    dim: int = 64
    similarity: str = "cosine"
    temperature: float = 0.07
    learn_temperature: bool = False
    history: HistoryConfig = field(default_factory=HistoryConfig)
    spectral: SpectralConfig = field(default_factory=SpectralConfig)
    user_head: HeadConfig = field(default_factory=HeadConfig)
    item_head: HeadConfig = field(default_factory=HeadConfig)
    use_user_id: bool = False
    own_preferences: bool = False
    id_dropout: float = 0.1
    context_dropout: float = 0.1

    @property
    def width(self) -> int:
        """Numbers of a whole vector: the learned part's and the spectral part's."""
        return self.spectral.narrow_to or self.dim + self.spectral.dim

    @property
    def spectral_width(self) -> int:
        """Numbers of a row of the spectral part; 0 without one."""
        return self.spectral.narrow_to or self.spectral.dim

    @property
    def scored_by(self) -> str:
        """`cosine` where all vectors have length 1, else `dot`: a spectral part's rows differ in length."""
        return "dot" if self.spectral.dim else self.similarity

    @property
    def sums_user(self) -> bool:
        """Whether a user vector is a weighted sum of history rows and features, up to its length: then reasons are exact."""
        return self.history.name == "mean" and self.user_head.name == "linear"

    def validate(self) -> None:
        """Cross-field checks; each message names the knob.

        Raises:
            ConfigError: a value is outside what the towers can be built with.
        """
        _one_of("model.similarity", self.similarity, ("cosine", "dot"))
        _one_of("model.history.name", self.history.name, ("mean", "transformer"))
        _one_of("model.user_head.name", self.user_head.name, ("linear", "mlp"))
        _one_of("model.item_head.name", self.item_head.name, ("linear", "mlp"))
        _at_least("model.dim", self.dim, 1)
        _at_least("model.history.length", self.history.length, 0)
        _at_least("model.history.layers", self.history.layers, 1)
        _at_least("model.history.heads", self.history.heads, 1)
        _at_least("model.spectral.dim", self.spectral.dim, 0)
        _at_least("model.spectral.newest", self.spectral.newest, 0)
        if not 0 <= self.spectral.weight < math.inf:
            raise ConfigError(f"model.spectral.weight: got {self.spectral.weight}, expected at least 0 (0 = chosen on validation)")
        narrow_to, whole = self.spectral.narrow_to, self.dim + self.spectral.dim
        if narrow_to and not (self.spectral.dim and self.dim <= narrow_to < whole):
            raise ConfigError(
                f"model.spectral.narrow_to: got {narrow_to}, expected at least model.dim = {self.dim} and less than both parts' {whole}"
            )
        if self.spectral.dim and self.history.name != "mean":
            raise ConfigError("model.spectral.dim: a sum over the history goes with a mean of it. Use model.history.name=mean, or dim=0")
        for name, head in (("model.user_head", self.user_head), ("model.item_head", self.item_head)):
            if min(head.hidden, default=1) < 1:
                raise ConfigError(f"{name}.hidden: got {list(head.hidden)}, expected widths of at least 1")
        if not 0 < self.temperature < math.inf:
            raise ConfigError(f"model.temperature: got {self.temperature}, expected above 0 (0.05 to 0.2 suits cosine)")
        for name, share in (
            ("model.id_dropout", self.id_dropout),
            ("model.context_dropout", self.context_dropout),
            ("model.history.dropout", self.history.dropout),
            ("model.history.token_dropout", self.history.token_dropout),
            ("model.history.shorten", self.history.shorten),
            ("model.user_head.dropout", self.user_head.dropout),
            ("model.item_head.dropout", self.item_head.dropout),
        ):
            if not 0 <= share < 1:
                raise ConfigError(f"{name}: got {share}, expected a share in [0, 1)")
        if not 0 <= self.history.negative_push < math.inf:
            raise ConfigError(
                f"model.history.negative_push: got {self.history.negative_push}, expected a number of at least 0 (0 = learned)"
            )
        for key in ("signed_events", "negative_push", "use_repeats", "associations"):
            if getattr(self.history, key) and self.history.name != "mean":
                raise ConfigError(f"model.history.{key}: only the mean is a weighted sum of events. Use model.history.name=mean")
        if self.history.name == "transformer" and self.dim % self.history.heads:
            raise ConfigError(f"model.history.heads: {self.history.heads} does not divide model.dim = {self.dim}")


@dataclass(frozen=True)
class InputSpec:
    """One input of a tower as the fitted preprocessor produces it.

    Attributes:
        name: key in the FeatureBatch (`item.categories`).
        kind: the feature's kind.
        rows: rows of its embedding table (0 for numeric and dense).
        width: floats per row for numeric (2) and dense, values per row for multi-valued kinds, else 0.
        table: name of the embedding table; inputs that share a vocabulary share it.
        newcomer: it speaks while a history is empty, and its values by their order (`model.own_preferences`).
        in_history: events of a history keep it, too (`history.context.<feature>`).
    """

    name: str
    kind: str
    rows: int
    width: int
    table: str
    newcomer: bool = False
    in_history: bool = False


def model_config_from_json(raw: Mapping[str, Any]) -> ModelConfig:
    """Rebuild the config that a bundle holds.

    Raises:
        BundleError: a key is missing or unknown, so the bundle is of another format.
    """
    try:
        nested = {
            "history": HistoryConfig(**raw["history"]),
            "spectral": SpectralConfig(**raw.get("spectral", {})),
            "user_head": HeadConfig(**raw["user_head"]),
            "item_head": HeadConfig(**raw["item_head"]),
        }
        return ModelConfig(**{**raw, **nested})
    except (KeyError, TypeError) as error:
        raise BundleError(f"model_config.json does not fit this version of Towers: {error}") from error


def model_config_to_json(config: ModelConfig) -> dict[str, Any]:
    return dataclasses.asdict(config)


def _one_of(key: str, got: str, allowed: tuple[str, ...]) -> None:
    if got not in allowed:
        raise ConfigError(f"{key}: got {got!r}, expected one of {', '.join(allowed)}")


def _at_least(key: str, got: int, least: int) -> None:
    if got < least:
        raise ConfigError(f"{key}: got {got}, expected at least {least}")
