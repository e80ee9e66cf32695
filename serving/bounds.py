"""How much one value of a request may hold: of its context and preferences, and of an item's attributes."""

from serving.messages import Limits
from towers.errors import RequestError


def check_value(field: str, value: object, limits: Limits, width: int = 0) -> None:
    """Raises RequestError for a list of too many entries, and for too long a text, alone or in a list.

    Args:
        width: of a dense feature, whose vectors are as long as they are declared.
    """
    if isinstance(value, str):
        value = [value]
    if not isinstance(value, list):
        return
    most = max(limits.max_values, width)
    if len(value) > most:
        raise RequestError(field, f"got {len(value)} values, expected at most {most}")
    longest = max((len(entry) for entry in value if isinstance(entry, str)), default=0)
    if longest > limits.max_text:
        raise RequestError(field, f"got a text of {longest} characters, expected at most {limits.max_text}")
