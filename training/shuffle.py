"""The order of an epoch's examples: shuffled by block and by buffer, so that memory does not grow with the log.

Legend: K blocks, N examples of an epoch.

Blocks (examples that lie together on disk) are taken in random order; the examples of as many blocks as fill a buffer are shuffled
among themselves. An epoch that fits the buffer is shuffled entirely. Any step can be asked for: nothing depends on the steps before.
"""

import mmap
import sys
from collections.abc import Callable, Iterable

import numpy as np
from numpy.typing import NDArray

from training.randomness import ORDER_STREAM, generator

BUFFER_EXAMPLES = 1 << 20
"""Examples shuffled among themselves: 8 MB of numbers, a thousand batches."""


class Order:
    """The examples of one epoch, by slice.

    Args:
        counts_K: examples of each block.
        members: the examples of a block, int64, in any fixed order.
        seed, epoch: decide the order, alone.
        buffer: examples shuffled among themselves; 0 = BUFFER_EXAMPLES.
    """

    def __init__(
        self,
        counts_K: NDArray[np.integer],
        members: Callable[[int], NDArray[np.int64]],
        seed: int,
        epoch: int,
        buffer: int = 0,
    ) -> None:
        self._members, self._place = members, (seed, epoch)
        self._blocks_K = generator(seed, ORDER_STREAM, epoch).permutation(len(counts_K))
        ends_K = np.cumsum(counts_K[self._blocks_K])
        self._length = int(ends_K[-1]) if len(ends_K) else 0
        # A block belongs to the buffer that its last example falls into; so a buffer may be a block longer than asked for.
        _, first_G = np.unique(np.maximum(ends_K - 1, 0) // (buffer or BUFFER_EXAMPLES), return_index=True)
        self._first_G1 = np.append(first_G, len(counts_K))
        self._start_G1 = np.append(0, ends_K[self._first_G1[1:] - 1]) if len(ends_K) else np.zeros(1, np.int64)
        self._held: tuple[int, NDArray[np.int64]] = (-1, np.empty(0, np.int64))

    def __len__(self) -> int:
        return self._length

    def __getitem__(self, wanted: slice) -> NDArray[np.int64]:
        """Examples of consecutive places in the order (step 1)."""
        start, stop, _ = wanted.indices(self._length)
        parts = [np.empty(0, np.int64)]
        while start < stop:
            buffer = int(np.searchsorted(self._start_G1, start, side="right")) - 1
            first, last = int(self._start_G1[buffer]), int(self._start_G1[buffer + 1])
            parts.append(self._buffer(buffer)[start - first : stop - first])
            start = last
        return np.concatenate(parts)

    def _buffer(self, number: int) -> NDArray[np.int64]:
        if self._held[0] != number:
            blocks = self._blocks_K[self._first_G1[number] : self._first_G1[number + 1]]
            examples = np.concatenate([self._members(int(block)) for block in blocks])
            # + 1, for a place ending in 0 would be the one that the blocks are drawn at
            generator(self._place[0], ORDER_STREAM, self._place[1], number + 1).shuffle(examples)
            self._held = (number, examples)
        return self._held[1]


def release(arrays: Iterable[NDArray[np.generic]]) -> None:
    """Give the resident pages of memory-mapped files back; they are read again, from the page cache or the disk, where they are needed.

    Without it a process that wanders through a mapped log ends with all of it in its resident set.
    """
    if sys.platform != "linux":
        return
    for array in arrays:
        base = array.base
        if isinstance(base, mmap.mmap):
            base.madvise(mmap.MADV_DONTNEED)
