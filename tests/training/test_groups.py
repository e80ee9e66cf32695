"""Groups of people: who is in them, none of fewer than fifty, and gaps with intervals; through `towers evaluate` too."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from towers.errors import ConfigError
from towers.model import TwoTower
from towers.model_config import HistoryConfig, ModelConfig
from towers.runtime import save_model
from training import ranking
from training.config import EvaluateConfig, TrainingConfig
from training.data_config import DataConfig, SplitConfig
from training.groups import LEAST_PEOPLE, OTHERS, TASTE, Grouping, gaps, make_groupings, tastes
from training.interactions import Interactions, write_prepared
from training.measure import Measured
from training.people import AUDIT
from training.report_page import as_html, as_markdown
from training.report_results import Result
from training.report_shown import shown_tables

QUERIES_EACH = 2


class People:
    """Enough of prepared data to find users in an audit table."""

    def __init__(self, count: int) -> None:
        self.user_keys = np.random.default_rng(0).integers(0, 256, (count, 16), np.uint8)
        self.n_users = count


def write_audit(folder: Path, people: Any, values: list[str | None], known: int | None = None) -> Path:
    keys = [key.tobytes() for key in people.user_keys]
    table = pa.table({"user_key": pa.array(keys, pa.binary(16)), "region": pa.array(values, pa.string())})
    pq.write_table(table.take(np.random.default_rng(1).permutation(len(keys))[:known]), folder / AUDIT)
    return folder / AUDIT


def grouping_of(folder: Path, sizes: dict[str | None, int]) -> Grouping:
    values = [name for name, size in sizes.items() for _ in range(size)]
    people: Any = People(len(values))
    user_Q = np.repeat(np.arange(len(values)), QUERIES_EACH)
    (found,) = make_groupings(["region"], write_audit(folder, people, values), people, user_Q)
    assert len(found.group_Q) == len(user_Q)
    return found


@pytest.mark.parametrize(
    ("sizes", "expected"),
    [
        ({"a": 60, "b": 50}, {"a": 60, "b": 50}),
        ({"a": 60, "b": 49, "c": 1, "d": 90}, {"a": 60, "d": 90, OTHERS: 50}),
        ({"a": 60, "b": 49, "d": 90}, {"d": 90, OTHERS: 109}),  # b's figure would follow from everybody's and the others'
        ({"a": 60, "b": 3}, {OTHERS: 63}),
        ({"a": 20, "b": 3}, {}),
        ({"a": 60, None: 50}, {"a": 60}),
        ({"a": 60, "b": 90, None: 3}, {"b": 90, OTHERS: 63}),  # theirs would follow from everybody's, a's and b's
    ],
)
def test_nobody_is_in_a_group_of_fewer_than_fifty(tmp_path: Path, sizes: dict[str | None, int], expected: dict[str, int]) -> None:
    found = grouping_of(tmp_path, sizes)
    assert dict(zip(found.names, found.people_N.tolist(), strict=True)) == expected
    assert all(size >= LEAST_PEOPLE for size in expected.values())
    counts = np.bincount(found.group_Q[found.group_Q >= 0], minlength=len(expected)) // QUERIES_EACH
    assert counts.tolist() == found.people_N.tolist()


def test_people_find_their_own_row(tmp_path: Path) -> None:
    values = [f"r{n % 3}" for n in range(300)]
    people: Any = People(300)
    (found,) = make_groupings(["region"], write_audit(tmp_path, people, values, known=240), people, np.arange(300))
    named = [found.names[g] for g in found.group_Q if g >= 0]
    assert len(named) == 240 and named == [v for v, g in zip(values, found.group_Q, strict=True) if g >= 0]


def test_figures_of_groups_are_those_of_their_queries_alone(tmp_path: Path) -> None:
    found = grouping_of(tmp_path, {"a": 50, "b": 70})
    values_Q = np.random.default_rng(0).random(240)
    columns = found.columns(Measured({"test/ndcg@5": values_Q}, {}), "test", ["ndcg@5"])
    assert set(columns) == {"test/group=region:a/ndcg@5", "test/group=region:b/ndcg@5"}
    assert np.nanmean(columns["test/group=region:a/ndcg@5"]) == pytest.approx(values_Q[:100].mean())


def test_gaps_and_what_the_model_does_to_them(tmp_path: Path) -> None:
    """The model halves a gap that the most popular items have, and its interval says so; the other way round it does not."""
    found = grouping_of(tmp_path, {"a": 200, "b": 200, "c": 200})
    user_Q, rng = np.repeat(np.arange(600), QUERIES_EACH), np.random.default_rng(0)
    level_Q = np.array([0.0, 0.0, 1.0])[found.group_Q]
    fair, unfair = 0.5 + 0.02 * level_Q + rng.normal(0, 0.05, 1200), 0.5 - 0.2 * level_Q + rng.normal(0, 0.05, 1200)
    told = gaps(found, {"model": fair, "most_popular": unfair}, user_Q, 400, 0)
    assert told["model"]["worst"] in ("a", "b") and told["most_popular"]["worst"] == "c"
    groups = [unfair[found.group_Q == n].mean() for n in range(3)]
    expected = (max(groups) - min(groups)) / unfair.mean()
    gap = told["most_popular"]["gap"]
    assert gap["value"] == pytest.approx(expected) and gap["ci95"][0] < expected < gap["ci95"][1] < 0.5
    assert told["most_popular"]["worst_to_mean"]["value"] == pytest.approx(min(groups) / unfair.mean())
    half = told["most_popular"]["against_half"]
    assert half["value"] == pytest.approx(told["model"]["gap"]["value"] - expected / 2) and half["ci95"][1] < 0
    assert gaps(found, {"model": unfair, "most_popular": fair}, user_Q, 400, 0)["most_popular"]["against_half"]["ci95"][0] > 0
    assert gaps(found, {"model": np.zeros(1200)}, user_Q, 10, 0) == {}, "a share of nothing"


def test_a_column_that_is_not_there_is_refused(tmp_path: Path) -> None:
    people: Any = People(60)
    with pytest.raises(ConfigError, match="audit table"):
        make_groupings(["region"], tmp_path / AUDIT, people, np.arange(60))
    with pytest.raises(ConfigError, match="there are region, taste"):
        make_groupings(["gender"], write_audit(tmp_path, people, ["a"] * 60), people, np.arange(60))


def test_tastes_are_thirds_by_popularity(make_toy: Any) -> None:
    data = make_toy()
    labels, log_I = tastes(data), np.log1p(data.train_counts())
    means = {}
    for user in range(data.n_users):
        rows = slice(data.offsets[user], data.offsets[user + 1])
        train = (data.split[rows] == 0) & (data.weight[rows] > 0)
        means.setdefault(labels[user], []).append(log_I[data.item[rows][train]].mean() if train.any() else np.nan)
    assert max(means["niche"]) <= min(means["middle"]) and max(means["middle"]) <= min(means["mainstream"])
    assert max(map(len, (means[n] for n in ("niche", "middle", "mainstream")))) - min(len(means[n]) for n in ("niche", "mainstream")) <= 1


@pytest.fixture(scope="module")
def evaluated(make_toy: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The metrics.json of a run on a world of 150 people in two regions."""
    folder = tmp_path_factory.mktemp("run")
    data: Interactions = make_toy(users=150)
    data = replace(data, user_keys=np.arange(150, dtype=">u8").repeat(2).view(np.uint8).reshape(150, 16))
    write_prepared(folder / "prepared", data)
    model = TwoTower(ModelConfig(dim=8, history=HistoryConfig(length=6)), data.preprocessor.inputs, data.preprocessor.event_rows)
    save_model(model, folder / "model")
    write_audit(folder, data, [("x", "y")[n % 2] for n in range(data.n_users)])
    asked = EvaluateConfig(ks=[5, 10], draws=50, seen="unmasked", exposure=True, groups=["region", TASTE])
    config = TrainingConfig(run_dir=str(folder), data=DataConfig(name="table"), split=SplitConfig(name="leave_one_out"), evaluate=asked)
    return Path(ranking.run(config))


