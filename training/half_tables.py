"""Large tables of a trained model are rounded to half precision, once, when it is written: evaluation, export and serving then all have the
same numbers, and servers map them in half of the memory (towers/half.py).

Legend: V rows of a table, B of a block, D dim.
"""

import torch
from torch import Tensor

from towers.model import TwoTower
from training.tracking import say

_BLOCK = 65_536
_LOST = 2.0**-11
"""Rounding to half precision moves a number by so much of itself at most, if it is neither tiny nor too large."""


def round_tables(model: TwoTower, half_from: int | None) -> list[str]:
    """Round the numbers of large tables in place; they stay float32.

    A table that half precision does not hold (see `fits`) stays as it is, and that is said.

    Args:
        half_from: rows from which on a table is rounded; None = none is.

    Returns:
        names of the rounded tables.
    """
    if half_from is None:
        return []
    rounded = []
    for name, rows in model.plan.tables.items():
        if rows < half_from:
            continue
        weight_VD = model.get_parameter(f"tables.{name}.weight").detach()
        if not fits(weight_VD):
            say(f"table {name} stays in single precision: half precision would lose more than the last bits of its {rows:,} rows")
            continue
        for part_BD in torch.split(weight_VD, _BLOCK):
            part_BD.copy_(part_BD.half())
        rounded.append(name)
    return rounded


def fits(weight_VD: Tensor) -> bool:
    """Whether half precision costs no row more than 2**-11 of its length, or of the length that a row has on average (their root mean
    square) where it is shorter. Numbers past 65,504 and NaN do not fit, nor do tables of numbers that are mostly below 0.0001."""
    squared = sum(float(part_BD.double().square().sum()) for part_BD in torch.split(weight_VD, _BLOCK))
    usual = (squared / max(1, len(weight_VD))) ** 0.5
    for part_BD in torch.split(weight_VD, _BLOCK):
        lost_B = torch.linalg.vector_norm(part_BD - part_BD.half().float(), dim=1)
        held_B = lost_B <= _LOST * torch.linalg.vector_norm(part_BD, dim=1).clamp(min=usual)
        if not bool((held_B & lost_B.isfinite()).all()):
            return False
    return True
