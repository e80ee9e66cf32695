"""Who is forgotten or withdraws while a job runs is in nothing that it leaves."""

import time
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from serving.receipt_writer import write_receipt
from tests.training import test_permission
from tests.training.test_permission import exported, keys_of, trained
from towers.alone import alone_in
from towers.columns import NO_TIME
from towers.errors import ConfigError, DataError
from towers.identity import UserKeys, keep_secret, mark, new_secret
from towers.partitions import only_one
from towers.prepared import remove_users
from towers.receipts import FORGET, receipts_file
from training import exporting, prepare_run
from training.config import TrainingConfig
from training.interactions import Interactions

config = test_permission.config


def forget(config: TrainingConfig, user: str) -> None:
    """Note the wish, as a removal begins."""
    keys = UserKeys.open(config.identity.key_file)
    moment = time.time_ns() // 1000 + 300_000
    line = {"what": FORGET, "moment": moment, "secret": keys.fingerprint().decode(), "marks": [mark(keys.key(user)).hex()]}
    write_receipt(receipts_file(None, config.identity.key_file), line)


def after(monkeypatch: pytest.MonkeyPatch, module: Any, name: str, then: Any) -> None:
    """Have something happen once a function is done for the first time."""
    function, done = getattr(module, name), []

    def both(*told: Any, **named: Any) -> Any:
        result = function(*told, **named)
        if not done:
            done.append(then())
        return result

    monkeypatch.setattr(module, name, both)


@pytest.mark.parametrize("during", ["_user_vectors", "write_histories"])
def test_export_leaves_out_who_went_meanwhile(config: TrainingConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, during: str) -> None:
    trained(config)
    config.export.onnx = False
    all_of_them = exported(config)["histories"]
    config.export.users_for = "train"  # so that vectors are made anew

    def wishes() -> None:
        forget(config, "u01")
        table = pq.read_table(tmp_path / "consent.parquet")
        withdrawn = pa.table({"user_id": ["u05"], "purpose": ["personalize"], "granted": [False], "timestamp": [6]})
        pq.write_table(pa.concat_tables([table, withdrawn.cast(table.schema)]), tmp_path / "consent.parquet")

    if during == "write_histories":  # when all of the file is written and not in its place
        monkeypatch.setattr("training.histories.pq.ParquetWriter.close", closing(pq.ParquetWriter.close, wishes))
    else:
        after(monkeypatch, exporting, during, wishes)
    gone = keys_of(config, {"u01", "u05"})
    assert gone < all_of_them
    found = exported(config)
    assert found["histories"] == all_of_them - gone
    assert found["vectors"] == all_of_them - (gone if during == "_user_vectors" else set())


def closing(close: Any, then: Any) -> Any:
    done: list[Any] = []

    def both(writer: Any) -> None:
        close(writer)
        schema = writer.schema
        if not done and "item_ids" in schema.names:
            done.append(then())

    return both


def test_an_export_whose_data_somebody_leaves_says_what_to_do(config: TrainingConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    trained(config)
    config.export.onnx = False
    key = np.frombuffer(UserKeys.open(config.identity.key_file).key("u01"), np.uint8)

    def leave() -> None:
        folder = Path(config.run_dir) / "prepared"
        assert remove_users(folder, lambda keys_n: np.where((keys_n == key).all(1), 2**62, NO_TIME))

    config.export.raw_user_ids = True  # a table with a row a user, read after the columns
    after(monkeypatch, exporting, "encode_items", leave)
    with pytest.raises(DataError, match="somebody was forgotten, and left these data, while they were read .*Run `towers export` again"):
        exporting.run(config)
    exporting.run(config)


def test_an_export_and_a_preparation_keep_out_of_each_others_way(config: TrainingConfig) -> None:
    trained(config)
    with alone_in(Path(config.run_dir)), pytest.raises(ConfigError, match="another training, preparation or export"):
        exporting.run(config)


def test_prepare_leaves_out_who_was_forgotten_meanwhile(config: TrainingConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    config.data.consent = None
    after(monkeypatch, prepare_run, "prepare", lambda: forget(config, "u03"))
    data = Interactions.open(Path(prepare_run.run(config)))
    (key,) = keys_of(config, {"u03"})
    run = Path(config.run_dir)
    assert key not in {bytes(k) for k in data.user_keys} and data.n_users == test_permission.USERS - 1
    assert data.facts["data"]["forgotten_users"] == 1
    assert (run / "prepare.json").read_text() == (run / "prepared" / "prepare.json").read_text()
    assert "u03" not in pq.read_table(run / "prepared" / "rejected.parquet")["user_id"].to_pylist()
    assert key not in pq.read_table(run / "audit.parquet")["user_key"].to_pylist()


def test_removals_wait_while_what_was_prepared_takes_its_place(config: TrainingConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    """A large log takes longer to be looked through for the last time than a removal waits before it looks for files."""
    state, waiting = Path(config.run_dir) / "state", []
    state.mkdir(parents=True)
    config.identity.key_file = str(Path(config.run_dir).parent / "key_of_state")
    keep_secret(Path(config.identity.key_file), new_secret())

    def look() -> None:
        with only_one(state, wait=False) as mine:
            waiting.append(not mine)

    config.data.consent = None
    after(monkeypatch, prepare_run, "prepare", look)
    after(monkeypatch, prepare_run, "_leave_out", look)
    after(monkeypatch, prepare_run, "write_audit", look)
    prepare_run.run(config)
    look()
    assert waiting == [False, True, True, False]
