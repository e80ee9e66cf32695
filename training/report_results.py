"""The runs of a report: read from their files, put together where they answer the same queries, averaged where only their seed differs."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from towers.bundle import sha256
from towers.errors import DataError
from towers.job import read_resolved
from training.facts import NOT_IN_HASH

_FITTED = ("half_from", "new_items")
"""Of the settings that do not change what is trained: those that change the model that is measured."""
_NAMED = 3


@dataclass(frozen=True)
class Result:
    """One evaluated run: metrics.json and what lies beside it (train.json, config/train.yaml, baselines/*.json, model/).

    Attributes:
        cpu_s, command: of the training; unknown for a stale result.
        extra: baselines measured beside it.
        settings: what it was trained with, by full name, but for its seed and places; None = unknown.
        seed: of the training.
        stale: metrics.json measured other weights than the run has now.
    """

    folder: Path
    document: Mapping[str, Any]
    cpu_s: float | None
    command: str
    extra: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    settings: Mapping[str, Any] | None = None
    seed: int | None = None
    stale: bool = False

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
        extra = {file.stem: json.loads(file.read_text())["metrics"] for file in sorted((folder / "baselines").glob("*.json"))}
        if _stale(folder, document):
            return cls(folder, document, None, "", extra, seed=document["run"]["seed"], stale=True)
        train, kept = folder / "train.json", folder / "config" / "train.yaml"
        cpu_s = json.loads(train.read_text())["run"].get("cpu_s") if train.is_file() else None
        first = kept.read_text().partition("\n")[0] if kept.is_file() else ""
        command = first.removeprefix("# ") if first.startswith("# towers ") else ""
        settings = _settings(kept) if kept.is_file() else None
        seed = (settings or {}).pop("seed", document["run"]["seed"])
        return cls(folder, document, cpu_s, command, extra, settings, seed)

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


class Key(NamedTuple):
    """What runs of one table have in common.

    Attributes:
        name, users, items, split: of the data.
        prefix: stands before the names of metrics.
        seen: how seen items are treated, in words.
        asked: what tells the queries: their digest; of a metrics.json that has none, its own words.
    """

    name: str
    users: int
    items: int
    split: str
    prefix: str
    seen: str
    asked: str


def grouped(results: Sequence[Result]) -> dict[Key, list[Result]]:
    """Results that may stand in one table: they answer the same queries under the same masks."""
    groups: dict[Key, list[Result]] = {}
    for result in results:
        data = result.document["data"]
        for prefix in result.prefixes():
            seen = masking(result, prefix)
            key = Key(data["name"], data["users"], data["items"], data["split"], prefix, seen, _asked(result.document))
            groups.setdefault(key, []).append(result)
    return groups


def masking(result: Result, prefix: str) -> str:
    """`seen items masked` or `seen items not masked`: said by the prefix, or by the protocol where only one form was measured."""
    lines = [line for line in result.document.get("protocol", []) if line.startswith("seen items:")]
    unmasked = prefix.endswith("/unmasked") or (not prefix.endswith("/masked") and any("not masked" in line for line in lines))
    return f"seen items {'not ' * unmasked}masked"


def question(result: Result) -> str:
    """How many queries of which kind, in words; empty where that is unknown."""
    asked = result.document.get("queries")
    if asked is None:
        return ""
    drawn = f" drawn by seed {asked['drawn_by']}" if asked.get("drawn_by") is not None else ""
    return f"{asked['count']:,} queries{drawn}, unit {asked['unit']}"


def by_experiment(results: Sequence[Result]) -> dict[str, list[Result]]:
    """Runs that share a row: of one experiment, trained with the same settings and another seed each. Other runs of its name are told apart
    by the settings that differ, or by their folder."""
    found: dict[str, list[list[Result]]] = {}
    for result in results:
        alike = found.setdefault(result.document["run"]["experiment"], [])
        for members in alike:
            if result.settings is not None and members[0].settings == result.settings:
                members.append(result)
                break
        else:
            alike.append([result])
    apart: dict[str, list[Result]] = {}
    for name, alike in found.items():
        rows = [row for members in alike for row in _repetitions(members)]
        if len(rows) == 1:
            apart[_label(name, rows[0])] = rows[0]
            continue
        told = [_differing(members, alike) for members in alike for _ in _repetitions(members)]
        for members, words in zip(rows, told, strict=True):
            clear = bool(words) and told.count(words) == 1 and not members[0].stale
            apart[_label(f"{name} ({words if clear else members[0].folder})", members)] = members
    return apart


def _repetitions(members: list[Result]) -> list[list[Result]]:
    """Of equal settings; where two have the same seed they are no repetition, and each goes by itself."""
    seeds = {member.seed for member in members}
    return [members] if len(seeds) == len(members) else [[member] for member in dict((m.folder, m) for m in members).values()]


def _label(name: str, members: Sequence[Result]) -> str:
    return f"{name}, STALE" if members[0].stale else name


def _differing(members: Sequence[Result], alike: Sequence[Sequence[Result]]) -> str:
    """The settings in which runs of one experiment differ, as these have them; empty where they are unknown, or too many to name."""
    known = [one[0].settings for one in alike]
    mine = members[0].settings
    if mine is None or None in known:
        return ""
    names = sorted({name for one in known if one is not None for name in {*one, *mine} if one.get(name) != mine.get(name)})
    return ", ".join(f"{name}={mine.get(name)}" for name in names) if len(names) <= _NAMED else ""


def _asked(document: Mapping[str, Any]) -> str:
    if "queries" in document:
        return str(document["queries"]["sha256"])
    # before queries had a digest: what tells as much of them as can be told, without the model's own history length
    data, lines = document["data"], document.get("protocol", [])
    lines = [line for line in lines if line.startswith(("ranking:", "split:", "unit "))]
    told = [line.partition(";")[0] if line.startswith("unit ") else line for line in lines]
    return json.dumps([data.get("rows"), data.get("split_rows"), told])


def _stale(folder: Path, document: Mapping[str, Any]) -> bool:
    """Whether it is known that other weights were measured; a result that was moved without its model is taken as it is."""
    measured, weights = document["run"].get("weights_sha256"), folder / "model" / "weights.safetensors"
    return measured is not None and weights.is_file() and sha256(weights) != measured


def _settings(kept: Path) -> dict[str, Any]:
    """Settings that decide a model, by full name, its seed among them."""
    settings = read_resolved(kept)
    flat: dict[str, Any] = {}

    def walk(prefix: str, section: Mapping[Any, Any]) -> None:
        for name, value in section.items():
            if not prefix and name in NOT_IN_HASH[""]:
                continue
            if name in NOT_IN_HASH.get(prefix.rstrip("."), ()) and name not in _FITTED:
                continue
            if isinstance(value, dict):
                walk(f"{prefix}{name}.", value)
            else:
                flat[f"{prefix}{name}"] = value

    walk("", settings)
    return flat
