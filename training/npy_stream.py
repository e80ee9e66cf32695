""".npy files longer than memory: written by appending, read by blocks. What they hold is what `numpy.load` maps.

Plain reads and writes, not memory maps: a map's touched pages count as the process's memory, and prepare promises a bound.
"""

from collections.abc import Iterator
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import numpy as np
from numpy.lib import format as npy
from numpy.typing import DTypeLike, NDArray

BLOCK_ROWS = 1 << 20
"""Rows of a block where the caller does not say."""


class NpyWriter:
    """Appends rows of one shape to a .npy file; `close` writes the final length into its header."""

    def __init__(self, path: Path, dtype: DTypeLike, tail: tuple[int, ...] = ()) -> None:
        self.dtype = np.dtype(dtype)
        self.tail = tail
        self.rows = 0
        self._file = path.open("wb")
        self._header()
        self._start = self._file.tell()

    def append(self, block: NDArray[Any]) -> None:
        """Add rows [n, *tail]; cast to the file's dtype."""
        if block.shape[1:] != self.tail:
            raise ValueError(f"{self._file.name}: rows of shape {block.shape[1:]}, expected {self.tail}")
        # not `tofile`, whose error on a full disk does not say so
        self._file.write(np.ascontiguousarray(block, self.dtype).data)
        self.rows += len(block)

    def close(self) -> None:
        with self._file:
            self._file.seek(0)
            self._header()
            # NumPy pads headers so that the first axis can grow in place; if that ever changed, the data would be overwritten
            if self._file.tell() != self._start:
                raise ValueError(f"{self._file.name}: the .npy header changed its length")

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()

    def _header(self) -> None:
        described = {"descr": npy.dtype_to_descr(self.dtype), "fortran_order": False, "shape": (self.rows, *self.tail)}
        npy.write_array_header_1_0(self._file, described)


class NpyReader:
    """Reads a .npy file by rows."""

    def __init__(self, path: Path) -> None:
        mapped = np.load(path, mmap_mode="r", allow_pickle=False)
        self.path, self.dtype, self.tail, self.rows = path, mapped.dtype, mapped.shape[1:], len(mapped)
        self._start = path.stat().st_size - mapped.nbytes

    def read(self, start: int, stop: int) -> NDArray[Any]:
        """Rows start .. stop, clipped to the file: [n, *tail]."""
        width = int(np.prod(self.tail, dtype=np.int64))
        stop = min(stop, self.rows)
        with self.path.open("rb") as source:
            source.seek(self._start + start * width * self.dtype.itemsize)
            flat = np.fromfile(source, self.dtype, (stop - start) * width)
        return flat.reshape(-1, *self.tail)

    def blocks(self, rows: int = BLOCK_ROWS) -> Iterator[NDArray[Any]]:
        """All rows, `rows` at a time."""
        for start in range(0, self.rows, rows):
            yield self.read(start, start + rows)
