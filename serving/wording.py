"""Reasons as a sentence that a person understands: "because you watched “Dune” and “Alien”, and it is evening"."""

from collections.abc import Mapping, Sequence

from serving.reasons import CONTEXT, HISTORY, PREFERENCE, Reason
from towers.columns import DEFAULT_EVENT_TYPE

POPULAR = "because it is popular with everyone"
NOTHING_NAMED = "because it suits what is known of you as a whole"
MOST_NAMED = 3
LEAST_SHARE = 0.1
"""Of a reason that is named beside the first."""

_LONGEST = 80


def sentence(reasons: Sequence[Reason], categories: Sequence[str], phrases: Mapping[str, str]) -> str:
    """The first reasons in words; events of one type, or of types said alike, are told together.

    Args:
        reasons: greatest share first.
        categories: of the item: of several declared likes, those that it fulfils are named.
        phrases: by event type and feature; plain words where there is none.
    """
    said: dict[str, list[str]] = {}
    for place, reason in enumerate(reasons[:MOST_NAMED]):
        if place and reason.share < LEAST_SHARE:
            break
        names = said.setdefault(_phrase(reason, phrases), [])
        names += [name for name in _named(reason, categories) if name not in names]
    if not said:
        return NOTHING_NAMED
    return "because " + ", and ".join(phrase.replace("{}", _listed(names)) for phrase, names in said.items())


def plain(text: str) -> str:
    """Text of the catalogue or of a caller for one line: no control characters, not too long.

    >>> plain("The\\tGood\\x1b[31m")
    'The Good [31m'
    """
    if not text.isprintable():
        text = " ".join("".join(letter if letter.isprintable() else " " for letter in text).split())
    return text if len(text) <= _LONGEST else text[: _LONGEST - 1].rstrip() + "…"


def _phrase(reason: Reason, phrases: Mapping[str, str]) -> str:
    if reason.kind == HISTORY:
        return phrases.get(reason.event_type or DEFAULT_EVENT_TYPE, "of {}")
    name = reason.name or ""
    found = phrases.get(name)
    if found is not None:
        return found
    if reason.kind == PREFERENCE:
        return "you like {}"
    whose = "" if reason.kind == CONTEXT else "your "
    return f"of {whose}{name}" if reason.value is None else f"{whose}{name} is {{}}"


def _named(reason: Reason, categories: Sequence[str]) -> list[str]:
    if reason.kind == HISTORY:
        return [f"“{plain(reason.title or reason.item_id or '')}”"]
    values = [reason.value] if isinstance(reason.value, str) else reason.value or []
    if reason.kind == PREFERENCE:
        values = [value for value in values if value in categories] or values
    return [plain(value) for value in values]


def _listed(names: Sequence[str]) -> str:
    """
    >>> _listed(["a", "b", "c"]), _listed(["a"]), _listed([])
    ('a, b and c', 'a', '')
    """
    return " and ".join([", ".join(names[:-1]), names[-1]] if len(names) > 1 else names)
