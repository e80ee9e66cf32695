"""From what a deployment and a request want of a list to what the selector is given: the dials, and the facts that they need."""

import hashlib
import json
import sys
from collections.abc import Callable, Collection, Sequence

import numpy as np
from numpy.typing import NDArray

from serving.asked import Asked
from serving.caps import Cap
from serving.gains import Calibration, Nearness, Part, Reach, Rows, Taste, Values, freshness
from serving.live_catalog import AnyCatalog
from serving.messages import Steer
from serving.policy import Dials, Policy, SelectorSettings, decided, turned
from serving.reach import FIRST
from serving.selector import Candidates, Deeper, Parts, Selection, select
from serving.signals import Signals
from serving.traits import Traits
from towers.errors import ConfigError, RequestError, listed
from towers.schema import Schema

Search = Callable[[int, NDArray[np.int64]], Candidates]
"""The best candidates: how many, and rows left out."""

_NO_REACH = "this bundle does not know what its items lack to be seen; run `towers index index.reach=0.001`"
_NONE = np.empty(0, np.int64)
_LAST = 1e6
"""What is taken from the value of items that come last: more than all dials together give."""
_NEWEST = 1000
"""History events that calibration looks at."""


class Chooser:
    """How the lists of one retriever are made.

    Args:
        settings: of the deployment.
        traits, catalog: of its items.
        schema: of its data; tells which events speak against an item.

    Raises:
        ConfigError: the settings are out of bounds, or name an attribute that items lack.
    """

    def __init__(self, settings: SelectorSettings, traits: Traits, catalog: AnyCatalog, schema: Schema) -> None:
        settings.validate()
        self.settings, self.blocked = settings, settings.blocked
        told = json.dumps(sorted(set(settings.blocked))).encode()
        self.blocked_digest = hashlib.sha256(told).hexdigest()[:16] if settings.blocked else None
        self._traits, self._catalog = traits, catalog
        self._against = frozenset(kind for kind, weight in schema.event_weights.items() if weight <= 0)
        dials = settings.dials()
        self._valued = frozenset(traits.valued())
        self._usual: Dials | None = dials if turned(dials) else None
        if settings.reach and not traits.has_reach:
            raise ConfigError(f"serving.selector.reach: {_NO_REACH}")
        asked = [f"caps.{name}" for name in settings.caps] + (["calibrate_on"] if settings.calibration else [])
        for setting in asked:
            name = settings.calibrate_on if setting == "calibrate_on" else setting.removeprefix("caps.")
            if name not in self._valued:
                raise ConfigError(f"serving.selector.{setting}: {_unknown(name, traits)}")

    def over(self, traits: Traits, catalog: AnyCatalog) -> "Chooser":
        """The same over a changed catalogue."""
        changed = object.__new__(Chooser)
        changed.__dict__.update(self.__dict__)
        changed._traits, changed._catalog, changed._valued = traits, catalog, frozenset(traits.valued())
        return changed

    def warn_of_unknown(self, came: Collection[str] = ()) -> None:
        """Say on standard error which blocked ids are of no item; they may come later, or be mistyped.

        Args:
            came: ids of items that came since the bundle.
        """
        unknown = [item_id for item_id in self.blocked if item_id not in came and self._catalog.row(item_id) is None]
        if unknown:
            told = f"{len(unknown)} of {len(self.blocked)} ids are of no item of the catalogue; they are blocked if they come:"
            print(f"warning: serving.selector.blocked: {told}{listed(map(repr, unknown))}", file=sys.stderr, flush=True)

    def policy(self, k: int, steer: Steer | None) -> Policy:
        """How a list of k is made.

        Raises:
            RequestError: names the field out of bounds, or the attribute that items lack.
        """
        policy = decided(k, self.settings, self._usual, steer)
        if steer is not None and policy.dials is not None:
            if policy.dials.reach and not self._traits.has_reach:
                raise RequestError("policy.reach", _NO_REACH)
            names = [("policy.calibration", policy.dials.calibrate_on)] if policy.dials.calibration else []
            for field, name in [*((f"policy.caps.{name[:60]}", name) for name in steer.caps), *names]:
                if name not in self._valued:
                    raise RequestError(field, _unknown(name, self._traits))
        return policy

    def choose(self, found: Candidates, policy: Policy, asked: Asked, search: Search | None = None) -> Selection:
        """The list that a policy makes of candidates.

        Args:
            search: for further ones, where masks leave too few; None = these are all.
        """
        if policy.dials is None:
            return select(found, policy)
        parts = self.parts(policy, asked.signals, asked.known.now, last=asked.last)
        return select(found, policy, parts, None if search is None else further(asked.excluded, search))

    def parts(self, policy: Policy, signals: Signals, now: int, k: int | None = None, last: NDArray[np.int64] = _NONE) -> Parts | None:
        """What steers a list; None where nothing does.

        Args:
            signals: of the person.
            now: microseconds UTC.
            k: items of the whole page, where the policy's are of a list of it.
            last: rows that come after all others.
        """
        dials = policy.dials
        if dials is None:
            return None
        page: list[Part] = []
        taste = self._taste(signals, dials.calibrate_on) if dials.calibration else None
        if taste is not None:
            page.append(Calibration(self._traits, dials.calibrate_on, taste, dials.calibration, policy.k if k is None else k))
        if dials.diversity or dials.near_duplicates is not None:
            page.append(Nearness(self._traits, dials.diversity, dials.near_duplicates))

        def standing(rows_C: Rows) -> Values:
            gain_C = dials.popularity * self._catalog.popularity(rows_C) if dials.popularity else np.zeros(len(rows_C))
            if dials.freshness:
                gain_C = gain_C + dials.freshness * freshness(self._traits.created(rows_C), dials.fresh_days, now)
            return gain_C - _LAST * np.isin(rows_C, last) if len(last) else gain_C

        def each() -> list[Part]:
            caps = [Cap(self._traits, name, most) for name, most in dials.caps.items()]
            return [Reach(self._traits, dials.reach, FIRST), *caps] if dials.reach else [*caps]

        return Parts(standing, page, each, len(self._catalog))

    def _taste(self, signals: Signals, attribute: str) -> Taste | None:
        rows = self._catalog.rows(liked(signals, self._against))
        return Taste.of(self._traits.codes(attribute, rows)) if len(rows) else None


def liked(signals: Signals, against: frozenset[str]) -> Sequence[str]:
    """The newest items of a history, without those that an event spoke against."""
    items, events = signals.seen[-_NEWEST:], signals.events[-_NEWEST:]
    return [item for item, event in zip(items, events, strict=True) if event not in against] if against else items


def further(excluded: NDArray[np.int64], search: Search) -> Deeper:
    """A search that leaves out the rows excluded anyway and those that it is given."""
    return lambda count, rows: search(count, np.concatenate([excluded, rows]))


def _unknown(name: str, traits: Traits) -> str:
    return f"no item has a value of {name[:60]!r}; attributes that items have: {', '.join(traits.valued()) or 'none'}"
