import doctest
import threading

import pytest

from towers.columns import TRAIN
from training import ahead as module
from training.ahead import ahead
from training.events import TrainingEvents
from training.examples import EventSampler
from training.loader import Loader


def test_doctests():
    assert doctest.testmod(module).failed == 0


def test_one_value_is_computed_ahead_by_another_thread():
    begun, threads = [threading.Event() for _ in range(4)], set()

    def source():
        for i, event in enumerate(begun[:3]):
            threads.add(threading.current_thread().name)
            event.set()
            yield i

    for value in ahead(source()):
        if value < 2:
            assert begun[value + 1].wait(5), "the next value is under way"
        assert not (value == 0 and begun[2].is_set()), "and no more than that"
    assert threading.current_thread().name not in threads


def test_an_error_comes_in_its_place():
    def source():
        yield 1
        raise ValueError("damaged")

    values = ahead(source())
    assert next(values) == 1
    with pytest.raises(ValueError, match="damaged"):
        next(values)


def test_stopping_early_leaves_no_thread():
    before = threading.active_count()
    for _ in ahead(iter(range(100))):
        break
    assert threading.active_count() == before


def test_nothing_gives_nothing():
    assert list(ahead([])) == []


def test_a_loader_gathers_the_next_batch_beside(make_toy, monkeypatch):
    data = make_toy()
    events = TrainingEvents.select(data, (TRAIN,))
    loader = Loader(data, events, EventSampler(events), length=6, batch_size=16, seed=0, beside=True)
    second = threading.Event()
    gather = loader.batch
    monkeypatch.setattr(loader, "batch", lambda epoch, step: (second.set() if step else None, gather(epoch, step))[1])
    batches = iter(loader)
    next(batches)
    assert second.wait(10) and loader.step == 1, "what is in hand is what a state counts, not what is under way"
    batches.close()
