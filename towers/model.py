"""The two towers: users and items into one space.

Large tables are gathered first (`lookup_user`, `lookup_item`); the cores turn gathered rows into vectors and are what ONNX
exports. `user`, `user_sequence` and `item` do both.

Legend: B user rows, C item rows, L history length, H interests (1), D dim (and what a spectral part adds), K dimensions of that part,
M values of a multi-valued input, V table rows.
"""

import math
from collections.abc import Callable, Container, Iterable, Mapping, Sequence
from functools import reduce
from typing import Literal, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from towers.bags import pool_rows
from towers.batch import HISTORY_ITEM
from towers.columns import ITEM_ID, MISSING_ROW, OOV_ROW, PAD_ROW
from towers.encoders import History, HistoryEncoder, make_encoder
from towers.errors import ConfigError
from towers.features import FeatureSum, embedding, missing_value, small_tables
from towers.fixed_sum import FixedSum, lay_out
from towers.half import Table, narrowest
from towers.heads import make_head
from towers.hiding import chance, shortened
from towers.history import repeats
from towers.lookups import (
    ASSOCIATION_ROWS,
    ASSOCIATION_TABLE,
    HISTORY_MASK,
    HISTORY_ROWS,
    HISTORY_TABLE,
    SPECTRAL_HISTORY,
    SPECTRAL_HISTORY_ROWS,
    SPECTRAL_ITEM,
    SPECTRAL_ITEM_ROWS,
    CoreInput,
    plan_towers,
)
from towers.model_config import InputSpec, ModelConfig
from towers.unit import normalise

_POOLED = (HISTORY_ROWS, ASSOCIATION_ROWS, SPECTRAL_HISTORY_ROWS)
LOWEST_TEMPERATURE, HIGHEST_TEMPERATURE = 0.01, 1.0
"""Bounds of a learned temperature."""


class UserOutput(NamedTuple):
    """User vectors, each history position's share (all zeros where the history encoder is no weighted sum), and where they are asked for
    the other parts of the sum that a vector is before it is divided by its length, [B, D] each: of an empty history, then of each of
    `plan.user_specs`; before them the shares of the positions' second rows, [B, L], where there are such (`model.history.associations`)."""

    vectors_BHD: Tensor
    history_weights_BL: Tensor
    others: tuple[Tensor, ...] = ()


