"""The part of a report about what lists show and whom they serve worse, of runs that were evaluated with it (`evaluate=responsible`)."""

from collections.abc import Iterator, Sequence
from typing import Any

from training.groups import LEAST_PEOPLE, POPULAR
from training.report_results import Key, Result, by_experiment, grouped
from training.report_tables import NAMES, Figure, Row, Table, middle_k, over_seeds, ranked_rows, title_of
from training.showing import OF_ALL, PER_QUERY

_QUALITY = "ndcg"
MODEL = "model"


def shown_tables(results: Sequence[Result]) -> list[Table]:
    """For each dataset, split and form of masking a table of exposure and one for each grouping of people, where they were measured."""
    return [table for key, members in grouped(results).items() for table in (*_exposure(key, members), *_groups(key, members))]


def _exposure(key: Key, results: Sequence[Result]) -> Iterator[Table]:
    prefix, k = key.prefix, middle_k(results[0], key.prefix)
    with_exposure = [result for result in results if f"{prefix}/gini@{k}" in result.document["metrics"]]
    if with_exposure:
        known = {name for result in with_exposure for name in result.document["metrics"]}
        metrics = [f"{name}@{k}" for name in (*OF_ALL, *PER_QUERY) if f"{prefix}/{name}@{k}" in known]
        rows = ranked_rows(with_exposure, prefix, [f"{_QUALITY}@{k}", *metrics])
        told = [row for row in rows if any(metric in row.figures for metric in metrics[1:])]  # coverage is measured in any case
        yield Table(f"What is shown: {title_of(key, results)}", [f"{_QUALITY}@{k}", *metrics], told)


def _groups(key: Key, results: Sequence[Result]) -> Iterator[Table]:
    prefix = key.prefix
    divided = [result for result in results if prefix in result.document.get("groups", {})]
    columns = dict.fromkeys(column for result in divided for column in result.document["groups"][prefix])
    for column in columns:
        members = [result for result in divided if column in result.document["groups"][prefix]]
        yield _grouping(key, column, by_experiment(members))


def _grouping(key: Key, column: str, experiments: dict[str, list[Result]]) -> Table:
    """A line a group, a column for each experiment and each ranking that its gap is compared with."""
    prefix = key.prefix
    first = next(iter(experiments.values()))[0]
    metric = f"{_QUALITY}@{middle_k(first, prefix)}"
    facts = {label: [member.document["groups"][prefix][column] for member in members] for label, members in experiments.items()}
    people = facts[next(iter(facts))][0]["people"]
    rows = []
    for group, count in people.items():
        name = f"{prefix}/group={column}:{group}/{metric}"
        found = {label: [member.document["metrics"].get(name) for member in members] for label, members in experiments.items()}
        found |= {NAMES.get(other, other.replace("_", " ")): [theirs.get(name)] for other, theirs in first.baselines.items()}
        rows.append(Row("ours", f"{group} ({count:,} people)", _figures(found)))
    for name, words in (("gap", "gap: (best - worst) / mean"), ("worst_to_mean", "worst / mean")):
        gaps = {label: [fact[metric].get(MODEL, {}).get(name) for fact in found] for label, found in facts.items()}
        gaps[NAMES.get(POPULAR, "most popular")] = [facts[next(iter(facts))][0][metric].get(POPULAR, {}).get(name)]
        worst = ", ".join(f"{label}: {found[0][metric][MODEL]['worst']}" for label, found in facts.items() if MODEL in found[0][metric])
        rows.append(Row("baseline", words, _figures(gaps), note=f"worst: {worst}" if worst else ""))
    half = {label: [fact[metric].get(POPULAR, {}).get("against_half") for fact in found] for label, found in facts.items()}
    rows.append(Row("baseline", "gap less half of most popular's", _figures(half), note="below 0: the gap is less than half as large"))
    put = f"groups of fewer than {LEAST_PEOPLE} people are put together; here: {first.document['groups'][prefix][column]['put_together']}"
    shown = list(dict.fromkeys(label for row in rows for label in row.figures))
    title = f"Quality by {column} ({metric}): {title_of(key, [first])}"
    return Table(title, shown, [row for row in rows if row.figures], protocol=[put])


def _figures(found: dict[str, list[Any]]) -> dict[str, Figure]:
    return {label: over_seeds(figures) for label, figures in found.items() if figures and None not in figures}
