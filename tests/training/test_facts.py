import copy

import pytest

from training.config import TrainingConfig
from training.facts import Stopwatch, config_hash, run_facts


@pytest.fixture
def config():
    return TrainingConfig(run_dir="a")


@pytest.mark.parametrize(
    "section,key,value",
    [
        ("", "seed", 1),
        ("data", "order", "set"),
        ("model", "dim", 3),
        ("optim", "lr", 0.5),
        ("trainer", "epochs", 3),
        ("evaluate", "seen", "unmasked"),
    ],
)
def test_settings_that_decide_the_weights_change_the_hash(config, section, key, value):
    other = copy.deepcopy(config)
    setattr(getattr(other, section) if section else other, key, value)
    assert config_hash(other) != config_hash(config)


@pytest.mark.parametrize(
    "section,key,value",
    [
        ("", "run_dir", "b"),
        ("data", "path", "/elsewhere"),
        ("trainer", "resume", False),
        ("trainer", "threads", 3),
        ("trainer", "device", "cuda"),
        ("evaluate", "draws", 7),
        ("evaluate", "exposure", True),
        ("evaluate", "provider", "brand"),
        ("evaluate", "groups", ["taste"]),
    ],
)
def test_settings_that_do_not_leave_it(config, section, key, value):
    other = copy.deepcopy(config)
    setattr(getattr(other, section) if section else other, key, value)
    assert config_hash(other) == config_hash(config)


def test_run_facts_name_what_results_are_read_by(config):
    facts = run_facts(config, Stopwatch())
    assert list(facts) == ["experiment", "seed", "config_hash", "git_commit", "wall_s", "cpu_s", "peak_rss_mib"]
    assert facts["wall_s"] >= 0 and facts["peak_rss_mib"] > 10
