"""Ranked lists to numbers with names: per-query values first, then means and intervals for all of them in one bootstrap.

Legend: Q queries, k ranks, M metrics.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from training import bootstrap, metrics, ragged
from training.queries import Queries
from training.slices import Slice

SLICE_METRICS = ("recall", "ndcg")

Columns = dict[str, NDArray[np.float64]]
"""Per-query values [Q] by name; NaN where the query does not count."""


@dataclass(frozen=True)
class Measured:
    """What one ranking scored.

    Attributes:
        columns: per-query values by `<prefix>/<metric>@<k>`, slices between (`test/history=3-5/ndcg@20`).
        whole: of all lists together, by `<prefix>/coverage@<k>`; no mean over queries, so without an interval.
    """

    columns: Columns
    whole: dict[str, float]

    def __or__(self, other: "Measured") -> "Measured":
        """Both."""
        return Measured(self.columns | other.columns, self.whole | other.whole)


def measure(
    rows_Qk: NDArray[np.int32],
    queries: Queries,
    ks: Sequence[int],
    prefix: str,
    n_recommendable: int,
    slices: Sequence[Slice] = (),
    cold_I: NDArray[np.bool_] | None = None,
) -> Measured:
    """All metrics of ranked lists.

    Args:
        rows_Qk: item rows, best first, at least as many as the greatest cut-off (or all).
        queries: what they answer.
        ks: cut-offs.
        prefix: `test`, or `test/masked` where both forms are reported.
        n_recommendable: items that may be recommended at all (denominator of coverage).
        slices: parts to measure too.
        cold_I: with slices, the recommendable items without a training event; their `<prefix>/cold/exposure@<k>` is measured too.
    """
    place_Qk = metrics.match(rows_Qk, queries.relevant, queries.data.n_items)
    hits_Qk = place_Qk >= 0
    columns = _columns(hits_Qk, queries.relevant_Q, ks, prefix, tuple(metrics.PER_QUERY))
    for part in slices:
        columns |= _of_slice(part, place_Qk, queries, ks, prefix)
    if cold_I is not None and cold_I.any():
        columns |= {f"{prefix}/cold/exposure@{k}": metrics.exposure(rows_Qk, cold_I, n_recommendable, k) for k in ks}
    return Measured(columns, {f"{prefix}/coverage@{k}": metrics.coverage(rows_Qk, n_recommendable, k) for k in ks})


def measure_slice(rows_Qk: NDArray[np.int32], queries: Queries, ks: Sequence[int], prefix: str, part: Slice) -> Columns:
    """Recall and NDCG of ranked lists that were made for one slice: `<prefix>/<its name>/ndcg@<k>`; arguments as in `measure`."""
    return _of_slice(part, metrics.match(rows_Qk, queries.relevant, queries.data.n_items), queries, ks, prefix)


def only(measured: Measured, counts_Q: NDArray[np.bool_], prefix: str, name: str) -> Columns:
    """Recall and NDCG of a ranking for some of its queries, under the name of a view: `<prefix>/<name>/ndcg@20`."""
    whole = {f"{prefix}/{metric}@": f"{prefix}/{name}/{metric}@" for metric in SLICE_METRICS}
    return {
        new + column.removeprefix(old): np.where(counts_Q, values_Q, np.nan)
        for old, new in whole.items()
        for column, values_Q in measured.columns.items()
        if column.startswith(old)
    }


def estimates(columns: Columns, user_Q: NDArray[np.int64], draws: int, seed: int) -> dict[str, dict[str, Any]]:
    """`{"value", "ci95", "n"}` of each column; one without a value is left out."""
    found = bootstrap.estimate(np.stack(list(columns.values()), axis=1), user_Q, draws, seed)
    return {
        name: {
            "value": float(found.value_M[m]),
            # none where a slice's few users were in no draw
            "ci95": [float(found.low_M[m]), float(found.high_M[m])] if np.isfinite(found.low_M[m]) else None,
            "n": int(found.n_M[m]),
        }
        for m, name in enumerate(columns)
        if found.n_M[m]
    }


def compare(
    model: Measured, baselines: Mapping[str, Measured], user_Q: NDArray[np.int64], draws: int, seed: int
) -> tuple[dict[str, Any], dict[str, dict[str, Any]], dict[str, dict[str, Any]]]:
    """The model's estimates, each baseline's, and the paired differences model - baseline, from the same drawn users.

    Returns:
        metrics, baselines, paired, as they stand in metrics.json; a difference has `difference` in place of `value`.
    """
    whole = dict(model.columns)
    for name, measured in baselines.items():
        whole |= {f"{name}:{metric}": column for metric, column in measured.columns.items()}
        whole |= {f"{name}-:{metric}": model.columns[metric] - column for metric, column in measured.columns.items()}
    all_found = estimates(whole, user_Q, draws, seed)
    queries = len(user_Q)
    results = {name: all_found[name] for name in model.columns if name in all_found} | _without_interval(model, queries)
    theirs, paired = {}, {}
    for name, measured in baselines.items():
        theirs[name] = {m: all_found[f"{name}:{m}"] for m in measured.columns if f"{name}:{m}" in all_found}
        theirs[name] |= _without_interval(measured, queries)
        differences = {m: all_found[f"{name}-:{m}"] for m in measured.columns if f"{name}-:{m}" in all_found}
        paired[name] = {m: {"difference": d["value"], "ci95": d["ci95"], "n": d["n"]} for m, d in differences.items()}
    return results, theirs, paired


def _without_interval(measured: Measured, queries: int) -> dict[str, dict[str, Any]]:
    return {name: {"value": value, "ci95": None, "n": queries} for name, value in measured.whole.items() if np.isfinite(value)}


def _of_slice(part: Slice, place_Qk: NDArray[np.int64], queries: Queries, ks: Sequence[int], prefix: str) -> Columns:
    kept_Q = np.diff(ragged.keep(queries.relevant, part.pairs_R)[0])
    hits_Qk = (place_Qk >= 0) & part.pairs_R[place_Qk]
    return _columns(hits_Qk, kept_Q, ks, f"{prefix}/{part.name}", SLICE_METRICS)


def _columns(hits_Qk: NDArray[np.bool_], relevant_Q: NDArray[np.int64], ks: Sequence[int], prefix: str, names: Sequence[str]) -> Columns:
    return {f"{prefix}/{name}@{k}": metrics.PER_QUERY[name](hits_Qk, relevant_Q, k) for name in names for k in ks}
