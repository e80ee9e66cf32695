"""The optimiser and its schedule."""

import math
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim.adamw import adamw

from towers.lookups import TowerPlan
from training.config import OptimConfig
from training.table_optim import TABLE_OPTIMIZERS, RowGradient, TableOptimizer, row_gradient

SPARSE_FROM = 2.0
"""Rows a table must have for each lookup of a step before it pays to move only the rows looked up (measured: about even there)."""
AUTO_TABLES = "rowwise_adagrad"
"""Chosen by validation at equal steps (scripts/bench/results/train_step_epyc_202611.md), besides costing least."""

JOINED_NUMBERS = 1 << 16
"""Gradients of at most this many numbers are measured together."""
BETAS, EPSILON = (0.9, 0.999), 1e-8
"""Of Adam."""

SCHEDULES: dict[str, Callable[[float], float]] = {
    "constant": lambda done: 1.0,
    "linear": lambda done: 1.0 - done,
    "cosine": lambda done: (1 + math.cos(math.pi * done)) / 2,
}
"""What is left of the learning rate after a share of the steps past the warm-up."""


def learning_rate(config: OptimConfig, step: int, total_steps: int) -> float:
    """The learning rate of a step (counted from 0).

    Linear warm-up over `warmup_share` of all steps; then, with t going from 0 to 1 over the steps that are left, lr (constant),
    lr (1 - t) (linear) or lr (1 + cos(pi t)) / 2 (cosine; Loshchilov and Hutter, 2017).

    >>> [round(learning_rate(OptimConfig(lr=1.0, warmup_share=0.5, schedule="cosine"), s, 4), 3) for s in range(4)]
    [0.5, 1.0, 1.0, 0.5]
    >>> [learning_rate(OptimConfig(lr=1.0, warmup_share=0.0, schedule="linear"), s, 4) for s in range(4)]
    [1.0, 0.75, 0.5, 0.25]
    """
    warmup = math.ceil(config.warmup_share * total_steps)
    if step < warmup:
        return config.lr * (step + 1) / warmup
    done = min((step - warmup) / max(1, total_steps - warmup), 1.0)
    return config.lr * SCHEDULES[config.schedule](done)


def choose_tables(config: OptimConfig, plan: TowerPlan, batch_size: int, candidates: int) -> dict[str, str]:
    """Which large tables are trained row by row, and by which optimiser; the others are left to Adam, like everything small.

    `auto` looks at what a step reads: a table that a step goes through whole (a full softmax), or nearly so (long histories over a
    small catalogue), gains nothing from being sparse.

    Args:
        batch_size: examples a step.
        candidates: item vectors a step.
    """
    if config.name != "auto":
        return {} if config.name == "adam" else dict.fromkeys(plan.tables, config.name)
    lookups = dict.fromkeys(plan.tables, 0)
    for inputs, rows in ((plan.user, batch_size), (plan.item, candidates)):
        for entry in inputs:
            if entry.table:
                lookups[entry.table] += rows * math.prod(entry.shape[:-1])
    return {name: AUTO_TABLES for name, rows in plan.tables.items() if rows >= SPARSE_FROM * lookups[name]}


