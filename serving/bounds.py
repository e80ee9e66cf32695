"""How much one request may ask, and how much one value in it may hold: of its context and preferences, and of an item's attributes."""

from dataclasses import dataclass

from towers.errors import RequestError


@dataclass(frozen=True)
class Limits:
    """Bounds on what one request may ask.

    Attributes:
        max_k: largest k; also the most items of all rows of a page together where a policy orders them.
        max_history: most history events; also the most entries of `exclude`, `candidate_items` and candidates to rerank.
        max_events: most events added at once.
        max_body_bytes: largest HTTP body.
        max_values: most entries of a value that is a list: of preferences, of context or of an item's attributes.
        max_text: most characters of a text in one of these.
    """

    max_k: int = 1000
    max_history: int = 10_000
    max_events: int = 1000
    max_body_bytes: int = 1_048_576
    max_values: int = 1000
    max_text: int = 10_000


def check_value(field: str, value: object, limits: Limits, width: int = 0) -> None:
    """Raises RequestError for a list of too many entries, and for too long a text, alone or in a list.

    Args:
        width: of a dense feature, whose vectors are as long as they are declared.
    """
    if isinstance(value, str):  # what nearly every value is
        longest = len(value)
    elif isinstance(value, list):
        most = max(limits.max_values, width)
        if len(value) > most:
            raise RequestError(field, f"got {len(value)} values, expected at most {most}")
        longest = max((len(entry) for entry in value if isinstance(entry, str)), default=0)
    else:
        return
    if longest > limits.max_text:
        raise RequestError(field, f"got a text of {longest} characters, expected at most {limits.max_text}")
