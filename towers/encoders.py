"""History encoders: from the rows of a user's history to one vector. Registered by name in ENCODERS.

Legend: B rows, L history positions (right-aligned, newest last), D dim, H attention heads, K = D / H.
"""

from collections.abc import Callable, Mapping, Sequence
from functools import reduce
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

from towers.batch import HISTORY_AGE, HISTORY_EVENT, HISTORY_GAP, event_context
from towers.blocks import MASKED, Block, Dropout
from towers.columns import FIRST_ROW
from towers.errors import ConfigError
from towers.features import FEATURE_SCALE, embedding
from towers.history import AGE_ROWS, REPEAT_ROWS
from towers.lookups import ASSOCIATION_ROWS, HISTORY_MASK, HISTORY_REPEAT, HISTORY_ROWS
from towers.model_config import ModelConfig

PUSH_PACE = 10.0
"""Adam moves a number by about the learning rate a step: from 1 to below 0 a sign would need most of a short training, and so
would a weight of ten."""


class History(NamedTuple):
    """A history as a vector, each position's share of it (all zeros where the encoder is no weighted sum), what of it is no position's:
    the vector that stands for an empty history, and zeros elsewhere (None where the encoder is no weighted sum), and the share of each
    position's second row (None without `associations`)."""

    vector_BD: Tensor
    weights_BL: Tensor
    absent_BD: Tensor | None = None
    association_BL: Tensor | None = None


Pool = Callable[[Tensor], Tensor]
"""[B, L] weights of a history's events -> [B, D], the weighted sum of their rows."""


class HistoryEncoder(nn.Module):
    """Common part: a learned vector stands for an empty history.

    Attributes:
        pools: the vector is a weighted sum of the history's rows, so `pooled` needs none of them in memory.
    """

    pools = False

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.no_history_D = nn.Parameter(torch.randn(dim) * dim**-0.5)

    def forward(self, gathered: Mapping[str, Tensor]) -> History:
        raise NotImplementedError

    def pooled(self, gathered: Mapping[str, Tensor], pool: Pool, associate: Pool | None = None) -> History:
        """What `forward` gives, with the rows summed by `pool`, and second rows by `associate`; only where `pools`."""
        raise NotImplementedError

    def mark_negative(self, rows: NDArray[np.integer]) -> None:
        """Told which rows of the event type vocabulary are negative types; reserved rows among them are nobody's type."""

    def positions(self, gathered: Mapping[str, Tensor]) -> Tensor:
        """[B, L, D]: column t encodes the history up to and including column t.

        Raises:
            ConfigError: the encoder is not causal.
        """
        raise ConfigError(
            "model.history.name: only a causal encoder gives all positions at once. Use transformer, or trainer.sampler=event"
        )


