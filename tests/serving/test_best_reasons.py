"""What is told of each score, chosen for a whole list at once, against choosing it item by item; and sentences from what is kept against
those put together from words."""

import itertools

import msgspec
import numpy as np
import pytest

from serving.attribution import Carried
from serving.best_reasons import MOST_EVENTS, MOST_OTHERS, Best
from serving.catalog import Catalog
from serving.item_texts import Items, item_texts
from serving.sources import MOST_KEPT, Sources, sentence_of
from serving.wording import LEAST_SHARE, Wording
from tests.serving.selector_world import item_world
from towers.columns import FIRST_ROW
from towers.encoder import UserRow
from towers.schema import Feature


def slowly(parts_S: np.ndarray, events: int, others: list[int]) -> tuple[list[int], list[float], float, list[int] | None]:
    """Places, shares and rest of one item, and the pair that its sentence names."""

    def best(places: list[int], most: int) -> list[int]:
        return sorted((place for place in places if parts_S[place] > 0), key=lambda place: -parts_S[place])[:most]

    speaks = float(np.maximum(parts_S, 0).sum()) or 1.0
    of_events, of_others = best(list(range(events)), MOST_EVENTS), best(others, MOST_OTHERS)
    places = sorted(of_events + of_others, key=lambda place: (-parts_S[place], place))
    shares = [float(parts_S[place]) / speaks for place in places]
    lived = float(np.maximum(parts_S[:events], 0).sum()) / speaks
    aside = max((float(parts_S[place]) / speaks for place in of_others), default=0.0)
    alone = len(of_events) > 1 and events >= MOST_EVENTS and lived >= LEAST_SHARE > aside
    return places, shares, float(parts_S.sum() - parts_S[places].sum()), of_events[:2] if alone else None


@pytest.mark.parametrize("seed", range(40))
def test_the_best_of_all_items_at_once_are_those_of_each(seed: int) -> None:
    rng = np.random.default_rng(seed)
    events, others = int(rng.integers(0, 12)), int(rng.integers(0, 6))
    # few distinct values, so that many tie; none of them near the bound of what a sentence names
    parts_kS = rng.choice(np.float32([-2, -0.5, 0, 0.25, 0.25, 1, 3, 8]), (int(rng.integers(1, 30)), events + others))
    given = [events + place for place in range(others) if rng.random() < 0.7]
    found, start = Best.of(Carried(parts_kS, events, [f"context.{n}" for n in range(others)]), given), 0
    for n, parts_S in enumerate(parts_kS):
        places, shares, rest, pair = slowly(parts_S, events, given)
        stop = start + found.count_k[n]
        told = found.places[start:stop]
        assert [parts_S[place] for place in told] == [parts_S[place] for place in places], "of equal parts any may be told"
        assert told == sorted(set(told), key=lambda place: (-parts_S[place], place))
        assert all(place < events or place in given for place in told)
        assert np.allclose(found.shares[start:stop], shares, atol=1e-6) and found.rest_k[n] == pytest.approx(rest, abs=1e-4)
        assert found.parts[start:stop] == [float(parts_S[place]) for place in places]
        assert found.pair_k2[n] == (None if pair is None else [place for place in told if place < events][:2])
        start = stop
    assert start == len(found.places)


NAMES = ['Dune "1"', "Alien\\", "x" * 200, "\x1b[2J\n<b>“x”</b>", "{} {0}", 'Dune "1"', None]


def test_sentences_from_what_is_kept_are_those_of_words() -> None:
    said = Wording({"watch": 'you "watched" {}', "finish": 'you "watched" {}', "twice": "{} and {}", "none": "you know"})
    sources, unlike = Sources({}, said), 0
    told = [
        sources._event(kind, b'"item_id":"i"', name) for name, kind in itertools.product(NAMES, ["watch", "finish", "twice", "none", None])
    ]
    for one, other in itertools.permutations(told, 2):
        found = b"".join(sentence_of(one, other))
        unlike += not found
        words = said.sentence([(one.source, 0.3), (other.source, 0.2)], 0.5, [])
        assert not found or msgspec.json.decode(found) == words
    assert 0 < unlike < len(told) * (len(told) - 1) * 0.9


def test_what_is_kept_is_of_one_catalogue_and_bounded() -> None:
    world = item_world(4, 1)
    old, new = (Catalog.of_table(world.table.set_column(1, "title", [[title] * 4]), np.zeros(4, np.int64)) for title in ("Old", "New"))
    sources = Sources({}, Wording({}))
    rows = np.array([FIRST_ROW, FIRST_ROW + 1, 0])
    row = UserRow(["i00000", "i00001", "i00003"], ["play", None, "play"], [0, 0, 0], 0, {}, {}, rows)
    for catalog, title in ((old, "Old"), (old, "Old"), (new, "New"), (old, "Old")):
        told = sources.events(row, [0, 1, 2], catalog)
        assert [one.source.names for one in told] == [[f"“{title}”"]] * 3
        assert b'"item_id":"i00003","title":"%b","event_type":"play"' % title.encode() in told[2].tail
        assert b"event_type" not in told[1].tail
    assert len(sources._events[1]) == 2, "an item that the model does not know has no row of its own"
    for number in range(MOST_KEPT + 10):
        sources._events[1][FIRST_ROW + number, "other"] = told[0]
    sources.events(row, [0, 1], old)
    assert len(sources._events[1]) == 2


def test_long_values_are_told_and_not_kept() -> None:
    sources = Sources({"context.device": Feature("device", "categorical", "context")}, Wording({}))
    for value in ("tv", "x" * 10_000):
        assert f'"value":"{value}"'.encode() in sources.value("context.device", value).tail
    assert [value for _, value in sources._values] == ["tv"]


@pytest.mark.parametrize("explained", [0, 1, 2, 3])
def test_explanations_stand_with_their_items_whatever_they_hold(explained: int) -> None:
    table = item_world(3, 2).table
    texts = [memoryview(text.as_py()) for text in item_texts(table)]
    nasty = 'because \x01 "\x05" },{"item_id":'
    pieces = [[b'{"text":', msgspec.json.encode(nasty + str(n)), b',"reasons":[],"rest":0.5,', b'"approximate":false}'] for n in range(3)]
    items = Items(texts, np.array([3.0, 2.0, 1.0]), pieces[:explained])
    assert [item.item_id for item in items] == ["i00000", "i00001", "i00002"]
    told = [item.explanation.text if item.explanation else None for item in items]
    assert told == [nasty + str(n) if n < explained else None for n in range(3)]
    assert msgspec.json.decode(items.ids_json) == ["i00000", "i00001", "i00002"]
