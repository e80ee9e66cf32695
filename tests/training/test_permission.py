"""What users have not granted reaches no prepared column, no export and no picture."""

import time
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from serving.consent_store import ConsentStore
from serving.receipt_writer import write_receipt
from serving.standing import ConsentTable, Standing
from towers.columns import NO_TIME
from towers.consent import BITS, PURPOSES, Consent
from towers.errors import ConfigError, DataError
from towers.identity import UserKeys, mark
from towers.live_consent import Decision, LiveConsent, write_decisions
from towers.model import TwoTower
from towers.model_config import ModelConfig
from towers.receipts import FORGET, Erasures, Receipts, receipts_file
from towers.runtime import save_model
from training import exporting, prepare_run
from training.config import TrainingConfig
from training.data_config import DataConfig, schema_of
from training.inspection import Inspector
from training.interactions import Interactions
from training.permission import Permission
from training.sources.base import SourceTables

TIME = pa.timestamp("us", "UTC")
USERS, EVENTS, START_US = 20, 12, 1_700_000_000_000_000
PURPOSES_OF = {"personalize": 2, "train": 3, "measure": 5}
"""Every n-th user refuses the purpose."""


def allowed(purpose: str) -> set[str]:
    return {f"u{i:02d}" for i in range(USERS) if i % PURPOSES_OF[purpose]}


@pytest.fixture
def config(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> TrainingConfig:
    """A log of 20 users, one row in it that no rule lets pass, and a table of what they allow."""
    rng = np.random.default_rng(0)
    log = pa.table(
        {
            "user_id": [f"u{i:02d}" for i in range(USERS) for _ in range(EVENTS)] + ["u00", "u03"],
            "item_id": [f"i{i}" for i in rng.integers(0, 9, USERS * EVENTS)] + ["i0", "x" * 300],
            "timestamp": pa.array([START_US + i * 1_000_000 for i in range(USERS * EVENTS + 2)], TIME),
        }
    )
    users = pa.table({"user_id": [f"u{i:02d}" for i in range(USERS)], "age": ["20"] * USERS})
    made = TrainingConfig(run_dir=str(tmp_path / "run"))
    source = SourceTables(
        "synthetic", schema_of(DataConfig()), lambda: iter([log]), pa.table({"item_id": [f"i{i}" for i in range(9)]}), users, users
    )
    monkeypatch.setattr(prepare_run, "open_source", lambda data: source)
    made.identity.key_file, made.identity.keep_raw_ids, made.split.name = str(tmp_path / "key"), True, "leave_one_out"
    rows = [{"user_id": user, "purpose": p, "granted": True, "timestamp": 5} for p in PURPOSES_OF for user in sorted(allowed(p))]
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "consent.parquet")
    made.data.consent = str(tmp_path / "consent.parquet")
    return made


def keys_of(config: TrainingConfig, users: set[str]) -> set[bytes]:
    keys = UserKeys.open(config.identity.key_file)
    return {keys.key(user) for user in users}


def test_prepare_takes_rows_of_those_who_grant_training(config: TrainingConfig) -> None:
    data = Interactions.open(Path(prepare_run.run(config)))
    train = allowed("train")
    assert {key.tobytes() for key in data.user_keys} == keys_of(config, train) and len(data) == EVENTS * len(train)
    folder = Path(config.run_dir)
    raw = pq.read_table(folder / "prepared" / "raw_user_ids.parquet")["user_id"].to_pylist()
    rejected = pq.read_table(folder / "prepared" / "rejected.parquet")["user_id"].to_pylist()
    assert set(raw) == train and rejected == [], "the bad row was of one who refused, and so went nowhere"
    assert set(pq.read_table(folder / "audit.parquet")["user_key"].to_pylist()) == keys_of(config, allowed("measure"))
    refused = USERS - len(train)
    assert data.facts["data"]["rows_not_allowed"] == refused * EVENTS + 2
    assert data.facts["data"]["consent"] == {"users": USERS - 1, "future_rows": 0}
    assert f"| of users who did not grant `train` | {refused * EVENTS + 2} |" in (folder / "prepared" / "data_card.md").read_text()


def test_without_a_table_everything_is_allowed(config: TrainingConfig) -> None:
    config.data.consent = None
    data = Interactions.open(Path(prepare_run.run(config)))
    assert data.n_users == USERS and "consent" not in data.facts["data"] and data.facts["data"]["rows_not_allowed"] == 0


