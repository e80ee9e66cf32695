"""The same queries seen with less: inputs that are missing when the list is asked for, or only the newest events of a history.

Legend: B queries of a block, L history length, Q queries.
A view changes what the user tower reads and nothing else: what counts as seen, what is relevant and which lists are compared stay.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from towers.batch import of_history
from towers.errors import ConfigError
from towers.preprocess import Preprocessor
from towers.schema import Schema
from training.config import EvaluateConfig
from training.queries import Queries

HISTORY = "history"
_OWNERS = ("context", "user")

Arrays = dict[str, NDArray[np.generic]]


@dataclass(frozen=True)
class View:
    """One view.

    Attributes:
        name: of its metrics: `without=context`, `shown=3`.
        hidden: inputs that are missing, by input name (`context.hour`).
        shown: newest history events that are shown; None = all.
        least: queries with fewer history events have no value, so that all points of a curve answer the same queries.
    """

    name: str
    hidden: tuple[str, ...] = ()
    shown: int | None = None
    least: int = 0

    def apply(self, inputs: Mapping[str, NDArray[np.generic]], preprocessor: Preprocessor) -> Arrays:
        """The inputs of a block of queries as this view has them."""
        seen = dict(inputs)
        for owner in _OWNERS:
            missing = preprocessor.encode(owner, {}, 1)
            seen |= {name: np.repeat(missing[name], len(seen[name]), axis=0) for name in self.hidden if name in missing}
        if self.shown is not None:
            for name in filter(of_history, inputs):
                seen[name] = np.array(inputs[name])
                seen[name][:, : max(0, seen[name].shape[1] - self.shown)] = 0
        return seen

    def counts(self, queries: Queries) -> NDArray[np.bool_]:
        """bool [Q]: the queries that have a value."""
        return queries.history_Q >= self.least


def make_views(settings: EvaluateConfig, schema: Schema) -> list[View]:
    """The views that evaluate.without and evaluate.history_curve ask for.

    Raises:
        ConfigError: something is to be hidden that no user tower reads.
    """
    curve = sorted(set(settings.history_curve))
    views = [_without(asked, schema) for asked in settings.without]
    return views + [View(f"shown={shown}", shown=shown, least=curve[-1]) for shown in curve]


def unanswered(views: Sequence[View], queries: Queries) -> list[str]:
    """A warning, where evaluate.history_curve asks for more events than any query has: none of its values can be told."""
    least = max((view.least for view in views), default=0)
    if least <= queries.history_Q.max(initial=0):
        return []
    return [
        f"evaluate.history_curve: no query has {least} events, so there is no curve (it is of the queries that have as many as its largest"
        f" value); the longest history has {queries.history_Q.max(initial=0)}"
    ]


def _without(asked: str, schema: Schema) -> View:
    names = [f.input_name for owner in _OWNERS for f in schema.owned_by(owner)]
    hidden: list[str] = []
    parts = asked.split("+")
    for part in parts:
        found = [name for name in names if name == part or name.partition(".")[0] == part]
        if not found and part != HISTORY:
            raise ConfigError(
                f"evaluate.without: {part!r} is nothing that can be hidden; expected {HISTORY}, {', '.join(_OWNERS)} or one of"
                f" {', '.join(names) or 'no feature (none is declared)'}, joined by + where several are to be hidden together"
            )
        hidden += found
    return View(f"without={asked}", tuple(dict.fromkeys(hidden)), shown=0 if HISTORY in parts else None)


def described(views: Sequence[View]) -> list[str]:
    """What the views are, for the protocol."""
    said = []
    if any(view.hidden for view in views):
        said.append("without=X: the same queries with X missing from what the tower reads, as where a request does not give it")
    curve = [view for view in views if view.least or view.name == "shown=0"]
    if curve:
        said.append(
            f"shown=n: the tower reads the newest n events of each history; queries with at least {curve[-1].least} events, the same for"
            " every n; seen items are masked by the whole history"
        )
    return said
