"""FAISS' files: written with an error that helps, read within bounds and mapped."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import faiss
import numpy as np
from numpy.typing import NDArray

from towers.errors import BundleError, DataError


def write_faiss(index: faiss.Index, path: Path) -> None:
    """Write an index.

    Raises:
        DataError: the disk is full or not writable.
    """
    try:
        faiss.write_index(index, str(path))
    except RuntimeError as error:
        raise DataError(f"writing {path}: {str(error)[-200:]}. Free some space, then run the job again") from error


def read_faiss(path: Path, flags: int, tables: int = 0, loops: int = 1) -> Any:
    """Read an index whose checksum was verified.

    Args:
        flags: FAISS' word for what is mapped.
        tables: bytes that FAISS counts for what it makes itself.
        loops: most rounds of any loop while reading.

    Raises:
        BundleError: it is no index, or claims to be larger than its file.
    """
    # Whatever a file claims, faiss allocates no vector larger than the file, or than such a table.
    faiss.set_deserialization_vector_byte_limit(max(path.stat().st_size, tables + 64))
    faiss.set_deserialization_loop_limit(loops)
    try:
        return faiss.read_index(str(path), flags | faiss.IO_FLAG_READ_ONLY)
    except RuntimeError as error:
        raise BundleError(f"{path} is not a readable index ({str(error)[-200:]}); build it again: towers index") from error


def list_rows(index: faiss.IndexIVF) -> Iterator[NDArray[np.int64]]:
    """The ids in each list, where they lie."""
    lists: Any = index.invlists
    for place in range(index.nlist):
        size = lists.list_size(place)
        yield faiss.rev_swig_ptr(lists.get_ids(place), size) if size else np.empty(0, np.int64)
