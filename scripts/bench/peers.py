"""What our step is held against: the same work in plain torch, and its matrix products alone.

Legend: B rows, C candidates, D dim, I all items.
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from towers.batch import TrainBatch
from towers.blocks import Dropout
from towers.model import TwoTower
from towers.runtime import to_tensors
from training.objective import CandidateItems

TEMPERATURE = 0.07
SPARSE_FROM_ROWS = 1000
"""Tables that get sparse gradients where a peer has any."""
FLOOR_ROWS = (512, 4096)
"""Rows of scores computed at a time by the floor; the faster one counts."""


class Naive:
    """Two nn.Embedding tables, cosine scores of the batch against itself, autograd cross entropy, dense Adam; the textbook's code.

    It neither corrects for popularity nor looks for accidental hits.
    """

    def __init__(self, users: int, items: int, dim: int, batches: Sequence[tuple[Tensor, Tensor]]) -> None:
        self.user, self.item = nn.Embedding(users, dim), nn.Embedding(items, dim)
        self.optimizer = torch.optim.Adam([*self.user.parameters(), *self.item.parameters()], lr=0.003)
        self.batches = batches
        self._turn = 0

    def __call__(self) -> None:
        user_B, item_B = self.batches[self._turn % len(self.batches)]
        self._turn += 1
        self.optimizer.zero_grad()
        logits_BB = F.normalize(self.user(user_B), dim=1) @ F.normalize(self.item(item_B), dim=1).t() / TEMPERATURE
        F.cross_entropy(logits_BB, torch.arange(len(user_B))).backward()
        self.optimizer.step()


class Stock:
    """Our tower on the same batches, trained as torch's own parts do it best: its bags and its dropout, cross entropy over all items by
    autograd, fused AdamW, and where `half` is set autocast to bf16. With `sparse` the large tables get sparse gradients and SparseAdam."""

    def __init__(self, model: TwoTower, items: CandidateItems, batches: Sequence[TrainBatch], half: bool, sparse: bool) -> None:
        self.model, self.items, self.batches, self.half = model, items, batches, half
        for layer in list(model.modules()):
            for name, part in layer.named_children():
                if isinstance(part, Dropout):
                    setattr(layer, name, nn.Dropout(part.threshold / 256))
        tables = [m for m in model.modules() if sparse and isinstance(m, nn.Embedding) and m.num_embeddings >= SPARSE_FROM_ROWS]
        for table in tables:
            table.sparse = True
        weights = [table.weight for table in tables]
        dense = [p for p in model.parameters() if not any(p is weight for weight in weights)]
        self.optimizers: list[torch.optim.Optimizer] = [torch.optim.AdamW(dense, lr=0.003, weight_decay=0.0, fused=True)]
        if weights:
            self.optimizers.append(torch.optim.SparseAdam(weights, lr=0.003))
        self._turn = 0

    def __call__(self) -> None:
        batch = self.batches[self._turn % len(self.batches)]
        self._turn += 1
        target_BT = torch.from_numpy(batch.targets_BT >= 0)
        place_N = torch.from_numpy(self.items.places(batch.targets_BT[batch.targets_BT >= 0]))
        for optimizer in self.optimizers:
            optimizer.zero_grad()
        with torch.autocast("cpu", torch.bfloat16, enabled=self.half):
            user_ND = self.model.user_sequence(to_tensors(batch.user, self.items.device))[target_BT]
            logits_NI = user_ND @ self.model.item(self.items.inputs).t() / self.model.temperature()
            loss = F.cross_entropy(logits_NI, place_N)
        loss.backward()
        for optimizer in self.optimizers:
            optimizer.step()


class Floor:
    """The three matrix products of a softmax over C candidates and nothing else, into outputs that are there already."""

    def __init__(self, rows: int, columns: int, dim: int, kind: torch.dtype, block: int) -> None:
        block = min(block, rows)
        self.user_BD, self.item_CD = torch.randn(rows, dim).to(kind), torch.randn(columns, dim).to(kind)
        self.scores_BC = torch.empty(block, columns, dtype=kind)
        self.user_grad_BD, self.item_grad_CD = torch.empty(block, dim, dtype=kind), torch.empty(columns, dim, dtype=kind)

    def __call__(self) -> None:
        block = len(self.scores_BC)
        for start in range(0, len(self.user_BD), block):
            user_BD = self.user_BD[start : start + block]
            scores_BC = self.scores_BC[: len(user_BD)]
            torch.mm(user_BD, self.item_CD.t(), out=scores_BC)
            torch.mm(scores_BC, self.item_CD, out=self.user_grad_BD[: len(user_BD)])
            torch.mm(scores_BC.t(), user_BD, out=self.item_grad_CD)