class Optimizer:
    """Adam (Kingma and Ba, 2015) with decoupled weight decay (Loshchilov and Hutter, 2019), clipping and the schedule; large tables
    by an optimiser of their own (training.table_optim).

    Args:
        model: its parameters that need a gradient are trained.
        config: learning rates, schedule and clipping.
        total_steps: steps of the whole run, which the schedule is stretched over.
        tables: optimiser by the module name of an nn.Embedding (`tables.item_id`), whose gradients are sparse from now on.
    """

    def __init__(self, model: nn.Module, config: OptimConfig, total_steps: int, tables: Mapping[str, str] | None = None) -> None:
        self._config = config
        self._total_steps = total_steps
        self._tables: dict[str, tuple[Tensor, TableOptimizer]] = {}
        for name, kind in (tables or {}).items():
            table = _embedding(model, name)
            table.sparse = True
            self._tables[f"{name}.weight"] = (table.weight, TABLE_OPTIMIZERS[kind](table.weight.detach()))
        self._named = {name: p for name, p in model.named_parameters() if p.requires_grad and name not in self._tables}
        self._summed: dict[str, RowGradient] = {}
        # torch's kernel without its Optimizer class, whose first instance imports the compiler: 1.3 CPU s, as much as torch itself
        self._adam: dict[str, dict[str, Tensor]] = {}
        self._fused = _can_fuse(self._named.values())

    def zero_grad(self) -> None:
        for weight in (*self._named.values(), *(weight for weight, _ in self._tables.values())):
            weight.grad = None
        self._summed.clear()

    def grad_norm(self) -> Tensor:
        """Length of the whole gradient (scalar), before clipping: not finite when any of its numbers is not."""
        self._summed = {name: row_gradient(weight.grad) for name, (weight, _) in self._tables.items() if weight.grad is not None}
        gradients = [*self._gradients(), *(rows.grad_rD for rows in self._summed.values())]
        small = [g.reshape(-1) for g in gradients if g.numel() <= JOINED_NUMBERS]
        norms = [torch.linalg.vector_norm(g) for g in gradients if g.numel() > JOINED_NUMBERS]
        if small:  # one call for all of them: of some forty small gradients most would be overhead
            norms.append(torch.linalg.vector_norm(torch.cat(small)))
        total: Tensor = torch.linalg.vector_norm(torch.stack(norms))
        return total

    def step(self, step: int, norm: Tensor) -> float:
        """Clip by the gradient's `norm` (of `grad_norm`, just called) where asked to, move the parameters, return the learning rate."""
        lr = learning_rate(self._config, step, self._total_steps)
        if self._config.clip_norm > 0:
            torch.nn.utils.clip_grads_with_norm_(self._named.values(), self._config.clip_norm, norm)
            for rows in self._summed.values():
                rows.grad_rD.mul_((self._config.clip_norm / (norm + 1e-6)).clamp(max=1.0))
        self._step_adam(lr)
        for name, rows in self._summed.items():
            table = self._tables[name][1]
            faster = self._config.table_lr / self._config.lr if self._config.table_lr > 0 else table.FASTER
            table.move(rows, lr * faster, self._config.weight_decay)
        return lr

    def state_dict(self) -> dict[str, Tensor]:
        """State by `<parameter>/<slot>`: names, so that a checkpoint does not depend on the order of parameters."""
        adam = {f"{name}/{slot}": value for name, slots in self._adam.items() for slot, value in slots.items()}
        return adam | self._table_state()

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore what `state_dict` gave.

        Raises:
            KeyError: the state names a parameter that this model does not have, or lacks a table's.
        """
        tables = self._table_state()
        for key, tensor in tables.items():
            tensor.copy_(state[key])
        self._adam = {}
        for key, value in state.items():
            if key not in tables:
                name, _, slot = key.rpartition("/")
                held = self._adam.setdefault(name, _moments(self._named[name]))
                held[slot].copy_(value)

    def _step_adam(self, lr: float) -> None:
        moved = {name: p for name, p in self._named.items() if p.grad is not None}
        for name, p in moved.items():
            if name not in self._adam:
                self._adam[name] = _moments(p)
        slots = {slot: [self._adam[name][slot] for name in moved] for slot in _SLOTS}
        with torch.no_grad():
            adamw(
                list(moved.values()), self._gradients(), slots["exp_avg"], slots["exp_avg_sq"], [], slots["step"],
                fused=self._fused, foreach=False, amsgrad=False, beta1=BETAS[0], beta2=BETAS[1], lr=lr,
                weight_decay=self._config.weight_decay, eps=EPSILON, maximize=False,
            )  # fmt: skip

    def _table_state(self) -> dict[str, Tensor]:
        return {f"{name}/{slot}": tensor for name, (_, table) in self._tables.items() for slot, tensor in table.state().items()}

    def _gradients(self) -> list[Tensor]:
        return [p.grad for p in self._named.values() if p.grad is not None]


def _embedding(model: nn.Module, name: str) -> nn.Embedding:
    table = model.get_submodule(name)
    if not isinstance(table, nn.Embedding):
        raise TypeError(f"{name}: expected nn.Embedding, got {type(table).__name__}")
    return table


_SLOTS = ("step", "exp_avg", "exp_avg_sq")


def _moments(parameter: Tensor) -> dict[str, Tensor]:
    step = torch.zeros((), dtype=torch.float32, device=parameter.device)
    averages = {slot: torch.zeros_like(parameter, memory_format=torch.preserve_format) for slot in _SLOTS[1:]}
    return {"step": step, **averages}


def _can_fuse(parameters: Iterable[Tensor]) -> bool:
    return all(p.is_floating_point() and p.device.type in ("cpu", "cuda") for p in parameters)
