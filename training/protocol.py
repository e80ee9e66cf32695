"""What a result must say about itself: the protocol, doubts about the data, and a model below a baseline."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from training.config import TrainingConfig
from training.queries import Queries

FEW_USERS = 30
BELOW_METRICS = ("recall", "ndcg")
LOUD = "THE MODEL IS BELOW"
RULE = "!" * 100
ORACLE = "oracle"


def protocol(
    asked: Queries, config: TrainingConfig, ks: Sequence[int], n_recommendable: int, baselines: Sequence[str], length: int
) -> list[str]:
    """The protocol in sentences, for metrics.json and the console."""
    data, settings = asked.data, config.evaluate
    hidden = data.n_items - n_recommendable
    lines = [
        f"ranking: all {n_recommendable} items of the catalogue" + (f" ({hidden} hidden ones left out)" if hidden else "")
        + ", no sampled negatives; ties go to the lower item id; items created after a query stay candidates",
        f"split: {asked.split} of {config.split.name}; {len(asked)} queries of {len(np.unique(asked.user_Q))} users"
        + (f", drawn by seed {config.seed}" if settings.max_queries else "")
        + (f"; queries with more than {settings.max_history} events before them are left out" if settings.max_history else ""),
        _question(asked, length),
        "seen items: " + _seen(settings.seen, config.split.name),
        f"cut-offs {list(ks)}; recall and MAP divide by all relevant items, NDCG by the ideal over min(k, relevant); mean over queries",
        f"intervals: 95 % percentile bootstrap over users, {settings.draws} draws, seed {config.seed};"
        " differences to a baseline are paired by query",
    ]  # fmt: skip
    if baselines:
        lines.append("baselines count training rows only, under the model's masks: " + ", ".join(baselines))
    return lines


def doubts(asked: Queries, queries: Queries, prefix: str) -> list[str]:
    """What the reader of a form's numbers has to know about its data."""
    data, said = asked.data, []
    trained_I = data.train_counts() > 0
    cold_R = ~trained_I[queries.relevant[1]]
    users = len(np.unique(queries.user_Q))
    dropped = len(asked.relevant[1]) - len(queries.relevant[1])
    if dropped:
        said.append(
            f"{prefix}: {dropped} of {len(asked.relevant[1])} relevant items were seen before by their user and cannot be recommended where"
            f" seen items are masked; they do not count, and {len(asked) - len(queries)} queries are left out with them"
        )
    if cold_R.all():
        said.append(f"{prefix}: NONE of the relevant items occurs in training: these numbers tell what content features and chance can do")
    elif cold_R.any():
        said.append(f"{prefix}: {int(cold_R.sum())} of {len(cold_R)} relevant items are not in training; they stay in the denominators")
    if users < FEW_USERS:
        said.append(f"{prefix}: only {users} user{'s' * (users > 1)} with queries: the intervals tell little")
    return said


class Shortfall(NamedTuple):
    """A baseline that the model does not reach.

    Attributes:
        metrics: in which, the greatest difference first.
        clear: the interval of one of the differences lies below zero; None = none of them has one (too few draws for so few users).
    """

    baseline: str
    metrics: list[str]
    clear: bool | None

    @property
    def verdict(self) -> str:
        """What it means."""
        if self.clear is None:
            return "The differences have no intervals: raise evaluate.draws."
        return "Serving the baseline would be better." if self.clear else "The intervals of the differences include zero."


def shortfalls(document: dict[str, Any]) -> list[Shortfall]:
    """The baselines that the model does not reach, the oracle apart."""
    found = []
    for name, differences in document["paired"].items():
        worse = [m for m, d in differences.items() if name != ORACLE and "=" not in m and d["difference"] < 0 and _compared(m)]
        if worse:
            worse.sort(key=lambda m: differences[m]["difference"])
            intervals = [differences[m]["ci95"] for m in worse if differences[m]["ci95"] is not None]
            found.append(Shortfall(name, worse, any(high < 0 for _, high in intervals) if intervals else None))
    return found


def below(document: dict[str, Any]) -> list[str]:
    """A warning for each baseline that the model does not reach."""
    return [
        f"{LOUD} {short.baseline} on {'; '.join(_pair(document, short.baseline, m) for m in short.metrics)}. {short.verdict}"
        for short in shortfalls(document)
    ]


def loud_block(document: dict[str, Any]) -> list[str]:
    """The same for the console: a line each, with the figure that is the furthest below. Nothing where every baseline is reached."""
    found = shortfalls(document)
    if not found:
        return []
    others = len(document["paired"].keys() - {ORACLE})
    wide = max(len(short.baseline) for short in found)
    lines = [
        f"  {short.baseline:<{wide}}  {_pair(document, short.baseline, short.metrics[0])}"
        + (f" and {len(short.metrics) - 1} more" if len(short.metrics) > 1 else "")
        + f". {short.verdict}"
        for short in found
    ]
    return [RULE, f"WARNING: {LOUD} {len(found)} of {others} baseline{'s' * (others != 1)}", *lines, RULE]


def _pair(document: dict[str, Any], baseline: str, metric: str) -> str:
    """`test/ndcg@20 0.1000 < 0.2000`: the model's figure, the baseline's."""
    return f"{metric} {document['metrics'][metric]['value']:.4f} < {document['baselines'][baseline][metric]['value']:.4f}"


def _compared(metric: str) -> bool:
    return metric.rpartition("/")[2].partition("@")[0] in BELOW_METRICS


def _question(asked: Queries, length: int) -> str:
    if asked.data.schema.order == "set":
        reads = f"the history is the last {length} events of the earlier splits as the file has them (there is no order)"
    else:
        reads = f"the history is the newest {length} events strictly before, in (timestamp, ingest order)"
    if asked.unit == "event":
        earlier = "" if asked.data.schema.order == "set" else ", earlier held-out events included"
        return f"unit event: one query per held-out event, one relevant item; {reads}{earlier}"
    return f"unit user: one query per user at the first held-out event, all held-out items relevant; {reads}"


def _seen(seen: str, split_name: str) -> str:
    what = "items of the user's history" + (" and earlier splits" if split_name == "given" else "")
    return {
        "masked": f"masked ({what} are not recommended)",
        "unmasked": f"not masked ({what} may be recommended)",
        "both": f"reported masked and unmasked ({what})",
    }[seen]
