"""Vocabularies: order, reserved rows, unknown values, mapped files."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from towers import vocab
from towers.columns import FIRST_ROW, MISSING_ROW, OOV_ROW
from towers.errors import BundleError
from towers.vocab import Coded, Vocabulary


@pytest.fixture(autouse=True, scope="module", params=[True, False], ids=["held", "mapped"])
def both_ways(request: pytest.FixtureRequest) -> Iterator[None]:
    """Every test twice: looked up in memory, and by the mapped hashes."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(vocab, "HELD_UP_TO", 10**6 if request.param else -1)
        yield


words = st.lists(st.text(min_size=1, max_size=12), max_size=30)


@settings(max_examples=60, deadline=None)
@given(words, words)
def test_known_values_keep_byte_order_and_others_are_unknown(known: list[str], asked: list[str]) -> None:
    known = [w.encode("utf-8", "ignore").decode() for w in known]
    vocabulary = Vocabulary.fit(known)
    ordered = sorted(set(known), key=str.encode)
    assert [vocabulary.value(row) for row in range(FIRST_ROW, len(vocabulary))] == ordered
    expected = {value: row + FIRST_ROW for row, value in enumerate(ordered)}
    assert vocabulary.rows(asked).tolist() == [expected.get(value, OOV_ROW) for value in asked]


def test_none_is_missing_and_order_is_kept() -> None:
    vocabulary = Vocabulary.fit(["b", "a"])
    assert vocabulary.rows([None, "b", "zzz", "a", None]).tolist() == [MISSING_ROW, 4, OOV_ROW, 3, MISSING_ROW]


def test_values_with_equal_hashes_stay_apart(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(vocab, "_hashes", lambda values: np.zeros(len(values), np.uint64))
    vocabulary = Vocabulary.fit(["a", "b", "c"])
    assert vocabulary.rows(["c", "a", "b", "d"]).tolist() == [5, 3, 4, OOV_ROW]


def test_saved_and_mapped_again(tmp_path: Path) -> None:
    Vocabulary.fit(["ü", "x y", "10", "9"]).save(tmp_path, "item_id")
    opened = Vocabulary.open(tmp_path, "item_id")
    assert opened.values().to_pylist() == ["10", "9", "x y", "ü"]
    assert opened.rows(["9", "ü", "?"]).tolist() == [4, 6, OOV_ROW]
    Vocabulary.fit([]).save(tmp_path, "empty")
    assert Vocabulary.open(tmp_path, "empty").rows(["a", None]).tolist() == [OOV_ROW, MISSING_ROW]


def test_files_of_two_runs_are_refused(tmp_path: Path) -> None:
    Vocabulary.fit(["a"]).save(tmp_path / "one", "v")
    Vocabulary.fit(["a", "b"]).save(tmp_path / "two", "v")
    (tmp_path / "one" / "v.npy").replace(tmp_path / "two" / "v.npy")
    with pytest.raises(BundleError, match="two different runs"):
        Vocabulary.open(tmp_path / "two", "v")


def test_held_when_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    """After `hold` no hash is made any more."""
    vocabulary = Vocabulary.fit(["a", "b"])
    vocabulary.hold()
    monkeypatch.setattr(vocab, "_hashes", None)
    assert vocabulary.rows(["b", None, "c"]).tolist() == [4, MISSING_ROW, OOV_ROW]


def test_too_many_to_be_held_are_found_by_their_hashes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(vocab, "HELD_AT_MOST", 999)
    monkeypatch.setattr(vocab, "HELD_UP_TO", 0)
    values = [f"item {i}" for i in range(1000)]
    vocabulary = Vocabulary.numbered(values)
    vocabulary.hold()
    assert vocabulary.rows([*values, "item 1000", None]).tolist() == [*range(FIRST_ROW, FIRST_ROW + 1000), OOV_ROW, MISSING_ROW]


@pytest.mark.parametrize("learnt", [True, False])
def test_coded_values_have_the_rows_of_the_values_they_stand_for(learnt: bool) -> None:
    vocabulary, distinct = Vocabulary.fit(["b", "a", "c"]), pa.array(["c", "nobody", None, "a"])
    coded = Coded(np.array([3, 0, 1, 2, 3]), distinct)
    if learnt:
        vocabulary.learn(distinct)
    assert vocabulary.rows(coded).tolist() == vocabulary.rows(["a", "c", "nobody", None, "a"]).tolist() == [3, 5, 1, 2, 3]
    assert vocabulary.rows(coded[-2:]).tolist() == [MISSING_ROW, 3]
    assert coded == ["a", "c", "nobody", None, "a"] and coded[1:3] == ["c", "nobody"] and coded[4] == "a" and coded != ["a"]
    other = Coded(np.array([0]), pa.array(["b"]))  # of other distinct values than were learnt
    assert vocabulary.rows(other).tolist() == [4]
