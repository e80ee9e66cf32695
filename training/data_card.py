"""What prepare found, for machines (prepare.json) and for people (data_card.md)."""

from collections.abc import Iterable
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

import numpy as np

from towers.columns import REMOVAL, SPLIT_NAMES
from training.assemble import Kept
from training.catalogue import Catalogue
from training.config import TrainingConfig
from training.divide import Division
from training.ingest import Ingested
from training.people import People
from training.permission import FORGOTTEN, NOT_ALLOWED, TOO_OLD
from training.sources.base import SourceTables

PASSED_OVER = {NOT_ALLOWED: "of users who did not grant `train`", FORGOTTEN: "of users who are forgotten", TOO_OLD: "older than is kept"}
LENGTH_QUANTILES = (0.0, 0.1, 0.25, 0.5, 0.75, 0.9, 0.99, 1.0)
TOP_EVENTS = 10


@dataclass(frozen=True)
class Stages:
    """What each stage of prepare leaves to tell.

    Attributes:
        events: rows by event type.
        times: first and last time, microseconds UTC; None without times.
        duplicates: rows dropped because an earlier one says the same.
        taken_out: rows that users took out of their histories, and those that say so.
    """

    source: SourceTables
    split: str
    log: Ingested
    duplicates: int
    taken_out: int
    items: Catalogue
    kept: Kept
    division: Division
    people: People
    events: dict[str, int]
    times: tuple[int, int] | None


def data_facts(stages: Stages) -> dict[str, Any]:
    """The `data`, `rejected` and `dropped` sections of prepare.json; plain numbers and ISO 8601 times."""
    log, kept, division = stages.log, stages.kept, stages.division
    sides = {name: int(count) for name, count in zip(SPLIT_NAMES, division.rows, strict=True)}
    data: dict[str, Any] = {
        "name": stages.source.name,
        "users": kept.users,
        "items": len(stages.items.ids),
        "rows": kept.rows,
        "split": {"name": stages.split, **sides},
        "targets": {name: int(count) for name, count in zip(SPLIT_NAMES, division.targets, strict=True)},
        "users_with_targets": {name: int(count) for name, count in zip(SPLIT_NAMES, division.users, strict=True)},
        "trained_items": int(np.count_nonzero(division.train_items)),
        "rows_read": log.rows,
        "duplicates": stages.duplicates,
        "rows_removed_by_users": stages.taken_out,
        **{f"rows_{reason}": log.passed_over[reason] for reason in (NOT_ALLOWED, FORGOTTEN, TOO_OLD)},
        "rows_ahead_of_clock": log.rows_ahead,
        "greatest_lead_s": round(log.lead_us / 1e6),
        "rows_below_least_events": kept.rows_filtered,
        "users_left_out": kept.users_read - kept.users,
        "event_types": {name: count for name, count in stages.events.items() if name != REMOVAL},
        "history_length": history_quantiles(stages),
        "schema_hash": stages.source.schema.hash(),
    }
    if stages.times:
        data["first_time"], data["last_time"] = map(iso, stages.times)
    if division.cuts:
        data["split"]["valid_from"], data["split"]["test_from"] = map(iso, division.cuts)
    return {
        "data": data,
        "rejected": {"rows": log.rejects.counts.total(), "reasons": dict(log.rejects.counts.most_common())},
        "dropped_columns": dict(log.dropped),
        "items": stages.items.counts,
        "users": stages.people.counts,
        "missing_values": missing_values(stages),
        "notes": dict(stages.source.notes),
    }


