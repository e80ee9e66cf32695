"""The optimiser and its schedule."""

import math
from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from training.config import OptimConfig


def learning_rate(config: OptimConfig, step: int, total_steps: int) -> float:
    """The learning rate of a step (counted from 0).

    Linear warm-up over `warmup_share` of all steps, then `lr` (constant), or lr (1 + cos(pi t)) / 2 with t going from 0 to 1
    over the steps that are left (cosine; Loshchilov and Hutter, 2017).

    >>> [round(learning_rate(OptimConfig(lr=1.0, warmup_share=0.5, schedule="cosine"), s, 4), 3) for s in range(4)]
    [0.5, 1.0, 1.0, 0.5]
    """
    warmup = math.ceil(config.warmup_share * total_steps)
    if step < warmup:
        return config.lr * (step + 1) / warmup
    if config.schedule == "constant":
        return config.lr
    done = (step - warmup) / max(1, total_steps - warmup)
    return config.lr * (1 + math.cos(math.pi * min(done, 1.0))) / 2


class Optimizer:
    """Adam (Kingma and Ba, 2015) with decoupled weight decay (Loshchilov and Hutter, 2019), clipping and the schedule.

    Args:
        model: its parameters that need a gradient are trained.
        config: learning rate, schedule and clipping.
        total_steps: steps of the whole run, which the schedule is stretched over.
    """

    def __init__(self, model: nn.Module, config: OptimConfig, total_steps: int) -> None:
        self._config = config
        self._total_steps = total_steps
        self._named = {name: p for name, p in model.named_parameters() if p.requires_grad}
        self._adam = torch.optim.AdamW(
            self._named.values(), lr=config.lr, weight_decay=config.weight_decay, fused=_can_fuse(self._named.values())
        )

    def zero_grad(self) -> None:
        self._adam.zero_grad(set_to_none=True)

    def grad_norm(self) -> Tensor:
        """Length of the whole gradient (scalar), before clipping: not finite when any of its numbers is not."""
        return torch.nn.utils.get_total_norm(self._gradients())

    def step(self, step: int, norm: Tensor) -> float:
        """Clip by the gradient's `norm` where asked to, move the parameters, return the learning rate used."""
        lr = learning_rate(self._config, step, self._total_steps)
        if self._config.clip_norm > 0:
            torch.nn.utils.clip_grads_with_norm_(self._named.values(), self._config.clip_norm, norm)
        for group in self._adam.param_groups:
            group["lr"] = lr
        self._adam.step()
        return lr

    def state_dict(self) -> dict[str, Tensor]:
        """Adam's state by `<parameter>/<slot>`: names, so that a checkpoint does not depend on the order of parameters."""
        slots = self._adam.state_dict()["state"]
        named = {i: name for i, name in enumerate(self._named)}
        return {f"{named[i]}/{slot}": value for i, held in slots.items() for slot, value in held.items()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore what `state_dict` gave.

        Raises:
            KeyError: the state names a parameter that this model does not have.
        """
        places = {name: i for i, name in enumerate(self._named)}
        slots: dict[int, dict[str, Tensor]] = {}
        for key, value in state.items():
            name, _, slot = key.rpartition("/")
            slots.setdefault(places[name], {})[slot] = value.clone()  # Adam would go on writing into the tensors given
        self._adam.load_state_dict({"state": slots, "param_groups": self._adam.state_dict()["param_groups"]})

    def _gradients(self) -> list[Tensor]:
        return [p.grad for p in self._named.values() if p.grad is not None]


def _can_fuse(parameters: Iterable[Tensor]) -> bool:
    return all(p.is_floating_point() and p.device.type in ("cpu", "cuda") for p in parameters)
