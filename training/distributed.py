"""Several processes that train one model together: the one home of torch.distributed.

Every process takes its part of the same global batch, in the same order, and scores its rows against all candidates, whose vectors
are computed in parts and joined with their gradient. Losses are shares of one weighted mean over the global batch, so the sum of all
processes' gradients is the gradient that one process would have: the number of processes changes speed, not the loss.

Everything is exchanged by sums: parts are joined by adding buffers that are zero elsewhere, may have any length, and all processes end with
the same bits. On the CPUs of one machine the sums go through shared memory (training.shared_sum), else through gloo, on GPUs through nccl.
"""

import json
import os
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from datetime import timedelta
from typing import Any, NamedTuple, Protocol, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn

from towers.errors import EXIT_BUG, ConfigError, TowersError
from training.shared_sum import SharedSum, meet
from training.table_optim import RowGradient, row_gradient
from training.watch import ProcessLost, Watch

TIMEOUT = timedelta(hours=12)
"""Of one exchange. The first process may validate or save for long while the others wait; who dies is noticed by training.watch."""
JOINED_NUMBERS = 1 << 16
"""Gradients of at most this many numbers travel together."""
MEETING = timedelta(minutes=2)
CLOSING_S = 10.0
T = TypeVar("T")


class Part(Protocol):
    """Something with state: a flat mapping from names to tensors or JSON values."""

    def state_dict(self) -> Mapping[str, Any]: ...

    def load_state_dict(self, state: Mapping[str, Any], /) -> object: ...


class Share(NamedTuple):
    """What this process has of a global batch: its share of the weights, and the targets of all processes."""

    weight: float
    targets: int


