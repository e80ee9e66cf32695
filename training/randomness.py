"""Random numbers of training: independent streams under one seed, each a function of the place in training alone."""

import numpy as np
import torch

ORDER_STREAM, LOADER_STREAM, NEGATIVES_STREAM, TORCH_STREAM = 0, 1, 2, 3
"""Independent streams of random numbers under one seed."""


def generator(seed: int, stream: int, *place: int) -> np.random.Generator:
    """Random numbers of one place in training, as `epoch` or `epoch, step`: nothing but the seed and the place decides them, so
    a resumed run draws what an uninterrupted one draws.

    NumPy seeds a place and the same with zeros after it alike: within a stream, places of different lengths need care.
    """
    return np.random.default_rng([seed, stream, *place])


def seed_torch(seed: int, device: torch.device) -> None:
    """What `torch.manual_seed` does for the CPU and this device: asking all kinds of devices, as that does, takes a hundred times as long
    on a CPU, and half a millisecond beside a GPU."""
    torch.default_generator.manual_seed(seed)
    if device.type == "cuda":
        torch.cuda.default_generators[torch.cuda.current_device() if device.index is None else device.index].manual_seed(seed)
