"""Phrases that could not be said are refused by name."""

import pytest

from towers.errors import ConfigError
from towers.phrases import check_phrases


def test_phrases_that_can_be_said():
    check_phrases({"view": "you watched {}", "home": "you are at home", "名": "名前は {} です"}, "data.phrases")


@pytest.mark.parametrize("phrase", ["", "  ", "{} and {}", "{0}", "{name}", "a {", "line\nbreak", "x" * 101, 5])
def test_others_are_refused(phrase):
    with pytest.raises(ConfigError, match=r"data\.phrases\.view"):
        check_phrases({"view": phrase}, "data.phrases")
