"""What training hides from the towers at random. Legend: B rows, L history length."""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from towers.batch import HISTORY_ITEM, of_history
from towers.columns import PAD_ROW


def shortened(batch: Mapping[str, Tensor], share: float) -> dict[str, Tensor]:
    """The histories of a batch, a share of them cut to n newest events, n drawn log-uniformly from 0 .. L: a new user is met at 1 and 3
    events as often as at 10 and 30."""
    item_BL = batch[HISTORY_ITEM]
    size, length = item_BL.shape
    kept_B = torch.floor((length + 1) ** torch.rand(size, device=item_BL.device)) - 1
    kept_B = torch.where(chance((size,), share, item_BL.device), kept_B, length)
    newest_L = torch.arange(length, 0, -1, device=item_BL.device)
    gone_BL = newest_L > kept_B.unsqueeze(1)
    return {name: array.masked_fill(gone_BL, PAD_ROW) for name, array in batch.items() if of_history(name)}


def chance(shape: Sequence[int], share: float, device: torch.device) -> Tensor:
    """True for about a share of places, each by itself."""
    return torch.rand(tuple(shape), device=device) < share
