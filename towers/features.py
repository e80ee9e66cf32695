"""Declared features as vectors: one embedding, bag or projection each, and their sum.

Legend: B rows, L history positions (in sequence batches, after B), M values of a multi-valued input, W numbers, D dim.
"""

from collections.abc import Iterable, Mapping, Sequence

import torch
from torch import Tensor, nn

from towers.bags import bag_mean, rows_mean
from towers.columns import MISSING_ROW, PAD_ROW
from towers.fixed_sum import FixedSum
from towers.lookups import HISTORY_MASK
from towers.model_config import InputSpec

FEATURE_SCALE = 0.1
"""Length of a freshly drawn feature vector against an id's (about 1): features start as a nudge and earn their say."""


def embedding(rows: int, dim: int, scale: float = 1.0) -> nn.Embedding:
    """A table of normal rows of length about `scale` (std scale/sqrt(dim)); row 0 is padding: zero, and never trained.

    Under cosine similarity with a small temperature the usual std of 1 would make the first steps of the optimiser
    sqrt(dim) times too small to turn a vector.
    """
    table = nn.Embedding(rows, dim, padding_idx=PAD_ROW)
    with torch.no_grad():
        table.weight.normal_(0.0, scale * dim**-0.5)
        table.weight[PAD_ROW] = 0.0
    return table


def linear(inputs: int, outputs: int, bias: bool = True, std: float | None = None) -> nn.Linear:
    """A projection with normal weights (std 1/sqrt(inputs) unless told) and no bias at the start."""
    layer = nn.Linear(inputs, outputs, bias=bias)
    nn.init.normal_(layer.weight, std=inputs**-0.5 if std is None else std)
    if bias:
        nn.init.zeros_(layer.bias)
    return layer


def small_tables(specs: Iterable[InputSpec], large: Iterable[str], dim: int) -> nn.ModuleDict:
    """The tables that live inside the cores, by name; inputs that share a vocabulary share one.

    Raises:
        ValueError: two inputs of one table disagree on its rows (our bug: the preprocessor numbers them).
    """
    outside = set(large)
    rows: dict[str, int] = {}
    for spec in specs:
        if spec.rows and spec.table not in outside and rows.setdefault(spec.table, spec.rows) != spec.rows:
            raise ValueError(f"table {spec.table}: {spec.name} has {spec.rows} rows, another input {rows[spec.table]}")
    return nn.ModuleDict({_key(name): embedding(count, dim, FEATURE_SCALE) for name, count in rows.items()})