class MeanEncoder(HistoryEncoder):
    """Weighted mean of the history's rows: w_j = exp(a[event_j] + b[age_j]) over valid positions, normalised to sum 1.

    With `signed_events` the weight is then multiplied by 1 + PUSH_PACE p[event_j], which may fall below 0: events of a type that tells
    what somebody did not want push the vector away from their items. With `negative_push` = c the types marked as negative have a = 0 and
    the factor -c instead of learned ones. Linear in the rows, so a score is exactly a sum over history positions. All weights start
    equal.

    With `use_repeats` log w_j gets + PUSH_PACE r[how many events have the item of j], and for each context feature f that events keep
    + PUSH_PACE s[f, 1] where j agrees with the request, + PUSH_PACE s[f, 0] where it differs, nothing where either is unknown.

    With `associations` a weighted mean of second rows is added, with the same weights but for an r of its own and no s: of what goes with
    an item much is told by having it at all, whenever that was.
    """

    pools = True

    def __init__(self, config: ModelConfig, event_rows: int, reads_event: bool, reads_time: bool, matched: Sequence[str] = ()) -> None:
        super().__init__(config.dim)
        self.event_log_weight = nn.Parameter(torch.zeros(event_rows)) if reads_event else None
        self.age_log_weight = nn.Parameter(torch.zeros(AGE_ROWS)) if reads_time else None
        self.event_push = nn.Parameter(torch.zeros(event_rows)) if reads_event and config.history.signed_events else None
        self.repeat_log_weight = nn.Parameter(torch.zeros(REPEAT_ROWS)) if config.history.use_repeats else None
        self.associates = config.history.associations
        own = self.associates and config.history.use_repeats
        self.association_log_weight = nn.Parameter(torch.zeros(REPEAT_ROWS)) if own else None
        self._matched = [(event_context(name.partition(".")[2]), name) for name in matched]
        self.match_log_weight = nn.Parameter(torch.zeros(len(matched), 2)) if matched else None
        self.negative_push = config.history.negative_push
        # which types are negative is kept with the weights: the towers know no names
        self.negative_events: Tensor | None
        self.register_buffer("negative_events", torch.zeros(event_rows) if reads_event and self.negative_push else None)

    def mark_negative(self, rows: NDArray[np.integer]) -> None:
        if self.negative_events is not None:
            self.negative_events[torch.from_numpy(np.asarray(rows, np.int64)[rows >= FIRST_ROW])] = 1.0

    def forward(self, gathered: Mapping[str, Tensor]) -> History:
        return self.pooled(gathered, _sum_of(gathered[HISTORY_ROWS]), _sum_of(gathered[ASSOCIATION_ROWS]) if self.associates else None)

    def pooled(self, gathered: Mapping[str, Tensor], pool: Pool, associate: Pool | None = None) -> History:
        mask_BL = gathered[HISTORY_MASK]
        logits_BL = (1.0 - mask_BL) * MASKED
        if self.event_log_weight is not None:
            logits_BL = logits_BL + _of_events(self._log_weights(self.event_log_weight), gathered)
        if self.age_log_weight is not None:
            logits_BL = logits_BL + F.embedding(gathered[HISTORY_AGE], self.age_log_weight.unsqueeze(1)).squeeze(-1)
        second_BL = logits_BL if self.association_log_weight is None else logits_BL + _of_repeats(self.association_log_weight, gathered)
        if self.repeat_log_weight is not None:
            logits_BL = logits_BL + _of_repeats(self.repeat_log_weight, gathered)
        if self.match_log_weight is not None:
            logits_BL = logits_BL + self._matches(PUSH_PACE * self.match_log_weight, gathered)
        factors = self._factors()
        factor_BL = mask_BL if factors is None else mask_BL * _of_events(factors, gathered)
        weights_BL = torch.softmax(logits_BL, dim=-1) * factor_BL
        has_history_B1 = mask_BL.amax(-1, keepdim=True)
        absent_BD = (1.0 - has_history_B1) * self.no_history_D
        vector_BD = pool(weights_BL) + absent_BD
        if associate is None:
            return History(vector_BD, weights_BL, absent_BD)
        association_BL = torch.softmax(second_BL, dim=-1) * factor_BL
        return History(vector_BD + associate(association_BL), weights_BL, absent_BD, association_BL)

    def _matches(self, weight_F2: Tensor, gathered: Mapping[str, Tensor]) -> Tensor:
        """What agreeing with the request's context adds to each event's log weight: [B, L]."""
        added = []
        for (kept, asked), weight_2 in zip(self._matched, weight_F2.unbind(), strict=True):
            kept_BL, asked_B1 = gathered[kept], gathered[asked].unsqueeze(1)
            known_BL = (kept_BL >= FIRST_ROW) & (asked_B1 >= FIRST_ROW)
            same_BL = known_BL & (kept_BL == asked_B1)
            added.append(known_BL.float() * weight_2[0] + same_BL.float() * (weight_2[1] - weight_2[0]))
        return reduce(torch.add, added)

    def _log_weights(self, learned_E: Tensor) -> Tensor:
        return learned_E if self.negative_events is None else learned_E * (1.0 - self.negative_events)

    def _factors(self) -> Tensor | None:
        """What an event type's weight is multiplied by; None where that is 1 for all."""
        learned_E = None if self.event_push is None else 1.0 + PUSH_PACE * self.event_push
        if self.negative_events is None:
            return learned_E
        positive_E = 1.0 - self.negative_events
        return (positive_E if learned_E is None else learned_E * positive_E) - self.negative_push * self.negative_events


def _sum_of(rows_BLD: Tensor) -> Pool:
    return lambda weights_BL: torch.matmul(weights_BL.unsqueeze(1), rows_BLD).squeeze(1)


