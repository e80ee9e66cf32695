"""Catalogues that exact search refuses to hold."""

import numpy as np
import pytest

from serving.index.exact import ExactIndex
from towers.errors import DataError


@pytest.mark.parametrize("shape", [(0, 4), (3, 0)])
def test_an_empty_catalogue(shape: tuple[int, int]) -> None:
    with pytest.raises(DataError, match="at least one"):
        ExactIndex(np.zeros(shape, np.float32))


def test_item_vectors_that_are_not_numbers() -> None:
    item_ID = np.ones((50, 4), np.float32)
    item_ID[37, 1] = np.nan
    with pytest.raises(DataError, match="row 37"):
        ExactIndex(item_ID)
