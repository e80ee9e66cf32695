import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from towers.alone import LEARNING, alone_in
from towers.errors import ConfigError, DataError
from training import prepare_run
from training.config import TrainingConfig
from training.interactions import Interactions

TIME = pa.timestamp("us", "UTC")
START_US = 1_700_000_000_000_000
TYPES = ("view", "buy", "skip")


def test_a_failed_prepare_leaves_the_earlier_one(config: TrainingConfig, prepare: Any, events: Any) -> None:
    before = prepare(events(300, 20, 10))
    with pytest.raises(DataError):
        prepare(events(100, 10, 10) | {"user_id": ["u"] * 100})
    after = Interactions.open(Path(config.run_dir) / "prepared")
    assert np.array_equal(before.item, after.item)
    assert sorted(p.name for p in Path(config.run_dir).iterdir()) == [LEARNING.lock, "prepare.json", "prepared"]


def test_a_lost_secret_is_not_replaced(config: TrainingConfig, prepare: Any, events: Any, tmp_path: Path) -> None:
    before = prepare(events(300, 20, 10))
    keys, config.identity.key_file = np.array(before.user_keys), str(tmp_path / "lost")
    with pytest.raises(ConfigError, match="lost: No such file"):
        prepare(events(300, 20, 10))
    assert not (tmp_path / "lost").exists()
    assert np.array_equal(Interactions.open(Path(config.run_dir) / "prepared").user_keys, keys)


def test_a_kill_between_the_two_renames_is_mended(tmp_path: Path) -> None:
    (tmp_path / "prepared.old").mkdir()
    (tmp_path / "prepared.old" / "prepare.json").write_text("{}")
    with pytest.raises(RuntimeError), prepare_run.new_folder(tmp_path / "prepared"):
        raise RuntimeError("stopped again")
    assert [p.name for p in tmp_path.iterdir()] == ["prepared"]
    assert (tmp_path / "prepared" / "prepare.json").exists()


SLOW = """
import sys, time
from pathlib import Path
import pyarrow as pa
from towers.schema import make_schema
from training import prepare_run
from training.config import TrainingConfig
from training.sources.base import SourceTables

def interactions():
    rows = {"user_id": ["a", "b"], "item_id": ["x", "y"], "timestamp": pa.array([1_700_000_000_000_000] * 2, pa.timestamp("us", "UTC"))}
    yield pa.table(rows)
    Path(sys.argv[2]).touch()
    time.sleep(60)

source = SourceTables("slow", make_schema([], "time", {}), interactions, pa.table({"item_id": ["x", "y"]}), pa.table({"user_id": ["a"]}))
prepare_run.open_source = lambda data: source
config = TrainingConfig(run_dir=sys.argv[1])
config.identity.key_file = sys.argv[3]
prepare_run.run(config)
"""


def test_a_prepare_killed_midway_leaves_the_earlier_one_and_the_next_succeeds(
    config: TrainingConfig, prepare: Any, tmp_path: Path, events: Any
) -> None:
    before = prepare(events(300, 20, 10))
    flag = tmp_path / "reading"
    script = [sys.executable, "-c", SLOW, config.run_dir, str(flag), str(config.identity.key_file)]
    process = subprocess.Popen(script, cwd=Path(__file__).parents[3], stderr=subprocess.DEVNULL)
    try:
        work = Path(config.run_dir) / "prepared.tmp" / "work"
        for _ in range(600):
            # the chunk after is read ahead, so the flag may be there before the first records are
            midway = flag.exists() and any(work.glob("*.records"))
            if midway or process.poll() is not None:
                break
            time.sleep(0.05)
        assert midway and process.poll() is None
    finally:
        os.kill(process.pid, signal.SIGKILL)
        process.wait()
    after = Interactions.open(Path(config.run_dir) / "prepared")
    assert np.array_equal(before.item, after.item)
    prepare(events(300, 20, 10))
    assert sorted(p.name for p in Path(config.run_dir).iterdir()) == [LEARNING.lock, "prepare.json", "prepared"]


@pytest.mark.realdata
def test_movielens_1m_has_the_published_counts(ml_1m: Path, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "training.prepare", "data=ml_1m", f"data.path={ml_1m}", "split=leave_one_out"]
    command += [f"run_dir={tmp_path}", f"identity.key_file={tmp_path / 'key'}", "data.min_item_events=5"]
    done = subprocess.run(command, cwd=Path(__file__).parents[3], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == f"prepare: done -> {tmp_path / 'prepared'}"
    data = Interactions.open(tmp_path / "prepared")
    assert (data.n_users, data.n_items, len(data)) == (6040, 3416, 999_611)
    assert data.facts["data"]["targets"] == {"train": 999_611 - 2 * 6040, "valid": 6040, "test": 6040}


def test_the_job_exits_3_on_bad_data_and_names_the_column(tmp_path: Path) -> None:
    (tmp_path / "log.csv").write_text("userId,item,timestamp\n" + "\n".join(f"u{i % 9},i{i % 7},{1_700_000_000 + i}" for i in range(50)))
    command = [sys.executable, "-m", "training.prepare", "data=table", f"data.path={tmp_path}", "data.interactions=log.csv"]
    command += [f"run_dir={tmp_path / 'run'}", f"identity.key_file={tmp_path / 'key'}"]
    root = Path(__file__).parents[3]
    failed = subprocess.run(command, cwd=root, capture_output=True, text=True, timeout=120)
    assert failed.returncode == 3
    assert "user_id" in failed.stderr
    assert "data.columns" in failed.stderr
    mended = [*command, "+data.columns.user_id=userId", "+data.columns.item_id=item"]
    done = subprocess.run(mended, cwd=root, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert len(Interactions.open(tmp_path / "run" / "prepared")) == 50


def test_prepare_waits_for_no_training(config: TrainingConfig, prepare: Any, events: Any) -> None:
    """Its model would not belong to what lies in prepared/ then."""
    prepare(events(300, 20, 10))
    with alone_in(Path(config.run_dir)), pytest.raises(ConfigError, match=r"another training, preparation or export \(pid \d+\) runs in"):
        prepare(events(300, 20, 10))
