"""Validation while training: the evaluation's queries and ranking, without intervals, baselines or slices.

Legend: Q queries, k ranks, I items.
"""

import numpy as np
import torch
from numpy.typing import NDArray

from towers.dot_products import dot_products
from towers.errors import ConfigError
from towers.model import TwoTower
from towers.runtime import TorchRuntime
from training import metrics
from training.config import TrainingConfig
from training.device import choose_half
from training.interactions import Interactions
from training.queries import make_queries, recommendable
from training.rank_queries import encode_items, encode_users, rank_queries

MOST_QUERIES = 20_000
"""Enough for a standard error of 0.003 on a hit rate; more would make validation longer than an epoch on large logs."""


class Validator:
    """Measures a model on the validation split; queries are made once.

    `valid/recall@k`, `valid/ndcg@k`, `valid/hit_rate@k`, `valid/mrr@k` and `valid/map@k` for k in evaluate.ks and the monitor's; seen
    items are masked unless evaluate.seen is `unmasked`. A monitor may name the form, `valid/unmasked/recall@k`: then that one is measured,
    and all names have it.

    Args:
        data: the prepared interactions.
        config: of the run.

    Raises:
        DataError: the validation split holds no answer, or none that is left where seen items are masked.
        ConfigError: trainer.monitor is no validation metric.
    """

    def __init__(self, data: Interactions, config: TrainingConfig) -> None:
        settings = config.evaluate
        form, k = monitored(config.trainer.monitor)
        self._masked = (form or settings.seen) != "unmasked"
        self._prefix = f"valid/{form}" if form else "valid"
        self._ks = sorted({*settings.ks, k})
        most = min(settings.max_queries or MOST_QUERIES, MOST_QUERIES)
        queries = make_queries(data, "valid", settings.unit, config.split.name, most, config.seed, settings.max_history)
        self._queries = queries.masked() if self._masked else queries
        self._allowed_I = recommendable(data)
        self._data = data

    def __call__(self, model: TwoTower) -> dict[str, float]:
        """The metrics of the model as it stands; its training mode is left as it was."""
        return {name: float(np.mean(values_Q)) for name, values_Q in self.per_query(model).items()}

    def per_query(self, model: TwoTower) -> dict[str, NDArray[np.float64]]:
        """What each metric is the mean of: float64 [Q], the same queries for every model."""
        device = next(model.parameters()).device
        runtime, queries = TorchRuntime(model, device), self._queries
        users = encode_users(runtime, queries, model.config.history.length)
        items = torch.as_tensor(encode_items(runtime, self._data), device=device)
        products = dot_products(users, items, choose_half("auto", device)[0])
        top = rank_queries(products, queries, max(self._ks), masked=self._masked, allowed_I=self._allowed_I, device=device)
        hits_Qk = metrics.hits(top.rows_Qk, queries.relevant, self._data.n_items)
        return {
            f"{self._prefix}/{name}@{k}": metric(hits_Qk, queries.relevant_Q, k)
            for name, metric in metrics.PER_QUERY.items()
            for k in self._ks
        }


def monitored(monitor: str) -> tuple[str, int]:
    """How trainer.monitor wants seen items treated ("" = as evaluate.seen says), and its cut-off.

    Raises:
        ConfigError: it names no validation metric.

    >>> monitored("valid/ndcg@20"), monitored("valid/unmasked/recall@10")
    (('', 20), ('unmasked', 10))
    """
    split, *form = monitor.split("/")
    name, _, k = form.pop().partition("@") if form else ("", "", "")
    if split != "valid" or name not in metrics.PER_QUERY or not k.isdigit() or int(k) < 1 or form not in ([], ["masked"], ["unmasked"]):
        known = "|".join(metrics.PER_QUERY)
        raise ConfigError(f"trainer.monitor: got {monitor!r}, expected valid/<{known}>@<k>, or valid/masked/... or valid/unmasked/...")
    return "".join(form), int(k)
