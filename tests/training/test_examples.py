import dataclasses

import numpy as np
import pytest

from towers.columns import TRAIN, VALID
from towers.errors import DataError
from training.events import TrainingEvents
from training.examples import EventSampler, SequenceSampler, UserSampler, random_others, user_parts


def rows(events, places=None):
    """Prepared rows of some events, or of all."""
    places = np.arange(len(events)) if places is None else places
    return events.positions(places, events.users_of(places))


@pytest.fixture(scope="module")
def toy(make_toy):
    return make_toy()


@pytest.fixture(scope="module")
def events(toy):
    return TrainingEvents.select(toy, (TRAIN,))


def test_only_events_of_the_given_splits_are_read(toy, events):
    assert set(toy.split[rows(events)]) == {TRAIN}
    assert events.positions_E is None, "training rows of this split lie together"
    assert len(events) == np.count_nonzero(toy.split == TRAIN)
    refit = TrainingEvents.select(toy, (TRAIN, VALID))
    assert len(refit) == len(events) + toy.n_users
    for user in range(toy.n_users):
        own = rows(events)[events.offsets_U1[user] : events.offsets_U1[user + 1]]
        assert ((own >= toy.offsets[user]) & (own < toy.offsets[user + 1])).all()


def test_events_of_a_user_may_lie_apart(toy):
    """Splits by item or given ones hold out events from the middle of a user's history."""
    split = toy.split.copy()
    split[::3] = VALID
    events = TrainingEvents.select(dataclasses.replace(toy, split=split), (TRAIN,))
    places = np.arange(len(events))
    assert (rows(events) == np.flatnonzero(split == TRAIN)).all()
    assert (events.users_of(places) == toy.users_of(rows(events))).all()
    assert events.positions_E.itemsize == 4


def test_every_target_is_one_example_and_negative_events_are_none(toy, events):
    ends = EventSampler(events).epoch(seed=1, epoch=0)[:]
    assert sorted(rows(events, ends)) == list(np.flatnonzero((toy.split == TRAIN) & (toy.weight > 0)))


def test_the_order_is_a_function_of_seed_and_epoch(events):
    for sampler in (EventSampler(events), SequenceSampler(events, 4), UserSampler(events)):
        first = sampler.epoch(seed=1, epoch=0)[:]
        assert len(first) == len(sampler)
        assert (first == sampler.epoch(seed=1, epoch=0)[:]).all()
        assert (first != sampler.epoch(seed=1, epoch=1)[:]).any()
        assert (first != sampler.epoch(seed=2, epoch=0)[:]).any()
        assert sorted(first) == sorted(sampler.epoch(seed=1, epoch=1)[:])


@pytest.mark.parametrize("length", [1, 3, 4, 50])
def test_sequence_windows_cover_every_event_once_and_end_at_the_last(events, length):
    ends = np.sort(SequenceSampler(events, length).epoch(seed=0, epoch=0)[:])
    covered = []
    for end in ends:
        user = events.users_of(np.array([end]))[0]
        first = max(events.offsets_U1[user], end - length + 1)
        assert (events.offsets_U1[user + 1] - 1 - end) % length == 0, "windows are aligned at the user's last event"
        covered.extend(range(first, end + 1))
    targets = np.flatnonzero(events.target_E)
    assert len(covered) == len(set(covered)) and set(targets) <= set(covered)


def test_windows_without_a_target_are_left_out(toy):
    weight = toy.weight.copy()
    weight[toy.offsets[3] : toy.offsets[4]] = 0
    events = TrainingEvents.select(dataclasses.replace(toy, weight=weight), (TRAIN,))
    assert 3 not in events.users_of(SequenceSampler(events, 5).epoch(0, 0)[:])


