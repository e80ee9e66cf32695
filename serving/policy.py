"""How a list is made out of candidates: what a deployment sets, what a request may turn, and the policy that follows and is logged."""

import secrets
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields, replace
from typing import Any

from serving.messages import Steer
from towers.errors import ConfigError, RequestError

LEAST_CANDIDATES = 200
"""Candidates that a steered list is chosen from, or twice its length where that is more."""

COLDEST = 1e-6
"""The least temperature that draws: so near to 0 every draw is the best item, and its inverse may be no number any more."""
_WEIGHTS = ("popularity", "reach", "calibration", "diversity", "freshness", "temperature")


@dataclass(frozen=True)
class Dials:
    """What is weighed against relevance, which is 1 for the best candidate and 0 for the last one; all of it off as it stands here.

    Attributes:
        popularity: added times an item's popularity: 0 for an item nobody chose, 1 for the most chosen one, as logarithms go. Below 0
            holds popular items back.
        reach: added times what an item lacks to stand in the first twenty of the few people whom it suits best (serving.reach).
        calibration: added times what an item does for the shares of `calibrate_on` in the list to be those of the history.
        diversity: taken off times the mean cosine with the items of the list.
        freshness: added times 2^(-age / fresh_days).
        temperature: 0 takes the best item at each position; above, each is drawn with probability ~ exp(value / temperature).
        near_duplicates: of items whose cosine is at least this, the list holds one; null = all.
        caps: by attribute of items, how many of the list may share a value.
        calibrate_on: the attribute of items that calibration looks at.
        fresh_days: half-life of freshness.
    """

    popularity: float = 0.0
    reach: float = 0.0
    calibration: float = 0.0
    diversity: float = 0.0
    freshness: float = 0.0
    temperature: float = 0.0
    near_duplicates: float | None = None
    caps: Mapping[str, int] = field(default_factory=dict)
    calibrate_on: str = "categories"
    fresh_days: float = 30.0


_OFF = Dials()


@dataclass(frozen=True)
class Policy:
    """What the selector does.

    Attributes:
        k: items wanted.
        dials: None = the identity: the k best candidates, in score order.
        seed: of the draws, where the temperature is above 0.
    """

    k: int
    dials: Dials | None = None
    seed: int = 0

    @property
    def candidates(self) -> int:
        """How many candidates to search for."""
        return self.k if self.dials is None else max(LEAST_CANDIDATES, 2 * self.k)

    def to_row(self) -> dict[str, Any]:
        """As it is logged: k, and of dials what is turned; the seed where something is drawn."""
        if self.dials is None:
            return {"k": self.k}
        turned = {name: value for name, value in asdict(self.dials).items() if value != getattr(_OFF, name)}
        return {"k": self.k, "dials": turned} | ({"seed": self.seed} if self.dials.temperature else {})

    @classmethod
    def from_row(cls, row: Mapping[str, Any]) -> "Policy":
        """The policy of a logged row; with it the list can be computed again.

        >>> policy = Policy(20, Dials(temperature=0.1, caps={"provider": 2}), seed=7)
        >>> policy.to_row()
        {'k': 20, 'dials': {'temperature': 0.1, 'caps': {'provider': 2}}, 'seed': 7}
        >>> Policy.from_row(policy.to_row()) == policy
        True
        """
        return cls(row["k"], Dials(**row["dials"]) if "dials" in row else None, row.get("seed", 0))


@dataclass
class MostSettings:
    """How far a request may turn each dial, in both directions; 0 = not at all.

    Attributes:
        popularity, reach, calibration, diversity, freshness, temperature: the greatest amount of each that `policy` of a request may name.
    """

    popularity: float = 1.0
    reach: float = 1.0
    calibration: float = 1.0
    diversity: float = 1.0
    freshness: float = 1.0
    temperature: float = 1.0


