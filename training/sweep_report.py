"""The work of `towers report sweep=true`: what each dial of the selector gives and what it costs, from the lists of `towers recommend
sweep=true`. It reads files and nothing else.

Legend: Q queries, k ranks, I items, G categories.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import scipy.sparse as sp
from numpy.typing import NDArray

from towers.bundle import Bundle
from towers.columns import CATEGORIES, IS_HIDDEN, ITEM_ID, USER_KEY
from towers.errors import DataError
from towers.held_out import HELD_OUT, HeldOut
from towers.job import write_json
from training import bootstrap, catalogue_spread, exposure, metrics, ragged
from training.config import TrainingConfig
from training.waterfall_report import as_markdown as stage_table
from training.waterfall_report import stage_figures

K = 20
"""Of all but recall, which is taken of the whole lists too."""

_MOST_DRAWS = 500
"""Of figures of all lists together: each draw sorts the catalogue."""

Rows = NDArray[np.int64]


class Whole(NamedTuple):
    """A figure of all lists together, and the same of drawn people, [draws]."""

    value: float
    draws_S: NDArray[np.float64]


@dataclass(frozen=True)
class Judge:
    """What lists are judged by.

    Attributes:
        relevant: distinct relevant item rows of each query.
        member_IG: categories of items.
        taste_QG: shares of the categories in each history.
        unit_ID: item vectors, 1 long.
        shown_I: items that may be recommended.
    """

    relevant: ragged.Csr
    member_IG: sp.csr_matrix
    taste_QG: NDArray[np.float64]
    unit_ID: NDArray[np.float32]
    shown_I: NDArray[np.bool_]

    @classmethod
    def of(cls, bundle: Bundle, held: HeldOut) -> "Judge":
        """Of the catalogue that a bundle holds and of held-out queries."""
        catalog, vectors_ID = bundle.catalog(), bundle.item_vectors()
        ids = catalog.column(ITEM_ID).combine_chunks()
        member_IG = exposure.memberships(catalog.column(CATEGORIES))
        taste_QG = exposure.shares(_rows(held.liked, ids), member_IG)
        unit_ID = vectors_ID / np.maximum(np.linalg.norm(vectors_ID, axis=1, keepdims=True), 1e-12)
        shown_I = ~catalog.column(IS_HIDDEN).fill_null(False).to_numpy()
        return cls(_rows(held.relevant, ids), member_IG, taste_QG, unit_ID, shown_I)

    def per_query(self, rows_Qk: Rows) -> dict[str, NDArray[np.float64]]:
        """Metrics that are means over queries, by name: [Q] each. `ild` is by categories, `ild_vectors` by item vectors."""
        hits_Qk = metrics.hits(rows_Qk, self.relevant, len(self.shown_I))
        relevant_Q, whole = np.diff(self.relevant[0]), rows_Qk.shape[1]
        found = {f"recall@{k}": metrics.recall(hits_Qk, relevant_Q, k) for k in sorted({min(K, whole), whole})}
        found[f"ndcg@{K}"] = metrics.ndcg(hits_Qk, relevant_Q, K)
        if self.member_IG.shape[1]:
            found[f"c_kl@{K}"] = exposure.miscalibration(self.taste_QG, exposure.list_shares(rows_Qk, self.member_IG, K))
            found[f"ild@{K}"] = exposure.ild(rows_Qk, exposure.units(self.member_IG), K)
        found[f"ild_vectors@{K}"] = exposure.ild(rows_Qk, self.unit_ID, K)
        return found

    def whole(self, rows_Qk: Rows, user_Q: Rows, draws: int, seed: int) -> dict[str, Whole]:
        """Metrics of all lists together, by name."""
        drawn = catalogue_spread.draw(rows_Qk, user_Q, self.shown_I, K, draws, seed)
        return {
            f"coverage@{K}": Whole(metrics.coverage(rows_Qk, int(self.shown_I.sum()), K), drawn.coverage_S),
            f"gini@{K}": Whole(exposure.gini(rows_Qk, self.shown_I, K), drawn.gini_S),
        }


def run(config: TrainingConfig) -> str:
    """Print the table of run_dir/sweep.json and write it as run_dir/sweep.md, and all numbers as run_dir/sweep_report.json.

    Raises:
        DataError: there is no sweep, what it was made of is gone, or its lists are of other queries.
        ConfigError: the model has learned the answers that its lists are to be judged by.
    """
    run_dir = Path(config.run_dir)
    try:
        told = json.loads((run_dir / "sweep.json").read_text())
        lists, stages = (pq.read_table(run_dir / "sweep" / f"{name}.parquet") for name in ("lists", "stages"))
    except (OSError, ValueError) as error:
        raise DataError(f"{run_dir}: no sweep to report ({error}). Run `towers recommend sweep=true` with this run_dir first") from error
    bundle = Bundle.open(told["bundle"])
    held = HeldOut.read(run_dir / "export" / HELD_OUT, told["split"], bundle.weights_sha256)
    held.check_judges(told["split"])
    for table in (lists, stages):
        _check_queries(table, held)
    told["queries"] = len(held)
    judge, ids = Judge.of(bundle, held), bundle.catalog().column(ITEM_ID).combine_chunks()
    _, user_Q = np.unique([key.as_py() for key in held.user_keys], return_inverse=True)
    plain: dict[str, NDArray[np.float64]] = {}
    first: dict[str, Whole] = {}
    measured: list[dict[str, Any]] = []
    for number, policy in enumerate(told["policies"]):
        rows_Qk = _lists(lists, number, ids, told["k"])
        found = judge.per_query(rows_Qk)
        plain = plain or found
        figures = _compared(found, plain, user_Q, config.evaluate.draws, config.seed)
        whole = judge.whole(rows_Qk, user_Q, min(config.evaluate.draws, _MOST_DRAWS), config.seed)
        first = first or whole
        together = {name: _against(one, first[name]) for name, one in whole.items()}
        measured.append({**policy, "whole": together, "means": figures})
    by_stage = {name: _lists(stages, number, ids, told["k"]) for number, name in enumerate(told["stages"])}
    waterfall = stage_figures(by_stage, judge.relevant, len(ids), user_Q, config.evaluate.draws, config.seed)
    document = {**told, "policies": measured, "waterfall": waterfall}
    heading = "\nFrom the model's own scores to the list, a stage of serving at a time:\n\n"
    text = as_markdown(document) + heading + stage_table(waterfall, told["k"])
    (run_dir / "sweep.md").write_text(text)
    print(text)
    return str(write_json(run_dir / "sweep_report.json", document))


def _check_queries(table: pa.Table, held: HeldOut) -> None:
    """Raises DataError where lists are not of these queries, one after the other: both files lose what is removed of people."""
    first = table.filter(pc.field("policy") == 0)
    told = [first.column(name).to_pylist() for name in (USER_KEY, "now") if name in first.column_names]
    if told != [held.user_keys.to_pylist(), held.now_Q.tolist()]:
        raise DataError(
            f"the lists of the sweep are of other queries ({len(first):,}) than {HELD_OUT} holds now ({len(held):,}): it was exported anew,"
            " or people were removed from it. Run `towers recommend sweep=true` again"
        )


def as_markdown(document: Mapping[str, Any]) -> str:
    """A table: the plain lists first, then each policy beside them; differences are paired by query, in % of the plain value."""
    first = document["policies"][0]
    names = [*first["means"], *first["whole"]]
    lines = [
        f"{document['queries']:,} {document['split']} queries, lists of {document['k']}; differences to the plain lists in % of their"
        " value, with 95 % intervals over users",
        "",
        f"| policy | {' | '.join(names)} | us a list |",
        f"|---|{'---|' * (len(names) + 1)}",
    ]
    for policy in document["policies"]:
        cells = [_mean(policy["means"][name], policy is first) for name in first["means"]]
        cells += [_mean(policy["whole"][name], policy is first) for name in first["whole"]]
        told = ", ".join(f"{name} {value:g}" for name, value in policy["policy"].get("dials", {}).items()) or "plain"
        lines.append(f"| {told} | {' | '.join(cells)} | {policy['us_per_list']:.0f} |")
    return "\n".join(lines) + "\n"


def _compared(
    found: Mapping[str, NDArray[np.float64]], plain: Mapping[str, NDArray[np.float64]], user_Q: NDArray[np.int64], draws: int, seed: int
) -> dict[str, dict[str, Any]]:
    """Value, interval, and the change against the plain lists with its interval, as a share of their value."""
    columns = np.stack([*found.values(), *(found[name] - plain[name] for name in found)], axis=1)
    known = bootstrap.estimate(columns, user_Q, draws, seed)
    base = {name: float(np.nanmean(plain[name])) for name in found}
    return {
        name: {
            "value": known.value_M[m],
            "ci95": [known.low_M[m], known.high_M[m]],
            "change": known.value_M[m + len(found)] / base[name],
            "change_ci95": sorted((known.low_M[m + len(found)] / base[name], known.high_M[m + len(found)] / base[name])),
        }
        for m, name in enumerate(found)
    }


def _mean(figure: Mapping[str, Any], is_plain: bool) -> str:
    if is_plain:
        return f"{figure['value']:.4f}"
    low, high = figure["change_ci95"]
    return f"{figure['value']:.4f} ({100 * figure['change']:+.1f} [{100 * low:+.1f}, {100 * high:+.1f}])"


def _against(one: Whole, plain: Whole) -> dict[str, Any]:
    """Value, and the change against the plain lists as a share of their value, each with its interval; both of the same drawn people."""
    change = one.value / plain.value - 1
    return {
        "value": one.value,
        "ci95": catalogue_spread.interval(one.value, one.draws_S),
        "change": change,
        "change_ci95": catalogue_spread.interval(change, one.draws_S / plain.draws_S - 1),
    }


def _lists(table: pa.Table, number: int, ids: pa.StringArray, k: int) -> Rows:
    """The lists of one policy, or stage, as rows."""
    return _square(_rows(table.filter(pc.field("policy") == number).column("item_ids").combine_chunks(), ids), k)


def _rows(lists: pa.ListArray, ids: pa.StringArray) -> ragged.Csr:
    """Lists of item ids as rows of the catalogue; ids that it does not have are left out."""
    values = lists.flatten()
    if pa.types.is_dictionary(values.type):
        places = pc.index_in(values.dictionary, ids)
        flat = places.take(values.indices).fill_null(-1).to_numpy()
    else:
        flat = pc.index_in(values, ids).fill_null(-1).to_numpy()
    known = np.concatenate([[0], np.cumsum(flat >= 0)])
    ends = np.concatenate([[0], np.cumsum(pc.list_value_length(lists).to_numpy(zero_copy_only=False))])
    return known[ends], flat[flat >= 0].astype(np.int64)


def _square(lists: ragged.Csr, k: int) -> Rows:
    offsets, flat = lists
    rows_Qk = np.full((len(offsets) - 1, k), -1, np.int64)
    owner = np.repeat(np.arange(len(rows_Qk)), np.diff(offsets))
    rows_Qk[owner, np.arange(len(flat)) - offsets[owner]] = flat
    return rows_Qk
