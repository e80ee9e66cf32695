"""What was made of a value is told back as that value."""

from typing import Any

import pytest

from towers.decoded import decoded
from towers.preprocess import Preprocessor
from towers.schema import Feature, make_schema
from towers.vocab import Vocabulary

FEATURES = [
    Feature("place", "categorical", "context"),
    Feature("tags", "multi_categorical", "context", max_values=3),
    Feature("budget", "numeric", "context"),
    Feature("at", "time", "context"),
    Feature("place_vector", "dense", "context", width=2),
    Feature("words", "text", "context"),
]
PREPROCESSOR = Preprocessor(
    make_schema(FEATURES, "time", {}),
    {"place": Vocabulary.fit(["home", "work"]), "tags": Vocabulary.fit(["a", "b"])},
    {"context.budget": (10.0, 5.0)},
)


@pytest.mark.parametrize(
    ("name", "values", "told"),
    [
        ("place", ["work", None, "at sea", "home"], ["work", None, None, "home"]),
        ("tags", [["b", "a"], [], ["c", "a"]], [["b", "a"], None, ["a"]]),
        ("budget", [12.5, None, 10.0], [12.5, None, 10.0]),
        (
            "at",
            [0, 86_400_000_000 * 4 + 3_600_000_000 * 23, None],
            [{"hour": 0, "weekday": "Thursday"}, {"hour": 23, "weekday": "Monday"}, None],
        ),
        ("place_vector", [[0.5, 2.0]], [[0.5, 2.0]]),
    ],
)
def test_a_value_comes_back(name: str, values: list[Any], told: list[Any]) -> None:
    feature = PREPROCESSOR.schema.feature(name)
    assert decoded(PREPROCESSOR, feature, PREPROCESSOR.encode_feature(feature, values)) == told


def test_of_a_text_its_buckets_are_told() -> None:
    feature = PREPROCESSOR.schema.feature("words")
    several, none = decoded(PREPROCESSOR, feature, PREPROCESSOR.encode_feature(feature, ["two words", None]))
    assert len(several) == 3 and all(isinstance(bucket, int) for bucket in several) and none is None