class TwoTower(nn.Module):
    """User tower and item tower; scores are dot products of their vectors.

    Initial weights come from torch's global generator, so a caller's `torch.manual_seed` decides them.

    Args:
        config: the shape.
        inputs: the fitted preprocessor's inputs.
        event_rows: rows of the event type vocabulary, reserved ones included.

    Raises:
        ConfigError: names the knob of a shape that cannot be built.
    """

    pools_rows = True
    """History rows lie in a table, so an encoder that pools them may read them where they lie."""

    def __init__(self, config: ModelConfig, inputs: Sequence[InputSpec], event_rows: int) -> None:
        super().__init__()
        config.validate()
        if not config.history.length:
            raise ConfigError("model.history.length: 0 stands for a length taken from the data; a model is built with that length")
        if config.spectral.dim and not config.spectral.weight:
            raise ConfigError("model.spectral.weight: 0 stands for one chosen on validation; a model is built with that weight")
        self.config = config
        self.plan = plan_towers(config, inputs, event_rows)
        self.tables = nn.ModuleDict({name: embedding(rows, self.plan.widths[name]) for name, rows in self.plan.tables.items()})
        for name in self.spectral_tables:  # items without a row of their own are silent
            _table(self.tables, name).weight.requires_grad_(False).zero_()
        for name in {HISTORY_TABLE, ASSOCIATION_TABLE}.intersection(self.tables):
            # Rows that training never reaches stay silent instead of adding noise: unknown items of a live history.
            _table(self.tables, name).weight.data[: MISSING_ROW + 1] = 0.0
        specs = (*self.plan.user_specs, *self.plan.item_specs)
        self.small_tables = small_tables(specs, self.plan.tables, config.dim)
        self.history: HistoryEncoder = make_encoder(config, event_rows, self.plan.reads_event, self.plan.reads_time, self.plan.matched)
        self.user_features = FeatureSum(self.plan.user_specs, self.plan.tables, config.dim)
        self.item_features = FeatureSum(self.plan.item_specs, self.plan.tables, config.dim)
        self.user_head = make_head("user_head", config.user_head, config.dim)
        self.item_head = make_head("item_head", config.item_head, config.dim)
        narrow = torch.zeros(config.dim, config.width) if config.spectral.narrow_to else None
        self.item_map_DK = None if narrow is None else nn.Parameter(narrow, requires_grad=False)
        self.temperature_logit = nn.Parameter(_temperature_logit(config.temperature)) if config.learn_temperature else None

    @property
    def spectral_tables(self) -> tuple[str, ...]:
        """Names of the tables of the spectral part; none without one."""
        return (SPECTRAL_ITEM, SPECTRAL_HISTORY) if self.config.spectral.dim else ()

    def user(self, batch: Mapping[str, Tensor]) -> UserOutput:
        """Vectors of users given by their newest L events, features and context."""
        batch = self._hide(batch) if self.training else batch
        if not (self.history.pools and self.pools_rows):
            return self.user_core(self.gather(batch, self.plan.user))
        # No row of a long history has to lie in memory: 500 users of up to 800 events in 640 dimensions would be a gigabyte.
        item_BL = batch[HISTORY_ITEM]
        gathered = self.gather(batch, (entry for entry in self.plan.user if entry.name not in _POOLED))

        def summed(name: str) -> Callable[[Tensor], Tensor]:
            return lambda weights_BL: pool_rows(_table(self.tables, name), item_BL, weights_BL)

        associate = summed(ASSOCIATION_TABLE) if self.config.history.associations else None
        history = self.history.pooled(gathered, summed(self.plan.history_table), associate)
        if not self.spectral_tables:
            return self._join(history, gathered, None)
        newest = -self.config.spectral.newest  # -0: all
        spectral_BK = pool_rows(_table(self.tables, SPECTRAL_HISTORY), item_BL[:, newest:], gathered[HISTORY_MASK][:, newest:])
        return self._join(history, gathered, spectral_BK)

    def user_sequence(self, batch: Mapping[str, Tensor]) -> Tensor:
        """Vectors of all history positions, [B, L, D]: column t has seen the history up to and including column t.

        Column t equals `user` of that prefix alone. Columns left of the first event encode an empty history. Context arrays
        carry a position axis after B; user features do not.

        Raises:
            ConfigError: the history encoder is not causal.
        """
        gathered = self.lookup_user(batch)
        features = self.user_features(gathered, self.small_tables, positions=True)
        return self._finish(self.history.positions(gathered), features, self.user_head)

    def item(self, batch: Mapping[str, Tensor], fixed: FixedSum | None = None) -> Tensor:
        """Vectors of items, [C, D]; `fixed` is what `fixed_items` made of the same batch."""
        if fixed is None:
            return self.item_core(self.lookup_item(batch))
        known = {spec.name for spec in fixed.specs}
        return self.item_core(self.lookup_item(batch, known), (fixed, fixed(self._item_layer)))

    def user_core(self, gathered: Mapping[str, Tensor], parts: bool = False) -> UserOutput:
        """From gathered rows (see `plan.user`) to vectors and history weights, and with `parts` what else they are the sum of."""
        # padding's rows are zero
        spectral_BK = gathered[SPECTRAL_HISTORY_ROWS][:, -self.config.spectral.newest :].sum(1) if self.spectral_tables else None
        return self._join(self.history(gathered), gathered, spectral_BK, parts)

    def _join(self, history: History, gathered: Mapping[str, Tensor], spectral_BK: Tensor | None, parts: bool = False) -> UserOutput:
        each = list(self.user_features.parts(gathered, self.small_tables).values()) if parts else []
        features = reduce(torch.add, each) if each else self.user_features(gathered, self.small_tables)
        vector_BD = self._finish(history.vector_BD, features, self.user_head)
        if spectral_BK is not None:
            if self.config.spectral.newest:  # the more is known, the less is told by what came last
                spectral_BK = spectral_BK * gathered[HISTORY_MASK].sum(1, keepdim=True).clamp(min=1) ** -0.5
            weighted_BK = self.config.spectral.weight * spectral_BK
            if self.item_map_DK is None:
                vector_BD = torch.cat([vector_BD, weighted_BK], dim=-1)
            else:
                vector_BD = F.pad(vector_BD, (0, self.config.width - self.config.dim)) + weighted_BK
        others = (history.absent_BD, *each) if parts and history.absent_BD is not None else ()
        if others and history.association_BL is not None:
            others = (history.association_BL, *others)
        return UserOutput(vector_BD.unsqueeze(1), history.weights_BL, others)

    def item_core(self, gathered: Mapping[str, Tensor], known: tuple[FixedSum, Tensor] | None = None) -> Tensor:
        """From gathered rows (see `plan.item`) to vectors, [C, D]; without the features whose sum is known."""
        features = self.item_features(gathered, self.small_tables, known=known)
        vector_CD = self._finish(features, None, self.item_head)
        if not self.spectral_tables:
            return vector_CD
        spectral_CK = gathered[SPECTRAL_ITEM_ROWS]
        return torch.cat([vector_CD, spectral_CK], dim=-1) if self.item_map_DK is None else vector_CD @ self.item_map_DK + spectral_CK

    def lookup_user(self, batch: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The user core's arrays: rows of large tables gathered, tokens and context hidden at random in training."""
        return self.gather(self._hide(batch) if self.training else batch, self.plan.user)

    def lookup_item(self, batch: Mapping[str, Tensor], known: Container[str] = ()) -> dict[str, Tensor]:
        """The item core's arrays, but for the inputs that are `known`; in training, item ids give way to the OOV row at random
        (`model.id_dropout`)."""
        if self.training and self.config.id_dropout:
            name = f"item.{ITEM_ID}"
            ids_C = batch[name]
            hidden_C = chance(ids_C.shape, self.config.id_dropout, ids_C.device)
            batch = {**batch, name: ids_C.masked_fill(hidden_C, OOV_ROW)}
        return self.gather(batch, (entry for entry in self.plan.item if entry.source not in known))

    def fixed_items(self, batch: Mapping[str, Tensor]) -> FixedSum | None:
        """Item inputs laid out to be encoded many times while the weights change; None where that is no faster."""
        hidden = self.training and self.config.id_dropout
        specs = [s for s in self.plan.item_specs if not (hidden and s.name == f"item.{ITEM_ID}")]
        return lay_out(specs, batch, self._item_layer)

    def _item_layer(self, spec: InputSpec) -> nn.Module:
        return self.tables[spec.table] if spec.table in self.tables else self.item_features.layer(spec, self.small_tables)

    def table_arrays(self) -> dict[str, Table]:
        """The large tables as NumPy arrays [V, D] by name, for gathering outside torch: as narrow as their numbers allow."""
        return {name: narrowest(_table(self.tables, name).weight.detach().cpu().float().numpy()) for name in self.tables}

    def temperature(self) -> Tensor:
        """What scores are divided by in the loss: a scalar."""
        if self.temperature_logit is None:
            return torch.tensor(self.config.temperature, device=self.history.no_history_D.device)
        # A sigmoid between the bounds (on the log scale): unlike a clamp it keeps its gradient wherever training pushes it.
        span = math.log(HIGHEST_TEMPERATURE / LOWEST_TEMPERATURE)
        return LOWEST_TEMPERATURE * torch.exp(span * torch.sigmoid(self.temperature_logit))

    def history_rows(self, ids: Tensor) -> Tensor:
        """Rows of history items, int [...] -> [..., D]; zero for padding."""
        rows: Tensor = _table(self.tables, self.plan.history_table)(ids)
        return rows

    def gather(self, batch: Mapping[str, Tensor], wanted: Iterable[CoreInput]) -> dict[str, Tensor]:
        """The wanted arrays of a core, with the rows of large tables looked up."""
        gathered: dict[str, Tensor] = {}
        for entry in wanted:
            source = batch[entry.source]
            if entry.name == HISTORY_ROWS:
                gathered[entry.name] = self.history_rows(source)
            elif entry.table:
                gathered[entry.name] = _table(self.tables, entry.table)(source)
            elif entry.counts:
                gathered[entry.name] = torch.from_numpy(repeats(source.cpu().numpy())).to(source.device)
            else:
                gathered[entry.name] = (source > PAD_ROW).to(torch.float32) if entry.is_mask else source
        return gathered

    def _hide(self, batch: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Hide the older events of some histories, single events behind the OOV row, and behind missing values the context of some rows and
        what their newcomers declared."""
        hidden = dict(batch)
        if self.config.history.shorten:
            hidden |= shortened(batch, self.config.history.shorten)
        item_BL = hidden[HISTORY_ITEM]
        if self.config.history.token_dropout:
            drop_BL = chance(item_BL.shape, self.config.history.token_dropout, item_BL.device) & (item_BL != PAD_ROW)
            hidden[HISTORY_ITEM] = item_BL.masked_fill(drop_BL, OOV_ROW)
        if self.config.context_dropout:
            drop_B = chance(item_BL.shape[:1], self.config.context_dropout, item_BL.device)
            for spec in self.plan.user_specs:
                if spec.name.startswith("context.") or spec.newcomer:
                    values = hidden[spec.name]
                    rows = drop_B.reshape(-1, *[1] * (values.dim() - 1))
                    hidden[spec.name] = torch.where(rows, missing_value(spec, values), values)
        return hidden

    def _finish(self, vector: Tensor, features: Tensor | None, head: nn.Module) -> Tensor:
        finished: Tensor = head(vector if features is None else vector + features)
        return normalise(finished) if self.config.similarity == "cosine" else finished


class ExportCore(nn.Module):
    """One core with positional inputs, in the order of `plan.user` or `plan.item`, as `torch.onnx.export` wants them.

    The user side returns (vectors_BHD, history_weights_BL) and, where the vectors are sums, their other parts (see `UserOutput`); the item
    side (vectors_CD,).
    """

    def __init__(self, model: TwoTower, side: Literal["user", "item"]) -> None:
        super().__init__()
        self.model, self.side = model, side
        self.inputs = model.plan.user if side == "user" else model.plan.item

    def forward(self, *arrays: Tensor) -> tuple[Tensor, ...]:
        whole = (array.float() if array.dtype == torch.float16 else array for array in arrays)
        gathered = {entry.name: array for entry, array in zip(self.inputs, whole, strict=True)}
        if self.side == "item":
            return (self.model.item_core(gathered),)
        vectors_BHD, weights_BL, others = self.model.user_core(gathered, parts=self.model.config.sums_user)
        return vectors_BHD, weights_BL, *others


def _table(tables: nn.ModuleDict, name: str) -> nn.Embedding:
    table = tables[name]
    if not isinstance(table, nn.Embedding):
        raise TypeError(f"table {name}: expected nn.Embedding, got {type(table).__name__}")
    return table


def _temperature_logit(start: float) -> Tensor:
    if not LOWEST_TEMPERATURE < start < HIGHEST_TEMPERATURE:
        raise ConfigError(
            f"model.temperature: got {start}, expected between {LOWEST_TEMPERATURE} and {HIGHEST_TEMPERATURE}"
            " where model.learn_temperature is set"
        )
    share = math.log(start / LOWEST_TEMPERATURE) / math.log(HIGHEST_TEMPERATURE / LOWEST_TEMPERATURE)
    return torch.tensor(math.log(share / (1 - share)))