def test_evaluate_tells_what_is_shown_and_to_whom(evaluated: Path) -> None:
    document = json.loads(evaluated.read_text())
    groups = document["groups"]["test"]
    assert groups["region"]["people"] == {"x": 75, "y": 75} and groups[TASTE]["people"] == {"mainstream": 50, "middle": 50, "niche": 50}
    assert set(groups["region"]["ndcg@10"]) == {"model", "most_popular"}
    assert document["baselines"]["most_popular"]["test/group=region:x/ndcg@5"]["n"] == 75
    assert document["metrics"]["test/gini@5"]["ci95"] is None and 0 <= document["metrics"]["test/gini@5"]["value"] <= 1
    shown = document["baselines"]["most_popular"]["test/average_popularity@5"]["value"]
    assert shown > document["metrics"]["test/average_popularity@5"]["value"], "nothing is more popular than the most popular"
    calibrated = document["metrics"]["test/c_kl@5"]
    assert calibrated["n"] == 150 and calibrated["ci95"][0] > 0 and "test/ild@10" in document["paired"]["markov"]


def test_the_report_sets_groups_and_exposure_beside_popularitys(evaluated: Path) -> None:
    result = Result.read(evaluated)
    shown, by_region, by_taste = shown_tables([result])
    document = result.document
    ours, popular = shown.rows[0], next(row for row in shown.rows if row.name == "most popular")
    assert shown.title.startswith("What is shown: table: 150 users") and ours.name == "default"
    assert ours.figures["c_kl@10"].low == document["metrics"]["test/c_kl@10"]["ci95"][0]
    assert (
        popular.figures["gini@10"].value == document["baselines"]["most_popular"]["test/gini@10"]["value"] > ours.figures["gini@10"].value
    )
    assert [row.name for row in by_region.rows[:3]] == ["x (75 people)", "y (75 people)", "gap: (best - worst) / mean"]
    gaps = document["groups"]["test"]["region"]["ndcg@10"]
    found = {row.name: row for row in by_region.rows}
    assert found["gap: (best - worst) / mean"].figures["most popular"].value == gaps["most_popular"]["gap"]["value"]
    assert found["worst / mean"].figures["default"].value == gaps["model"]["worst_to_mean"]["value"]
    assert found["worst / mean"].note == f"worst: default: {gaps['model']['worst']}"
    assert list(found["gap less half of most popular's"].figures) == ["default"]
    assert by_taste.metrics[0] == "default" and "most popular" in by_taste.metrics
    text = as_markdown([shown, by_region]) + as_html([shown, by_region])
    assert text.count("x (75 people)") == 2 and "width:-" not in text


def test_runs_that_were_not_asked_have_no_such_tables(evaluated: Path) -> None:
    result = Result.read(evaluated)
    plain = {name: figure for name, figure in result.document["metrics"].items() if "gini" not in name}
    assert shown_tables([replace(result, document={**result.document, "metrics": plain, "groups": {}})]) == []