def _of_repeats(learned_R: Tensor, gathered: Mapping[str, Tensor]) -> Tensor:
    """What its repeats add to each event's log weight: [B, L]."""
    repeat_BL = gathered[HISTORY_REPEAT].long()
    # a table a row: backward, so many places of one small table wait for each other
    return (PUSH_PACE * learned_R).expand(repeat_BL.shape[0], -1).gather(1, repeat_BL)


def _of_events(values_E: Tensor, gathered: Mapping[str, Tensor]) -> Tensor:
    """Values by event type, for each history position: [B, L]."""
    return F.embedding(gathered[HISTORY_EVENT], values_E.unsqueeze(1)).squeeze(-1)


class TransformerEncoder(HistoryEncoder):
    """Causal pre-norm transformer (Kang & McAuley 2018, SASRec) with a learned bias by distance instead of positions.

    Attention sees only how far back an event lies (Raffel et al. 2020, T5; Zhai et al. 2024, HSTU). Absolute positions would
    differ between a prefix inside a training sequence and the same prefix served on its own; distances do not, so all
    positions trained at once equal each prefix encoded alone.
    """

    def __init__(self, config: ModelConfig, event_rows: int, reads_event: bool, reads_time: bool, matched: Sequence[str] = ()) -> None:
        super().__init__(config.dim)
        dim, history = config.dim, config.history
        self.event = embedding(event_rows, dim, FEATURE_SCALE) if reads_event else None
        self.gap = embedding(AGE_ROWS, dim, FEATURE_SCALE) if reads_time else None
        self.drop = Dropout(history.dropout)
        self.blocks = nn.ModuleList(Block(dim, history.heads, history.length, history.dropout) for _ in range(history.layers))
        self.norm = nn.LayerNorm(dim)
        # Length about 1, as item rows and user features have it; LayerNorm alone would drown the features in sqrt(dim).
        nn.init.constant_(self.norm.weight, dim**-0.5)

    def forward(self, gathered: Mapping[str, Tensor]) -> History:
        mask_BL = gathered[HISTORY_MASK]
        states_B1D = self._encode(gathered, last_only=True)
        vector_BD = torch.where(mask_BL[:, -1:] > 0, states_B1D.squeeze(1), self.no_history_D)
        return History(vector_BD, torch.zeros_like(mask_BL))

    def positions(self, gathered: Mapping[str, Tensor]) -> Tensor:
        mask_BL1 = gathered[HISTORY_MASK].unsqueeze(-1)
        return torch.where(mask_BL1 > 0, self._encode(gathered, last_only=False), self.no_history_D)

    def _encode(self, gathered: Mapping[str, Tensor], last_only: bool) -> Tensor:
        x_BLD = gathered[HISTORY_ROWS]
        if self.event is not None:
            x_BLD = x_BLD + self.event(gathered[HISTORY_EVENT])
        if self.gap is not None:
            x_BLD = x_BLD + self.gap(gathered[HISTORY_GAP])
        x_BLD = self.drop(x_BLD)
        mask_BL = gathered[HISTORY_MASK]
        # windows of a step are about as long, so most steps have no padding; what is exported cannot ask
        whole = self.training and bool(mask_BL.all())
        padding_B11L = None if whole else ((1.0 - mask_BL) * MASKED)[:, None, None, :]
        newest = len(self.blocks) - 1
        for depth, block in enumerate(self.blocks):
            # Serving needs the newest position only, so the top block computes no other.
            x_BLD = block(x_BLD, padding_B11L, last_only and depth == newest)
        if last_only and newest < 0:
            x_BLD = x_BLD[:, -1:]
        normed: Tensor = self.norm(x_BLD)
        return normed


ENCODERS: dict[str, type[MeanEncoder] | type[TransformerEncoder]] = {"mean": MeanEncoder, "transformer": TransformerEncoder}


def make_encoder(config: ModelConfig, event_rows: int, reads_event: bool, reads_time: bool, matched: Sequence[str] = ()) -> HistoryEncoder:
    """The encoder that `model.history.name` names.

    Raises:
        ConfigError: no encoder has that name.
    """
    found = ENCODERS.get(config.history.name)
    if found is None:
        raise ConfigError(f"model.history.name: got {config.history.name!r}, expected one of {', '.join(ENCODERS)}")
    return found(config, event_rows, reads_event, reads_time, matched)