@dataclass
class SelectorSettings:
    """How every list is made, unless its request says otherwise in `policy`. All of it is off by default: the best items in score order.

    Attributes:
        popularity, reach, calibration, diversity, freshness: weights against relevance, which is 1 for the best of the candidates (200, or
            twice the list's length) and 0 for the last of them.
            popularity: of how popular an item is (0 to 1, by the logarithm of its training events); below 0 holds popular items back.
            reach: of what an item lacks to be seen at all: with 1, every item reaches the first twenty of about the share of people that
                `towers index index.reach=0.001` was told.
            calibration: of how far an item brings the list's shares of `calibrate_on` to those of the person's history.
            diversity: against the mean cosine with the items that stand in the list already.
            freshness: of 2^(-age / fresh_days) by `created_at`.
        temperature: 0 = the best at each position; above, each position is drawn, and its exact probability is logged.
        near_duplicates: of items whose vectors have at least this cosine, a list holds one (0.999: the same item under several ids);
            null = all of them.
        caps: by declared attribute, how many items of a list may share a value: {provider: 3}.
        calibrate_on: the attribute that calibration looks at.
        fresh_days: age at which freshness is half.
        blocked: item ids that no list holds.
        most: how far a request may turn each dial.
    """

    popularity: float = 0.0
    reach: float = 0.0
    calibration: float = 0.0
    diversity: float = 0.0
    freshness: float = 0.0
    temperature: float = 0.0
    near_duplicates: float | None = None
    caps: dict[str, int] = field(default_factory=dict)
    calibrate_on: str = "categories"
    fresh_days: float = 30.0
    blocked: list[str] = field(default_factory=list)
    most: MostSettings = field(default_factory=MostSettings)

    def dials(self) -> Dials:
        """What every list is made with."""
        return Dials(**{f.name: getattr(self, f.name) for f in fields(Dials)})

    def validate(self) -> None:
        """Raises ConfigError, naming the setting out of bounds."""
        for name in _WEIGHTS:
            most, got = getattr(self.most, name), getattr(self, name)
            if not 0 <= most <= 100:
                raise ConfigError(f"serving.selector.most.{name}: got {most}, expected 0 to 100")
            if not least(name, 100) <= got <= 100:
                raise ConfigError(f"serving.selector.{name}: got {got}, expected {least(name, 100):g} to 100")
        if 0 < self.temperature < COLDEST:
            raise ConfigError(f"serving.selector.temperature: got {self.temperature}, expected 0 or at least {COLDEST:g}")
        if self.near_duplicates is not None and not 0 < self.near_duplicates <= 1:
            raise ConfigError(
                f"serving.selector.near_duplicates: got {self.near_duplicates}, expected a cosine above 0, at most 1, or null"
            )
        for name, most in self.caps.items():
            if most < 1:
                raise ConfigError(f"serving.selector.caps.{name}: got {most}, expected at least 1 item of a value")
        if not self.fresh_days > 0:
            raise ConfigError(f"serving.selector.fresh_days: got {self.fresh_days}, expected days above 0")


def decided(k: int, settings: SelectorSettings, usual: Dials | None, steer: Steer | None) -> Policy:
    """The policy of one request.

    Args:
        usual: what a list is made with where the request says nothing; None = nothing is turned.

    Raises:
        RequestError: names the field out of the bounds that the deployment set.
    """
    if steer is None:
        return Policy(k, usual, secrets.randbits(63) if usual is not None and usual.temperature else 0)
    dials = settings.dials() if usual is None else usual
    told = {name: float(value) for name in _WEIGHTS if (value := getattr(steer, name)) is not None}
    for name, value in told.items():
        most = getattr(settings.most, name)
        if not least(name, most) <= value <= most:  # NaN compares false
            raise RequestError(
                f"policy.{name}", f"got {value:g}, expected {least(name, most):g} to {most:g}, the bounds that this service sets"
            )
    if 0 < told.get("temperature", 0.0) < COLDEST:
        raise RequestError("policy.temperature", f"got {told['temperature']:g}, expected 0 or at least {COLDEST:g}")
    near = _stricter(dials.near_duplicates, steer.near_duplicates)
    caps = {**dials.caps, **{name: min(most, dials.caps.get(name, most)) for name, most in steer.caps.items()}}
    dials = replace(dials, **told, near_duplicates=near, caps=caps)  # type: ignore[arg-type]
    seed = secrets.randbits(63) if steer.seed is None else steer.seed
    return Policy(k, dials if turned(dials) else None, seed if dials.temperature else 0)


def turned(dials: Dials) -> bool:
    """Whether any dial changes a list."""
    return bool(dials.caps) or dials.near_duplicates is not None or any(getattr(dials, name) for name in _WEIGHTS)


def least(name: str, most: float) -> float:
    """The lower bound of a weight, by its upper one."""
    return -most if name == "popularity" else 0.0


def _stricter(ours: float | None, theirs: float | None) -> float | None:
    return min((value for value in (ours, theirs) if value is not None), default=None)