class FeatureSum(nn.Module):
    """The sum of a tower's declared features.

    Ids and categories contribute their row, multi-valued and text features the mean of theirs, numeric ones a linear map of
    (value, missing), dense ones a linear map without bias. What is for newcomers is a mean weighted by place, sum_j exp(a_j) row_j /
    sum_j exp(a_j), and 0 as soon as there is a history. The sum is what keeps reasons exact: each part's share of a score is its own
    dot product.

    Args:
        specs: the features, by owner; those of the context may carry a position axis.
        large: names of tables whose rows come gathered (`<name>.rows`).
    """

    def __init__(self, specs: Sequence[InputSpec], large: Iterable[str], dim: int) -> None:
        super().__init__()
        self.specs = tuple(specs)
        self._large = frozenset(large)
        self.projections = nn.ModuleDict(
            {
                _key(s.name): linear(s.width, dim, bias=s.kind != "dense", std=FEATURE_SCALE * (s.width * dim) ** -0.5)
                for s in specs
                if not s.rows
            }
        )
        self.place_log_weights = nn.ParameterDict({_key(s.name): nn.Parameter(torch.zeros(s.width)) for s in specs if s.newcomer})

    def forward(
        self, gathered: Mapping[str, Tensor], tables: nn.ModuleDict, positions: bool = False, known: tuple[FixedSum, Tensor] | None = None
    ) -> Tensor | None:
        """Sum of all features; None where none is declared.

        Args:
            gathered: arrays by core input name.
            tables: the small tables.
            positions: context arrays have a position axis, so the sum is [B, L, D] (or [B, 1, D] without context).
            known: the sum of some of them, which are then not read.
        """
        total = None if known is None else known[1]
        for spec in self.specs if known is None else (spec for spec in self.specs if spec not in known[0].specs):
            part = self.part(spec, gathered, tables)
            if positions and not spec.name.startswith("context."):
                part = part.unsqueeze(1)
            if spec.newcomer:
                part = part * _nothing_yet(gathered, positions)
            total = part if total is None else total + part
        return total

    def parts(self, gathered: Mapping[str, Tensor], tables: nn.ModuleDict) -> dict[str, Tensor]:
        """What `forward` sums, by feature."""
        each = {spec: self.part(spec, gathered, tables) for spec in self.specs}
        return {spec.name: part * _nothing_yet(gathered) if spec.newcomer else part for spec, part in each.items()}

    def part(self, spec: InputSpec, gathered: Mapping[str, Tensor], tables: nn.ModuleDict) -> Tensor:
        """The contribution of one feature, [..., D]; of what is for newcomers to one of them."""
        if spec.newcomer:
            return self._by_place(spec, gathered, tables)
        if not spec.rows:
            projected: Tensor = self.projections[_key(spec.name)](gathered[spec.name])
            return projected
        if spec.table in self._large:
            rows = gathered[f"{spec.name}.rows"]
            return rows_mean(rows, gathered[f"{spec.name}.mask"]) if spec.width else rows
        table = _embedding(tables, spec)
        if not spec.width:
            row: Tensor = table(gathered[spec.name])
            return row
        return bag_mean(table, gathered[spec.name])

    def _by_place(self, spec: InputSpec, gathered: Mapping[str, Tensor], tables: nn.ModuleDict) -> Tensor:
        """Mean of the values' rows weighted by their places, [B, D]; zero where there is none."""
        if spec.table in self._large:
            rows_BMD, mask_BM = gathered[f"{spec.name}.rows"], gathered[f"{spec.name}.mask"]
        else:
            rows_BMD, mask_BM = _embedding(tables, spec)(gathered[spec.name]), (gathered[spec.name] != PAD_ROW).float()
        weights_BM = torch.exp(self.place_log_weights[_key(spec.name)]) * mask_BM
        weights_BM = weights_BM / weights_BM.sum(-1, keepdim=True).clamp(min=1e-6)
        return torch.matmul(weights_BM.unsqueeze(1), rows_BMD).squeeze(1)

    def layer(self, spec: InputSpec, tables: nn.ModuleDict) -> nn.Module:
        """The map of a feature, or its small table."""
        return tables[_key(spec.table)] if spec.rows else self.projections[_key(spec.name)]


def _embedding(tables: nn.ModuleDict, spec: InputSpec) -> nn.Embedding:
    table = tables[_key(spec.table)]
    if not isinstance(table, nn.Embedding):
        raise TypeError(f"table {spec.table}: expected nn.Embedding, got {type(table).__name__}")
    return table


def _nothing_yet(gathered: Mapping[str, Tensor], positions: bool = False) -> Tensor:
    """1 where there is no event yet, else 0: [B, 1], with positions [B, L, 1]."""
    mask_BL = gathered[HISTORY_MASK]
    return 1.0 - (mask_BL.unsqueeze(-1) if positions else mask_BL.amax(-1, keepdim=True))


def missing_value(spec: InputSpec, like: Tensor) -> Tensor:
    """What preprocessing gives for a missing value of this input, shaped like `like`."""
    missing = torch.zeros_like(like)
    if spec.kind == "numeric":
        missing[..., 1] = 1.0
    elif spec.kind in ("multi_categorical", "preferences"):
        missing[..., 0] = MISSING_ROW
    elif spec.kind in ("id", "categorical", "time"):
        missing.fill_(MISSING_ROW)
    return missing


def _key(name: str) -> str:
    """A module's name may hold no dot, and no feature name holds a colon, so this cannot collide."""
    return name.replace(".", ":")
