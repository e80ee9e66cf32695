"""What a model has learned from, and whether rows that validate another one were among it."""

import json
from dataclasses import replace

import numpy as np
import pytest

from towers.bundle import publish
from towers.columns import NO_TIME, TEST, TRAIN, VALID
from towers.errors import ConfigError
from towers.model_config import HistoryConfig, ModelConfig
from training import fit, ranking
from training.ancestry import Learned
from training.bundle_parts import bundle_facts
from training.config import EvaluateConfig, TrainerConfig, TrainingConfig
from training.interactions import Interactions, write_prepared

LATER = 1_000_000_000_000


def made(data, name, split=None):
    return replace(data, facts={"data": {"made": name, "split": {"name": split} if split else {}}})


@pytest.fixture
def train(tmp_path):
    def train(name, data, start=None, **trainer):
        config = TrainingConfig(
            run_dir=str(tmp_path / name),
            model=ModelConfig(dim=8, history=HistoryConfig(length=6)),
            trainer=TrainerConfig(epochs=1, threads=1, device="cpu", init_from=start and str(start), **trainer),
        )
        write_prepared(tmp_path / name / "prepared", data)
        fit.run(config)
        return config

    return train


def told(tmp_path, name):
    return json.loads((tmp_path / name / "train.json").read_text())["learned"]


def test_a_start_that_was_refitted_on_the_same_split_is_warned_of_and_not_validated(train, make_toy, tmp_path, capfd):
    data = made(make_toy(), "one")
    train("plain", data)
    train("own", data, tmp_path / "plain")
    assert "WARNING" not in capfd.readouterr().err and not told(tmp_path, "own")["validation"]
    base = train("base", data, refit=True)
    config = train("warm", data, tmp_path / "base")
    assert f"WARNING: {tmp_path / 'base'} HAS LEARNED FROM ROWS THAT VALIDATE HERE" in capfd.readouterr().err
    train("third", data, tmp_path / "warm", refit=True)
    assert capfd.readouterr().err.count("WARNING") == 1, "it is handed on, and said once"
    assert told(tmp_path, "third")["validation"]
    config.evaluate = EvaluateConfig(split="valid", draws=10)
    with pytest.raises(ConfigError, match=r"evaluate\.split: .*warm started from .*base \(trainer\.init_from\), which had learned from"):
        ranking.run(config)
    config.evaluate = EvaluateConfig(ks=[5], baselines=[], draws=10)
    ranking.run(config)
    protocol = json.loads((tmp_path / "warm" / "metrics.json").read_text())["protocol"]
    assert any(line.startswith(f"start: {base.run_dir}, which had learned from rows that validate here") for line in protocol)


def test_a_run_that_goes_on_after_its_start_is_gone_knows_of_it(train, make_toy, tmp_path):
    data = made(make_toy(), "one")
    train("base", data, refit=True)
    train("warm", data, tmp_path / "base")
    before = told(tmp_path, "warm")
    (tmp_path / "base").rename(tmp_path / "moved")
    (tmp_path / "warm" / "train.json").unlink()
    train("warm", data, tmp_path / "base")
    assert told(tmp_path, "warm") == before and before["validation"]


def test_a_bundle_tells_what_its_model_has_learned_from(train, make_toy, tmp_path, capfd):
    data = made(make_toy(), "one")
    config = train("base", data, refit=True)
    run_dir = tmp_path / "base"
    files = {p.relative_to(run_dir / "prepared").as_posix(): p for p in (run_dir / "prepared").rglob("*") if p.is_file()}
    files |= {p.name: p for p in (run_dir / "model").iterdir()}
    publish(tmp_path / "bundles", "v1", files, bundle_facts(run_dir, config, data), None)
    train("warm", data, tmp_path / "bundles")
    assert told(tmp_path, "warm")["validation"] and "WARNING" in capfd.readouterr().err


def test_the_refresh_of_a_refitted_model_is_validated_on_the_days_since(train, make_toy, tmp_path, capfd):
    day = make_toy()
    train("monday", made(day, "one"), refit=True)
    newest = int(day.timestamp[day.split != TEST].max())
    assert told(tmp_path, "monday")["newest"] == newest
    since = replace(day, timestamp=np.where(day.split == TRAIN, day.timestamp, day.timestamp + LATER))
    train("tuesday", made(since, "two"), tmp_path / "monday", refit=True)
    assert "WARNING" not in capfd.readouterr().err and told(tmp_path, "tuesday")["through"] == ""
    assert told(tmp_path, "tuesday")["newest"] == int(since.timestamp[since.split == VALID].max())
    train("wednesday", made(day, "three"), tmp_path / "tuesday")
    assert "WARNING" in capfd.readouterr().err, "held-out rows of people who did nothing since are those of before"


@pytest.mark.parametrize(
    ("old", "split", "seen"),
    [
        (Learned("one"), "leave_one_out", False),
        (Learned("one", validation=True), "leave_one_out", True),
        (Learned("other", newest=10), "leave_one_out", False),
        (Learned("other", True, newest=10), "leave_one_out", True),
        (Learned("other", True, newest=4), "leave_one_out", False),
        (Learned("other", newest=10), "global_temporal", True),
        (Learned("other", newest=4), "global_temporal", False),
        (Learned("other", True), "global_temporal", True),
        (Learned(), "leave_one_out", False),
    ],
)
def test_what_can_be_known_of_rows_that_validate(make_toy, old, split, seen):
    data = make_toy(users=2)
    ahead: Interactions = replace(data, timestamp=np.where(data.split == TRAIN, np.int64(0), np.int64(5)))
    assert old.holds_validation_of(made(ahead, "one", split)) is seen


def test_without_times_nothing_is_newer(make_toy):
    data = made(make_toy(order="set"), "one")
    assert (data.timestamp == NO_TIME).all()
    assert Learned("other", True, newest=4).holds_validation_of(data) and not Learned("other", newest=4).holds_validation_of(data)
