"""What a report shows: runs read from their files, grouped by what was measured, with baselines and published figures of the same kind."""

import csv
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import fmean
from typing import Any

from training.report_results import Key, Result, by_experiment, grouped, question

PUBLISHED = Path(__file__).with_name("published.csv")
"""Figures of others, with their sources: one row a method and dataset, found by the dataset's reader, sizes, split and masking."""
NAMES = {"item_knn": "ItemKNN", "ease": "EASE", "als": "ALS (implicit)", "markov": "Markov chain"}
DATASETS = {
    ("lightgcn", 29858, 40981): "Gowalla",
    ("lightgcn", 31668, 38048): "Yelp2018",
    ("lightgcn", 52643, 91599): "Amazon-Book",
    ("ml_1m", 6040, 3416): "MovieLens-1M",
    ("sequences", 22363, 12101): "Amazon Beauty",
    ("sequences", 35598, 18357): "Amazon Sports",
    ("sequences", 19412, 11924): "Amazon Toys",
}
NOT_TO_BEAT = ("oracle",)


@dataclass(frozen=True)
class Figure:
    """A value, with its 95 % interval where there is one, and its range over seeds where there are several."""

    value: float
    low: float | None = None
    high: float | None = None
    seeds: tuple[float, ...] = ()


@dataclass(frozen=True)
class Row:
    """A line of a table.

    Attributes:
        kind: `ours`, `baseline` or `published`.
        figures: by metric (`ndcg@20`).
        seeds, cpu_minutes, note, command: what is known of it.
    """

    kind: str
    name: str
    figures: Mapping[str, Figure]
    seeds: int = 0
    cpu_minutes: float | None = None
    note: str = ""
    command: str = ""


@dataclass(frozen=True)
class Table:
    """Runs that answer the same queries under the same masks."""

    title: str
    metrics: Sequence[str]
    rows: Sequence[Row]
    loud: Sequence[str] = ()
    protocol: Sequence[str] = ()


def make_tables(results: Sequence[Result], metrics: Sequence[str]) -> list[Table]:
    """One table for each dataset, split, set of queries and form of masking that was measured, in order of first appearance.

    Args:
        results: the runs; those of one experiment that differ in nothing but their seed share a row.
        metrics: names (`ndcg@20`); none = those of the published figures, else recall and NDCG at the middle cut-off.
    """
    groups = grouped(results)
    return [_table(key, members, metrics, title) for (key, members), title in zip(groups.items(), titles(groups), strict=True)]


def titles(groups: Mapping[Key, Sequence[Result]]) -> list[str]:
    """What was measured, in words; where two tables would have the same title, each is told by its first run."""
    found = [title_of(key, results) for key, results in groups.items()]
    return [
        title if found.count(title) == 1 else f"{title}, queries of {results[0].folder}"
        for title, results in zip(found, groups.values(), strict=True)
    ]


def title_of(key: Key, results: Sequence[Result]) -> str:
    """What was measured, in words."""
    measured = ", ".join(filter(None, (f"split {key.split}", key.prefix.partition("/")[0], question(results[0]), key.seen)))
    dataset = DATASETS.get((key.name, key.users, key.items), key.name)
    return f"{dataset}: {key.users:,} users, {key.items:,} items, {measured}"


def _table(key: Key, results: Sequence[Result], asked: Sequence[str], title: str) -> Table:
    published = [row for row in read_published() if _fits(row, key)]
    metrics = list(asked) or _metrics_of(published) or _middle(results[0], key.prefix)
    experiments = by_experiment(results)
    rows = ranked_rows(results, key.prefix, metrics) + [_published(row, metrics) for row in published]
    loud = [line for label, members in experiments.items() for line in _loud(label, experiments, key.prefix, metrics)]
    return Table(title, metrics, [row for row in rows if row.figures], loud, results[0].document.get("protocol", []))


def _loud(label: str, experiments: Mapping[str, Sequence[Result]], prefix: str, metrics: Sequence[str]) -> list[str]:
    """What to say of an experiment: that its figures are of an earlier model, and where it is below a baseline. Of one name the baseline
    that was measured beside it counts: a refitted model's has learned from more rows."""
    members = experiments[label]
    ours = _ours(label, members, prefix, metrics)
    own, others = (_baselines(beside, prefix, metrics) for beside in ({label: members}, experiments))
    named = {name for member in members for name in member.baselines}
    compared = [*own.values(), *(row for (name, _), row in others.items() if name not in named)]
    stale = [
        f"{label} IS STALE: {member.folder / 'metrics.json'} measured other weights than {member.folder / 'model'} holds now. Run"
        " `towers evaluate` there"
        for member in members
        if member.stale
    ]
    return [*stale, *(line for line in (below(ours, row, metrics) for row in compared) if line)]


