"""Reasons as a sentence that a person understands: "because you watched “Dune” and “Alien”, and it is evening"."""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

from serving.reasons import CONTEXT, HISTORY, PREFERENCE
from towers.columns import DEFAULT_EVENT_TYPE

POPULAR = "because it is popular with everyone"
NOTHING_NAMED = "because it suits what is known of you as a whole"
GONE = "an item no longer offered"
NAMED_EVENTS, NAMED_OTHERS = 2, 2
LEAST_SHARE = 0.1
"""Of the events together, and of any other reason, that is named beside what carried more."""

_LONGEST = 80


class Source(NamedTuple):
    """An event or a value, ready to be told of several items.

    Attributes:
        kind: of `Reason`.
        phrase: how it is said.
        names: what stands in the phrase.
    """

    kind: str
    phrase: str
    names: Sequence[str]


class Wording:
    """Says reasons.

    Args:
        phrases: by event type and feature; plain words where there is none.
    """

    def __init__(self, phrases: Mapping[str, str]) -> None:
        self._phrases = phrases

    def event(self, called: str | None, event_type: str | None) -> Source:
        """Something that the person did with an item, which is called so; None = nobody knows it any more, so it has no name to be told."""
        name = GONE if called is None else f"“{plain(called)}”"
        return Source(HISTORY, self._phrases.get(event_type or DEFAULT_EVENT_TYPE, "of {}"), [name])

    def value(self, kind: str, name: str, value: str | list[str] | None) -> Source:
        """Of the moment or the person."""
        values = [value] if isinstance(value, str) else value or []
        return Source(kind, self._phrase(kind, name, value is not None), [plain(value) for value in values])

    def sentence(self, told: Sequence[tuple[Source, float]], lived: float, categories: Sequence[str]) -> str:
        """Reasons in words: what the person did, then what he is like, then the situation.

        A history of many events carries much by little shares, and a situation that suits all items carries each of them: so events are
        named where they matter together.

        Args:
            told: sources and their shares, the greatest first.
            lived: share of all events of the history together.
            categories: of the item: of several declared likes, those that it fulfils are named.
        """
        events = [source for source, _ in told if source.kind == HISTORY][:NAMED_EVENTS] if lived >= LEAST_SHARE else []
        likes: list[Source] = []
        situation: list[Source] = []
        for source, share in told:
            if share < LEAST_SHARE or len(likes) + len(situation) == NAMED_OTHERS:
                break
            if source.kind != HISTORY:
                (situation if source.kind == CONTEXT else likes).append(source)
        said: dict[str, Sequence[str]] = {}  # events of one type, or of types said alike, are told together
        for kind, phrase, names in events + likes + situation or [source for source, _ in told[:1]]:
            if kind == PREFERENCE:
                names = [name for name in names if name in categories] or names
            before = said.get(phrase)
            said[phrase] = names if before is None else [*before, *(name for name in names if name not in before)]
        if not said:
            return NOTHING_NAMED
        return "because " + ", and ".join([phrase.replace("{}", _listed(names)) for phrase, names in said.items()])

    def _phrase(self, kind: str, name: str, has_value: bool) -> str:
        found = self._phrases.get(name)
        if found is not None:
            return found
        if kind == PREFERENCE:
            return "you like {}"
        whose = "" if kind == CONTEXT else "your "
        return f"{whose}{name} is {{}}" if has_value else f"of {whose}{name}"


def plain(text: str) -> str:
    """Text of the catalogue or of a caller for one line: no control characters, not too long.

    >>> plain("The\\tGood\\x1b[31m")
    'The Good [31m'
    """
    if not text.isprintable():
        text = " ".join("".join(letter if letter.isprintable() else " " for letter in text).split())
    return text if len(text) <= _LONGEST else text[: _LONGEST - 1].rstrip() + "…"


def _listed(names: Sequence[str]) -> str:
    """
    >>> _listed(["a", "b", "c"]), _listed(["a"]), _listed([])
    ('a, b and c', 'a', '')
    """
    if len(names) > 1:
        return f"{', '.join(names[:-1])} and {names[-1]}"
    return names[0] if names else ""
