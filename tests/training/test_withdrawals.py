"""Who withdraws, or is forgotten, after `prepare`: what the jobs after it still use, on a log of 180 people in three regions."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from numpy.typing import NDArray

from serving.consent_store import ConsentStore
from serving.receipt_writer import write_receipt
from towers.bundle import Bundle, current
from towers.errors import ConfigError, DataError, GateError
from towers.held_out import QUERY_VECTORS, query_vectors_file
from towers.identity import UserKeys, mark
from towers.receipts import FORGET, receipts_file
from training import exporting, fit, prepare_run, ranking
from training.config import TrainingConfig
from training.interactions import Interactions

USERS, EVENTS, START_S = 180, 6, 1_700_000_000
GRANTED = {"personalize": True, "train": True, "measure": True}
Facts = dict[str, int]


@pytest.fixture
def config(tmp_path: Path) -> TrainingConfig:
    """Prepared while everybody allowed everything."""
    rng = np.random.default_rng(0)
    rows = [f"u{u:03d},i{i},{START_S + u * 9 + n}" for u in range(USERS) for n, i in enumerate(rng.permutation(20)[:EVENTS])]
    (tmp_path / "log.csv").write_text("\n".join(["user_id,item_id,timestamp", *rows]))
    (tmp_path / "audit.csv").write_text("\n".join(["user_id,region", *(f"u{u:03d},{'xyz'[u % 3]}" for u in range(USERS))]))
    made = TrainingConfig(run_dir=str(tmp_path / "run"))
    made.data.name, made.data.interactions, made.data.audit = "table", str(tmp_path / "log.csv"), str(tmp_path / "audit.csv")
    made.data.consent, made.identity.key_file, made.split.name = str(tmp_path / "consent.csv"), str(tmp_path / "key"), "leave_one_out"
    made.model.dim, made.trainer.epochs, made.trainer.device, made.trainer.threads = 4, 1, "cpu", 1
    made.evaluate.ks, made.evaluate.draws, made.evaluate.baselines, made.inspect.every = [5], 20, ["most_popular"], 0
    decide(made, {})
    prepare_run.run(made)
    return made


def decide(config: TrainingConfig, refused: dict[str, set[int]]) -> None:
    """The consent table anew: by purpose, the people who refuse it."""
    rows = [f"u{u:03d},{p},{u not in refused.get(p, ())},{START_S}" for p in GRANTED for u in range(USERS)]
    Path(str(config.data.consent)).write_text("\n".join(["user_id,purpose,granted,timestamp", *rows]).lower())


def tell_a_service(config: TrainingConfig, users: set[int], purpose: str) -> None:
    """People refuse a purpose over HTTP, as the service writes it for the training jobs."""
    keys = UserKeys.open(config.identity.key_file)
    state = Path(config.run_dir) / "state"
    state.mkdir()
    store = ConsentStore(state / "consent.db", keys.fingerprint())
    for user in users:
        store.put(mark(keys.key(f"u{user:03d}")), {purpose: False}, (START_S + 1) * 1_000_000)
    store.export(state / "consent.parquet")
    store.close()


def forget(config: TrainingConfig, user: int) -> None:
    keys = UserKeys.open(config.identity.key_file)
    marks = [mark(keys.key(f"u{user:03d}")).hex()]
    line = {"what": FORGET, "moment": (START_S + 10**6) * 1_000_000, "secret": keys.fingerprint().decode(), "marks": marks}
    write_receipt(receipts_file(None, config.identity.key_file), line)


def people(config: TrainingConfig) -> Facts:
    """How many people an evaluation finds in each region."""
    config.evaluate.groups = ["region"]
    found: Facts = json.loads(Path(ranking.run(config)).read_text())["groups"]["test"]["region"]["people"]
    return found


@pytest.mark.parametrize("way", ["table", "service", "service_alone", "forgotten"])
def test_nobody_who_withdrew_is_trained_or_measured_on(config: TrainingConfig, way: str) -> None:
    fit.run(config)
    model = (Path(config.run_dir) / "model" / "weights.safetensors").read_bytes()
    if way == "table":
        decide(config, {"train": {3, 4, 5}})
    elif way == "forgotten":
        forget(config, 3)
    else:
        config.data.consent = config.data.consent if way == "service" else None
        tell_a_service(config, {3, 4, 5}, "train")
    gone = 1 if way == "forgotten" else 3
    for job in (fit.run, ranking.run):
        with pytest.raises(DataError, match=rf"{gone} of {USERS} people .* `train` .*towers prepare") as refused:
            job(config)
        assert refused.value.exit_code == 3
    assert (Path(config.run_dir) / "model" / "weights.safetensors").read_bytes() == model
    assert not (Path(config.run_dir) / "metrics.json").exists()
    prepare_run.run(config)
    config.trainer.resume = False
    fit.run(config)
    document = json.loads(Path(ranking.run(config)).read_text())
    assert document["data"]["users"] == USERS - gone


def test_audit_columns_are_used_as_a_new_prepare_would_leave_them(config: TrainingConfig) -> None:
    fit.run(config)
    before = people(config)
    assert before == {"x": 60, "y": 60, "z": 60}
    decide(config, {"measure": set(range(2, USERS, 3))})
    withdrawn = people(config)
    assert withdrawn == {"x": 60, "y": 60}
    prepare_run.run(config)
    assert people(config) == withdrawn


def test_decisions_under_another_secret_are_not_taken_for_refusals(config: TrainingConfig, tmp_path: Path) -> None:
    UserKeys.open(str(tmp_path / "another"), create=True)
    config.identity.key_file = str(tmp_path / "another")
    with pytest.raises(ConfigError, match="not the one that the users"):
        fit.run(config)


def test_without_decisions_no_secret_is_needed(config: TrainingConfig, tmp_path: Path) -> None:
    config.data.consent, config.identity.key_file = None, str(tmp_path / "nowhere")
    fit.run(config)
    assert pq.read_table(Path(config.run_dir) / "audit.parquet").num_rows == USERS


def queries_of(config: TrainingConfig) -> NDArray[np.float32]:
    """The vectors that an index is judged on: one a person here, whose last but one event validates."""
    config.export.onnx = False
    exporting.run(config)
    (path,) = (Path(config.run_dir) / "export").glob(QUERY_VECTORS)
    found: NDArray[np.float32] = np.load(path, allow_pickle=False)
    return found


def test_an_index_is_judged_on_vectors_of_those_who_may_be_personalized_for(config: TrainingConfig) -> None:
    fit.run(config)
    everybody = queries_of(config)
    decide(config, {"personalize": {3, 4, 5}})
    forget(config, 9)
    keys = UserKeys.open(config.identity.key_file)
    gone = {keys.key(f"u{user:03d}") for user in (3, 4, 5, 9)}
    rows = [n for n, key in enumerate(Interactions.open(Path(config.run_dir) / "prepared").user_keys) if key.tobytes() not in gone]
    assert len(everybody) == USERS and np.allclose(queries_of(config), everybody[rows], atol=1e-6)
    decide(config, {"personalize": set(range(USERS))})
    assert queries_of(config).shape == (0, everybody.shape[1])


def test_an_export_that_publishes_nothing_leaves_the_vectors_of_the_bundle_in_use(
    config: TrainingConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    fit.run(config)
    queries_of(config)
    export, bundles = Path(config.run_dir) / "export", Path(config.run_dir) / "bundles"
    first = Bundle.open(current(bundles)).weights_sha256
    before = query_vectors_file(export, first).read_bytes()
    config.seed, config.trainer.resume = 7, False
    fit.run(config)

    def refused(*_: Any) -> Any:
        raise GateError("the towers differ")

    with monkeypatch.context() as patched, pytest.raises(GateError):
        patched.setattr(exporting, "bundle_parts", refused)
        queries_of(config)
    assert Bundle.open(current(bundles)).weights_sha256 == first
    assert query_vectors_file(export, first).read_bytes() == before
    queries_of(config)
    assert Bundle.open(current(bundles)).weights_sha256 != first
    assert not query_vectors_file(export, first).exists(), "nobody indexes the earlier bundle now"


@pytest.mark.parametrize("purpose", ["measure", "personalize"])
def test_where_nobody_allows_held_out_queries_consent_is_named_and_nothing_replaced(config: TrainingConfig, purpose: str) -> None:
    fit.run(config)
    config.export.held_out_queries = 100
    queries_of(config)
    export = Path(config.run_dir) / "export"
    before = {path: path.read_bytes() for path in export.rglob("*") if path.is_file()}
    assert export / "held_out.parquet" in before
    decide(config, {purpose: set(range(USERS))})
    with pytest.raises(DataError, match=r"export\.held_out_queries: nobody .*'valid' allows both .*data\.consent.* 0 do"):
        exporting.run(config)
    assert {path: path.read_bytes() for path in export.rglob("*") if path.is_file()} == before
    decide(config, {purpose: set(range(0, USERS, 2))})
    exporting.run(config)
    held = pq.read_table(export / "held_out.parquet", columns=["user_key"])["user_key"].to_pylist()
    keys = UserKeys.open(config.identity.key_file)
    assert set(held) == {keys.key(f"u{user:03d}") for user in range(1, USERS, 2)}
