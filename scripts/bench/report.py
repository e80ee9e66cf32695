"""What every benchmark prints: a table for people and, as its last line, one JSON document."""

import json
import platform
import sys
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from pathlib import Path

PACKAGES = ("torch", "numpy", "pyarrow")


def say(line: str) -> None:
    """Progress, on standard error."""
    print(line, file=sys.stderr, flush=True)


def table(rows: Sequence[Sequence[str]]) -> str:
    """Columns as wide as they need, the first row a head.

    >>> print(table([("what", "s"), ("floor", "0.45")]))
    what   s
    floor  0.45
    """
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    return "\n".join("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows)


def finish(
    benchmark: str,
    rows: Sequence[Sequence[str]],
    ratios: Mapping[str, float],
    figures: Mapping[str, float],
    packages: Sequence[str] = (),
) -> None:
    """Print the table and the document; `packages` are those whose versions matter besides the usual ones."""
    document = {
        "benchmark": benchmark,
        "machine": machine(),
        "versions": {"python": platform.python_version(), **{name: version(name) for name in (*PACKAGES, *packages)}},
        "ratios": {name: rounded(value) for name, value in ratios.items()},
        "figures": {name: rounded(value) for name, value in figures.items()},
    }
    print(table(rows))
    print(json.dumps(document))


def rounded(value: float) -> float:
    """To four places, and what is smaller to four digits: an error of 1e-7 is not none.

    >>> rounded(12.34567), rounded(2.345678e-7), rounded(3)
    (12.3457, 2.346e-07, 3)
    """
    return round(value, 4) if abs(value) >= 1e-3 or not value else float(f"{value:.4g}")


def machine() -> str:
    """The processor's name and how many of its cores are here."""
    cores = 0
    name = platform.processor() or platform.machine()
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.is_file():
        for line in cpuinfo.read_text().splitlines():
            key, _, value = line.partition(":")
            cores += key.strip() == "processor"
            name = value.strip() if key.strip() == "model name" else name
    return f"{name}, {cores} cores" if cores else name
