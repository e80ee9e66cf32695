"""Which baselines apply to a dataset, and how each is made; what they leave open is chosen in training.baseline_settings."""

from collections.abc import Sequence

import numpy as np
import scipy.sparse as sp
from torch import Tensor

from towers.columns import ITEM_ID, USER_ID
from towers.errors import ConfigError
from towers.identity import UserKeys
from towers.topk import Fill
from training import baselines as ranks
from training.baseline_settings import BaselineSettings, similarity
from training.config import TrainingConfig
from training.interactions import Interactions
from training.item_similarity import choices_UI, sums_over_history
from training.queries import Queries
from training.sources import open_source

Similarities = dict[str, sp.csr_matrix | Tensor]

MOST_PAIRS, MOST_EASE_ITEMS = 2_000_000_000, 6_000
"""What `auto` counts or inverts at most: about ten seconds of one core each (an inverse of 12,000 items took 40)."""


def choose_baselines(asked: Sequence[str], order: str, source: str, seen: str = "masked", pairs: int = 0, items: int = 0) -> list[str]:
    """The baselines to rank: those named, or with `auto` all that apply and are cheap, except `random`.

    Args:
        asked: names, or `auto`.
        order, source, seen: data.order, data.name and evaluate.seen.
        pairs: events of a user, squared, summed over users: what counting pairs of items costs at most.
        items: of the catalogue.

    Raises:
        ConfigError: one is named that this data cannot have.

    >>> choose_baselines(["auto"], "position", "sequences")
    ['most_popular', 'markov', 'item_knn', 'ease']
    """
    applies = {
        "most_popular": "",
        "own_history": "" if seen != "masked" else "needs lists that may hold seen items (evaluate.seen=unmasked or both)",
        "recent_popular": "" if order == "time" else "needs timestamps (data.order: time)",
        "markov": "" if order != "set" else "needs an order (data.order: time or position)",
        "item_knn": "",
        "ease": "",
        "random": "",
        "oracle": "" if source == "synthetic" else "needs a simulated world (data=synthetic)",
    }
    unasked = {"random"} | {name for name, dear in (("item_knn", pairs > MOST_PAIRS), ("ease", items > MOST_EASE_ITEMS)) if dear}
    chosen: list[str] = []
    for name in asked:
        if name == "auto":
            chosen += [n for n, fault in applies.items() if not fault and n not in unasked]
        elif applies[name]:
            raise ConfigError(f"evaluate.baselines: {name} {applies[name]}; data.order is {order!r}, data.name {source!r}. Use auto")
        else:
            chosen.append(name)
    return list(dict.fromkeys(chosen))


def fit_similarities(names: Sequence[str], data: Interactions, chosen: BaselineSettings) -> Similarities:
    """What item_knn and ease count or solve once for all queries, where they are named."""
    settings = {"item_knn": chosen.knn_shrinkage, "ease": chosen.ease_penalty}
    named = [name for name in settings if name in names]
    return {name: similarity(name, choices_UI(data), settings[name]) for name in named}


def baseline_fills(
    names: Sequence[str], data: Interactions, queries: Queries, config: TrainingConfig, chosen: BaselineSettings, similar: Similarities
) -> dict[str, Fill]:
    """The scores of each baseline on the queries."""
    newest = {"item_knn": chosen.knn_newest, "ease": chosen.ease_newest}
    fills: dict[str, Fill] = {}
    for name in names:
        if name == "most_popular":
            fills[name] = ranks.most_popular(data)
        elif name == "own_history":
            fills[name] = ranks.own_history(data, queries)
        elif name == "recent_popular":
            fills[name] = ranks.recent_popular(data, chosen.days)
        elif name == "markov":
            fills[name] = ranks.markov(data, queries)
        elif name in similar:
            fills[name] = sums_over_history(similar[name], queries, newest[name])
        elif name == "random":
            fills[name] = ranks.random_order(config.seed)
        else:
            fills[name] = _oracle(queries, config)
    return fills


def _oracle(queries: Queries, config: TrainingConfig) -> Fill:
    source = open_source(config.data)
    if source.oracle is None:
        raise ConfigError(f"evaluate.baselines: oracle needs a simulated world, and data.name is {config.data.name!r}")
    users = source.users[USER_ID].to_pylist()
    keys = UserKeys.open(config.identity.key_file).keys(users)
    return ranks.oracle(source.oracle, source.items[ITEM_ID].to_pylist(), users, keys, queries)


def most_pairs(data: Interactions) -> int:
    """Events of each user squared, summed: no fewer than the pairs of items that ItemKNN counts."""
    return int((np.diff(data.offsets).astype(np.float64) ** 2).sum())
