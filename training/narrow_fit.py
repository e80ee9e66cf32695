"""Maps to fewer numbers, trained further: what is lost where it matters, in the best items of each user.

The closed form (training/narrow.py) meets all scores alike, and a user's list is made of the few greatest. So both maps go on from there
by Adam. Their loss is the divergence of Kullback and Leibler between two softmaxes over a sample of items, of wide and of narrow scores:

    mean over users of sum over items p log(p / q),   p = softmax(wide scores / T), q = softmax(narrow scores / T)

(distillation: Hinton, Vinyals and Dean 2015). A fixed number of steps, so time is bounded.

Legend: Q users, I items, B users of a step, C items of a step, W numbers of a wide vector, N of a narrow one.
"""

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from training.tracking import say

Floats = NDArray[np.float64]


class Maps(NamedTuple):
    """What users and items are multiplied by, float64 [W, N] each."""

    user_WN: Floats
    item_WN: Floats


@dataclass(frozen=True)
class FitSettings:
    """How maps are trained.

    Attributes:
        steps: of Adam.
        rate: first learning rate of a map, in its mean absolute number; falls to 0 by a cosine.
        temperature: of both softmaxes.
        users, items: drawn for each step.
    """

    steps: int = 120
    rate: float = 0.03
    temperature: float = 0.1
    users: int = 256
    items: int = 8192


FIT = FitSettings()


def fit_maps(start: Maps, user_QW: NDArray[np.float32], item_IW: NDArray[np.float32], seed: int, settings: FitSettings) -> Maps:
    """Maps trained from `start` on, to the same bit for the same seed on a CPU.

    Args:
        user_QW: wide vectors of users, the spectral part weighted.
        item_IW: wide vectors of items.
    """
    users_QW, items_IW = torch.from_numpy(user_QW), torch.from_numpy(item_IW)
    maps = [torch.from_numpy(map_WN.astype(np.float32)).requires_grad_() for map_WN in start]
    groups = [{"params": [map_WN], "lr": settings.rate * map_WN.detach().abs().mean().item()} for map_WN in maps]
    optimizer = torch.optim.Adam(groups)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, settings.steps)
    draws = torch.Generator().manual_seed(seed)
    for step in range(settings.steps):
        user_BW = users_QW[torch.randint(len(users_QW), (settings.users,), generator=draws)]
        item_CW = items_IW[torch.randperm(len(items_IW), generator=draws)[: settings.items]]
        loss = divergence(user_BW, item_CW, maps[0], maps[1], settings.temperature)
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        schedule.step()
        if step % 40 == 0 or step + 1 == settings.steps:
            say(f"narrow maps: step {step + 1} of {settings.steps}, divergence {loss.item():.4f}")
    return Maps(*(map_WN.detach().numpy().astype(np.float64) for map_WN in maps))


def divergence(user_BW: Tensor, item_CW: Tensor, user_WN: Tensor, item_WN: Tensor, temperature: float) -> Tensor:
    """Mean over users of the divergence of narrow from wide softmaxes, in nats; see the top of this file."""
    with torch.no_grad():
        wide_BC = torch.log_softmax(user_BW @ item_CW.T / temperature, 1)
    narrow_BC = torch.log_softmax((user_BW @ user_WN) @ (item_CW @ item_WN).T / temperature, 1)
    return torch.nn.functional.kl_div(narrow_BC, wide_BC, reduction="batchmean", log_target=True)
