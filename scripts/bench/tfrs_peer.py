"""TensorFlow Recommenders as a peer, in a Python of its own: two id towers, `tasks.Retrieval` with its in-batch softmax, Adagrad.

TOWERS_TFRS_PYTHON names that Python, an environment with `tensorflow-cpu tf-keras tensorflow-recommenders`. A step is traced once and runs
as a graph on one thread, as in `fit`, on batches that are in memory. Either Python runs this file, so it imports no torch.
"""

import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

PYTHON = "TOWERS_TFRS_PYTHON"
Batch = tuple[NDArray[np.int64], NDArray[np.int64]]
"""User and item rows, [B] each."""


class TfrsPeer:
    """The other process. Each call takes some steps and returns the CPU seconds of one.

    Raises:
        SystemExit: its Python lacks a package; what it said stands on standard error.
    """

    def __init__(self, folder: Path, users: int, items: int, dim: int, batches: list[Batch]) -> None:
        np.savez(folder / "batches.npz", user=np.stack([user for user, _ in batches]), item=np.stack([item for _, item in batches]))
        self._process = subprocess.Popen(
            [os.environ[PYTHON], __file__, json.dumps([str(folder / "batches.npz"), users, items, dim])],
            env={**os.environ, "TF_USE_LEGACY_KERAS": "1", "TF_CPP_MIN_LOG_LEVEL": "3"},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        self.version = self._line()

    def __call__(self, steps: int) -> float:
        assert self._process.stdin is not None
        print(steps, file=self._process.stdin, flush=True)
        return float(self._line()) / steps

    def close(self) -> None:
        self._process.kill()
        self._process.wait()

    def _line(self) -> str:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            raise SystemExit(f"{PYTHON}={os.environ[PYTHON]}: the process ended; its error stands above")
        return line.strip()


def work(path: str, users: int, items: int, dim: int) -> None:
    """For every number read, so many steps, and the CPU seconds they took."""
    import tensorflow as tf
    import tensorflow_recommenders as tfrs

    tf.config.threading.set_intra_op_parallelism_threads(1)
    tf.config.threading.set_inter_op_parallelism_threads(1)

    class Model(tfrs.Model):  # type: ignore[misc]
        def __init__(self) -> None:
            super().__init__()
            self.user = tf.keras.layers.Embedding(users, dim)
            self.item = tf.keras.layers.Embedding(items, dim)
            self.task = tfrs.tasks.Retrieval()

        def compute_loss(self, inputs: Any, training: bool = False) -> Any:
            user_B, item_B = inputs
            return self.task(self.user(user_B), self.item(item_B), compute_metrics=False)

    model = Model()
    model.compile(optimizer=tf.keras.optimizers.Adagrad(0.1))
    step = tf.function(model.train_step)
    with np.load(path) as file:
        batches = [(tf.constant(user), tf.constant(item)) for user, item in zip(file["user"], file["item"], strict=True)]
    for turn in range(2):
        step(batches[turn % len(batches)])
    print(f"tensorflow {tf.__version__}, tensorflow-recommenders {tfrs.__version__.lstrip('v')}", flush=True)
    turn = 0
    for line in sys.stdin:
        since = time.process_time()
        for _ in range(int(line)):
            step(batches[turn % len(batches)])["loss"].numpy()
            turn += 1
        print(time.process_time() - since, flush=True)


if __name__ == "__main__":
    work(*json.loads(sys.argv[1]))
