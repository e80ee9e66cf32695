"""The held-out users that `towers index` tunes on: whose they must be, how many are taken, what is said of unusable ones."""

import json
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from serving import index_job
from tests.serving.test_index_job import DIM, exported, now, vectors
from towers.errors import DataError
from towers.held_out import query_vectors_file


def queries_of(run_dir: Path) -> Path:
    """The user vectors that the current bundle's index is tuned on."""
    return query_vectors_file(run_dir / "export", now(run_dir).weights_sha256)


@pytest.mark.parametrize("name", ["queries.npy", "queries-0123456789abcdef.npy"])
def test_users_of_another_model_do_not_tune_an_index(tmp_path: Path, name: str) -> None:
    config = exported(tmp_path / "run", 3000)
    mine = queries_of(tmp_path / "run")
    mine.rename(mine.with_name(name))
    with pytest.raises(DataError, match=rf"another model \({name}\) than bundle v1, which needs {mine.name}.*`towers export` again"):
        index_job.run(config)
    assert now(config).version == "v1"
    np.save(mine, vectors(150, 1))
    assert json.loads(Path(index_job.run(config)).read_text())["queries"] == 150, "those of the bundle's own model are found beside them"


def test_users_are_drawn_by_seed(tmp_path: Path) -> None:
    exported(tmp_path / "run", 300)
    path = queries_of(tmp_path / "run")
    one, same, other = (index_job.held_out_queries(path, DIM, 40, seed) for seed in (0, 0, 1))
    assert one.shape == (40, DIM) and (one == same).all() and not (one == other).all()
    assert len(index_job.held_out_queries(path, DIM, 10_000, 0)) == 150


@pytest.mark.parametrize("queries", [None, np.zeros((0, DIM), np.float32)])
def test_without_held_out_users(tmp_path: Path, queries: NDArray[np.float32] | None) -> None:
    config = exported(tmp_path / "run", 3000)
    path = queries_of(tmp_path / "run")
    path.unlink()
    if queries is not None:
        np.save(path, queries)
    with pytest.raises(DataError, match=r"no held-out user vectors.*index=exact"):
        index_job.run(config)
    config.index.name = "exact"
    assert json.loads(Path(index_job.run(config)).read_text())["exact_us"] == 0


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"no numpy", "not a NumPy file"),
        (b"", "not a NumPy file"),
        (np.zeros((5, DIM + 1), np.float32), r"expected \[users, 16\]"),
        (np.zeros(DIM, np.float32), r"expected \[users, 16\]"),
        (np.array([[{}] * DIM]), "not a NumPy file"),
        (np.full((5, DIM), np.nan, np.float32), "5 of 5 user vectors hold NaN"),
    ],
)
def test_bad_user_vectors(tmp_path: Path, content: bytes | NDArray[np.generic], message: str) -> None:
    config = exported(tmp_path / "run", 3000)
    path = queries_of(tmp_path / "run")
    if isinstance(content, bytes):
        path.write_bytes(content)
    else:
        np.save(path, content, allow_pickle=True)
    with pytest.raises(DataError, match=message):
        index_job.run(config)
    assert now(config).version == "v1"