def test_where_nobody_grants_training_the_error_says_so(config: TrainingConfig, tmp_path: Path) -> None:
    (tmp_path / "none.csv").write_text("user_id,purpose,granted,timestamp\nu01,train,true,5\n")
    config.data.consent = str(tmp_path / "none.csv")
    with pytest.raises(DataError, match="Passed over were .* rows of users who did not grant `train`"):
        prepare_run.run(config)


def exported(config: TrainingConfig) -> dict[str, set[bytes]]:
    """User keys in the histories and among the vectors."""
    exporting.run(config)
    folder = Path(config.run_dir) / "export"
    shards = [pq.read_table(path) for path in sorted((folder / "users").glob("part-*.parquet"))]
    vectors = {key for shard in shards for key in shard["user_key"].to_pylist()}
    return {"histories": set(pq.read_table(folder / "histories.parquet")["user_key"].to_pylist()), "vectors": vectors}


def trained(config: TrainingConfig) -> tuple[TwoTower, Interactions]:
    data = Interactions.open(Path(prepare_run.run(config)))
    torch.manual_seed(0)
    model = TwoTower(ModelConfig(dim=4), data.preprocessor.inputs, data.preprocessor.event_rows).eval()
    (Path(config.run_dir) / "model").mkdir()
    save_model(model, Path(config.run_dir) / "model")
    return model, data


def test_export_writes_those_who_may_be_personalized_for(config: TrainingConfig) -> None:
    trained(config)
    config.export.onnx, config.export.rows_per_shard = False, 3
    both = keys_of(config, allowed("train") & allowed("personalize"))
    assert exported(config) == {"histories": both, "vectors": both}
    config.export.users_for = "measure"
    for_measuring = keys_of(config, allowed("train") & allowed("personalize") & allowed("measure"))
    assert exported(config) == {"histories": both, "vectors": for_measuring}
    config.export.users_for = "marketing"
    assert exported(config) == {"histories": both, "vectors": set()}, "which nobody granted"


def test_a_withdrawal_counts_at_the_next_export(config: TrainingConfig, tmp_path: Path) -> None:
    trained(config)
    config.export.onnx = False
    before = exported(config)["histories"]
    table = pq.read_table(tmp_path / "consent.parquet")
    withdrawn = pa.table({"user_id": ["u01"], "purpose": ["personalize"], "granted": [False], "timestamp": [6]})
    pq.write_table(pa.concat_tables([withdrawn.cast(table.schema), table]), tmp_path / "consent.parquet")
    gone = keys_of(config, {"u01"})
    assert gone < before and exported(config) == {"histories": before - gone, "vectors": before - gone}


def test_real_people_beside_a_model_are_those_who_allow_it(config: TrainingConfig) -> None:
    model, data = trained(config)
    config.inspect.real_users = 1000
    shown = Inspector(model, data, config)._real_histories()
    assert len(shown) == len(allowed("train") & allowed("measure"))


def told(config: TrainingConfig, path: Path, decided: dict[str, dict[str, bool]], moment: int) -> None:
    """What people told a service, as the service writes it for the training jobs."""
    keys = UserKeys.open(config.identity.key_file, create=True)
    path.parent.mkdir(exist_ok=True, parents=True)
    store = ConsentStore(path.with_suffix(".db"), keys.fingerprint())
    for user, granted in decided.items():
        store.put(mark(keys.key(user)), granted, moment)
    store.export(path)
    store.close()


def test_what_people_told_a_service_counts_beside_the_table_the_later_of_both(config: TrainingConfig, tmp_path: Path) -> None:
    """The table's rows are of second 5."""
    path = tmp_path / "state" / "consent.parquet"
    config.data.live_consent = str(path)
    told(config, path, {"u01": {"train": False}, "u00": {"train": True, "measure": True}, "new": {"train": False}}, 5_000_001)
    data = Interactions.open(Path(prepare_run.run(config)))
    expected = (allowed("train") | {"u00"}) - {"u01"}
    assert {key.tobytes() for key in data.user_keys} == keys_of(config, expected)
    audit = pq.read_table(Path(config.run_dir) / "audit.parquet")["user_key"].to_pylist()
    assert set(audit) == keys_of(config, allowed("measure") | {"u00"}) and data.facts["data"]["live_consent"] == {"users": 3}
    told(config, path, {"u01": {"train": False}}, 4_999_999)
    data = Interactions.open(Path(prepare_run.run(config)))
    assert {key.tobytes() for key in data.user_keys} == keys_of(config, expected | {"u01"}), "the table's row is the later one"


