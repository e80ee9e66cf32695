"""What stands for a missing value."""

import torch

from towers.features import missing_value
from towers.model_config import InputSpec


def test_missing_values_are_those_of_preprocessing():
    for kind, like, expected in (
        ("categorical", torch.ones(2, dtype=torch.int32), [2, 2]),
        ("time", torch.ones(1, 2, dtype=torch.int32), [[2, 2]]),
        ("multi_categorical", torch.ones(1, 3, dtype=torch.int32), [[2, 0, 0]]),
        ("text", torch.ones(1, 3, dtype=torch.int32), [[0, 0, 0]]),
        ("numeric", torch.ones(1, 2), [[0.0, 1.0]]),
        ("dense", torch.ones(1, 2), [[0.0, 0.0]]),
    ):
        assert missing_value(InputSpec("context.x", kind, 3, 2, "x"), like).tolist() == expected
