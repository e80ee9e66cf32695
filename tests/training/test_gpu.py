"""Training on a GPU: the loss and a short run are those of the CPU. Skipped where there is none."""

import json
from pathlib import Path

import pytest
import torch
from torch.nn.functional import normalize

from towers.model_config import HistoryConfig, ModelConfig
from towers.runtime import on_device
from training.config import LossConfig, NegativesConfig, TrainerConfig, TrainingConfig
from training.device import choose_half
from training.fit import run
from training.fused import Targets, fused_softmax
from training.interactions import write_prepared

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")]


def losses(device, half, temperature):
    g = torch.Generator().manual_seed(0)
    user, item = (normalize(torch.randn(rows, 64, generator=g)).to(device).requires_grad_() for rows in (300, 2000))
    column, log_k = torch.randint(2000, (300,), generator=g).to(device), torch.randn(2000, generator=g).to(device)
    weight = torch.full((300,), 1 / 300, device=device)
    loss = fused_softmax(user, item, temperature, Targets(None, column, weight, log_k[column]), log_k, half)
    return [tensor.detach().cpu() for tensor in (loss, *torch.autograd.grad(loss, (user, item)))]


@pytest.mark.parametrize("temperature", [0.07, 0.02, 0.005])
@pytest.mark.parametrize("half", [False, True])
def test_the_loss_is_that_of_the_cpu(half, temperature):
    if half and not choose_half("bf16", torch.device("cuda"))[0]:
        pytest.skip("no GPU with bf16")
    exact = losses("cpu", False, temperature)
    for mine, true in zip(losses("cuda", half, temperature), exact, strict=True):
        assert float((mine - true).norm() / true.norm()) < (1e-2 if half else 1e-4)


@pytest.mark.parametrize("loss,negatives", [("full_softmax", "mixed"), ("sampled_softmax", "mixed"), ("sampled_softmax", "hard")])
@pytest.mark.parametrize("history", ["mean", "transformer"])
def test_a_short_run_learns_as_on_the_cpu(tmp_path, make_toy, loss, negatives, history):
    recalls = {}
    for device in ("cpu", "cuda"):
        write_prepared(tmp_path / device / "prepared", make_toy(users=120, events=(8, 24)))
        config = TrainingConfig(
            run_dir=str(tmp_path / device),
            model=ModelConfig(dim=16, history=HistoryConfig(name=history, length=6, layers=1, dropout=0.0), id_dropout=0.0),
            loss=LossConfig(loss),
            negatives=NegativesConfig(negatives, 32),
            trainer=TrainerConfig(epochs=5, batch_size=64, device=device, patience=0),
        )
        config.optim.lr = 0.03
        result = json.loads(Path(run(config)).read_text())
        assert result["run"]["device"] == device
        recalls[device] = result["valid"]["valid/recall@20"]
        run(config)  # finished: its checkpoint fits the device
    assert recalls["cuda"] == pytest.approx(recalls["cpu"], abs=0.15)


def test_copies_go_through_pinned_memory():
    array = torch.arange(1 << 20).numpy()
    assert torch.equal(on_device(array, "cuda").cpu(), torch.from_numpy(array))