@pytest.mark.parametrize("place", ["run", "live"])
def test_refusals_are_found_beside_the_events_or_in_the_run(config: TrainingConfig, tmp_path: Path, place: str) -> None:
    """Without a table everything is allowed that nobody refused; an export follows too."""
    config.data.consent, config.export.onnx = None, False
    (tmp_path / "elsewhere" / "events").mkdir(parents=True)
    config.data.live = str(tmp_path / "elsewhere" / "events") if place == "live" else None
    states = {"run": Path(config.run_dir) / "state", "live": tmp_path / "elsewhere"}
    told(config, states[place] / "consent.parquet", {"u01": {"train": False}, "u02": {"personalize": False}}, 5)
    _, data = trained(config)
    everybody = keys_of(config, {f"u{i:02d}" for i in range(USERS)} - {"u01"})
    assert {key.tobytes() for key in data.user_keys} == everybody
    assert exported(config)["vectors"] == everybody - keys_of(config, {"u02"})


def test_decisions_that_cannot_be_used_stop_prepare(config: TrainingConfig, tmp_path: Path) -> None:
    path = tmp_path / "consent.parquet"
    config.data.live_consent = str(tmp_path / "absent.parquet")
    with pytest.raises(DataError, match="live_consent: no file"):
        prepare_run.run(config)
    config.data.live_consent = str(path)
    with pytest.raises(DataError, match="cannot be read"):  # the caller's table is of another make
        prepare_run.run(config)
    config.data.consent, keys = None, UserKeys.open(config.identity.key_file)
    write_decisions(path, [Decision(b"m" * 16, "profiling", False, 5)], 1, keys.fingerprint())
    with pytest.raises(DataError, match="unknown purpose 'profiling'"):
        prepare_run.run(config)
    write_decisions(path, [Decision(b"m" * 16, "train", False, 5)], 1, b"another")
    with pytest.raises(ConfigError, match="keyed with another secret"):
        prepare_run.run(config)


def test_training_reads_decisions_as_the_service_does(tmp_path: Path) -> None:
    """Random tables and decisions: the service's mask of each user is what the jobs find."""
    rng, keys = np.random.default_rng(1), UserKeys(b"k" * 32)
    users = [f"u{i}" for i in range(300)]
    rows = [
        {"user_id": users[u], "purpose": PURPOSES[p], "granted": bool(g), "timestamp": int(t)}
        for u, p, g, t in zip(*(rng.integers(0, most, 500) for most in (250, 4, 2, 9)), strict=True)
    ]
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "table.parquet")
    store = ConsentStore(tmp_path / "consent.db", keys.fingerprint())
    for u, p, g, t in zip(*(rng.integers(0, most, 400) for most in (300, 4, 2, 9)), strict=True):
        store.put(mark(keys.key(users[u])), {PURPOSES[p]: bool(g)}, int(t) * 1_000_000)
    store.export(tmp_path / "consent.parquet")
    live = LiveConsent.open(tmp_path / "consent.parquet", keys)
    keys_n = keys.keys(users)
    for table in (ConsentTable(tmp_path / "table.parquet", keys), None):
        standing = Standing(table, store)
        permission = Permission(table and table.consent, live=live)
        for purpose, bit in BITS.items():
            assert permission.allows(keys_n, purpose).tolist() == [standing.mask(keys.key(user)) & bit > 0 for user in users]
    store.close()


def secret(config: TrainingConfig) -> str:
    return UserKeys.open(config.identity.key_file).fingerprint().decode()