class Processes:
    """The processes of a run, seen from one of them. Made by `join`; `Processes()` is a process alone, for which nothing is exchanged.

    Attributes:
        rank: this process, from 0. Process 0 alone writes files and reports.
        size: how many there are.
    """

    def __init__(self, rank: int = 0, size: int = 1, watch: Watch | None = None, shared: SharedSum | None = None) -> None:
        self.rank, self.size = rank, size
        self._watch, self._shared = watch, shared

    @property
    def first(self) -> bool:
        return self.rank == 0

    def part(self, n: int) -> slice:
        """This process's contiguous part of n rows; the parts of all processes, in order, are the n rows.

        >>> [(p.start, p.stop) for p in (Processes(rank, 3).part(7) for rank in range(3))]
        [(0, 2), (2, 4), (4, 7)]
        """
        return slice(n * self.rank // self.size, n * (self.rank + 1) // self.size)

    def rows(self, n: int) -> slice:
        """This process's rows of a batch of n: every `size`-th, so that of rows sorted by length all have as much to do."""
        return slice(self.rank, n, self.size)

    def share(self, weight_sum: float, targets: int) -> Share:
        """From what this process holds of the batch to its share of the whole."""
        if self.size == 1:
            return Share(1.0, targets)
        both = torch.tensor([weight_sum, targets], dtype=torch.float64)
        self._sum([both])
        return Share(weight_sum / both[0].item() if both[0] > 0 else 0.0, int(both[1]))

    def join_rows(self, own: Tensor) -> tuple[Tensor, slice]:
        """The rows of all processes, in order, however many each has; and where one's own are. No gradient flows through it."""
        if self.size == 1:
            return own, slice(0, len(own))
        counts = torch.zeros(self.size, dtype=torch.int64)
        counts[self.rank] = len(own)
        self._sum([counts])
        start = int(counts[: self.rank].sum())
        place = slice(start, start + len(own))
        return self._joined(own, int(counts.sum()), place), place

    def join_part(self, own: Tensor, n: int) -> Tensor:
        """Rows of which every process computed its `part(n)`, joined to all n; their gradient flows back to where each was computed."""
        if self.size == 1:
            return own
        joined: Tensor = _Join.apply(own, n, self)  # type: ignore[no-untyped-call]
        return joined

    def sum_gradients(self, parameters: Iterable[nn.Parameter], loss: Tensor) -> Tensor:
        """Replace each gradient by the sum over processes; returns the sum of the losses. Sparse gradients stay sparse."""
        loss = loss.detach()
        if self.size == 1:
            return loss
        parameters = list(parameters)
        rows = {i: row_gradient(p.grad) for i, p in enumerate(parameters) if p.grad is not None and p.grad.is_sparse}
        own = [_NONE if p.grad is None else _SPARSE + len(rows[i].row_r) if i in rows else _DENSE for i, p in enumerate(parameters)]
        header = torch.zeros(1 + len(parameters), self.size, dtype=torch.float64)
        header[:, self.rank] = torch.tensor([float(loss), *own], dtype=torch.float64)
        self._sum([header])
        dense: list[Tensor] = []
        for i, (parameter, kinds) in enumerate(zip(parameters, header[1:].tolist(), strict=True)):
            if _DENSE in kinds:
                parameter.grad = torch.zeros_like(parameter) if parameter.grad is None else parameter.grad
                dense.append(parameter.grad)
            elif any(kinds):
                parameter.grad = self._sum_sparse(parameter, [max(int(kind) - _SPARSE, 0) for kind in kinds], rows.get(i))
        self._sum_dense(dense)
        return header[0].sum().to(loss.device, loss.dtype)

    def union(self, named: Sequence[str], among: Iterable[str]) -> list[str]:
        """Those of `among` that any process named."""
        names = list(among)
        flags = torch.tensor([name in named for name in names], dtype=torch.int64)
        if self.size > 1:
            self._sum([flags])
        return [name for name, flag in zip(names, flags.tolist(), strict=True) if flag]

    def lead(self, action: Callable[[], T]) -> T:
        """Let process 0 act, and give its result (JSON values) to all. Where it fails, it raises, and the others end quietly."""
        if self.size == 1:
            return action()
        if not self.first:
            told = json.loads(self._tell(b""))
            if told["code"]:
                raise SystemExit(told["code"])
            value: T = told["value"]
            return value
        try:
            result = action()
        except Exception as error:
            self._tell(json.dumps({"code": error.exit_code if isinstance(error, TowersError) else EXIT_BUG}).encode())
            raise
        self._tell(json.dumps({"code": 0, "value": result}).encode())
        return result

    def copy_state(self, part: Part) -> None:
        """Give the other processes the state that the part has in process 0."""
        if self.size == 1:
            return
        state = part.state_dict() if self.first else {}
        tensors = {key: value for key, value in state.items() if isinstance(value, Tensor)}
        values = {key: value for key, value in state.items() if key not in tensors}
        shapes = {key: [str(value.dtype).removeprefix("torch."), *value.shape] for key, value in tensors.items()}
        shapes, values = self.lead(lambda: (shapes, values))
        received: dict[str, Tensor] = {}
        for key, (kind, *shape) in shapes.items():
            tensor = tensors[key].detach().cpu().contiguous() if self.first else torch.empty(shape, dtype=getattr(torch, kind))
            with self._exchange():
                dist.broadcast(tensor, 0)
            received[key] = tensor
        if not self.first:
            part.load_state_dict({**received, **values})

    @contextmanager
    def _exchange(self) -> Iterator[None]:
        try:
            yield
        except RuntimeError as error:  # what torch raises where the connection broke
            if self._watch is None:
                raise
            raise self._watch.who_is_lost(error) from error

    def _sum(self, tensors: Sequence[Tensor]) -> None:
        with self._exchange():
            if self._shared is not None:
                self._shared.add(tensors)
                return
            for work in [dist.all_reduce(tensor, async_op=True) for tensor in tensors]:
                work.wait()

    def _joined(self, own: Tensor, n: int, place: slice) -> Tensor:
        joined = torch.zeros(n, *own.shape[1:], dtype=own.dtype, device=own.device)
        joined[place] = own
        self._sum([joined])
        return joined

    def _sum_sparse(self, parameter: nn.Parameter, counts: Sequence[int], own: RowGradient | None) -> Tensor:
        n, start = sum(counts), sum(counts[: self.rank])
        place = slice(start, start + counts[self.rank])
        index = torch.zeros(n, dtype=torch.int64, device=parameter.device)
        values = torch.zeros(n, *parameter.shape[1:], dtype=parameter.dtype, device=parameter.device)
        if own is not None:
            index[place], values[place] = own
        self._sum([index, values])
        return torch.sparse_coo_tensor(index.unsqueeze(0), values, parameter.shape, check_invariants=False)

    def _sum_dense(self, gradients: Sequence[Tensor]) -> None:
        small = [g for g in gradients if g.numel() <= JOINED_NUMBERS or not g.is_contiguous()]
        large = [g for g in gradients if g.numel() > JOINED_NUMBERS and g.is_contiguous()]
        flat = [torch.cat([g.reshape(-1) for g in small])] if small else []
        self._sum([*large, *flat])
        if small:
            for gradient, summed in zip(small, torch.split(flat[0], [g.numel() for g in small]), strict=True):
                gradient.copy_(summed.view_as(gradient))

    def _tell(self, text: bytes) -> bytes:
        length = torch.tensor([len(text)])
        with self._exchange():
            dist.broadcast(length, 0)
            letters = torch.frombuffer(bytearray(text), dtype=torch.uint8) if self.first else torch.empty(int(length), dtype=torch.uint8)
            dist.broadcast(letters, 0)
        return bytes(letters.numpy())


_NONE, _DENSE, _SPARSE = 0, -1, 1
"""Kinds of a gradient, as exchanged; a sparse one of n rows is _SPARSE + n."""


class _Join(torch.autograd.Function):
    """All parts, joined. Each process's loss depends on all rows, so a row's gradient is the sum over processes."""

    @staticmethod
    def forward(ctx: Any, own: Tensor, n: int, processes: Processes) -> Tensor:
        ctx.processes = processes
        return processes._joined(own, n, processes.part(n))

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        (grad,) = grads
        total = grad.clone(memory_format=torch.contiguous_format)
        ctx.processes._sum([total])
        return total[ctx.processes.part(len(total))], None, None


ALONE = Processes()
_joins = 0


@contextmanager
def join(device: torch.device) -> Iterator[Processes]:
    """Meet the other processes that the launcher started (torchrun's RANK, WORLD_SIZE, MASTER_ADDR and MASTER_PORT); alone without one.

    Raises:
        ConfigError: a process has no GPU of its own, or the others are not there.
        ProcessLost: later, from whatever is exchanged: one of the others died.
    """
    global _joins
    if int(os.environ.get("WORLD_SIZE", "1")) <= 1 or "RANK" not in os.environ:
        yield ALONE
        return
    if device.type == "cuda":
        _take_gpu(int(os.environ.get("LOCAL_RANK", "0")))
    try:
        met, rank, size = next(dist.rendezvous("env://", timeout=MEETING))  # type: ignore[attr-defined]
    except (RuntimeError, ValueError) as error:
        raise ConfigError(
            f"the other processes were not met at MASTER_ADDR:MASTER_PORT: {error}. Start all of them with torchrun"
        ) from error
    # several runs in one process (towers train -m) meet again: each under names of its own
    _joins += 1
    store = dist.PrefixStore(f"towers-{_joins}", met)  # type: ignore[attr-defined]
    watch = Watch(store, rank, size)
    with watch, meet(store, rank, size) if device.type == "cpu" else nullcontext() as shared:
        backend = "cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo"
        group = dist.PrefixStore("group", store)  # type: ignore[attr-defined]
        dist.init_process_group(backend, store=group, rank=rank, world_size=size, timeout=TIMEOUT)
        try:
            yield Processes(rank, size, watch, shared)
        finally:
            _part_company()


def _part_company() -> None:
    """Close the connections while Python stands, after an error too: their threads, left to the end of the process, may abort it and
    so replace its exit code. Bounded, since an exchange may still wait for a process that was stopped."""
    closing = threading.Thread(target=dist.destroy_process_group, name="closing", daemon=True)
    closing.start()
    closing.join(CLOSING_S)


def _take_gpu(local: int) -> None:
    if local >= torch.cuda.device_count():
        raise ConfigError(
            f"process {local} of this machine finds {torch.cuda.device_count()} GPUs, and each process needs its own."
            " Start fewer (torchrun --nproc-per-node), or use trainer.device=cpu"
        )
    torch.cuda.set_device(local)


__all__ = ["ALONE", "Part", "ProcessLost", "Processes", "Share", "join"]
