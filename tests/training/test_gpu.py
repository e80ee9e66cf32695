"""Training on a GPU: the loss and a short run are those of the CPU. Skipped where there is none."""

import json
from pathlib import Path

import pytest
import torch
from torch.nn.functional import normalize

from towers.errors import ConfigError, TrainingError
from towers.model_config import HistoryConfig, ModelConfig
from towers.runtime import on_device
from training.config import LossConfig, NegativesConfig, TrainerConfig, TrainingConfig
from training.device import choose_half
from training.distributed import join
from training.fit import run
from training.fused import Targets, fused_softmax
from training.interactions import write_prepared
from training.randomness import seed_torch
from training.room import enough_memory
from training.trainer import Trainer

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


def test_a_run_that_began_on_the_cpu_goes_on_here(tmp_path, make_toy, monkeypatch):
    write_prepared(tmp_path / "prepared", make_toy(users=120, events=(8, 24)))
    config = TrainingConfig(
        run_dir=str(tmp_path),
        model=ModelConfig(dim=16, history=HistoryConfig(length=6), id_dropout=0.0),
        trainer=TrainerConfig(epochs=4, batch_size=64, device="cpu", patience=0),
    )
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(Trainer, "end_epoch", interrupted_after(2, Trainer.end_epoch))
        run(config)
    config.trainer.device = "cuda"
    steps = []
    monkeypatch.setattr(Trainer, "train_step", noted(steps, Trainer.train_step))
    result = json.loads(Path(run(config)).read_text())
    assert result["run"]["device"] == "cuda" and result["epochs"] == 4
    assert steps[0] == steps[-1] // 2 + 1


def interrupted_after(epochs, end_epoch):
    def ended(trainer):
        end_epoch(trainer)
        if trainer.progress.epochs == epochs:
            raise KeyboardInterrupt

    return ended


def noted(steps, train_step):
    def step(trainer, batch):
        scalars = train_step(trainer, batch)
        steps.append(trainer.progress.step)
        return scalars

    return step


def test_the_same_seed_draws_the_same_here():
    device = torch.device("cuda")
    first, again, other = (drawn(seed, device) for seed in (5, 5, 6))
    assert torch.equal(first, again) and not torch.equal(first, other)


def drawn(seed, device):
    seed_torch(seed, device)
    return torch.rand(100, device=device)


def test_memory_that_runs_out_names_the_knobs():
    with pytest.raises(TrainingError, match=r"out of memory.*trainer\.batch_size.*model\.dim"), enough_memory():
        torch.empty(1 << 50, device="cuda")


def test_a_process_without_a_gpu_of_its_own_is_refused(monkeypatch):
    gpus = torch.cuda.device_count()
    for name, value in (("WORLD_SIZE", gpus + 1), ("RANK", gpus), ("LOCAL_RANK", gpus)):
        monkeypatch.setenv(name, str(value))
    with pytest.raises(ConfigError, match=rf"process {gpus} .* finds {gpus} GPUs.*trainer\.device=cpu"), join(torch.device("cuda")):
        pass


def test_copies_go_through_pinned_memory():
    array = torch.arange(1 << 20).numpy()
    assert torch.equal(on_device(array, "cuda").cpu(), torch.from_numpy(array))
