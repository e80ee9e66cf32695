"""The waterfall of recall: what each stage of serving adds to the lists and takes from them, from the lists that serving.waterfall left."""

from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray

from training import bootstrap, metrics, ragged


def stage_figures(
    lists: Mapping[str, NDArray[np.int64]], relevant: ragged.Csr, items: int, user_Q: NDArray[np.int64], draws: int, seed: int
) -> list[dict[str, Any]]:
    """Recall of each stage, and its difference to the stage before, paired by query, with 95 % intervals over users.

    Args:
        lists: rows [Q, k] by stage, in order; -1 = none.
        relevant: item rows of each query.
        items: of the catalogue.

    >>> relevant = np.array([0, 1, 2]), np.array([3, 4])
    >>> one, two = np.array([[3, 0], [0, 1]]), np.array([[0, 1], [0, 1]])
    >>> told = stage_figures({"model": one, "index": two}, relevant, 5, np.arange(2), 10, 0)
    >>> [(stage["stage"], stage["recall"]["value"]) for stage in told], told[1]["change"]["value"]
    ([('model', 0.5), ('index', 0.0)], -0.5)
    """
    recall = {
        name: metrics.recall(metrics.hits(rows_Qk, relevant, items), np.diff(relevant[0]), rows_Qk.shape[1])
        for name, rows_Qk in lists.items()
    }
    values = list(recall.values())
    columns = np.stack([*values, *(now - before for before, now in pairwise(values))], axis=1)
    found = bootstrap.estimate(columns, user_Q, draws, seed)
    figures = [
        {"value": float(value), "ci95": [float(low), float(high)]}
        for value, low, high in zip(found.value_M, found.low_M, found.high_M, strict=True)
    ]
    changes: Sequence[dict[str, Any] | None] = [None, *figures[len(values) :]]
    return [{"stage": name, "recall": own, "change": change} for name, own, change in zip(recall, figures, changes, strict=False)]


def as_markdown(stages: Sequence[Mapping[str, Any]], k: int) -> str:
    """A table: a line a stage."""
    lines = [f"| stage | recall@{k} | against the stage before |", "|---|---|---|"]
    for stage in stages:
        change = "" if stage["change"] is None else _said(stage["change"], "+")
        lines.append(f"| {stage['stage']} | {_said(stage['recall'])} | {change} |")
    return "\n".join(lines) + "\n"


def _said(figure: Mapping[str, Any], sign: str = "") -> str:
    low, high = figure["ci95"]
    return f"{figure['value']:{sign}.4f} [{low:{sign}.4f}, {high:{sign}.4f}]"