def data_card(stages: Stages, config: TrainingConfig) -> str:
    """The data card, Markdown."""
    facts = data_facts(stages)
    data = facts["data"]
    sizes = ("users", "items", "trained_items", "rows")
    parts = [
        f"# Data card: {data['name']}",
        "\n".join(f"- **Warning:** {warning}." for warning in warnings(stages)),
        _table(("", "count"), [(name.replace("_", " "), data[name]) for name in sizes]),
        f"Times: {data['first_time']} to {data['last_time']}." if stages.times else "The log has no times.",
        *_split_words(stages, data),
        "## What was left out",
        *_left_out_words(stages, facts, config),
        "## Events",
        _table(("event type", "interactions"), sorted(data["event_types"].items(), key=lambda pair: -pair[1])[:TOP_EVENTS]),
        "## History length",
        _table(("quantile", "interactions of a user"), data["history_length"].items()),
        "## Items and users",
        _table(("items", "count"), facts["items"].items()),
        _table(("users", "count"), facts["users"].items()),
        "## Source",
        "\n".join(f"- {name}: {text}" for name, text in facts["notes"].items()) or "No notes.",
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


def history_quantiles(stages: Stages) -> dict[str, int]:
    """Interactions of a user at some quantiles (lower ones, so they are counts that occur)."""
    lengths = np.diff(stages.kept.offsets)
    found = np.quantile(lengths, LENGTH_QUANTILES, method="lower")
    return {f"{quantile:.0%}": int(length) for quantile, length in zip(LENGTH_QUANTILES, found, strict=True)}


def missing_values(stages: Stages) -> dict[str, int]:
    """Values that are missing, by feature: not there, or not finite; of items and users those of the catalogue and of the log."""
    found = {column.feature.input_name: column.missing for column in stages.log.context}
    found |= {f"item.{name}": count for name, count in stages.items.missing.items()}
    found |= {f"user.{name}": count for name, count in stages.people.missing.items()}
    return {name: count for name, count in found.items() if count}


def warnings(stages: Stages) -> list[str]:
    """What is likelier a mistake than meant, in a sentence each."""
    log = stages.log
    rows = log.rows - log.rejects.counts.total() - log.passed_over.total()
    empty = [column.feature.name for column in log.context if column.missing >= rows]
    empty += [name for side in (stages.items, stages.people) for name, column in side.values.items() if column.null_count == len(column)]
    found = [] if stages.items.coverage is None else [stages.items.coverage.warning()]
    found += [f"data.features: {name!r} has not one value, so nothing is learned from it" for name in empty]
    return [warning for warning in found if warning]


def iso(time_us: int) -> str:
    """`2026-01-31T12:00:00Z`, of microseconds UTC."""
    return datetime.fromtimestamp(time_us // 1_000_000, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def _split_words(stages: Stages, data: dict[str, Any]) -> list[str]:
    split, note = data["split"], stages.division.note
    cuts = f": validation from {split['valid_from']}, test from {split['test_from']}" if "test_from" in split else ""
    counts = [(name, split[name], data["targets"][name], data["users_with_targets"][name]) for name in SPLIT_NAMES]
    return [
        "## Split",
        f"`{split['name']}`{cuts}." + (f" {note[0].upper()}{note[1:]}." if note else ""),
        _table(("side", "interactions", "targets", "users with targets"), counts),
        "Targets are interactions of weight above 0; the others stand in histories only."
        " Vocabularies and statistics come from training rows.",
    ]


def _left_out_words(stages: Stages, facts: dict[str, Any], config: TrainingConfig) -> list[str]:
    data, rejects = facts["data"], stages.log.rejects
    least = f"users below {config.data.min_user_events} or items below {config.data.min_item_events} interactions"
    rows = [
        ("read", data["rows_read"]),
        ("rejected", facts["rejected"]["rows"]),
        *[(words, data[f"rows_{reason}"]) for reason, words in PASSED_OVER.items() if data[f"rows_{reason}"]],
        ("duplicates", data["duplicates"]),
        *[("removed from their histories by users", count) for count in (data["rows_removed_by_users"],) if count],
        (least, data["rows_below_least_events"]),
        ("kept", data["rows"]),
    ]
    examples = [f"- {reason}: {count:,}, as {'; '.join(rejects.examples[reason])}" for reason, count in rejects.counts.most_common()]
    return [
        _table(("", "rows"), rows),
        "Rejected rows, all of them in `rejected.parquet`:" if examples else "",
        "\n".join(examples),
        _listed("Columns that no declaration uses, and rows with a value in them", facts["dropped_columns"]),
        _listed("Values that were not finite or not there, and count as missing", facts["missing_values"]),
    ]


def _listed(title: str, counts: dict[str, int]) -> str:
    return f"{title}: " + ", ".join(f"{name} ({count:,})" for name, count in counts.items()) + "." if counts else ""


def _table(header: tuple[str, ...], rows: Iterable[tuple[Any, ...]]) -> str:
    lines = ["| " + " | ".join(header) + " |", "|---" * len(header) + "|"]
    lines += ["| " + " | ".join(f"{cell:,}" if isinstance(cell, int) else str(cell) for cell in row) + " |" for row in rows]
    return "\n".join(lines)
