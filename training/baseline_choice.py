"""Which baselines apply to a dataset, and the one setting they have, chosen on validation."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from towers.columns import ITEM_ID, USER_ID
from towers.errors import ConfigError, DataError
from towers.identity import UserKeys
from towers.topk import Fill
from training import baselines as ranks
from training import metrics
from training.config import TrainingConfig
from training.interactions import Interactions
from training.queries import Queries, make_queries
from training.rank_queries import rank_queries
from training.sources import open_source

MOST_CHOICE_QUERIES = 5000


def choose_baselines(asked: Sequence[str], order: str, source: str, seen: str = "masked") -> list[str]:
    """The baselines to rank: those named, or with `auto` all that apply except `random`.

    Raises:
        ConfigError: one is named that this data cannot have.

    >>> choose_baselines(["auto"], "position", "sequences")
    ['most_popular', 'markov']
    """
    applies = {
        "most_popular": "",
        "own_history": "" if seen != "masked" else "needs lists that may hold seen items (evaluate.seen=unmasked or both)",
        "recent_popular": "" if order == "time" else "needs timestamps (data.order: time)",
        "markov": "" if order != "set" else "needs an order (data.order: time or position)",
        "random": "",
        "oracle": "" if source == "synthetic" else "needs a simulated world (data=synthetic)",
    }
    chosen: list[str] = []
    for name in asked:
        if name == "auto":
            chosen += [n for n, fault in applies.items() if not fault and n != "random"]
        elif applies[name]:
            raise ConfigError(f"evaluate.baselines: {name} {applies[name]}; data.order is {order!r}, data.name {source!r}. Use auto")
        else:
            chosen.append(name)
    return list(dict.fromkeys(chosen))


def choose_days(data: Interactions, config: TrainingConfig, allowed_I: NDArray[np.bool_], masked: bool) -> int:
    """The window of recent_popular with the greatest NDCG at the middle cut-off on validation queries; the shorter one of equals."""
    ks = sorted(config.evaluate.ks)
    k = ks[len(ks) // 2]
    try:
        queries = make_queries(data, "valid", config.evaluate.unit, config.split.name, MOST_CHOICE_QUERIES, config.seed)
    except DataError:
        return ranks.RECENT_DAYS[2]  # no validation split: nothing to choose on
    queries = queries.unseen() if masked else queries

    def quality(days: int) -> float:
        top = rank_queries(ranks.recent_popular(data, days), queries, k, masked=masked, allowed_I=allowed_I)
        hits_Qk = metrics.hits(top.rows_Qk, queries.relevant, data.n_items)
        return float(metrics.ndcg(hits_Qk, queries.relevant_Q, k).mean())

    return max(ranks.RECENT_DAYS, key=quality) if len(queries) else ranks.RECENT_DAYS[2]


def baseline_fills(names: Sequence[str], data: Interactions, queries: Queries, config: TrainingConfig, days: int) -> dict[str, Fill]:
    """The scores of each baseline on the queries."""
    fills: dict[str, Fill] = {}
    for name in names:
        if name == "most_popular":
            fills[name] = ranks.most_popular(data)
        elif name == "own_history":
            fills[name] = ranks.own_history(data, queries)
        elif name == "recent_popular":
            fills[name] = ranks.recent_popular(data, days)
        elif name == "markov":
            fills[name] = ranks.markov(data, queries)
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
