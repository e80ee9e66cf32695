"""Histories cut short in training, so that users with few events are met as often as those with many."""

import torch

from towers.model import TwoTower
from towers.model_config import HistoryConfig, InputSpec, ModelConfig

LENGTH = 6


def test_shortened_histories_keep_their_newest_events_in_training_only():
    config = ModelConfig(dim=4, history=HistoryConfig(length=LENGTH, shorten=0.5))
    model = TwoTower(config, (InputSpec("item.item_id", "id", 30, 0, "item_id"),), event_rows=6)
    torch.manual_seed(0)
    batch = {
        "history.item": torch.randint(3, 30, (600, LENGTH)),
        "history.event": torch.randint(3, 6, (600, LENGTH)),
        "history.age": torch.randint(1, 32, (600, LENGTH)),
        "history.gap": torch.randint(1, 32, (600, LENGTH)),
    }
    gathered = {flag: model.train(flag).lookup_user(batch) for flag in (True, False)}
    assert gathered[False]["history.mask"].all()
    mask_BL = gathered[True]["history.mask"]
    left_B = mask_BL.sum(1)
    assert torch.equal(mask_BL, (torch.arange(LENGTH) >= LENGTH - left_B[:, None]).float()), "the newest stay"
    share = [(left_B == n).float().mean().item() for n in range(LENGTH + 1)]
    assert 0.4 < sum(share[:LENGTH]) < 0.6
    assert share[0] > share[2] > share[4] > 0, "log-uniform: few events as often as many"
    gone = mask_BL == 0
    assert not gathered[True]["history.event"][gone].any() and not gathered[True]["history.age"][gone].any()
