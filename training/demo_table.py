"""The demo's summary of metrics.json: the model beside its baselines, with intervals."""

import json
from pathlib import Path
from typing import Any

MEASURES = ("recall", "ndcg", "hit_rate")


def show_metrics(run_dir: Path) -> None:
    """Print the model's and the baselines' main figures of run_dir/metrics.json."""
    document = json.loads((run_dir / "metrics.json").read_text())
    names = _main_names(document["metrics"])
    width = max(len(name) for name in document["baselines"]) if document["baselines"] else 5
    print("\nHow good the lists are (held-out interactions, all items ranked, 95 % intervals)")
    print("  " + " " * max(width, 5) + "".join(f"  {name:>26}" for name in names))
    rows: dict[str, Any] = {"model": document["metrics"], **document["baselines"]}
    for label, figures in rows.items():
        print(f"  {label:<{max(width, 5)}}" + "".join(f"  {_shown(figures.get(name)):>26}" for name in names))


def _main_names(metrics: dict[str, Any]) -> list[str]:
    """Whole-set figures of the main measures, at one cut-off each, seen items masked where both were measured."""
    whole = [n for n in metrics if n.count("/") == 1 or n.split("/")[1] == "masked"]
    plain = [n for n in whole if n.rsplit("/", 1)[-1].partition("@")[0] in MEASURES]
    cuts = sorted({int(n.partition("@")[2]) for n in plain})
    cut = 20 if 20 in cuts else cuts[0]
    return [n for n in plain if n.endswith(f"@{cut}")] + [n for n in plain if n.endswith("hit_rate@10") and cut != 10]


def _shown(figure: dict[str, Any] | None) -> str:
    if figure is None:
        return "-"
    low, high = figure["ci95"]
    return f"{figure['value']:.4f} [{low:.4f}, {high:.4f}]"
