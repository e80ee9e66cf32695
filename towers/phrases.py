"""How a reason is said, for each event type and each feature: `view: you watched {}`. Declared with the data, carried in the manifest."""

from collections.abc import Mapping

from towers.errors import ConfigError

PHRASES = "phrases"
"""Its name in the bundle's manifest."""

_LONGEST = 100


def check_phrases(phrases: Mapping[str, str], where: str) -> None:
    """Each is what follows "because", with `{}` at most once where titles or values go.

    Args:
        phrases: by event type or feature.
        where: what the caller calls them.

    Raises:
        ConfigError: names the phrase.
    """
    for name, phrase in phrases.items():
        if not isinstance(phrase, str) or not phrase.strip() or len(phrase) > _LONGEST or not phrase.isprintable():
            raise ConfigError(
                f"{where}.{name}: got {phrase!r}, expected one line of at most {_LONGEST} characters, such as 'you watched {{}}'"
            )
        left = phrase.replace("{}", "", 1)
        if "{" in left or "}" in left:
            raise ConfigError(f"{where}.{name}: got {phrase!r}, expected {{}} at most once, where titles or values go")
