"""Ragged tables in compressed rows: (offsets [Q + 1], values); the values of row q are values[offsets[q]:offsets[q + 1]]."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

Csr = tuple[NDArray[np.int64], NDArray[Any]]


def ranges(starts_Q: NDArray[np.int64], ends_Q: NDArray[np.int64]) -> Csr:
    """The integers of the ranges [start, end), row by row.

    >>> [part.tolist() for part in ranges(np.array([5, 0]), np.array([7, 1]))]
    [[0, 2, 3], [5, 6, 0]]
    """
    lengths_Q = np.maximum(ends_Q - starts_Q, 0)
    offsets = np.concatenate([[0], np.cumsum(lengths_Q)]).astype(np.int64)
    return offsets, np.arange(offsets[-1]) + np.repeat(starts_Q - offsets[:-1], lengths_Q)


def owners(table: Csr) -> NDArray[np.int64]:
    """The row of each value."""
    return np.repeat(np.arange(len(table[0]) - 1), np.diff(table[0]))


def group(rows: NDArray[np.integer], values: NDArray[Any], count: int) -> Csr:
    """The distinct values of each of `count` rows, ascending.

    >>> [part.tolist() for part in group(np.array([1, 0, 1, 1]), np.array([4, 9, 2, 4]), 3)]
    [[0, 1, 3, 3], [9, 2, 4]]
    """
    order = np.lexsort((values, rows))
    rows, values = rows[order], values[order]
    first = np.ones(len(rows), bool)
    first[1:] = (rows[1:] != rows[:-1]) | (values[1:] != values[:-1])
    rows, values = rows[first], values[first]
    return np.searchsorted(rows, np.arange(count + 1)).astype(np.int64), values


def keep(table: Csr, mask: NDArray[np.bool_]) -> Csr:
    """The values where `mask` is true, in their rows."""
    kept_before = np.concatenate([[0], np.cumsum(mask)]).astype(np.int64)
    return kept_before[table[0]], table[1][mask]


def select(table: Csr, rows: NDArray[np.integer]) -> Csr:
    """The chosen rows, in the order given."""
    offsets, index = ranges(table[0][rows], table[0][np.asarray(rows) + 1])
    return offsets, table[1][index]


def find(table: Csr, rows: NDArray[np.integer], values: NDArray[np.integer], bound: int) -> NDArray[np.int64]:
    """Where each (row, value) pair stands among the table's values, -1 where it does not; values lie in [0, bound).

    >>> find((np.array([0, 1, 3]), np.array([9, 4, 2])), np.array([0, 1, 1]), np.array([2, 2, 4]), 10).tolist()
    [-1, 2, 1]
    """
    keys = owners(table) * bound + table[1]
    order = np.argsort(keys, kind="stable")
    keys = np.append(keys[order], -1)
    wanted = np.asarray(rows, np.int64) * bound + values
    place = np.searchsorted(keys[:-1], wanted)
    return np.where(keys[place] == wanted, np.append(order, -1)[place], -1)
