"""Large tables in half precision: half of a server's memory and of its reads.

Training rounds them once, when it writes the model (training/half_tables.py). From then on every number of such a table is one of half
precision, whoever holds it: weights and torch as float32, the files that servers map as float16. Nothing rounds a second time, so all have
the same numbers.

Legend: V rows of a table, D dim.
"""

import numpy as np
from numpy.typing import NDArray

_BLOCK = 65_536

Table = NDArray[np.float32] | NDArray[np.float16]
"""[V, D]."""


def narrowest(table_VD: NDArray[np.float32]) -> Table:
    """The same numbers as float16 where that changes none of them, else the table itself.

    >>> [narrowest(np.array([[value]], np.float32)).dtype.name for value in (0.5, 0.1, 1e6)]
    ['float16', 'float32', 'float32']
    """
    half_VD = np.empty(table_VD.shape, np.float16)
    with np.errstate(over="ignore"):  # what becomes infinite differs
        for start in range(0, len(table_VD), _BLOCK):
            part = slice(start, start + _BLOCK)
            half_VD[part] = table_VD[part]
            if not np.array_equal(half_VD[part], table_VD[part]):
                return table_VD
    return half_VD
