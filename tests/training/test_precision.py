"""bf16 in training: on, close to fp32; where the processor only emulates it, off, and said once."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from towers.model_config import HistoryConfig, ModelConfig
from training import device
from training.config import LossConfig, TrainerConfig, TrainingConfig
from training.fit import run
from training.interactions import write_prepared

TRANSFORMER = ModelConfig(dim=16, history=HistoryConfig(name="transformer", length=6, layers=1))


@pytest.fixture
def train(tmp_path, make_toy, capsys, monkeypatch):
    """A run of one epoch on a processor that has bf16 or has not; returns its weights and what it said."""
    write_prepared(tmp_path / "prepared", make_toy())

    def build(able, towers="fp32", products="fp32"):
        monkeypatch.setattr(device, "_cpu_multiplies_bf16", lambda: able)
        loop = TrainerConfig(epochs=1, batch_size=64, device="cpu", evaluate_every=0, resume=False, precision=towers)
        loss = LossConfig("full_softmax", precision=products)
        result = json.loads(Path(run(TrainingConfig(run_dir=str(tmp_path), model=TRANSFORMER, trainer=loop, loss=loss))).read_text())
        captured = capsys.readouterr()
        assert result["epochs"] == 1
        return load_file(tmp_path / "model" / "weights.safetensors"), captured.out + captured.err

    return build


def equal(some, others):
    return all(torch.equal(tensor, others[name]) for name, tensor in some.items())


@pytest.mark.parametrize("what", ["towers", "products"])
def test_bf16_is_close_to_fp32_and_falls_back_to_it_where_it_is_only_emulated(train, what):
    exact, said = train(True)
    assert "fp32 products" in said
    half, _ = train(True, **{what: "bf16"})
    assert all(tensor.dtype == torch.float32 for tensor in half.values())
    assert not equal(half, exact)
    assert all(torch.allclose(tensor, exact[name], atol=0.1) for name, tensor in half.items())
    fallen, said = train(False, **{what: "bf16"})
    assert equal(fallen, exact)
    words = "this cpu multiplies no bf16 (trainer.precision=bf16)" if what == "towers" else "as this processor has none in bf16"
    assert said.count(words) == 1
