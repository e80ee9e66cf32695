"""Encoding many queries: grouped by length, and still each query's own vector in its own place."""

import numpy as np
import pytest
import torch

from towers.model import TwoTower
from towers.model_config import HistoryConfig, ModelConfig
from towers.runtime import TorchRuntime
from training import rank_queries
from training.queries import make_queries


@pytest.mark.parametrize("name", ["mean", "transformer"])
def test_queries_encoded_by_length_equal_queries_encoded_in_order(make_toy, monkeypatch, name):
    data = make_toy()
    torch.manual_seed(0)
    config = ModelConfig(dim=8, history=HistoryConfig(name=name, length=9, layers=2))
    runtime = TorchRuntime(TwoTower(config, data.preprocessor.inputs, data.preprocessor.event_rows))
    queries = make_queries(data, "valid", "event", "leave_one_out")
    expected = runtime.user(queries.inputs(slice(0, len(queries)), 9)).vectors_BHD
    monkeypatch.setattr(rank_queries, "_BLOCK_EVENTS", 9 * 7)
    widths = []
    monkeypatch.setattr(
        TorchRuntime, "user", lambda self, batch, user=TorchRuntime.user: widths.append(batch["history.item"].shape[1]) or user(self, batch)
    )
    got = rank_queries.encode_users(runtime, queries, 9)
    assert np.allclose(got, expected, atol=1e-6)
    assert len(widths) > 3 and widths == sorted(widths) and widths[0] < 9 == widths[-1]
