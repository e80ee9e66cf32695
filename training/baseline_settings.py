"""What the baselines leave open, chosen on validation: the window of recent_popular, and how ItemKNN and EASE weigh what they count."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Self, TypeVar

import numpy as np
import scipy.sparse as sp
from numpy.typing import NDArray
from torch import Tensor

from towers.errors import DataError
from towers.topk import Fill
from training import baselines as ranks
from training import metrics
from training.config import TrainingConfig
from training.interactions import Interactions
from training.item_similarity import choices_UI, ease, item_knn, sums_over_history
from training.queries import Queries, make_queries
from training.rank_queries import rank_queries

Setting = TypeVar("Setting")

MOST_CHOICE_QUERIES = 5000
RECENT_DAYS = (1, 3, 7, 14, 30)
NEWEST = (0, 10, 3)
"""Events of a history that ItemKNN and EASE sum over, from the newest back; 0 = all. Where order matters few are better, by far."""
SHRINKAGES = (30.0, 100.0)
PENALTIES = (200.0, 50.0, 1000.0)
NEIGHBOURS = 500
"""Of ItemKNN."""


@dataclass(frozen=True)
class BaselineSettings:
    """The settings of the baselines that have any; the values here are those of data without a validation split."""

    days: int = 7
    knn_shrinkage: float = SHRINKAGES[0]
    knn_newest: int = NEWEST[0]
    ease_penalty: float = PENALTIES[0]
    ease_newest: int = NEWEST[0]

    def said(self, name: str) -> str:
        """How a protocol names the baseline.

        >>> BaselineSettings(days=3).said("recent_popular")
        'recent_popular (last 3 days of training, chosen on validation)'
        """
        if name == "recent_popular":
            return f"recent_popular (last {self.days} days of training, chosen on validation)"
        if name == "item_knn":
            read = _read(self.knn_newest)
            return f"item_knn (cosine, {NEIGHBOURS} neighbours, shrinkage {self.knn_shrinkage:g} and {read}, chosen on validation)"
        if name == "ease":
            return f"ease (penalty {self.ease_penalty:g} and {_read(self.ease_newest)}, chosen on validation)"
        return name


@dataclass(frozen=True)
class Judge:
    """Validation queries, and what they say of a ranking: NDCG at the middle cut-off. None = nothing to choose on."""

    queries: Queries | None
    k: int
    masked: bool
    allowed_I: NDArray[np.bool_]

    @classmethod
    def open(cls, data: Interactions, config: TrainingConfig, allowed_I: NDArray[np.bool_], masked: bool) -> Self:
        asked, ks = config.evaluate, sorted(config.evaluate.ks)
        try:
            queries = make_queries(data, "valid", asked.unit, config.split.name, MOST_CHOICE_QUERIES, config.seed, asked.max_history)
        except DataError:  # no validation split
            return cls(None, 0, masked, allowed_I)
        queries = queries.unseen() if masked else queries
        return cls(queries if len(queries) else None, ks[len(ks) // 2], masked, allowed_I)

    def best(self, settings: Sequence[Setting], fill: Callable[[Setting, Queries], Fill]) -> Setting:
        """The best setting, the earlier one of equals."""
        queries = self.queries
        if queries is None or len(settings) == 1:
            return settings[0]

        def quality(setting: Setting) -> float:
            top = rank_queries(fill(setting, queries), queries, self.k, masked=self.masked, allowed_I=self.allowed_I)
            hits_Qk = metrics.hits(top.rows_Qk, queries.relevant, queries.data.n_items)
            return float(metrics.ndcg(hits_Qk, queries.relevant_Q, self.k).mean())

        return max(settings, key=quality)


def choose_settings(
    names: Sequence[str], data: Interactions, config: TrainingConfig, allowed_I: NDArray[np.bool_], masked: bool
) -> BaselineSettings:
    """The best settings of the named baselines on validation queries; of two settings the history's length first, then the other one.

    Args:
        data: with the validation rows apart.
        masked: seen items are left out of lists.
    """
    judge, chosen = Judge.open(data, config, allowed_I, masked), BaselineSettings()
    if judge.queries is None:
        return chosen
    newest = NEWEST if data.schema.order != "set" else NEWEST[:1]
    if "recent_popular" in names:
        chosen = replace(chosen, days=judge.best(RECENT_DAYS, lambda days, _: ranks.recent_popular(data, days)))
    if "item_knn" in names:
        length, shrinkage = _of_similarity(judge, data, "item_knn", newest, SHRINKAGES)
        chosen = replace(chosen, knn_newest=length, knn_shrinkage=shrinkage)
    if "ease" in names:
        length, penalty = _of_similarity(judge, data, "ease", newest, PENALTIES)
        chosen = replace(chosen, ease_newest=length, ease_penalty=penalty)
    return chosen


def similarity(name: str, chosen_UI: sp.csr_matrix, value: float) -> sp.csr_matrix | Tensor:
    """The similarities of `item_knn` with a shrinkage, or of `ease` with a penalty."""
    return item_knn(chosen_UI, NEIGHBOURS, value) if name == "item_knn" else ease(chosen_UI, value)


def _of_similarity(judge: Judge, data: Interactions, name: str, newest: Sequence[int], values: Sequence[float]) -> tuple[int, float]:
    chosen_UI = choices_UI(data)
    first = similarity(name, chosen_UI, values[0])
    length = judge.best(newest, lambda n, queries: sums_over_history(first, queries, n))

    def fill(value: float, queries: Queries) -> Fill:
        found = first if value == values[0] else similarity(name, chosen_UI, value)
        return sums_over_history(found, queries, length)

    return length, judge.best(values, fill)


def _read(newest: int) -> str:
    return f"the newest {newest} events" if newest else "the whole history"
