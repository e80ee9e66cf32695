"""Random numbers of training: independent streams under one seed, each a function of the place in training alone."""

import numpy as np

ORDER_STREAM, LOADER_STREAM, NEGATIVES_STREAM, TORCH_STREAM = 0, 1, 2, 3
"""Independent streams of random numbers under one seed."""


def generator(seed: int, stream: int, *place: int) -> np.random.Generator:
    """Random numbers of one place in training, as `epoch` or `epoch, step`: nothing but the seed and the place decides them, so
    a resumed run draws what an uninterrupted one draws.

    NumPy seeds a place and the same with zeros after it alike: within a stream, places of different lengths need care.
    """
    return np.random.default_rng([seed, stream, *place])
