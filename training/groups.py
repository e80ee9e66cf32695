"""Quality by group of people: who is served worse, by how much, and whether it is the model or the data that does it.

Legend: Q queries, U users, N groups, S bootstrap draws.

Groups come from the audit table, which lies outside prepared data and is opened here and nowhere else in training, and from the tastes of
people. A group of fewer than 50 people has no figure of its own: small groups are put together, and where these still are fewer than 50 the
next smallest joins them, so that no figure of fewer can be had by subtraction either.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray

from towers.columns import TRAIN, USER_KEY
from towers.errors import ConfigError
from training import bootstrap
from training.interactions import Interactions
from training.measure import SLICE_METRICS, Columns, Measured

LEAST_PEOPLE = 50
OTHERS = "(others)"
POPULAR = "most_popular"
TASTE = "taste"
"""The grouping that no table needs: thirds of people by how popular what they chose is."""
_THIRDS = ("niche", "middle", "mainstream")


@dataclass(frozen=True)
class Grouping:
    """People divided by one column.

    Attributes:
        names: of the groups with figures.
        group_Q: place in `names` of each query's person, -1 for people of whom nothing is known and where all are too few.
        people_N: with a query.
        together: how many small groups `(others)` holds.
    """

    column: str
    names: Sequence[str]
    group_Q: NDArray[np.int64]
    people_N: NDArray[np.int64]
    together: int

    def columns(self, measured: Measured, prefix: str, metrics: Sequence[str]) -> Columns:
        """Per-query values of each group: `<prefix>/group=<column>:<name>/<metric>`, NaN for the others' queries."""
        return {
            f"{prefix}/group={self.column}:{name}/{metric}": np.where(self.group_Q == n, measured.columns[f"{prefix}/{metric}"], np.nan)
            for n, name in enumerate(self.names)
            for metric in metrics
        }

    def facts(
        self, rankings: Mapping[str, Measured], prefix: str, k: int, user_Q: NDArray[np.int64], draws: int, seed: int
    ) -> dict[str, Any]:
        """How many people there are in each group, and the gaps between them (`gaps`) under the model, which comes first, and under the
        most popular items; where these were not ranked, under every other ranking."""
        chosen = {"model", POPULAR} & rankings.keys() if POPULAR in rankings else rankings.keys()
        found = {}
        for metric in SLICE_METRICS:
            values = {name: rankings[name].columns[f"{prefix}/{metric}@{k}"] for name in rankings if name in chosen}
            found[f"{metric}@{k}"] = gaps(self, values, user_Q, draws, seed)
        people = dict(zip(self.names, self.people_N.tolist(), strict=True))
        return {"people": people, "put_together": self.together, **found}


def make_groupings(
    columns: Sequence[str], audit: Path, data: Interactions, user_Q: NDArray[np.int64], measurable_U: NDArray[np.bool_] | None = None
) -> list[Grouping]:
    """The people of some queries, divided by each column.

    Args:
        columns: of the audit table, or `taste`.
        audit: the table's file.
        user_Q: user rows.
        measurable_U: whose audit columns may be used; of others nothing is known, as if prepare had left them out. None = everybody's.

    Raises:
        ConfigError: there is no such table or column.
    """
    made = []
    for column in columns:
        labels_U = tastes(data) if column == TASTE else _audit(audit, column, data, measurable_U)
        made.append(_divided(column, labels_U, user_Q))
    return made


def gaps(
    grouping: Grouping, values: Mapping[str, NDArray[np.float64]], user_Q: NDArray[np.int64], draws: int, seed: int
) -> dict[str, dict[str, Any]]:
    """How far apart the groups are under each ranking, the first being the model.

    `gap` is (best - worst) / mean over everybody in a group, which grows with the number of groups by chance alone; `worst_to_mean` is
    worst / mean. `against_half` is the model's gap minus half of another's, from the same drawn users: where its upper end is below 0, the
    model halves that gap for sure.

    Args:
        values: per-query values of one metric [Q] by ranking.

    Returns:
        by ranking `gap` and `worst_to_mean` (value, ci95) and the worst group's name; nothing where fewer than two groups have a value.

    >>> grouping = Grouping("c", ["a", "b"], np.array([0, 1]), np.array([1, 1]), 0)
    >>> found = gaps(grouping, {"model": np.array([0.5, 1.0])}, np.array([0, 1]), 10, 0)
    >>> found["model"]["worst"], round(found["model"]["gap"]["value"], 4), round(found["model"]["worst_to_mean"]["value"], 4)
    ('a', 0.6667, 0.6667)
    """
    found: dict[str, dict[str, Any]] = {}
    drawn: dict[str, NDArray[np.float64]] = {}
    for ranking, value_Q in values.items():
        value_QN = np.where(grouping.group_Q[:, None] == np.arange(len(grouping.names)), value_Q[:, None], np.nan)
        with_all = np.column_stack([value_QN, np.where(grouping.group_Q >= 0, value_Q, np.nan)])
        point = bootstrap.estimate(with_all, user_Q, 1, seed).value_M[None]
        if np.isfinite(point[0, :-1]).sum() < 2 or not point[0, -1] > 0:
            return {}
        means_SN = bootstrap.draw_means(with_all, user_Q, draws, seed)
        drawn[ranking] = _gap(means_SN)
        found[ranking] = {
            "gap": _figure(float(_gap(point)[0]), drawn[ranking]),
            "worst": grouping.names[int(np.nanargmin(point[0, :-1]))],
            "worst_to_mean": _figure(float(_worst(point)[0]), _worst(means_SN)),
        }
    (model, *others) = found
    for other in others:
        value = found[model]["gap"]["value"] - found[other]["gap"]["value"] / 2
        found[other]["against_half"] = _figure(value, drawn[model] - drawn[other] / 2)
    return found


