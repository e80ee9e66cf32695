"""What training holds of a log grows by a byte or so a row, not by the numbers it draws from it."""

import dataclasses
import json
import os
import subprocess
import sys
import tracemalloc
from pathlib import Path

import numpy as np
import pytest

from towers.columns import TRAIN
from training.events import TrainingEvents
from training.examples import EventSampler, SequenceSampler, UserSampler
from training.loader import Loader

REPOSITORY = Path(__file__).resolve().parents[2]
COLUMNS = ("item", "timestamp", "event", "weight", "split")


def mapped(toy, folder, times):
    """The toy world again and again, in files: `times` as many users."""
    arrays = {}
    for name in COLUMNS:
        column = getattr(toy, name)
        file = np.lib.format.open_memmap(folder / f"{name}-{times}.npy", "w+", column.dtype, (len(column) * times,))
        for i in range(times):
            file[i * len(column) : (i + 1) * len(column)] = column
        arrays[name] = np.load(folder / f"{name}-{times}.npy", mmap_mode="r")
    hour = np.lib.format.open_memmap(folder / f"hour-{times}.npy", "w+", np.int32, (len(toy) * times,))
    hour[:] = 3
    starts = np.arange(times)[:, None] * len(toy) + toy.offsets[:-1]
    offsets = np.append(starts.ravel(), len(toy) * times)
    return dataclasses.replace(
        toy, **arrays, offsets=offsets, user_keys=np.zeros((len(offsets) - 1, 16), np.uint8), context={"context.hour": hour}
    )


@pytest.mark.parametrize("sampler", [EventSampler, lambda events: SequenceSampler(events, 20), UserSampler])
@pytest.mark.parametrize("entangled", [False, True])
def test_memory_grows_by_bytes_a_row(make_toy, tmp_path, monkeypatch, sampler, entangled):
    monkeypatch.setattr("training.events.BLOCK_ROWS", 1 << 14)
    monkeypatch.setattr("training.shuffle.BUFFER_EXAMPLES", 1 << 12)
    toy = make_toy(users=100, events=(80, 120))
    if entangled:
        split = toy.split.copy()
        split[::7] = 2
        toy = dataclasses.replace(toy, split=split)
    peaks, rows = [], []
    for times in (10, 60):
        data = mapped(toy, tmp_path, times)
        tracemalloc.start()
        events = TrainingEvents.select(data, (TRAIN,))
        events.target_counts(data), events.users_with_targets()
        loader = Loader(data, events, sampler(events), length=20, batch_size=64, seed=0)
        for step in range(3):
            loader.batch(0, step)
        peaks.append(tracemalloc.get_traced_memory()[1])
        rows.append(len(data))
        tracemalloc.stop()
    per_row = (peaks[1] - peaks[0]) / (rows[1] - rows[0])
    # a byte for the target flags (4 more where places differ), and 8-byte numbers of users and blocks: 100 rows a user here
    assert per_row < (6.5 if entangled else 2.5), per_row


@pytest.mark.long
def test_a_larger_log_prepares_and_trains_in_the_same_memory(tmp_path):
    """The public commands on a log of half a million and of three million interactions."""
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(REPOSITORY), *filter(None, [os.environ.get("PYTHONPATH")])])}
    figures = []
    for rows in (500_000, 3_000_000):
        command = [sys.executable, "scripts/bench/memory.py", "--rows", str(rows), "--steps", "30", "--folder", str(tmp_path / str(rows))]
        done = subprocess.run(command, cwd=REPOSITORY, env=environment, capture_output=True, text=True, timeout=280)
        assert done.returncode == 0, done.stderr
        figures.append(json.loads(done.stdout.splitlines()[-1])["figures"])
    small, large = figures
    assert large["rss_over_tables_mib"] < 1536
    # prepare holds a chunk of a million rows; what grows with the log are its distinct ids
    assert large["train_anonymous_over_tables_mib"] < small["train_anonymous_over_tables_mib"] + 100
