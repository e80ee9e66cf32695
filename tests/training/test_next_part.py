"""The computed part of ordered data: what came right after what, asked by the newest event alone."""

from itertools import pairwise

import numpy as np
import pytest
import torch

from towers.columns import FIRST_ROW, TRAIN
from towers.encoder import Encoder, UserRow
from towers.errors import ConfigError
from towers.lookups import SPECTRAL_HISTORY, SPECTRAL_ITEM
from towers.model import TwoTower
from towers.model_config import HistoryConfig, ModelConfig, SpectralConfig
from towers.runtime import TorchRuntime
from training import join
from training.config import TrainerConfig, TrainingConfig, validate
from training.onnx_export import export_towers
from training.spectral import SPREAD, spectral_tables, transition_matrix

DIM, NEXT, WEIGHT = 5, 8, 0.4


@pytest.fixture(scope="module")
def ordered(make_toy):
    return make_toy()  # some events have no weight


@pytest.fixture(scope="module")
def joined(ordered):
    torch.manual_seed(3)
    config = ModelConfig(dim=DIM, id_dropout=0.0, history=HistoryConfig(length=10))
    learned = TwoTower(config, ordered.preprocessor.inputs, ordered.preprocessor.event_rows).eval()
    return join.join_spectral(learned, ordered, SpectralConfig(NEXT, WEIGHT, newest=1), seed=0)


def counted(data):
    """Transitions of training rows, one by one."""
    counts = np.zeros((data.n_items, data.n_items))
    for first, stop in zip(data.offsets[:-1], data.offsets[1:], strict=True):
        rows = [row for row in range(first, stop) if data.split[row] == TRAIN]
        for before, after in pairwise(rows):
            counts[data.item[before], data.item[after]] += data.weight[after] > 0
    return counts


def test_transitions_are_counted_within_users(ordered):
    np.testing.assert_array_equal(transition_matrix(ordered).toarray(), counted(ordered))


def test_the_tables_products_are_the_smoothed_rows_of_the_chain(ordered):
    """U S V^T of the normalised counts, a row's U S of length 1, a column times the root of its count; 0.1 in the root mean square. In
    all dimensions, for which of two nearly equal ones comes first is chance."""
    tables, counts = spectral_tables(ordered, ordered.n_items, seed=0), counted(ordered)
    rows, columns = (np.maximum(counts.sum(axis), 1) ** -0.5 for axis in (1, 0))
    left, value, right = np.linalg.svd(rows[:, None] * counts * columns)
    before = left * value
    before /= np.maximum(np.linalg.norm(before, axis=1, keepdims=True), 1e-12)
    before[counts.sum(1) == 0] = 0
    wanted = before @ right * counts.sum(0) ** 0.5
    wanted *= SPREAD / np.sqrt(np.mean(wanted**2))
    id_rows = np.asarray(ordered.item_features["item.item_id"])
    got = tables[SPECTRAL_HISTORY][id_rows] @ tables[SPECTRAL_ITEM][id_rows].T
    known = id_rows >= FIRST_ROW
    np.testing.assert_allclose(got[np.ix_(known, known)], wanted[np.ix_(known, known)], atol=5e-3)
    assert np.abs(wanted).max() > 0.3 and not got[~known].any()


def test_the_newest_event_alone_asks_and_torch_equals_onnx_and_its_parts(ordered, joined, tmp_path):
    ids = ordered.catalog.column("item_id").to_pylist()
    encoder = Encoder(ordered.preprocessor, TorchRuntime(joined), 10)
    users = [UserRow(history_items=items) for items in (ids[:4], [ids[9], ids[3]], [ids[3], "no such item"], [])]
    batch = encoder.user_batch(users)
    found = encoder.runtime.user(batch, parts=True)
    asked = found.vectors_BHD[:, 0, DIM:]
    row = np.asarray(ordered.item_features["item.item_id"])[3]
    np.testing.assert_allclose(asked[0], WEIGHT / 2 * joined.table_arrays()[SPECTRAL_HISTORY][row], atol=1e-6)
    np.testing.assert_allclose(asked[1] * 2**0.5, asked[0] * 2, atol=1e-6)
    assert asked[0].any() and not asked[2:].any(), "an unknown item and no history are silent"
    np.testing.assert_allclose(found.parts.parts_BSD.sum(1), found.vectors_BHD[:, 0], atol=1e-6)
    assert export_towers(joined, batch, ordered.item_features, tmp_path) < 1e-5


def test_validation_chooses_a_weight_where_none_is_given(ordered, joined):
    learned = TwoTower(
        ModelConfig(dim=DIM, history=HistoryConfig(length=10)), ordered.preprocessor.inputs, ordered.preprocessor.event_rows
    ).eval()
    config = TrainingConfig(trainer=TrainerConfig(device="cpu"), model=ModelConfig(spectral=SpectralConfig(NEXT, newest=1)))
    weighed = join.choose_weight(learned, ordered, config)
    assert list(weighed.tried) == ["0", *(f"{weight:g}" for weight in join.NEXT_WEIGHTS)]
    assert weighed.weight in join.NEXT_WEIGHTS and weighed.tried[f"{weighed.weight:g}"] > weighed.tried["0"], "untrained towers know less"


@pytest.mark.parametrize(
    ("order", "spectral", "message"),
    [
        ("time", SpectralConfig(4), r"spectral\.newest: got 0"),
        ("set", SpectralConfig(4, newest=1), r"spectral\.newest: got 1"),
        ("time", SpectralConfig(4, narrow_to=66, newest=1), r"spectral\.narrow_to"),
    ],
)
def test_a_part_that_does_not_fit_the_order_is_refused(tmp_path, order, spectral, message):
    config = TrainingConfig(run_dir=str(tmp_path), trainer=TrainerConfig(device="cpu"), model=ModelConfig(spectral=spectral))
    config.data.order = order
    if order == "set":
        config.split.name = "random"
    with pytest.raises(ConfigError, match=message):
        validate(config)
