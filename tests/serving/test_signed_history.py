"""A live history with events that tell what somebody did not want."""

from typing import Any

import numpy as np

from serving.retriever import Retriever
from towers.encoder import Encoder, UserRow
from towers.runtime import TorchRuntime

LENGTH = 6


def test_three_skips_change_the_list_and_push_away(world: Any, retriever: Retriever) -> None:
    """The tower gets the event types as they were sent, and what is skipped counts against its like."""
    likes, skipped = ["item-01", "item-02", "item-03"], ["item-11", "item-12", "item-13"]

    def ask(event_type: str) -> dict[str, float]:
        live = [{"item_id": item, "event_type": event_type} for item in skipped]
        reply = retriever.recommend(history=[*likes, *live], k=len(world.catalog), exclude_seen=False)
        return {item.item_id: item.score for item in reply.items}

    encoder = Encoder(world.preprocessor, TorchRuntime(world.model), LENGTH)
    ids = world.catalog["item_id"].to_pylist()
    vectors_ID = encoder.items({name: world.catalog[name].to_pylist() for name in ("item_id", "categories")}, len(ids))
    rows = [UserRow([*likes, *skipped], ["interaction"] * 3 + [kind] * 3) for kind in ("skip", "play")]
    encoding = encoder.users(rows)
    answers = [ask("skip"), ask("play")]
    for vector_D, answer in zip(encoding.vectors_BHD[:, 0], answers, strict=True):
        expected = dict(zip(ids, (vectors_ID @ vector_D).tolist(), strict=True))
        np.testing.assert_allclose([answer[item] for item in answer], [expected[item] for item in answer], atol=1e-5)
    assert list(answers[0])[:10] != list(answers[1])[:10]
    assert encoding.history_weights_BL is not None
    assert (encoding.history_weights_BL[0, 3:] < 0).all() and (encoding.history_weights_BL[0, :3] != 0).all()
