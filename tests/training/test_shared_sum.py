"""Sums through shared memory: the same bits for all, whatever their size, until somebody is gone. Threads stand for processes."""

import tempfile
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from pathlib import Path
from typing import TypeVar

import pytest
import torch
import torch.distributed as dist
from torch import Tensor

from training import shared_sum
from training.shared_sum import SharedSum, meet

T = TypeVar("T")


@pytest.fixture(autouse=True)
def memory(monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Where the memory lies; the path of a socket may not be long."""
    with tempfile.TemporaryDirectory(prefix="t-") as folder:
        monkeypatch.setattr(shared_sum, "_MEMORY", Path(folder))
        yield Path(folder)


def together(size: int, work: Callable[[int, SharedSum | None], T]) -> list[T]:
    store = dist.HashStore()
    store.set_timeout(timedelta(seconds=20))

    def process(rank: int) -> T:
        with meet(store, rank, size) as shared:
            return work(rank, shared)

    with ThreadPoolExecutor(size) as pool:
        return list(pool.map(process, range(size), timeout=60))


def numbers(rank: int, turn: int) -> list[Tensor]:
    generator = torch.Generator().manual_seed(10 * turn + rank)
    return [
        torch.randn(7, 3, generator=generator),
        torch.randn(1000, generator=generator, dtype=torch.float64),
        torch.tensor([rank, turn]),
        torch.empty(0),
        torch.tensor(float(rank)),
        torch.randn(333, generator=generator),
    ]


@pytest.mark.parametrize("size", [2, 3])
@pytest.mark.parametrize("slot_bytes", [256, 1 << 22])
def test_sums_are_sums_and_the_same_bits_for_all(monkeypatch: pytest.MonkeyPatch, memory: Path, size: int, slot_bytes: int) -> None:
    monkeypatch.setattr(shared_sum, "SLOT_BYTES", slot_bytes)

    def work(rank: int, shared: SharedSum | None) -> list[list[Tensor]]:
        assert shared is not None
        turns = [numbers(rank, turn) for turn in range(5)]
        for turn in turns:
            shared.add(turn)
        return turns

    results = together(size, work)
    for turn in range(5):
        for place, wanted in enumerate(zip(*(numbers(rank, turn) for rank in range(size)), strict=True)):
            got = [results[rank][turn][place] for rank in range(size)]
            assert all(torch.equal(got[0], other) for other in got)
            torch.testing.assert_close(got[0], torch.stack(wanted).sum(0))
    assert not list(memory.iterdir()), "a run that is killed leaves nothing behind"


def test_who_is_gone_is_noticed() -> None:
    def work(rank: int, shared: SharedSum | None) -> str:
        assert shared is not None
        shared.add([torch.ones(3)])
        if rank == 1:
            return ""
        with pytest.raises(RuntimeError, match="another process") as caught:
            shared.add([torch.ones(3)])
        return str(caught.value)

    assert together(2, work)[0]


def test_without_room_nobody_shares(monkeypatch: pytest.MonkeyPatch, memory: Path) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.posix_fallocate", full)
    assert together(2, lambda rank, shared: shared) == [None, None]
    assert not list(memory.iterdir())
