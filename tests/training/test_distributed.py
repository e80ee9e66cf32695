"""Several processes train what one would: the same losses and weights on the same global batches."""

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from training.distributed import ALONE, Processes
from training.interactions import write_prepared

HERE = Path(__file__).resolve().parent
STEPS = 8
EVENT = {
    "history": "mean", "weighs_history": True, "dropout": 0.0, "negatives": "mixed", "optim": "adam", "sampler": "event", "batch_size": 64,
}  # fmt: skip
SEQUENCE = {**EVENT, "history": "transformer", "sampler": "sequence", "batch_size": 13}
USER = {**EVENT, "loss": "full_softmax", "sampler": "user", "batch_size": 15}
CASES = {
    "event_in_batch": {**EVENT, "loss": "sampled_softmax", "negatives": "in_batch"},
    "event_mixed": {**EVENT, "loss": "sampled_softmax"},
    "event_mixed_lazy_adam": {**EVENT, "loss": "sampled_softmax", "optim": "lazy_adam"},
    "event_uniform_rowwise_adagrad": {**EVENT, "loss": "sampled_softmax", "negatives": "uniform", "optim": "rowwise_adagrad"},
    "event_full": {**EVENT, "loss": "full_softmax"},
    "sequence_full": {**SEQUENCE, "loss": "full_softmax"},
    "sequence_mixed": {**SEQUENCE, "loss": "sampled_softmax"},
    "user_full": USER,
    "user_mixed": {**USER, "loss": "sampled_softmax"},
    "set_event_mixed": {**EVENT, "loss": "sampled_softmax", "weighs_history": False},
    "set_user_full": {**USER, "weighs_history": False},
    "fewer_rows_than_processes": {**EVENT, "loss": "sampled_softmax", "batch_size": 1, "weighs_history": False},
    "fewer_windows_than_processes": {**SEQUENCE, "loss": "full_softmax", "batch_size": 1},
}


def environment(rank=None, size=1, port=0):
    paths = [str(HERE.parents[1]), *filter(None, [os.environ.get("PYTHONPATH")])]
    launched = (
        {} if rank is None else {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": size, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    )
    return {**os.environ, "PYTHONPATH": os.pathsep.join(paths), "OMP_NUM_THREADS": "1", **{k: str(v) for k, v in launched.items()}}


def free_port():
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


def start(arguments, size):
    """The processes of one run, as a launcher would start them."""
    port = free_port()
    ranks = [None] if size == 1 else range(size)
    command = [sys.executable, "-W", "error", *map(str, arguments)]
    return [subprocess.Popen(command, env=environment(r, size, port), stderr=subprocess.PIPE, text=True) for r in ranks]


ALIKE = {
    "dropout": {**EVENT, "loss": "sampled_softmax", "dropout": 0.3},
    "hard_negatives": {**EVENT, "loss": "sampled_softmax", "negatives": "hard"},
}
"""Cases in which each process adds something of its own: the processes agree with one another, not with a process alone."""


@pytest.fixture(scope="module")
def outcome(tmp_path_factory, make_toy):
    """Losses and weights of each case, by number of processes."""
    folder = tmp_path_factory.mktemp("parity")
    prepared = {}
    for order in ("time", "set"):
        data = make_toy(users=121, events=(8, 24), order=order)
        # weights differ from row to row, so that a mean of means would be another number
        data.weight[:] *= np.random.default_rng(1).uniform(0.1, 3.0, len(data)).astype(np.float32)
        prepared[order] = str(write_prepared(folder / order, data))
    cases = {name: {**case, "prepared": prepared["set" if name.startswith("set") else "time"]} for name, case in (CASES | ALIKE).items()}
    (folder / "cases.json").write_text(json.dumps({"steps": STEPS, "cases": cases}))

    def read(case, size, rank=0):
        at = folder / str(size)
        if not at.exists():
            at.mkdir()
            for process in start([HERE / "parity_run.py", folder / "cases.json", at], size):
                _, told = process.communicate(timeout=240)
                assert process.returncode == 0, told
        losses = json.loads((at / f"losses-{rank}.json").read_text())[case]
        return losses, load_file(at / f"{case}-{rank}.safetensors"), int((at / f"targets-{case}-{rank}.json").read_text())

    return read


@pytest.mark.parametrize("size", [2, pytest.param(3, marks=pytest.mark.long)])
@pytest.mark.parametrize("case", CASES)
def test_several_processes_train_what_one_does(outcome, case, size):
    losses, weights, targets = outcome(case, 1)
    assert len(losses) == STEPS
    for rank in range(size):
        theirs, moved, seen = outcome(case, size, rank)
        assert theirs == pytest.approx(losses, abs=1e-5) and seen == targets
        for name, tensor in weights.items():
            assert torch.equal(moved[name], outcome(case, size, 0)[1][name]), "all processes hold the same bits"
            felt = slice(len(tensor) // 2, None) if name.endswith("key_value.bias") else slice(None)
            # A key's bias moves all scores of a query alike: its gradient is nothing but rounding, which Adam blows up to steps.
            # (So are those of event types and ages where a history has only one kind of them: `weighs_history`.)
            assert torch.allclose(moved[name][felt], tensor[felt], rtol=0, atol=1e-5), name


@pytest.mark.parametrize("case", ALIKE)
def test_processes_that_differ_from_one_stay_alike(outcome, case):
    (losses, weights, _), (theirs, moved, _), (alone, _, _) = outcome(case, 2, 0), outcome(case, 2, 1), outcome(case, 1)
    assert losses == theirs and all(torch.equal(moved[name], tensor) for name, tensor in weights.items())
    assert losses != alone and losses == pytest.approx(alone, rel=0.2)


def test_a_process_alone_exchanges_nothing():
    row_ND = torch.arange(6.0).reshape(3, 2)
    assert ALONE.part(3) == slice(0, 3) and ALONE.join_part(row_ND, 3) is row_ND
    joined, own = ALONE.join_rows(row_ND)
    assert joined is row_ND and own == slice(0, 3)
    assert ALONE.lead(lambda: 7) == 7 and ALONE.union(["b"], ["a", "b"]) == ["b"]


def test_parts_are_all_rows_once():
    for size in (1, 2, 3, 7):
        for n in (0, 1, 2, 5, 64):
            assert [i for rank in range(size) for i in range(n)[Processes(rank, size).part(n)]] == list(range(n))
