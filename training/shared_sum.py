"""Sums over the processes of one machine, through memory that they share: what a socket takes milliseconds for takes tenths of them.

Each process has a slot in the shared memory. A sum is: write one's own numbers there, tell the others, wait until all have told, add up
all slots in the order of the processes, so that all get the same bits. Slots are used in turns of two: who writes into one again has been
told since that everybody had read it. The telling is a byte through a socket, which sleeps instead of spinning, orders the memory on every
processor, and breaks where a process dies.
"""

import mmap
import os
import shutil
import socket
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

import torch
from torch import Tensor

from training.watch import Store

SLOT_BYTES = 1 << 22
MEETING_S = 60.0
_ALIGNED = 64
_MEMORY = Path("/dev/shm")


class SharedSum:
    """Made by `meet`.

    Args:
        rank: this process.
        slots: uint8 [2, processes, SLOT_BYTES], the same memory in all processes.
        others: a connection to each other process.
    """

    def __init__(self, rank: int, slots: Tensor, others: Sequence[socket.socket]) -> None:
        self._rank, self._slots, self._others = rank, slots, others
        self._turn = 0

    def add(self, tensors: Sequence[Tensor]) -> None:
        """Replace each tensor, contiguous and on the CPU, by its sum over processes; all call with the same shapes.

        Raises:
            RuntimeError: another process is gone.
        """
        for pieces in _rounds(tensors):
            self._round(pieces)

    def _round(self, pieces: Sequence[Tensor]) -> None:
        self._turn ^= 1
        slots = self._slots[self._turn]
        for piece, own in _places(pieces, slots[self._rank]):
            own.copy_(piece)
        self._tell()
        for rank, slot in enumerate(slots):
            for piece, theirs in _places(pieces, slot):
                if rank:
                    piece.add_(theirs)
                else:
                    piece.copy_(theirs)

    def _tell(self) -> None:
        try:
            for other in self._others:
                other.sendall(b"+")
            gone = [other for other in self._others if not other.recv(1)]
        except OSError as error:
            raise RuntimeError(f"the connection to another process broke: {error}") from error
        if gone:
            raise RuntimeError("the connection to another process was closed")


def _rounds(tensors: Sequence[Tensor]) -> Iterator[list[Tensor]]:
    """Flat pieces of the tensors, as many at a time as fit into a slot."""
    pieces: list[Tensor] = []
    room = SLOT_BYTES
    for tensor in tensors:
        for piece in torch.split(tensor.view(-1), SLOT_BYTES // tensor.element_size()):
            needed = -(-piece.nbytes // _ALIGNED) * _ALIGNED
            if needed > room:
                yield pieces
                pieces, room = [], SLOT_BYTES
            pieces.append(piece)
            room -= needed
    if pieces:
        yield pieces


def _places(pieces: Iterable[Tensor], slot: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
    """Each piece and its place in a slot."""
    start = 0
    for piece in pieces:
        yield piece, slot[start : start + piece.nbytes].view(piece.dtype)
        start += -(-piece.nbytes // _ALIGNED) * _ALIGNED


@contextmanager
def meet(store: Store, rank: int, size: int) -> Iterator[SharedSum | None]:
    """Share memory with the other processes where all of them are on this machine and there is room; else None, for all alike.

    Args:
        store: shared by all; `get` waits until the key is there.
    """
    folder = _folder(store, rank, size)
    try:
        if not _agreed(store, "sees", rank, size, (folder / "slots").is_file()):
            yield None
            return
        with ExitStack() as stack:
            joined: SharedSum | None = None
            with suppress(OSError):
                joined = _join(store, folder, rank, size, stack)
            agreed = _agreed(store, "joined", rank, size, joined is not None)
            if rank == 0:
                shutil.rmtree(folder, ignore_errors=True)  # what is mapped and connected stays, and a kill leaves nothing behind
            yield joined if agreed else None
    finally:
        if rank == 0:
            shutil.rmtree(folder, ignore_errors=True)


def _folder(store: Store, rank: int, size: int) -> Path:
    """Made by process 0, with the memory in it if there is room."""
    if rank == 0:
        made = os.devnull
        with suppress(OSError, AttributeError):  # a full disk, or a system that cannot reserve
            made = tempfile.mkdtemp(prefix="towers-", dir=_MEMORY if os.access(_MEMORY, os.W_OK) else None)
            with (Path(made) / "filling").open("wb") as file:
                os.posix_fallocate(file.fileno(), 0, 2 * size * SLOT_BYTES)
                os.rename(file.name, Path(made) / "slots")
        store.set("shared/folder", made)
    return Path(store.get("shared/folder").decode())


def _agreed(store: Store, what: str, rank: int, size: int, well: bool) -> bool:
    """Whether all processes are well."""
    store.set(f"shared/{what}/{rank}", "yes" if well else "no")
    return all([store.get(f"shared/{what}/{other}") == b"yes" for other in range(size)])


def _join(store: Store, folder: Path, rank: int, size: int, stack: ExitStack) -> SharedSum:
    listener = stack.enter_context(socket.socket(socket.AF_UNIX))
    listener.settimeout(MEETING_S)
    listener.bind(str(folder / str(rank)))
    listener.listen(size)
    store.set(f"shared/listens/{rank}", "yes")
    with (folder / "slots").open("r+b") as file:
        memory = mmap.mmap(file.fileno(), 2 * size * SLOT_BYTES)
    slots = torch.frombuffer(memory, dtype=torch.uint8).view(2, size, SLOT_BYTES)
    others = []
    for other in range(rank):
        store.get(f"shared/listens/{other}")
        others.append(stack.enter_context(socket.socket(socket.AF_UNIX)))
        others[-1].connect(str(folder / str(other)))
    for _ in range(rank + 1, size):
        others.append(stack.enter_context(listener.accept()[0]))
        others[-1].setblocking(True)
    return SharedSum(rank, slots, others)
