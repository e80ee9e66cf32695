"""Writers are killed in mid-write, again and again: what they had acknowledged is there, once.

Run as a program, this file is such a writer: python test_event_kills.py <database> <writer> <first batch>
"""

import os
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from serving.events import Retention, StoredEvent
from serving.sqlite_events import SqliteEvents

USERS, BATCH, NOW = 5, 7, 1_700_000_000_000_000
EVERYTHING = Retention(newest=10_000_000)


def batch(writer: str, number: int) -> list[StoredEvent]:
    """The events of a batch; the last repeats the first, and the times of batches overlap."""
    made = [(f"{writer}-{number}-{i}", (number + i) % USERS, NOW + number * 3 - i * 5) for i in range(BATCH)]
    return [StoredEvent(bytes([user]) * 16, name, f"item-{name}", "play", time) for name, user, time in [*made, made[0]]]


def write_until_killed(path: Path, writer: str, first: int) -> None:
    """Each line on standard output is a batch that was acknowledged."""
    store = SqliteEvents(path, b"secret", EVERYTHING)
    for number in range(first, 1_000_000):
        store.append(batch(writer, number), NOW)
        os.write(1, f"{number}\n".encode())


class Writer:
    """A process, followed by another from where it was when it is killed."""

    def __init__(self, folder: Path, name: str) -> None:
        self.folder, self.name, self.acknowledged = folder, name, -1
        self.start()

    def start(self) -> None:
        # the caller that saw its connection break does not know whether the batch in flight was taken, so it sends the last ones again
        command = [sys.executable, __file__, str(self.folder / "events.db"), self.name, str(max(0, self.acknowledged - 1))]
        environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}
        with (self.folder / self.name).open("wb") as sink:
            self.process = subprocess.Popen(command, env=environment, stdout=sink)

    def kill(self, after_s: float) -> None:
        # two batches are sent again: the fourth is the second new one, so every life gets on, however slow the disk
        deadline = time.monotonic() + 60
        while (self.folder / self.name).read_text().count("\n") < 4:
            assert time.monotonic() < deadline, "it hardly wrote"
            time.sleep(0.005)
        time.sleep(after_s)
        self.process.kill()
        assert self.process.wait(30) == -9, "it ended by itself"
        text = (self.folder / self.name).read_text()
        self.acknowledged = int(text[: text.rindex("\n")].splitlines()[-1])


@pytest.mark.parametrize("kills", [5, pytest.param(100, marks=pytest.mark.long)])
def test_kills_lose_and_double_nothing(tmp_path: Path, kills: int) -> None:
    rng = np.random.default_rng(0)
    SqliteEvents(tmp_path / "events.db", b"secret").close()
    writers = [Writer(tmp_path, name) for name in ("w0", "w1")]
    try:
        for kill in range(kills):
            writers[kill % 2].kill(float(rng.uniform(0, 0.05)))
            writers[kill % 2].start()
        for writer in writers:
            writer.kill(0)
    finally:
        for writer in writers:
            writer.process.kill()
    store = SqliteEvents(tmp_path / "events.db", b"secret", EVERYTHING)
    histories = [store.history(bytes([user]) * 16, NOW) for user in range(USERS)]
    store.close()
    found = Counter(item for history in histories for item in history.items)
    assert set(found.values()) == {1}
    for writer in writers:
        assert writer.acknowledged > kills
        wanted = {event.item_id for number in range(writer.acknowledged + 1) for event in batch(writer.name, number)}
        assert wanted <= set(found)
        # a batch is there whole or not at all, even the one that was cut off
        assert sum(item.startswith(f"item-{writer.name}-") for item in found) % BATCH == 0
    arrivals = [arrival for history in histories for arrival in history.arrivals]
    assert len(set(arrivals)) == len(arrivals)


if __name__ == "__main__":
    write_until_killed(Path(sys.argv[1]), sys.argv[2], int(sys.argv[3]))
