"""Reasons in words: hand-written cases."""

from typing import Any

import pytest

from serving.wording import NOTHING_NAMED, Source, Wording

PHRASES = {"watch": "you watched {}", "finish": "you watched {}", "hour": "it is {} o'clock", "place": "you are at home"}


WORDING = Wording(PHRASES)
Told = tuple[Source, float]


def event(title: str | None, share: float, kind: str | None = "watch", item_id: str = "i1") -> Told:
    return WORDING.event(title or item_id, kind), share


def gone(share: float) -> Told:
    return WORDING.event(None, "watch"), share


def value(kind: str, name: str, told: Any, share: float) -> Told:
    return WORDING.value(kind, name, told), share


@pytest.mark.parametrize(
    ("told", "expected"),
    [
        ([], NOTHING_NAMED),
        ([event("Dune", 0.5)], "because you watched “Dune”"),
        ([event("Dune", 0.5), event("Alien", 0.3, "finish")], "because you watched “Dune” and “Alien”"),
        ([event("A", 0.3), event("B", 0.2), event("C", 0.2)], "because you watched “A” and “B”"),
        ([event("Dune", 0.3), event("Dune", 0.2)], "because you watched “Dune”"),
        ([event("Dune", 0.06), event("Alien", 0.05)], "because you watched “Dune” and “Alien”"),
        ([value("context", "hour", "21", 0.5), event("Dune", 0.04)], "because it is 21 o'clock"),
        ([value("context", "hour", "21", 0.09)], "because it is 21 o'clock"),
        ([event("Dune", 0.04)], "because you watched “Dune”"),
        ([event("Dune", 0.5, "buy"), event("Alien", 0.3)], "because of “Dune”, and you watched “Alien”"),
        ([event("Dune", 0.5, None)], "because of “Dune”"),
        ([value("context", "hour", "21", 0.4), value("preference", "likes", "jazz", 0.3)], "because you like jazz, and it is 21 o'clock"),
        ([event(None, 0.5)], "because you watched “i1”"),
        ([gone(0.4), event("Dune", 0.3)], "because you watched an item no longer offered and “Dune”"),
        ([gone(0.4), gone(0.3)], "because you watched an item no longer offered"),
        ([event("{} {name} {0}", 0.5), event("\x1b[2J\n<b>“x”</b>", 0.5)], "because you watched “{} {name} {0}” and “[2J <b>“x”</b>”"),
        ([event("x" * 200, 0.5)], f"because you watched “{'x' * 79}…”"),
        ([value("preference", "likes", ["drama", "news", "jazz"], 0.5)], "because you like news and jazz"),
        ([value("preference", "likes", ["drama"], 0.5)], "because you like drama"),
        ([value("context", "hour", "21", 0.5), event("Dune", 0.2)], "because you watched “Dune”, and it is 21 o'clock"),
        ([value("context", "place", "here", 0.5)], "because you are at home"),
        ([value("context", "device", "tv", 0.5)], "because device is tv"),
        ([value("feature", "plan", "gold", 0.5)], "because your plan is gold"),
        ([value("feature", "secret", None, 0.5), value("context", "when", None, 0.4)], "because of your secret, and of when"),
    ],
)
def test_sentences(told: list[Told], expected: str) -> None:
    lived = sum(share for source, share in told if source.kind == "history")
    assert WORDING.sentence(told, lived, ["news", "jazz", "comedy"]) == expected
