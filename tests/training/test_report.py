"""The report: from real metrics.json files to tables, and from tables to Markdown and HTML."""

import json
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
import torch

from towers.errors import ConfigError, DataError
from towers.model import TwoTower
from towers.model_config import HistoryConfig, ModelConfig
from towers.runtime import save_model
from training import ranking, reporting
from training.config import EvaluateConfig, ReportConfig, TrainerConfig, TrainingConfig
from training.data_config import DataConfig, SplitConfig
from training.interactions import write_prepared
from training.metrics import PER_QUERY
from training.report_page import as_html, as_markdown
from training.report_results import Result
from training.report_tables import DATASETS, Figure, Row, Table, below, make_tables, read_published


@pytest.fixture(scope="module")
def runs(make_toy, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two seeds of one experiment, evaluated on a toy world by the job itself, masked and not; untrained, so below Markov."""
    root = tmp_path_factory.mktemp("runs")
    data = make_toy()
    for seed in (0, 1):
        folder = root / f"seed={seed}"
        write_prepared(folder / "prepared", data)
        torch.manual_seed(seed)
        shape = ModelConfig(dim=8, history=HistoryConfig(length=6))
        save_model(TwoTower(shape, data.preprocessor.inputs, data.preprocessor.event_rows), folder / "model")
        settings = EvaluateConfig(ks=[5, 10], draws=50, seen="both", slices=True)
        ranking.run(
            TrainingConfig(
                run_dir=str(folder),
                seed=seed,
                experiment="toy",
                data=DataConfig(name="table"),
                split=SplitConfig(name="leave_one_out"),
                evaluate=settings,
                trainer=TrainerConfig(device="cpu"),
            )
        )
        (folder / "train.json").write_text(json.dumps({"run": {"cpu_s": 60.0 * (seed + 1)}}))
        (folder / "config").mkdir()
        (folder / "config/train.yaml").write_text(f"# towers train experiment=toy seed={seed}\nseed: {seed}\n")
    return root


def documents(runs: Path) -> list[dict[str, Any]]:
    return [json.loads((runs / f"seed={seed}/metrics.json").read_text()) for seed in (0, 1)]


def test_seeds_share_a_row_and_baselines_stand_beside(runs: Path) -> None:
    masked, unmasked = make_tables([Result.read(path) for path in reporting.find([str(runs)])], [])
    assert ("seen items masked" in masked.title, "seen items not masked" in unmasked.title) == (True, True)
    ours = masked.rows[0]
    values = [document["metrics"]["test/masked/ndcg@10"] for document in documents(runs)]
    figure = ours.figures["ndcg@10"]
    assert (ours.name, ours.seeds, ours.cpu_minutes, ours.command) == ("toy", 2, 1.5, "towers train experiment=toy seed=0")
    assert figure.value == pytest.approx(sum(v["value"] for v in values) / 2)
    assert figure.low == pytest.approx(sum(v["ci95"][0] for v in values) / 2)
    assert figure.seeds == tuple(v["value"] for v in values)
    baselines = {row.name: row for row in masked.rows if row.kind == "baseline"}
    assert {"most popular", "own history", "recent popular", "Markov chain", "ItemKNN", "EASE"} == set(baselines)
    assert baselines["EASE"].figures["recall@10"].value == documents(runs)[0]["baselines"]["ease"]["test/masked/recall@10"]["value"]
    assert any(line.startswith("toy IS BELOW Markov chain: recall@10 ") for line in masked.loud)
    assert not [row for row in masked.rows if row.kind == "published"], "nobody has published on the toy world"


def test_the_same_seed_twice_is_no_repetition(runs: Path) -> None:
    result = Result.read(runs / "seed=0" / "metrics.json")
    rows = make_tables([result, result], ["ndcg@5"])[0].rows
    assert [row.seeds for row in rows if row.kind == "ours"] == [1]
    other = Result(Path("elsewhere"), result.document, None, "")
    names = [row.name for row in make_tables([result, other], ["ndcg@5"])[0].rows if row.kind == "ours"]
    assert len(names) == 2 and names[1] == "toy (elsewhere)"


def test_a_baseline_of_a_benchmark_is_read_from_its_file(runs: Path, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    (folder / "baselines").mkdir(parents=True)
    document = documents(runs)[0]
    (folder / "metrics.json").write_text(json.dumps(document))
    mine = {"test/masked/ndcg@10": {"value": 0.99, "ci95": [0.98, 1.0], "n": 60}}
    (folder / "baselines/als.json").write_text(json.dumps({"metrics": mine}))
    table = make_tables([Result.read(folder / "metrics.json")], ["ndcg@10"])[0]
    assert {row.name: row.figures["ndcg@10"].value for row in table.rows}["ALS (implicit)"] == 0.99
    assert any("IS BELOW ALS (implicit): ndcg@10" in line and "< 0.9900" in line for line in table.loud)


def test_published_figures_are_shown_where_the_protocol_is_theirs(runs: Path) -> None:
    document = documents(runs)[0]

    def shown(data: dict[str, Any], seen: str, prefix: str = "test") -> set[str]:
        metrics = {f"{prefix}/{m}@{k}": document["metrics"][f"test/masked/{m}@10"] for m in PER_QUERY for k in (10, 20)}
        whole = {**document, "data": data, "metrics": metrics, "baselines": {}, "protocol": [f"seen items: {seen}"]}
        return {row.name for row in make_tables([Result(Path("r"), whole, None, "")], [])[0].rows if row.kind == "published"}

    ml_1m = {"name": "ml_1m", "users": 6040, "items": 3416, "split": "leave_one_out"}
    assert {"first-order Markov", "gSASRec (dot product)"} <= shown(ml_1m, "masked (...)")
    assert "first-order Markov" not in shown(ml_1m, "not masked (...)"), "counted with seen items masked"
    assert "gSASRec (dot product)" in shown(ml_1m, "not masked (...)"), "its masking is not stated, and said so"
    assert shown({**ml_1m, "split": "global_temporal"}, "masked") == set()
    assert shown({**ml_1m, "items": 3706}, "masked") == set()
    assert shown(ml_1m, "masked", "valid") == set(), "nothing was published on a validation split"


def test_the_published_file_is_whole() -> None:
    rows = read_published()
    assert {(row["data"], int(row["users"]), int(row["items"])) for row in rows} == set(DATASETS)
    for row in rows:
        assert (
            row["source"] and row["method"] and row["dot_product"] in ("yes", "no") and row["seen"] in ("masked", "unmasked", "not stated")
        )
        values = [word.partition("=") for word in row["metrics"].split()]
        assert len(values) == 2 and all(name.partition("@")[0] in PER_QUERY and 0 < float(value) < 1 for name, _, value in values)


def test_nobody_is_below_the_truth() -> None:
    ours = Row("ours", "mine", {"ndcg@5": Figure(0.2)})
    assert below(ours, Row("baseline", "oracle", {"ndcg@5": Figure(0.3)}), ["ndcg@5"]) == ""
    assert below(ours, Row("baseline", "ease", {"ndcg@5": Figure(0.1)}), ["ndcg@5"]) == ""
    assert below(ours, Row("published", "x", {"ndcg@5": Figure(0.3)}), ["ndcg@5"]) == ""
    assert below(ours, Row("baseline", "ease", {"ndcg@5": Figure(0.3)}), ["ndcg@5"]) == "mine IS BELOW ease: ndcg@5 0.2000 < 0.3000"


class Tags(HTMLParser):
    """Collects what a page would load."""

    def __init__(self) -> None:
        super().__init__()
        self.loads: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.loads += [f"{tag} {name}" for name, _ in attrs if name in ("src", "href", "srcset")] + [tag] * (tag in ("script", "link"))


def test_the_job_writes_both_forms(runs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = TrainingConfig(run_dir=str(tmp_path / "report"), report=ReportConfig(runs=[str(runs / "seed=*")], metrics=["ndcg@5"]))
    assert reporting.run(config) == str(tmp_path / "report/report.md")
    text = (tmp_path / "report/report.md").read_text()
    assert text in capsys.readouterr().out
    value = sum(d["metrics"]["test/unmasked/ndcg@5"]["value"] for d in documents(runs)) / 2
    assert re.search(rf"\| \*\*toy\*\* \| {value:.4f} \[.*\] \(seeds .*\) \| 2 \| 1\.5 \| `towers train experiment=toy seed=0` \|", text)
    tables = [line for line in text.splitlines() if line.startswith("|")]
    assert len({line.count("|") for line in tables}) == 1, "every row has every column"
    page = (tmp_path / "report/report.html").read_text()
    tags = Tags()
    tags.feed(page)
    assert tags.loads == [] and "url(" not in page and f"{value:.4f}" in page and "IS BELOW" in page


def test_a_metric_that_no_run_has_is_named_with_those_that_there_are(runs: Path, tmp_path: Path) -> None:
    config = TrainingConfig(run_dir=str(tmp_path / "report"), report=ReportConfig(runs=[str(runs / "seed=*")], metrics=["ndgc@5"]))
    with pytest.raises(ConfigError, match=r"report.metrics: ndgc@5 was measured in no run; there are .*ndcg@5"):
        reporting.run(config)


def test_names_are_escaped() -> None:
    table = Table("<x>", ["ndcg@5"], [Row("ours", "<b>|", {"ndcg@5": Figure(0.2)}, command="towers train 'a|b'")])
    assert "<b>|" not in as_html([table]) and "&lt;b&gt;|" in as_html([table])
    assert "'a\\|b'" in as_markdown([table])


def test_what_is_not_there_is_said(tmp_path: Path) -> None:
    for pattern in (str(tmp_path / "none*"), str(tmp_path)):
        with pytest.raises(DataError, match=r"report\.runs: .* has no metrics.json"):
            reporting.find([pattern])
    (tmp_path / "metrics.json").write_text("{}")
    with pytest.raises(DataError, match="not written by `towers evaluate`"):
        Result.read(tmp_path / "metrics.json")
    (tmp_path / "metrics.json").write_text("[")
    with pytest.raises(DataError, match="cannot be read"):
        Result.read(tmp_path / "metrics.json")
