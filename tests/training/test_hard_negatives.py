import numpy as np
import pytest
import torch

from towers.columns import FIRST_ROW, TRAIN
from towers.model import TwoTower
from towers.model_config import HistoryConfig, ModelConfig
from towers.runtime import to_tensors
from training.candidates import CandidateItems
from training.config import NegativesConfig
from training.distributed import ALONE
from training.events import TrainingEvents
from training.examples import EventSampler, SequenceSampler, UserSampler
from training.hard_negatives import Miner
from training.loader import Loader
from training.objective import targets_of

KINDS = ["event", "sequence", "user"]


@pytest.fixture(scope="module")
def world(make_toy):
    """A batch of each kind, a model, and the items."""
    data = make_toy(users=80, items=80)
    events = TrainingEvents.select(data, (TRAIN,))
    torch.manual_seed(0)
    model = TwoTower(
        ModelConfig(dim=8, id_dropout=0.5, history=HistoryConfig(name="transformer", length=6, layers=1)),
        data.preprocessor.inputs,
        data.preprocessor.event_rows,
    )
    samplers = (EventSampler(events), SequenceSampler(events, 6), UserSampler(events))
    loaders = [Loader(data, events, sampler, length=6, batch_size=20, seed=0) for sampler in samplers]
    return (
        data,
        model.train(),
        CandidateItems(data, events, torch.device("cpu")),
        {k: x.batch(0, 0) for k, x in zip(KINDS, loaders, strict=True)},
    )


def own_items(data, items, batch, row):
    """Places of a row's targets and history, the slow way."""
    ids = data.item_features["item.item_id"].tolist()
    history = {ids.index(i) for i in batch.user["history.item"][row] if i >= FIRST_ROW}
    return {int(items.places(np.array(i))) for i in history | set(batch.targets_BT[row][batch.targets_BT[row] >= 0].tolist())}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("block", [7, 1 << 14])
def test_the_pool_is_the_top_of_all_items_without_the_users_own(world, kind, block, monkeypatch):
    monkeypatch.setattr("training.hard_negatives.BLOCK_ITEMS", block)
    data, model, items, batches = world
    batch = batches[kind]
    vectors = targets_of(model, batch, items).user_BD.detach()
    got = Miner(items, NegativesConfig("hard"), ALONE).step(model, batch, vectors)
    with torch.no_grad():
        scores = (vectors @ model.eval().item(to_tensors({n: a[items.rows_K] for n, a in data.item_features.items()}, "cpu")).t()).numpy()
    model.train()
    rows = np.nonzero(batch.targets_BT >= 0)[0] if kind == "sequence" else np.arange(len(vectors))
    counts = np.zeros(len(items))
    for vector, row in enumerate(rows):
        free = np.setdiff1d(np.arange(len(items)), list(own_items(data, items, batch, row)))
        counts[free[np.argsort(-scores[vector, free])][: 1 + len(items) // 20]] += 1
    assert got.rows_P.tolist() == np.flatnonzero(counts).tolist()
    assert got.share_P == pytest.approx(counts[counts > 0] / counts.sum())
    assert model.training


def test_it_mines_when_it_is_due_and_its_state_continues(world):
    _, model, items, batches = world
    config = NegativesConfig("hard", refresh_every=3)
    miner, pools = Miner(items, config, ALONE), []
    continued = Miner(items, config, ALONE)
    for step in range(8):
        batch = batches[KINDS[step % 3 if step % 2 else 0]]
        vectors = targets_of(model, batch, items).user_BD + 0.1 * step
        pools.append(miner.step(model, batch, vectors))
        if step == 4:
            continued.load_state_dict(miner.state_dict())
        if step > 4:
            other = continued.step(model, batch, vectors)
            assert (other.rows_P == pools[-1].rows_P).all() and (other.share_P == pools[-1].share_P).all()
    assert pools[0] is pools[2] and pools[3] is pools[5] and pools[2] is not pools[3]


def test_many_vectors_are_looked_at_in_part(world, monkeypatch):
    monkeypatch.setattr("training.hard_negatives.MOST_VECTORS", 3)
    _, model, items, batches = world
    got = Miner(items, NegativesConfig("hard"), ALONE).step(model, batches["event"], targets_of(model, batches["event"], items).user_BD)
    assert len(got.rows_P) <= 3 * (1 + len(items) // 20)