def test_random_others_are_others_of_the_user_without_repeats():
    rng = np.random.default_rng(0)
    starts, stops = np.array([0, 10, 10, 30]), np.array([10, 30, 30, 31])
    ends = np.array([4, 10, 29, 30])
    for _ in range(20):
        places = random_others(starts, stops, ends, 12, rng)
        for row, start, stop, end in zip(places, starts, stops, ends, strict=True):
            chosen = row[row >= 0]
            assert len(chosen) == len(set(chosen)) == min(12, stop - start - 1)
            assert (chosen >= start).all() and (chosen < stop).all() and end not in chosen
            assert (row[: 12 - len(chosen)] == -1).all(), "right-aligned"


def test_random_others_choose_each_other_equally_often():
    n = 20_000
    places = random_others(np.zeros(n, int), np.full(n, 8), np.full(n, 2), 3, np.random.default_rng(1))
    counts = np.bincount(places.ravel(), minlength=8)
    assert counts[2] == 0
    expected = n * 3 / 7
    assert (np.abs(np.delete(counts, 2) - expected) < 5 * np.sqrt(expected)).all()


def test_no_target_at_all_is_a_data_error(toy):
    with pytest.raises(DataError, match=r"no training example.*event_weights"):
        TrainingEvents.select(dataclasses.replace(toy, weight=np.zeros_like(toy.weight)), (TRAIN,))


def test_candidate_items_are_those_met_in_training(toy, events):
    items = events.items(toy)
    assert toy.n_items - 1 not in items, "the cold item"
    assert (events.target_counts(toy) == toy.train_counts()).all()


@pytest.mark.parametrize("shuffled", [True, False])
def test_user_parts_are_a_history_and_what_follows_it(shuffled):
    starts, stops = np.array([0, 1, 10, 60]), np.array([1, 10, 60, 62])
    rng = np.random.default_rng(0)
    for _ in range(20):
        history, target = user_parts(starts, stops, 6, 30, shuffled, rng)
        for row, (start, stop) in enumerate(zip(starts, stops, strict=True)):
            kept, asked = history[row][history[row] >= 0], target[row][target[row] >= 0]
            assert (history[row][: 6 - len(kept)] == -1).all() and (target[row][len(asked) :] == -1).all()
            assert len(asked) >= 1
            both = np.concatenate([kept, asked])
            assert len(set(both)) == len(both) and (both >= start).all() and (both < stop).all()
            if shuffled:
                assert len(kept) == min(6, (stop - start) // 2) and len(asked) == min(30, stop - start - len(kept))
            else:
                assert (np.diff(both) == 1).all(), "what is asked for follows the history"
                assert len(kept) == min(6, asked[0] - start) and len(asked) == min(30, stop - asked[0])


@pytest.mark.parametrize("kept", [0.0, 0.7, 1.0])
def test_the_history_is_a_share_of_a_set_and_the_rest_is_asked_for(kept):
    starts, stops = np.array([0, 1, 10]), np.array([1, 10, 60])
    history, target = user_parts(starts, stops, 60, 60, True, np.random.default_rng(0), kept)
    for row, (start, stop) in enumerate(zip(starts, stops, strict=True)):
        held, asked = history[row][history[row] >= 0], target[row][target[row] >= 0]
        assert len(held) == int((stop - start) * kept)
        assert sorted([*held, *asked]) == list(range(start, stop))


@pytest.mark.parametrize("shuffled", [True, False])
def test_user_parts_take_every_event_equally_often(shuffled):
    n = 20_000
    history, target = user_parts(np.zeros(n, int), np.full(n, 8), 4, 8, shuffled, np.random.default_rng(1))
    drawn = history[history >= 0] if shuffled else target[:, 0]  # kept, or the cut
    counts = np.bincount(drawn, minlength=8)
    expected = counts.sum() / 8
    assert (np.abs(counts - expected) < 5 * np.sqrt(expected)).all()


def test_users_without_a_target_are_no_example(toy):
    weight = toy.weight.copy()
    weight[toy.offsets[3] : toy.offsets[4]] = 0
    events = TrainingEvents.select(dataclasses.replace(toy, weight=weight), (TRAIN,))
    assert sorted(UserSampler(events).epoch(0, 0)[:]) == [u for u in range(toy.n_users) if u != 3]