def test_forgotten_people_return_with_what_they_did_later(config: TrainingConfig, tmp_path: Path) -> None:
    """The next prepare, on a log that still has all: rows up to the moment are passed over, and what no time dates."""
    config.data.consent, key = None, UserKeys.open(config.identity.key_file, create=True).key
    gone, back = 4, 7
    moment_of = {gone: START_US + 10**12, back: START_US + (back * EVENTS + 5) * 1_000_000}
    for user, moment in moment_of.items():
        line = {"what": FORGET, "moment": moment, "secret": secret(config), "marks": [mark(key(f"u{user:02d}")).hex()]}
        write_receipt(receipts_file(None, config.identity.key_file), line)
    model, data = trained(config)
    keys = {bytes(k): place for place, k in enumerate(data.user_keys)}
    assert key("u04") not in keys and len(keys) == USERS - 1
    assert np.diff(data.offsets)[keys[key("u07")]] == EVENTS - 6 and data.facts["data"]["rows_forgotten"] == EVENTS + 6
    assert key("u04") not in pq.read_table(Path(config.run_dir) / "audit.parquet")["user_key"].to_pylist()
    later = {"what": FORGET, "moment": START_US + 10**12, "secret": secret(config), "marks": [mark(key("u09")).hex()]}
    write_receipt(receipts_file(None, config.identity.key_file), later)
    config.export.onnx, config.inspect.real_users = False, 1000
    found = exported(config)
    assert found["histories"] == found["vectors"] == set(keys) - {key("u09")}, "forgotten after prepare: not exported"
    assert len(Inspector(model, data, config)._real_histories()) == USERS - 3


def test_receipts_of_another_secret_stop_prepare(config: TrainingConfig) -> None:
    """Under a rotated secret nobody forgotten would be known again."""
    UserKeys.open(config.identity.key_file, create=True)
    line = {"what": FORGET, "moment": 5, "secret": "f" * 16, "marks": ["00" * 16]}
    write_receipt(receipts_file(None, config.identity.key_file), line)
    with pytest.raises(ConfigError, match="forgotten under another user-key secret"):
        prepare_run.run(config)


def test_rows_past_their_time_are_passed_over(config: TrainingConfig) -> None:
    config.data.consent = None
    config.data.retention_days = (time.time() - START_US / 1e6 - EVENTS) / 86_400
    data = Interactions.open(Path(prepare_run.run(config)))
    dropped = data.facts["data"]["rows_too_old"]
    assert EVENTS <= dropped < 3 * EVENTS and len(data) == USERS * EVENTS + 1 - dropped
    assert data.timestamp.min() >= START_US + EVENTS * 1_000_000
    config.data.retention_days = 1.0
    with pytest.raises(DataError, match="rows older than is kept"):
        prepare_run.run(config)


def test_a_chain_that_was_changed_stops_prepare(config: TrainingConfig) -> None:
    UserKeys.open(config.identity.key_file, create=True)
    receipts_file(None, config.identity.key_file).write_text("{}\n")
    with pytest.raises(DataError, match="line 1 is not what was written"):
        prepare_run.run(config)


def test_no_row_of_a_hundred_thousand_users_crosses_what_they_deny() -> None:
    """Random decisions, forgotten moments and times of everybody, against reading them one by one."""
    rng = np.random.default_rng(0)
    users, keys = 100_000, UserKeys(b"k" * 32).keys([f"u{i}" for i in range(100_000)])
    order = np.argsort(keys.view("S16").ravel())
    masks_U, moment_U = rng.integers(0, 16, users, np.uint8), np.where(rng.random(users) < 0.1, rng.integers(0, 100, users), NO_TIME)
    consent = Consent(keys[order], masks_U[order], np.full((users, len(PURPOSES)), NO_TIME))
    erasures = Erasures(Receipts(Path("none")))
    erasures._moment_of = {mark(bytes(keys[u])): int(moment_U[u]) for u in np.flatnonzero(moment_U != NO_TIME)}
    user_n, time_n = rng.integers(0, users + 1, 200_000), np.where(rng.random(200_000) < 0.1, NO_TIME, rng.integers(0, 100, 200_000))
    for purpose, bit in BITS.items():
        gone = Permission(consent, erasures, oldest=20).passed_over(keys, purpose, user_n, time_n)
        denied_n = np.append(masks_U & bit == 0, False)[user_n]
        forgotten_n = time_n <= np.append(moment_U, NO_TIME)[user_n]
        forgotten_n &= np.append(moment_U != NO_TIME, False)[user_n]
        assert np.array_equal(gone["not_allowed"], denied_n) and np.array_equal(gone["forgotten"], forgotten_n & ~denied_n)
        assert np.array_equal(gone["too_old"], (time_n != NO_TIME) & (time_n < 20) & ~denied_n & ~forgotten_n)
