import dataclasses

import numpy as np
import pytest

from towers.columns import TRAIN, VALID
from towers.errors import DataError
from training.examples import EventSampler, SequenceSampler, TrainingEvents, random_others


@pytest.fixture(scope="module")
def toy(make_toy):
    return make_toy()


@pytest.fixture(scope="module")
def events(toy):
    return TrainingEvents.select(toy, (TRAIN,))


def test_only_events_of_the_given_splits_are_read(toy, events):
    assert set(toy.split[events.positions_E]) == {TRAIN}
    assert len(events) == np.count_nonzero(toy.split == TRAIN)
    refit = TrainingEvents.select(toy, (TRAIN, VALID))
    assert len(refit) == len(events) + toy.n_users
    for user in range(toy.n_users):
        own = events.positions_E[events.offsets_U1[user] : events.offsets_U1[user + 1]]
        assert ((own >= toy.offsets[user]) & (own < toy.offsets[user + 1])).all()


def test_events_of_a_user_may_lie_apart(toy):
    """Splits by item or given ones hold out events from the middle of a user's history."""
    split = toy.split.copy()
    split[::3] = VALID
    events = TrainingEvents.select(dataclasses.replace(toy, split=split), (TRAIN,))
    places = np.arange(len(events))
    assert (events.users_of(places) == toy.users_of(events.positions_E)).all()


def test_every_target_is_one_example_and_negative_events_are_none(toy, events):
    ends = EventSampler(events).epoch(seed=1, epoch=0)
    assert sorted(events.positions_E[ends]) == list(np.flatnonzero((toy.split == TRAIN) & (toy.weight > 0)))


def test_the_order_is_a_function_of_seed_and_epoch(events):
    for sampler in (EventSampler(events), SequenceSampler(events, 4)):
        first = sampler.epoch(seed=1, epoch=0)
        assert (first == sampler.epoch(seed=1, epoch=0)).all()
        assert (first != sampler.epoch(seed=1, epoch=1)).any()
        assert (first != sampler.epoch(seed=2, epoch=0)).any()
        assert sorted(first) == sorted(sampler.epoch(seed=1, epoch=1))


@pytest.mark.parametrize("length", [1, 3, 4, 50])
def test_sequence_windows_cover_every_event_once_and_end_at_the_last(events, length):
    ends = np.sort(SequenceSampler(events, length).epoch(seed=0, epoch=0))
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
    assert 3 not in events.users_of(SequenceSampler(events, 5).epoch(0, 0))


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
