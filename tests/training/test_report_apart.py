"""What a report keeps apart: other queries, other masks, other settings, and figures of a model that was trained anew since."""

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from tests.training.conftest import MakeToy
from towers.errors import DataError
from towers.model import TwoTower
from towers.model_config import HistoryConfig, ModelConfig
from towers.runtime import save_model
from training import ranking
from training.config import EvaluateConfig, TrainerConfig, TrainingConfig
from training.data_config import DataConfig, SplitConfig
from training.interactions import Interactions, write_prepared
from training.queries import make_queries, recommendable
from training.query_digest import query_digest
from training.report_results import Result
from training.report_tables import Table, make_tables


def evaluated(folder: Path, data: Interactions, seed: int = 0, dim: int = 8, **settings: Any) -> Result:
    """A run that was trained (with as little as that takes here) and evaluated by the job itself."""
    write_prepared(folder / "prepared", data)
    torch.manual_seed(seed)
    shape = ModelConfig(dim=dim, history=HistoryConfig(length=6))
    save_model(TwoTower(shape, data.preprocessor.inputs, data.preprocessor.event_rows), folder / "model")
    asked = EvaluateConfig(**{"ks": [5], "draws": 10, "slices": False, "baselines": ["most_popular"], "seen": "masked", **settings})
    ranking.run(
        TrainingConfig(
            run_dir=str(folder),
            seed=seed,
            data=DataConfig(name="table"),
            split=SplitConfig(name="leave_one_out"),
            evaluate=asked,
            trainer=TrainerConfig(device="cpu"),
        )
    )
    (folder / "train.json").write_text(json.dumps({"run": {"cpu_s": 60.0}}))
    (folder / "config").mkdir(exist_ok=True)
    kept = {"seed": seed, "run_dir": str(folder), "model": {"dim": dim}, "trainer": {"threads": seed}}
    (folder / "config" / "train.yaml").write_text(f"# towers train model.dim={dim} seed={seed}\n{json.dumps(kept)}\n")
    return Result.read(folder / "metrics.json")


def ours(table: Table) -> dict[str, int]:
    """Names of our rows, with their numbers of seeds."""
    return {row.name: row.seeds for row in table.rows if row.kind == "ours"}


def popular(table: Table) -> list[float]:
    return [row.figures["ndcg@5"].value for row in table.rows if row.name.startswith("most popular")]


def value_of(result: Result) -> float:
    figure: float = result.baselines["most_popular"]["test/ndcg@5"]["value"]
    return figure


def test_other_masks_are_another_table_with_its_own_baselines(make_toy: MakeToy, tmp_path: Path) -> None:
    data = make_toy()
    masked, unmasked = (evaluated(tmp_path / seen, data, seen=seen) for seen in ("masked", "unmasked"))
    assert value_of(masked) != value_of(unmasked)
    tables = make_tables([masked, unmasked], ["ndcg@5"])
    assert ["not masked" in table.title for table in tables] == [False, True]
    assert [popular(table) for table in tables] == [[value_of(masked)], [value_of(unmasked)]]


@pytest.mark.parametrize("settings", [{"unit": "user"}, {"max_queries": 20}, {"max_history": 9}])
def test_other_queries_are_another_table(make_toy: MakeToy, tmp_path: Path, settings: dict[str, Any]) -> None:
    data = make_toy()
    if "unit" in settings:  # a user of two answers
        data.split[data.offsets[1:] - 2] = data.split[data.offsets[1:] - 1]
    whole, part = evaluated(tmp_path / "whole", data), evaluated(tmp_path / "part", data, **settings)
    first, second = make_tables([whole, part], ["ndcg@5"])
    assert first.title != second.title
    assert (popular(first), popular(second)) == ([value_of(whole)], [value_of(part)])


def test_other_data_of_the_same_sizes_are_another_table(make_toy: MakeToy, tmp_path: Path) -> None:
    data = make_toy()
    moved = data.item.copy()
    moved[data.split == 2] = (moved[data.split == 2] + 1) % data.n_items
    first, second = make_tables([evaluated(tmp_path / "a", data), evaluated(tmp_path / "b", replace(data, item=moved))], ["ndcg@5"])
    assert first.title.endswith(f"queries of {tmp_path / 'a'}") and second.title.endswith(f"queries of {tmp_path / 'b'}")


