"""The work of `towers report`: find metrics.json files, read them, and write report.md and report.html. It reads files and nothing else."""

from collections.abc import Sequence
from pathlib import Path

from towers.errors import ConfigError, DataError
from training import sweep_report
from training.config import TrainingConfig
from training.report_page import as_html, as_markdown
from training.report_results import Result
from training.report_shown import shown_tables
from training.report_tables import make_tables

METRICS = "metrics.json"


def run(config: TrainingConfig) -> str:
    """Write the report of config.report.runs into run_dir, or that of its sweep; returns the path of the report.

    Raises:
        DataError: there is no such run, or it was not evaluated.
        ConfigError: a metric is asked for that no run has.
    """
    if config.sweep:
        return sweep_report.run(config)
    results = [Result.read(path) for path in find(config.report.runs)]
    measured = {name.rpartition("/")[2] for result in results for name in result.document["metrics"]}
    if unknown := [name for name in config.report.metrics if name not in measured]:
        raise ConfigError(f"report.metrics: {', '.join(unknown)} was measured in no run; there are {', '.join(sorted(measured))}")
    tables = [*make_tables(results, config.report.metrics), *shown_tables(results)]
    folder = Path(config.run_dir)
    folder.mkdir(parents=True, exist_ok=True)
    text = as_markdown(tables)
    (folder / "report.html").write_text(as_html(tables))
    (folder / "report.md").write_text(text)
    print(text)
    return str(folder / "report.md")


def find(patterns: Sequence[str]) -> list[Path]:
    """The metrics.json of each run, folder or pattern (`runs/*`); below a folder that is no run, all of its runs.

    Raises:
        DataError: one of them has none.
    """
    found: list[Path] = []
    for pattern in patterns:
        path = Path(pattern)
        anchor = Path(path.anchor or ".")
        matched = [path] if path.exists() else sorted(anchor.glob(str(path.relative_to(path.anchor))))
        files = [file for match in matched for file in _of(match)]
        if not files:
            raise DataError(
                f"report.runs: {pattern!r} has no {METRICS}. Name run folders, or a pattern of them, that `towers evaluate` ran in"
            )
        found += files
    return list(dict.fromkeys(found))


def _of(path: Path) -> list[Path]:
    if path.is_file():
        return [path] if path.name == METRICS else []
    return [path / METRICS] if (path / METRICS).is_file() else sorted(path.rglob(METRICS))
