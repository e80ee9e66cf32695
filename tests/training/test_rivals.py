"""Runs that another one is measured against: what makes a comparison with them worthless is refused as it is of the run itself."""

import json
import shutil

import pytest

from towers.errors import ConfigError, DataError
from towers.model_config import HistoryConfig, ModelConfig
from training import fit, ranking
from training.config import EvaluateConfig, TrainerConfig, TrainingConfig
from training.interactions import write_prepared

FACTS = {made: json.dumps({"data": {"digest": made, "made": made}}) for made in ("one", "two")}


@pytest.fixture
def trained(tmp_path, make_toy):
    """Trains a run on the toy world and returns its settings."""

    def train(name, **trainer):
        config = TrainingConfig(
            run_dir=str(tmp_path / name),
            model=ModelConfig(dim=8, history=HistoryConfig(length=6)),
            trainer=TrainerConfig(epochs=1, threads=1, device="cpu", **trainer),
        )
        write_prepared(tmp_path / name / "prepared", make_toy())
        (tmp_path / name / "prepared" / "prepare.json").write_text(FACTS["one"])
        fit.run(config)
        return config

    return train


def test_a_rival_whose_data_was_prepared_anew_is_refused(trained, tmp_path):
    config = trained("own")
    shutil.copytree(tmp_path / "own", tmp_path / "old")
    (tmp_path / "old" / "prepared" / "prepare.json").write_text(FACTS["two"])
    config.evaluate = EvaluateConfig(against=[str(tmp_path / "old")], draws=10)
    with pytest.raises(DataError, match=r"evaluate\.against: .*old/model was trained on other data than .* holds now"):
        ranking.run(config)


def test_a_refitted_rival_is_refused_on_validation_and_said_on_test(trained, tmp_path):
    config = trained("own")
    trained("plain"), trained("refitted", refit=True)
    settings = {"against": [str(tmp_path / name) for name in ("plain", "refitted")], "ks": [5], "baselines": [], "draws": 10}
    config.evaluate = EvaluateConfig(split="valid", **settings)
    with pytest.raises(ConfigError, match=r"evaluate\.against: .*refitted was refitted on the validation rows"):
        ranking.run(config)
    config.evaluate = EvaluateConfig(**settings)
    ranking.run(config)
    protocol = json.loads((tmp_path / "own" / "metrics.json").read_text())["protocol"]
    assert [line for line in protocol if "refit" in line] == [
        "refit of run:refitted: validation chose the epochs, then the model was trained anew on train and valid"
    ]
