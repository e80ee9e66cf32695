"""The console's view of metrics.json: model and baselines side by side, then slices, protocol and warnings."""

import sys
from collections.abc import Sequence
from typing import Any

from training.protocol import LOUD, loud_block


def print_result(document: dict[str, Any], prefixes: Sequence[str], ks: Sequence[int]) -> None:
    """Print the result; a model below baselines is told on standard error, so that a log of errors alone has it."""
    for prefix in prefixes:
        print(
            "\n".join(["", *main_table(document, prefix), "", *paired_table(document, prefix, ks), "", *slice_table(document, prefix, ks)])
        )
    print("protocol")
    print("\n".join(f"  {line}" for line in document["protocol"]))
    for warning in document["warnings"]:
        if not warning.startswith(LOUD):
            print(f"note: {warning}", flush=True)
    if loud := loud_block(document):
        print("\n".join(loud), file=sys.stderr, flush=True)


def main_table(document: dict[str, Any], prefix: str) -> list[str]:
    """One line a metric, one column for the model and each baseline, with 95 % intervals."""
    names = [n for n in document["metrics"] if n.startswith(prefix + "/") and "/" not in n[len(prefix) + 1 :]]
    rows = {"model": document["metrics"], **document["baselines"]}
    wide = max(16, *(len(name) - len(prefix) + 1 for name in names))
    lines = [f"{prefix:<{wide}}" + "".join(f"{label:>26}" for label in rows)]
    for name in names:
        lines.append(f"{name[len(prefix) + 1 :]:<{wide}}" + "".join(f"{cell(figures.get(name)):>26}" for figures in rows.values()))
    return lines


def paired_table(document: dict[str, Any], prefix: str, ks: Sequence[int]) -> list[str]:
    """The model's lead over each baseline in NDCG at the middle cut-off, paired by query."""
    name = f"{prefix}/ndcg@{ks[len(ks) // 2]}"
    lines = []
    for baseline, differences in document["paired"].items():
        difference, (low, high) = differences[name]["difference"], differences[name]["ci95"]
        sure = "" if low > 0 or high < 0 else "  (zero lies inside: no sure difference)"
        lines.append(f"{name}: model - {baseline:<16} {difference:+.4f} [{low:+.4f}, {high:+.4f}]{sure}")
    return lines


def slice_table(document: dict[str, Any], prefix: str, ks: Sequence[int]) -> list[str]:
    """The model's recall and NDCG at the middle cut-off, one line a slice."""
    k = ks[len(ks) // 2]
    found = [n.removesuffix(f"/ndcg@{k}") for n in document["metrics"] if n.startswith(prefix + "/") and n.endswith(f"/ndcg@{k}")]
    parts = [n for n in found if n != prefix]
    if not parts:
        return []
    wide = max(28, *(len(part) - len(prefix) + 1 for part in parts))
    lines = [f"{'slice of the model':<{wide}}{f'recall@{k}':>26}{f'ndcg@{k}':>26}{'queries':>12}"]
    for part in parts:
        recall, ndcg = document["metrics"][f"{part}/recall@{k}"], document["metrics"][f"{part}/ndcg@{k}"]
        lines.append(f"{part[len(prefix) + 1 :]:<{wide}}{cell(recall):>26}{cell(ndcg):>26}{ndcg['n']:>12}")
    return [*lines, ""]


def cell(figure: dict[str, Any] | None) -> str:
    """`0.1234 [0.1200, 0.1268]`; coverage has no interval."""
    if figure is None:
        return "-"
    if figure["ci95"] is None:
        return f"{figure['value']:.4f}"
    low, high = figure["ci95"]
    return f"{figure['value']:.4f} [{low:.4f}, {high:.4f}]"
