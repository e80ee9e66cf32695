"""Figures in a bundle belong to its weights, and to the whole set."""

import json
from pathlib import Path

from towers.bundle import sha256
from training.bundle_parts import headline


def write(run_dir: Path, weights: bytes, measured: str) -> None:
    (run_dir / "model").mkdir(exist_ok=True)
    (run_dir / "model" / "weights.safetensors").write_bytes(weights)
    names = ("test/ndcg@20", "test/masked/ndcg@20", "test/cold/ndcg@20", "test/history=1-2/ndcg@20")
    document = {"run": {"weights_sha256": measured}, "metrics": {name: {"value": 0.5} for name in names}}
    (run_dir / "metrics.json").write_text(json.dumps(document))


def test_whole_set_figures_of_the_weights_at_hand(tmp_path: Path) -> None:
    write(tmp_path, b"one", "")
    digest = sha256(tmp_path / "model" / "weights.safetensors")
    write(tmp_path, b"one", digest)
    assert headline(tmp_path) == {"test/ndcg@20": 0.5, "test/masked/ndcg@20": 0.5}
    write(tmp_path, b"another training since", digest)
    assert headline(tmp_path) == {}


def test_no_figures_before_evaluation(tmp_path: Path) -> None:
    assert headline(tmp_path) == {}
