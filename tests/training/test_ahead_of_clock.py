"""Times later than now: told of, and of people who are forgotten no sign that they came back."""

import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tests.training import test_permission
from tests.training.test_meanwhile import forget
from tests.training.test_permission import EVENTS, exported, keys_of, trained
from towers.columns import MADE
from training import prepare_run
from training.config import TrainingConfig
from training.interactions import Interactions

config = test_permission.config
HOUR_US = 3_600_000_000


@pytest.fixture
def began(config: TrainingConfig, monkeypatch: pytest.MonkeyPatch) -> int:
    """The last quarter of everybody's events is of the hours to come; the moment of the log, microseconds UTC."""
    config.data.consent, moment = None, time.time_ns() // 1000
    source = prepare_run.open_source(config.data)
    (log,) = source.interactions()
    lead_n = np.arange(len(log)) % EVENTS - 9
    times = pa.array(moment + lead_n * HOUR_US + HOUR_US // 2, pa.timestamp("us", "UTC"))
    log = log.set_column(log.column_names.index("timestamp"), "timestamp", times)
    monkeypatch.setattr(prepare_run, "open_source", lambda data: replace(source, interactions=lambda: iter([log])))
    return moment


def test_rows_ahead_are_told_of_and_bring_nobody_back(config: TrainingConfig, began: int, capsys: pytest.CaptureFixture[str]) -> None:
    prepare_run.run(config)
    assert "warning: 60 rows are later than now, by up to 2.50 hours" in capsys.readouterr().err
    forget(config, "u03")
    data = Interactions.open(Path(prepare_run.run(config)))
    (key,) = keys_of(config, {"u03"})
    assert key not in {bytes(k) for k in data.user_keys}
    facts = data.facts["data"]
    assert facts["rows_forgotten"] == EVENTS + 1 and facts["rows_ahead_of_clock"] == 60
    assert facts["greatest_lead_s"] == pytest.approx(9000, abs=120) and facts["began"] > began


def test_an_export_of_data_from_before_the_wish_leaves_the_person_out(config: TrainingConfig, began: int) -> None:
    """Though nothing but events ahead of the clock stands in them."""
    _, data = trained(config)
    np.save(Path(config.run_dir) / "prepared" / "timestamp.npy", np.full(len(data), began + HOUR_US))
    forget(config, "u03")
    config.export.onnx = False
    found = exported(config)
    (key,) = keys_of(config, {"u03"})
    assert key not in found["histories"] | found["vectors"] and found["histories"]
    made = int(pq.read_schema(Path(config.run_dir) / "export" / "histories.parquet").metadata[MADE])
    assert began < made < time.time_ns() // 1000
