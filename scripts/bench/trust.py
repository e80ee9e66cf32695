"""Trust in one table: what selections, reasons, consent and erasure promise, measured.

    TOWERS_DATA_DIR=... python scripts/bench/trust.py [--quick] [--only selector] [--runs FOLDER]

Each part is a module of its own (trust_<part>.py), whose docstring says how it measures; it gives figures by name.
"""

import argparse
import tempfile
from collections.abc import Callable
from pathlib import Path

from report import finish, say
from trust_discovery import discovery
from trust_reasons import reasons
from trust_rights import rights
from trust_selector import selector

PARTS: dict[str, Callable[[Path, bool], dict[str, float]]] = {
    "selector": selector, "reasons": reasons, "rights": rights, "discovery": discovery,
}  # fmt: skip
"""By name: from a folder for what a part makes, and whether it shall be quick, to its figures."""

GOALS = {
    "completeness_error": "<= 1e-5",
    "deletion_ratio_pooled": ">= 5",
    "deletion_ratio_pooled_sets": ">= 5",
    "deletion_ratio_transformer": ">= 5",
    "residual_bytes": "0",
    "denied_rows": "0",
    "added_p50_ms": "<= 0.4",
    "added_p99_ms": "<= 1.0",
    "propensity_sum_error": "<= 1e-9",
    "shown_ratio_reach_1": ">= 1.5",
    "clicks_change_reach_1": ">= -0.02",
    "draws_chi_square_p": ">= 0.01",
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="the same in less than a minute a part")
    parser.add_argument("--only", choices=[*PARTS], nargs="+", default=[*PARTS], help="some parts alone")
    parser.add_argument("--runs", type=Path, help="where what the parts make is kept for the next time")
    asked = parser.parse_args()
    figures: dict[str, float] = {}
    with tempfile.TemporaryDirectory() as scratch:
        for part in asked.only:
            say(f"trust: {part}")
            figures |= PARTS[part](asked.runs or Path(scratch), asked.quick)
    rows = [("what", "measured", "to reach")]
    rows += [(name, f"{value:.3g}", GOALS.get(name, "")) for name, value in sorted(figures.items(), key=lambda pair: pair[0] not in GOALS)]
    ratios = {name: value for name, value in figures.items() if name.startswith("deletion_ratio")}
    finish("trust", rows, ratios, figures)


if __name__ == "__main__":
    main()
