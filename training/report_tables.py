"""What a report shows: runs read from their files, grouped by what was measured, with baselines and published figures of the same kind."""

import csv
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import fmean
from typing import Any

from towers.errors import DataError

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


@dataclass(frozen=True)
class Result:
    """One evaluated run: metrics.json and what lies beside it (train.json, config/train.yaml, baselines/*.json)."""

    folder: Path
    document: Mapping[str, Any]
    cpu_s: float | None
    command: str
    extra: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)

    @classmethod
    def read(cls, path: Path) -> "Result":
        """Read a metrics.json.

        Raises:
            DataError: it is none.
        """
        try:
            document = json.loads(path.read_text())
            missing = {"run", "data", "metrics", "baselines"} - document.keys()
        except (OSError, ValueError, AttributeError) as error:
            raise DataError(f"{path}: cannot be read as a metrics.json ({error}). Run `towers evaluate` again") from error
        if missing:
            raise DataError(f"{path}: no {', '.join(sorted(missing))}: it was not written by `towers evaluate`")
        folder = path.parent
        train, settings = folder / "train.json", folder / "config" / "train.yaml"
        cpu_s = json.loads(train.read_text())["run"].get("cpu_s") if train.is_file() else None
        first = settings.read_text().partition("\n")[0] if settings.is_file() else ""
        command = first.removeprefix("# ") if first.startswith("# towers ") else ""
        extra = {file.stem: json.loads(file.read_text())["metrics"] for file in sorted((folder / "baselines").glob("*.json"))}
        return cls(folder, document, cpu_s, command, extra)

    @property
    def baselines(self) -> dict[str, Mapping[str, Any]]:
        return {**self.document["baselines"], **self.extra}

    def prefixes(self) -> list[str]:
        """`test`, or `test/masked` and `test/unmasked`: what stands before the name of a metric that is of no slice.

        >>> Result(Path(), {"metrics": {"test/ndcg@5": 1, "test/cold/ndcg@5": 1, "test/without=user/ndcg@5": 1}}, None, "").prefixes()
        ['test']
        """
        found = {name.rpartition("/")[0] for name in self.document["metrics"]}
        return sorted(p for p in found if p.count("/") == 0 or p.endswith(("/masked", "/unmasked")))


def make_tables(results: Sequence[Result], metrics: Sequence[str]) -> list[Table]:
    """One table for each dataset, split and form of masking that was measured, in order of first appearance.

    Args:
        results: the runs; those of one experiment that differ in their seed share a row.
        metrics: names (`ndcg@20`); none = those of the published figures, else recall and NDCG at the middle cut-off.
    """
    return [_table(key, members, metrics) for key, members in grouped(results).items()]


Key = tuple[str, int, int, str, str]
"""Dataset, users, items, split, and what stands before the names of metrics."""


def grouped(results: Sequence[Result]) -> dict[Key, list[Result]]:
    """Results that may stand in one table."""
    groups: dict[Key, list[Result]] = {}
    for result in results:
        data = result.document["data"]
        for prefix in result.prefixes():
            groups.setdefault((data["name"], data["users"], data["items"], data["split"], prefix), []).append(result)
    return groups


def title_of(key: Key, results: Sequence[Result]) -> str:
    """What was measured, in words."""
    name, users, items, split, prefix = key
    measured = f"split {split}, {prefix.partition('/')[0]}, {masking(results[0], prefix)}"
    return f"{DATASETS.get((name, users, items), name)}: {users:,} users, {items:,} items, {measured}"


def _table(key: Key, results: Sequence[Result], asked: Sequence[str]) -> Table:
    name, users, items, split, prefix = key
    seen = masking(results[0], prefix)
    published = [row for row in read_published() if _fits(row, name, users, items, split, prefix, seen)]
    metrics = list(asked) or _metrics_of(published) or _middle(results[0], prefix)
    rows = ranked_rows(results, prefix, metrics)
    rows += [_published(row, metrics) for row in published]
    loud = [line for line in (below(row, other, metrics) for row in rows if row.kind == "ours" for other in rows) if line]
    return Table(title_of(key, results), metrics, [row for row in rows if row.figures], loud, results[0].document.get("protocol", []))


def ranked_rows(results: Sequence[Result], prefix: str, metrics: Sequence[str]) -> list[Row]:
    """Our experiments, then the baselines beside them."""
    ours = [_ours(label, members, prefix, metrics) for label, members in by_experiment(results).items()]
    return [*ours, *_baselines(results, prefix, metrics)]


def masking(result: Result, prefix: str) -> str:
    """`seen items masked` or `seen items not masked`: said by the prefix, or by the protocol where only one form was measured."""
    lines = [line for line in result.document.get("protocol", []) if line.startswith("seen items:")]
    unmasked = prefix.endswith("/unmasked") or (not prefix.endswith("/masked") and any("not masked" in line for line in lines))
    return f"seen items {'not ' * unmasked}masked"


def by_experiment(results: Sequence[Result]) -> dict[str, list[Result]]:
    """Runs by experiment; where two of one experiment have the same seed they are no repetition, and each goes by its folder."""
    found: dict[str, list[Result]] = {}
    for result in results:
        found.setdefault(result.document["run"]["experiment"], []).append(result)
    apart: dict[str, list[Result]] = {}
    for name, members in found.items():
        seeds = [member.document["run"]["seed"] for member in members]
        together = len(set(seeds)) == len(seeds)
        apart |= {name: members} if together else {f"{name} ({member.folder})": [member] for member in members}
    return apart


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


def _baselines(results: Sequence[Result], prefix: str, metrics: Sequence[str]) -> list[Row]:
    rows: dict[str, Row] = {}
    for result in results:
        for name, found in result.baselines.items():
            figures = {m: over_seeds([found[f"{prefix}/{m}"]]) for m in metrics if f"{prefix}/{m}" in found}
            rows.setdefault(name, Row("baseline", NAMES.get(name, name.replace("_", " ")), figures))
    return list(rows.values())


def _published(row: Mapping[str, str], metrics: Sequence[str]) -> Row:
    values = _parse(row["metrics"])
    unsure = "" if row["seen"] == "masked" else "masking not stated"
    note = "; ".join(part for part in (row["source"], row["caveat"], unsure) if part)
    name = row["method"] + (" (dot product)" if row["dot_product"] == "yes" else "")
    return Row("published", name, {m: Figure(values[m]) for m in metrics if m in values}, note=note)


def _fits(row: Mapping[str, str], name: str, users: int, items: int, split: str, prefix: str, seen: str) -> bool:
    same = (row["data"], row["users"], row["items"], row["split"]) == (name, str(users), str(items), split)
    return same and prefix.startswith("test") and (row["seen"] == "not stated" or seen == f"seen items {row['seen']}")


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