def test_the_digest_of_queries_knows_them_by_what_they_ask(make_toy: MakeToy) -> None:
    data = make_toy()

    def digest(data: Interactions, split: str = "test", hidden: int | None = None) -> str:
        allowed_I = recommendable(data)
        if hidden is not None:
            allowed_I[hidden] = False
        return query_digest(make_queries(data, split, "auto", "leave_one_out"), allowed_I)

    order = np.random.default_rng(0).permutation(data.n_users)
    rows = np.concatenate([np.arange(data.offsets[user], data.offsets[user + 1]) for user in order])
    offsets = np.concatenate([[0], np.cumsum(np.diff(data.offsets)[order])])
    columns = {name: getattr(data, name)[rows] for name in ("item", "timestamp", "event", "weight", "split")}
    context = {name: values[rows] for name, values in data.context.items()}
    keyed_otherwise = replace(data, offsets=offsets, context=context, **columns)
    assert digest(keyed_otherwise) == digest(data), "keys order people"
    assert len({digest(data), digest(data, "valid"), digest(data, hidden=3)}) == 3


def test_only_runs_that_differ_in_their_seed_are_averaged(make_toy: MakeToy, tmp_path: Path) -> None:
    data = make_toy()
    runs = [evaluated(tmp_path / f"{dim}-{seed}", data, seed, dim) for dim, seed in ((2, 0), (8, 0), (8, 1))]
    (table,) = make_tables(runs, ["ndcg@5"])
    assert ours(table) == {"default (model.dim=2)": 1, "default (model.dim=8)": 2}
    assert [row.command for row in table.rows if row.kind == "ours"] == [f"towers train model.dim={dim} seed=0" for dim in (2, 8)]
    unknown = [replace(run, settings=None) for run in runs[1:]]
    assert ours(make_tables(unknown, ["ndcg@5"])[0]) == {f"default ({run.folder})": 1 for run in unknown}


def test_settings_that_cannot_be_read_are_named(make_toy: MakeToy, tmp_path: Path) -> None:
    evaluated(tmp_path, make_toy())
    (tmp_path / "config" / "train.yaml").write_text("{")
    with pytest.raises(DataError, match=r"train\.yaml: cannot be read as settings"):
        Result.read(tmp_path / "metrics.json")


def test_a_run_is_compared_with_the_baseline_beside_it(make_toy: MakeToy, tmp_path: Path) -> None:
    """A refitted run has counted validation rows too."""
    data = make_toy()
    plain = evaluated(tmp_path / "plain", data, 0, 2)
    evaluated(tmp_path / "refit", data, 0, 4)
    document = json.loads((tmp_path / "refit" / "metrics.json").read_text())
    document["baselines"]["most_popular"]["test/ndcg@5"]["value"] = 0.999
    (tmp_path / "refit" / "metrics.json").write_text(json.dumps(document))
    (table,) = make_tables([plain, Result.read(tmp_path / "refit" / "metrics.json")], ["ndcg@5"])
    assert popular(table) == [value_of(plain), 0.999]
    assert {row.name for row in table.rows if row.kind == "baseline"} == {
        "most popular (beside default (model.dim=2))",
        "most popular (beside default (model.dim=4))",
    }
    told = [line for line in table.loud if "0.9990" in line]
    assert len(told) == 1 and told[0].startswith("default (model.dim=4) IS BELOW")


def test_figures_of_an_earlier_model_are_called_stale(make_toy: MakeToy, tmp_path: Path) -> None:
    data = make_toy()
    run = evaluated(tmp_path / "run", data)
    assert not run.stale and run.command and run.cpu_s == 60.0
    evaluated(tmp_path / "again", data, seed=1)
    shutil.copytree(tmp_path / "again" / "model", tmp_path / "run" / "model", dirs_exist_ok=True)
    stale = Result.read(tmp_path / "run" / "metrics.json")
    (table,) = make_tables([stale, Result.read(tmp_path / "again" / "metrics.json")], ["ndcg@5"])
    row = next(row for row in table.rows if "STALE" in row.name)
    assert (row.command, row.cpu_minutes) == ("", None), "they are of another training"
    assert len(ours(table)) == 2 and any("IS STALE" in line and "`towers evaluate`" in line for line in table.loud)
    shutil.rmtree(tmp_path / "run" / "model")
    assert not Result.read(tmp_path / "run" / "metrics.json").stale, "moved without its model"
