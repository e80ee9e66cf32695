"""Trains a few steps of each case of test_distributed.py, alone or as one of several processes, and writes what came out.

python parity_run.py cases.json <folder to write to>
"""

import json
import sys
from pathlib import Path

import torch
from safetensors.torch import save_file

from towers.model_config import HistoryConfig, ModelConfig
from training.config import LossConfig, NegativesConfig, OptimConfig, TrainerConfig, TrainingConfig
from training.distributed import join
from training.fit import assemble
from training.interactions import Interactions
from training.tracking import Silence
from training.trainer import Trainer


def settings(case: dict, folder: Path, steps: int) -> TrainingConfig:
    history = HistoryConfig(name=case["history"], length=8, layers=1, dropout=case["dropout"])
    history.use_age = history.use_event_type = case["weighs_history"]
    return TrainingConfig(
        run_dir=str(folder),
        model=ModelConfig(dim=16, history=history, id_dropout=case["dropout"], context_dropout=case["dropout"]),
        loss=LossConfig(name=case["loss"], precision="fp32"),
        negatives=NegativesConfig(case["negatives"], 32),
        optim=OptimConfig(name=case["optim"], lr=0.03, clip_norm=1.0),
        trainer=TrainerConfig(sampler=case["sampler"], batch_size=case["batch_size"], max_steps=steps, evaluate_every=0, device="cpu"),
    )


def main(cases: Path, folder: Path) -> None:
    torch.set_num_threads(1)
    document = json.loads(cases.read_text())
    losses: dict[str, list[float]] = {}
    with join(torch.device("cpu")) as processes:
        for name, case in document["cases"].items():
            config = settings(case, folder / name, document["steps"])
            parts = assemble(config, Interactions.open(Path(case["prepared"])), torch.device("cpu"), processes)
            # to the end of an epoch, whose last batch is shorter than the others
            parts.loader.load_state_dict({"epoch": 0, "step": max(0, parts.loader.steps_per_epoch - document["steps"])})
            trainer = Trainer(
                parts.model, parts.objective, parts.optimizer, parts.loader, parts.progress, parts.checkpointer, Silence(),
                parts.validate, config.trainer, config.seed, processes,
            )  # fmt: skip
            losses[name] = [trainer.train_step(batch)["train/loss"] for batch in parts.loader]
            save_file(parts.model.state_dict(), folder / f"{name}-{processes.rank}.safetensors")
            (folder / f"targets-{name}-{processes.rank}.json").write_text(str(parts.progress.examples))
        (folder / f"losses-{processes.rank}.json").write_text(json.dumps(losses))


if __name__ == "__main__":
    main(*map(Path, sys.argv[1:]))