def ranked_rows(results: Sequence[Result], prefix: str, metrics: Sequence[str]) -> list[Row]:
    """Our experiments, then the baselines beside them."""
    experiments = by_experiment(results)
    ours = [_ours(label, members, prefix, metrics) for label, members in experiments.items()]
    return [*ours, *_baselines(experiments, prefix, metrics).values()]


def read_published() -> list[dict[str, str]]:
    """The rows of published.csv."""
    with PUBLISHED.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def below(ours: Row, other: Row, metrics: Sequence[str]) -> str:
    """What to say of a model that does not reach a baseline; "" where it does."""
    if other.kind != "baseline" or other.name in NOT_TO_BEAT:
        return ""
    worse = [m for m in metrics if m in ours.figures and m in other.figures and ours.figures[m].value < other.figures[m].value]
    told = ", ".join(f"{m} {ours.figures[m].value:.4f} < {other.figures[m].value:.4f}" for m in worse)
    return f"{ours.name} IS BELOW {other.name}: {told}" if worse else ""


def _ours(label: str, members: Sequence[Result], prefix: str, metrics: Sequence[str]) -> Row:
    documents = [member.document["metrics"] for member in members]
    figures = {m: over_seeds([d[f"{prefix}/{m}"] for d in documents]) for m in metrics if all(f"{prefix}/{m}" in d for d in documents)}
    cpu = [member.cpu_s / 60 for member in members if member.cpu_s is not None]
    return Row("ours", label, figures, len(members), fmean(cpu) if cpu else None, "", members[0].command)


def _baselines(experiments: Mapping[str, Sequence[Result]], prefix: str, metrics: Sequence[str]) -> dict[tuple[str, Any], Row]:
    """Baselines by name and figures: once where all runs found the same, else each with the experiment that it was measured beside."""
    rows: dict[tuple[str, Any], tuple[str, Row]] = {}
    for label, members in experiments.items():
        for name, found in (pair for member in members for pair in member.baselines.items()):
            figures = {m: over_seeds([found[f"{prefix}/{m}"]]) for m in metrics if f"{prefix}/{m}" in found}
            same = tuple((m, round(figure.value, 9)) for m, figure in figures.items())
            rows.setdefault((name, same), (label, Row("baseline", NAMES.get(name, name.replace("_", " ")), figures)))
    names = [name for name, _ in rows]
    return {
        key: row if names.count(key[0]) == 1 else replace(row, name=f"{row.name} (beside {label})") for key, (label, row) in rows.items()
    }


def _published(row: Mapping[str, str], metrics: Sequence[str]) -> Row:
    values = _parse(row["metrics"])
    unsure = "" if row["seen"] == "masked" else "masking not stated"
    note = "; ".join(part for part in (row["source"], row["caveat"], unsure) if part)
    name = row["method"] + (" (dot product)" if row["dot_product"] == "yes" else "")
    return Row("published", name, {m: Figure(values[m]) for m in metrics if m in values}, note=note)


def _fits(row: Mapping[str, str], key: Key) -> bool:
    same = (row["data"], row["users"], row["items"], row["split"]) == (key.name, str(key.users), str(key.items), key.split)
    return same and key.prefix.startswith("test") and (row["seen"] == "not stated" or key.seen == f"seen items {row['seen']}")


def _parse(text: str) -> dict[str, float]:
    return {name: float(value) for name, _, value in (word.partition("=") for word in text.split())}


def _metrics_of(published: Sequence[Mapping[str, str]]) -> list[str]:
    return list(dict.fromkeys(name for row in published for name in _parse(row["metrics"])))


def _middle(result: Result, prefix: str) -> list[str]:
    k = middle_k(result, prefix)
    return [f"{metric}@{k}" for metric in ("recall", "ndcg")] if k else []


def middle_k(result: Result, prefix: str) -> int:
    """The middle cut-off; 0 where there is none."""
    ks = sorted(int(n.rpartition("@")[2]) for n in result.document["metrics"] if n.startswith(f"{prefix}/ndcg@"))
    return ks[len(ks) // 2] if ks else 0


def over_seeds(found: Sequence[Mapping[str, Any]]) -> Figure:
    """Mean of value and interval over the seeds."""
    values = tuple(f["value"] for f in found)
    ends = [f["ci95"] for f in found if f["ci95"] is not None]
    low, high = (fmean(e[side] for e in ends) for side in (0, 1)) if len(ends) == len(found) else (None, None)
    return Figure(fmean(values), low, high, values if len(values) > 1 else ())
