"""Reasons in words: hand-written cases."""

from typing import Any

import pytest

from serving.reasons import Reason
from serving.wording import NOTHING_NAMED, sentence

PHRASES = {"watch": "you watched {}", "finish": "you watched {}", "hour": "it is {} o'clock", "place": "you are at home"}


def event(title: str | None, share: float, kind: str | None = "watch", item_id: str = "i1") -> Reason:
    return Reason("history", share, share, item_id, title, kind)


def value(kind: str, name: str, told: Any, share: float) -> Reason:
    return Reason(kind, share, share, name=name, value=told)


@pytest.mark.parametrize(
    ("reasons", "expected"),
    [
        ([], NOTHING_NAMED),
        ([event("Dune", 0.5)], "because you watched “Dune”"),
        ([event("Dune", 0.5), event("Alien", 0.3, "finish")], "because you watched “Dune” and “Alien”"),
        ([event("A", 0.3), event("B", 0.2), event("C", 0.2), event("D", 0.2)], "because you watched “A”, “B” and “C”"),
        ([event("Dune", 0.3), event("Dune", 0.2)], "because you watched “Dune”"),
        ([event("Dune", 0.5), event("Alien", 0.05)], "because you watched “Dune”"),
        ([event("Dune", 0.04)], "because you watched “Dune”"),
        ([event("Dune", 0.5, "buy"), event("Alien", 0.3)], "because of “Dune”, and you watched “Alien”"),
        ([event("Dune", 0.5, None)], "because of “Dune”"),
        ([event(None, 0.5)], "because you watched “i1”"),
        ([event("{} {name} {0}", 0.5), event("\x1b[2J\n<b>“x”</b>", 0.5)], "because you watched “{} {name} {0}” and “[2J <b>“x”</b>”"),
        ([event("x" * 200, 0.5)], f"because you watched “{'x' * 79}…”"),
        ([value("preference", "likes", ["drama", "news", "jazz"], 0.5)], "because you like news and jazz"),
        ([value("preference", "likes", ["drama"], 0.5)], "because you like drama"),
        ([value("context", "hour", "21", 0.5), event("Dune", 0.2)], "because it is 21 o'clock, and you watched “Dune”"),
        ([value("context", "place", "here", 0.5)], "because you are at home"),
        ([value("context", "device", "tv", 0.5)], "because device is tv"),
        ([value("feature", "plan", "gold", 0.5)], "because your plan is gold"),
        ([value("feature", "secret", None, 0.5), value("context", "when", None, 0.4)], "because of your secret, and of when"),
    ],
)
def test_sentences(reasons: list[Reason], expected: str) -> None:
    assert sentence(reasons, ["news", "jazz", "comedy"], PHRASES) == expected