def tastes(data: Interactions) -> NDArray[np.object_]:
    """The third of each user by the mean logarithm of the training events of what they chose: niche, middle or mainstream; None without
    any training event. Object [U]."""
    log_I = np.log1p(data.train_counts())
    total_U, count_U = np.zeros(data.n_users), np.zeros(data.n_users)
    chosen = np.flatnonzero((np.asarray(data.split) == TRAIN) & (np.asarray(data.weight) > 0))
    user_n = data.users_of(chosen)
    np.add.at(total_U, user_n, log_I[data.item[chosen]])
    np.add.at(count_U, user_n, 1)
    known = np.flatnonzero(count_U)
    order = known[np.argsort(total_U[known] / count_U[known], kind="stable")]
    labels_U = np.full(data.n_users, None, object)
    for name, part in zip(_THIRDS, np.array_split(order, 3), strict=True):
        labels_U[part] = name
    return labels_U


def _audit(path: Path, column: str, data: Interactions, measurable_U: NDArray[np.bool_] | None) -> NDArray[np.object_]:
    """Each user's value of an audit column, None where it is not known: object [U]."""
    if not path.is_file():
        raise ConfigError(f"evaluate.groups: {column!r} needs {path}, which `towers prepare` writes for data with an audit table")
    table = pq.read_table(path)
    if column == USER_KEY or column not in table.column_names:
        known = [name for name in table.column_names if name != USER_KEY]
        raise ConfigError(f"evaluate.groups: no audit column {column!r}; there are {', '.join([*known, TASTE])}")
    keys_U = pa.array([key.tobytes() for key in data.user_keys], pa.binary(16))
    found = pc.index_in(keys_U, value_set=table.column(USER_KEY))
    values: NDArray[np.object_] = table.column(column).cast(pa.string()).take(found).to_numpy(zero_copy_only=False)
    if measurable_U is not None:
        values[~measurable_U] = None
    return values


def _divided(column: str, labels_U: NDArray[np.object_], user_Q: NDArray[np.int64]) -> Grouping:
    """Groups by name, the small ones put together, with people of whom nothing is known where they are few: the figure of all less those
    of the groups would be theirs. Tastes are no secret beside the log, and those without any stay apart."""
    user_V, at_Q = np.unique(user_Q, return_inverse=True)
    people = {name: [v for v, label in enumerate(labels_U[user_V]) if label == name] for name in sorted({*labels_U[user_V]} - {None})}
    unknown = [v for v, label in enumerate(labels_U[user_V]) if label is None]
    together = unknown if len(unknown) < LEAST_PEOPLE and column != TASTE else []
    small = [name for name in people if len(people[name]) < LEAST_PEOPLE]
    by_size = sorted(people.keys() - set(small), key=lambda name: len(people[name]))
    together = together + [v for name in small for v in people[name]]
    while together and by_size and len(together) < LEAST_PEOPLE:
        small.append(by_size.pop(0))
        together = together + people[small[-1]]
    names = [name for name in people if name not in small]
    members = [people[name] for name in names]
    if len(together) >= LEAST_PEOPLE:
        names, members = [*names, OTHERS], [*members, together]
    group_V = np.full(len(user_V), -1, np.int64)
    for n, own in enumerate(members):
        group_V[own] = n
    return Grouping(column, names, group_V[at_Q], np.array([len(own) for own in members], np.int64), len(small))


def _gap(means_SN: NDArray[np.float64]) -> NDArray[np.float64]:
    spread: NDArray[np.float64] = np.nanmax(means_SN[:, :-1], axis=1) - np.nanmin(means_SN[:, :-1], axis=1)
    return spread / means_SN[:, -1]


def _worst(means_SN: NDArray[np.float64]) -> NDArray[np.float64]:
    worst: NDArray[np.float64] = np.nanmin(means_SN[:, :-1], axis=1) / means_SN[:, -1]
    return worst


def _figure(value: float, drawn_S: NDArray[np.float64]) -> dict[str, Any]:
    low, high = np.nanpercentile(drawn_S, (2.5, 97.5))
    return {"value": value, "ci95": [float(low), float(high)]}
