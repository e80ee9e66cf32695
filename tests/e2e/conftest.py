"""The whole path once, on a tiny synthetic world, through the public commands; the tests look at what it left."""

import fcntl
import json
import os
import shutil
import signal
import subprocess
import sys
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from omegaconf import OmegaConf

from serving.retriever import Retriever
from tests.announced import wait_for_announcement
from towers.bundle import current
from training.config import TrainingConfig
from training.interactions import Interactions
from training.sources import open_source

WORLD = (
    "experiment=synthetic_fast",
    "data.synthetic.users=120",
    "data.synthetic.items=100",
    "trainer.epochs=1",
    "trainer.threads=1",
    "trainer.half_from=1",
)
EXPORT = ("export.rows_per_shard=40",)
TRAINING_JOBS = ("prepare", "train", "evaluate", "export")
END_S = 1_706_572_800
"""2024-01-30, the last day of the simulated log."""
ASKED: tuple[dict[str, Any], ...] = (
    {"user_id": "u0003", "k": 10, "now": END_S},
    {"user_id": "u0003", "k": 10, "now": END_S, "context": {"device": "tv", "hour": "21", "channel": "home"}},
    {"user_id": "u0007", "history": ["i0004", "i0011"], "exclude": ["i0020"], "k": 7, "now": END_S},
    {"history": ["i0004", {"item_id": "i0011", "event_type": "like", "timestamp": END_S - 60}], "k": 5, "exclude_seen": False},
    {"user_id": "a stranger", "preferences": ["Jazz"], "k": 5},
    {"user_id": "a stranger", "k": 1000},
)


@dataclass(frozen=True)
class Spine:
    """What a whole run left.

    Attributes:
        cwd: the folder the commands ran in; paths in their output are relative to it.
        run_dir: `cwd / "run"`.
        key_file: the secret of the user keys, outside the run.
        jobs: each job's exit code and output.
        asked, replies: request bodies, and the server's replies to them.
        similar: of the server to /v1/items/i0004/similar?k=5.
    """

    cwd: Path
    key_file: Path
    jobs: dict[str, "subprocess.CompletedProcess[str]"]
    asked: tuple[dict[str, Any], ...]
    replies: list[dict[str, Any]]
    similar: dict[str, Any]

    @property
    def run_dir(self) -> Path:
        return self.cwd / "run"

    def config(self, job: str = "prepare") -> TrainingConfig:
        """The settings that a training job ran with, read back from the run."""
        kept = OmegaConf.load(self.run_dir / "config" / f"{job}.yaml")
        config = OmegaConf.to_object(OmegaConf.merge(OmegaConf.structured(TrainingConfig), kept))
        assert isinstance(config, TrainingConfig)
        return config

    def result(self, name: str) -> dict[str, Any]:
        document: dict[str, Any] = json.loads((self.run_dir / name).read_text())
        return document

    def user_ids(self) -> list[str]:
        """The raw ids of the simulated users."""
        ids: list[str] = open_source(self.config().data).users.column("user_id").to_pylist()
        return ids

    def shards(self, what: str) -> list[Path]:
        """Exported files of `items` or `users`, in order."""
        return sorted((self.run_dir / "export" / what).glob("part-*.parquet"))

    def exported(self, what: str) -> pa.Table:
        """All exported rows of `items` or `users`."""
        return pa.concat_tables(pq.read_table(path) for path in self.shards(what))

    def copy(self, cwd: Path) -> "Spine":
        """Data, model and export under another folder, to change; file times are kept."""
        for part in ("config", "prepared", "model", "export"):
            shutil.copytree(self.run_dir / part, cwd / "run" / part)
        return replace(self, cwd=cwd)

    def again(self, job: str, *overrides: str) -> "subprocess.CompletedProcess[str]":
        """Run a training job once more."""
        return _towers(self.cwd, self.key_file, job, *WORLD, *EXPORT, "run_dir=run", *overrides)


def _environment(key_file: Path) -> dict[str, str]:
    return {**os.environ, "TOWERS_KEY_FILE": str(key_file)}


def _towers(cwd: Path, key_file: Path, *arguments: str) -> "subprocess.CompletedProcess[str]":
    """`towers <job> ...` as a process, in a folder that is not the checkout."""
    command = [sys.executable, "-W", "error", "-m", "towers", *arguments]
    return subprocess.run(command, cwd=cwd, env=_environment(key_file), capture_output=True, text=True, timeout=250, check=False)


@pytest.fixture(scope="session")
def spine(tmp_path_factory: pytest.TempPathFactory) -> Spine:
    """Made once a session: under xdist the first process makes it, and the others wait for it."""
    base = tmp_path_factory.getbasetemp()
    folder = (base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / "spine"
    folder.mkdir(exist_ok=True)
    with (folder / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not (folder / "told.json").exists():
            (folder / "told.json").write_text(json.dumps(_walk(folder / "cwd", folder / "user_key")))
    told = json.loads((folder / "told.json").read_text())
    told["jobs"] = {job: subprocess.CompletedProcess(job, *ended) for job, ended in told["jobs"].items()}
    return Spine(folder / "cwd", folder / "user_key", asked=ASKED, **told)


def _walk(cwd: Path, key_file: Path) -> dict[str, Any]:
    cwd.mkdir()
    jobs = {job: _towers(cwd, key_file, job, *WORLD, *EXPORT, "run_dir=run") for job in TRAINING_JOBS}
    jobs["index"] = _towers(cwd, key_file, "index", "run_dir=run")
    with _served(cwd, key_file) as (url, finish):
        replies = [_ask(url, body) for body in ASKED]
        with urllib.request.urlopen(f"{url}/v1/items/i0004/similar?k=5", timeout=30) as reply:
            similar = json.load(reply)
        jobs["serve"] = finish()
    ended = {job: (done.returncode, done.stdout, done.stderr) for job, done in jobs.items()}
    return {"jobs": ended, "replies": replies, "similar": similar}


@pytest.fixture(scope="session")
def retriever(spine: Spine) -> Retriever:
    return Retriever.open(current(spine.run_dir / "bundles"), spine.run_dir / "export" / "histories.parquet", spine.key_file)


@pytest.fixture(scope="session")
def data(spine: Spine) -> Interactions:
    return Interactions.open(spine.run_dir / "prepared")


@contextmanager
def _served(cwd: Path, key_file: Path) -> Iterator[tuple[str, Any]]:
    """A `towers serve` process; yields its URL, and a function that stops it and tells how it ended."""
    command = [sys.executable, "-W", "error", "-m", "towers", "serve", "run_dir=run", "serving.port=0"]
    server = subprocess.Popen(command, cwd=cwd, env=_environment(key_file), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)

    def finish() -> "subprocess.CompletedProcess[str]":
        server.send_signal(signal.SIGTERM)
        out, err = server.communicate(timeout=30)
        return subprocess.CompletedProcess(command, server.returncode, out, err)

    try:
        yield wait_for_announcement(server, cwd / "run")["url"], finish
    finally:
        if server.poll() is None:
            server.kill()
            server.communicate()


def _ask(url: str, body: dict[str, Any]) -> dict[str, Any]:
    request = urllib.request.Request(f"{url}/v1/recommend", json.dumps(body).encode(), {"content-type": "application/json"}, method="POST")
    with urllib.request.urlopen(request, timeout=30) as reply:
        document: dict[str, Any] = json.load(reply)
        return document
