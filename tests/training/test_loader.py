import dataclasses

import numpy as np
import pytest

from towers.columns import NO_TIME, PAD_ROW, TRAIN
from towers.encoder import Encoder, UserRow
from training.events import TrainingEvents
from training.examples import EventSampler, SequenceSampler, UserSampler
from training.interactions import Interactions, write_prepared
from training.loader import Loader


def make_loader(data, sampler="event", batch_size=32, length=6, seed=0, beside=False):
    events = TrainingEvents.select(data, (TRAIN,))
    chosen = {
        "event": lambda: EventSampler(events),
        "sequence": lambda: SequenceSampler(events, length),
        "user": lambda: UserSampler(events),
    }[sampler]()
    return Loader(data, events, chosen, length=length, batch_size=batch_size, seed=seed, beside=beside), events


def row_of(events, place):
    return int(events.positions(np.array([place]), events.users_of(np.array([place])))[0])


def equal(a, b):
    same = all((a.user[k] == b.user[k]).all() for k in a.user)
    return same and set(a.user) == set(b.user) and (a.targets_BT == b.targets_BT).all() and (a.weights_BT == b.weights_BT).all()


def slow_event_rows(data, events, ends, length):
    """History by plain loops: id rows, event types and target of each example."""
    id_rows = data.item_features["item.item_id"]
    for end in ends:
        position = row_of(events, end)
        user = data.users_of(np.array([position]))[0]
        before = [p for p in range(data.offsets[user], position) if data.split[p] == TRAIN][-length:]
        pad = [PAD_ROW] * (length - len(before))
        yield pad + [id_rows[data.item[p]] for p in before], pad + [data.event[p] for p in before], position


def test_event_batches_equal_the_slow_way(make_toy):
    toy = make_toy()
    split = toy.split.copy()
    split[::7] = 2  # held-out events in the middle of histories must not be seen
    data = dataclasses.replace(toy, split=split)
    loader, events = make_loader(data)
    order = EventSampler(events).epoch(0, 0)[:]
    seen = 0
    for batch in loader:
        ends = order[seen : seen + 32]
        for row, (items, kinds, position) in enumerate(slow_event_rows(data, events, ends, 6)):
            assert batch.user["history.item"][row].tolist() == items
            assert batch.user["history.event"][row].tolist() == kinds
            assert batch.targets_BT[row].tolist() == [data.item[position]]
            assert batch.weights_BT[row].tolist() == [data.weight[position]]
            assert batch.user["context.hour"][row] == data.context["context.hour"][position]
        seen += len(ends)
    assert seen == len(order)


@pytest.mark.parametrize("keeps", [False, True])
def test_a_training_row_equals_the_same_row_encoded_for_serving(make_toy, keeps):
    """The promise against skew between training and serving: raw values through the encoder, prepared rows through the loader."""
    data = make_toy(keeps=keeps)
    loader, events = make_loader(data, batch_size=50)
    batch = loader.batch(0, 0)
    assert ("history.context.hour" in batch.user) == keeps
    hours = data.preprocessor.vocabularies["hour"]
    ids, kinds = data.catalog["item_id"].to_pylist(), data.preprocessor.vocabularies["event_type"]
    rows = []
    for end in EventSampler(events).epoch(0, 0)[:50]:
        position = row_of(events, end)
        before = range(data.offsets[data.users_of(np.array([position]))[0]], position)
        hour = hours.value(int(data.context["context.hour"][position]))
        rows.append(
            UserRow(
                history_items=[ids[data.item[p]] for p in before],
                history_events=[kinds.value(int(data.event[p])) for p in before],
                history_timestamps=[int(data.timestamp[p]) for p in before],
                now=int(data.timestamp[position]),
                context={"hour": hour},
                history_context={"hour": [hours.value(int(data.context["context.hour"][p])) for p in before]},
            )
        )
    served = Encoder(data.preprocessor, None, 6).user_batch(rows)
    assert set(served) == set(batch.user)
    for name, array in served.items():
        assert array.dtype == batch.user[name].dtype and (array == batch.user[name]).all(), name


def test_ages_count_from_the_target(make_toy):
    data = make_toy()
    loader, _events = make_loader(data)
    batch = loader.batch(0, 0)
    age, items = batch.user["history.age"], batch.user["history.item"]
    assert ((age == 0) == (items == PAD_ROW)).all()
    # One event an hour: the newest is about 60 minutes old, 2 + floor(log2(61)) = 7 (6 or 7 with up to a minute of noise).
    assert set(age[:, -1]) <= {0, 7}
    assert (np.diff(np.where(age > 0, age, 99), axis=1) <= 0).all(), "older events are older"


def test_a_window_says_the_gaps_that_each_of_its_prefixes_says_alone(make_toy):
    data = make_toy()
    every, _ = make_loader(data, batch_size=10_000)
    alone = every.batch(0, 0)
    prefixes = {
        row[row > 0].tobytes(): gaps[row > 0].tolist()
        for row, gaps in zip(alone.user["history.item"], alone.user["history.gap"], strict=True)
    }
    compared = 0
    for batch in make_loader(data, "sequence", length=6)[0]:
        for row, gaps, wanted in zip(batch.user["history.item"], batch.user["history.gap"], batch.targets_BT, strict=True):
            for t in np.flatnonzero((wanted >= 0) & (row > 0)):
                seen = row[: t + 1] > 0
                if seen.sum() < 6 and row[: t + 1][seen].tobytes() in prefixes:
                    assert gaps[: t + 1][seen].tolist() == prefixes[row[: t + 1][seen].tobytes()]
                    compared += 1
    assert compared > 50


def test_negative_events_are_history_and_never_targets(make_toy):
    data = make_toy()
    loader, _ = make_loader(data, batch_size=10_000)
    batch = loader.batch(0, 0)
    skip = data.preprocessor.vocabularies["event_type"].rows(["skip"])[0]
    assert (batch.user["history.event"] == skip).any()
    assert (batch.weights_BT > 0).all()


def test_sequence_columns_predict_the_next_event(make_toy):
    data = make_toy()
    length = 6
    loader, events = make_loader(data, "sequence", length=length)
    id_rows = data.item_features["item.item_id"]
    targets = 0
    for batch in loader:
        items, wanted, hours = batch.user["history.item"], batch.targets_BT, batch.user["context.hour"]
        assert wanted.shape == items.shape == hours.shape
        for row in range(len(items)):
            for t in range(items.shape[1] - 1):
                if wanted[row, t] >= 0:
                    assert id_rows[wanted[row, t]] == items[row, t + 1], "a column's target is the next column's input"
        assert ((wanted >= 0) == (batch.weights_BT > 0)).all()
        targets += np.count_nonzero(wanted >= 0)
    assert targets == np.count_nonzero(events.target_E), "every target once an epoch"


def test_sequence_context_is_that_of_the_predicted_event(make_toy):
    data = make_toy()
    loader, events = make_loader(data, "sequence", batch_size=4, length=5)
    expected = set()
    for end in SequenceSampler(events, 5).epoch(0, 0)[:]:
        first = max(end - 4, events.offsets_U1[events.users_of(np.array([end]))[0]])
        rows = [row_of(events, place) for place in range(first, end + 1)]
        expected.add(tuple((data.context["context.hour"][row], data.item[row] if data.weight[row] > 0 else -1) for row in rows))
    found = set()
    for batch in loader:
        hours, wanted, items = batch.user["context.hour"], batch.targets_BT, batch.user["history.item"]
        for row in range(len(hours)):
            # the first target of a user is predicted from padding
            first = max(np.argmax(np.append(items[row] > 0, True)) - 1, 0)
            found.add(tuple(zip(hours[row, first:], wanted[row, first:], strict=True)))
    assert found == expected


def test_windows_of_a_batch_are_alike_and_batches_hold_about_as_many_targets(make_toy):
    data = make_toy(users=200)
    loader, events = make_loader(data, "sequence", batch_size=8, length=20)
    sampler = SequenceSampler(events, 20)
    filled, held, targets, windows = 0, 0, [], 0
    for batch in loader:
        filled, held = filled + np.count_nonzero(batch.targets_BT >= 0), held + batch.targets_BT.size
        targets.append(np.count_nonzero(batch.targets_BT >= 0))
        windows += len(batch.targets_BT)
    assert windows == len(sampler) and len(targets) == loader.steps_per_epoch == -(-len(sampler) // 8)
    assert filled / held > 0.8, "a tenth of the events is no target; unsorted, a third of the columns is padding"
    assert max(targets) < 1.5 * min(targets)


def test_histories_of_a_set_are_other_events_of_the_user(make_toy):
    data = make_toy(order="set")
    loader, events = make_loader(data, batch_size=10_000, length=4)
    batch = loader.batch(0, 0)
    ends = EventSampler(events).epoch(0, 0)[:]
    later = 0
    id_rows = data.item_features["item.item_id"]
    for row, end in enumerate(ends):
        user = events.users_of(np.array([end]))[0]
        places = [e for e in range(events.offsets_U1[user], events.offsets_U1[user + 1]) if e != end]
        others = [id_rows[data.item[row_of(events, e)]] for e in places]
        shown = [i for i in batch.user["history.item"][row] if i != PAD_ROW]
        assert len(shown) == min(4, len(others)) and set(shown) <= set(others)
        after = {id_rows[data.item[row_of(events, e)]] for e in places if e > end}
        later += bool(set(shown) & after)
    assert later > len(ends) / 4, "a set has no order: events after the target belong to its history"
    assert not equal(batch, loader.batch(1, 0)), "another draw each epoch"


@pytest.mark.parametrize(
    "order,sampler", [("time", "event"), ("set", "event"), ("position", "sequence"), ("set", "user"), ("time", "user")]
)
@pytest.mark.parametrize("beside", [False, True])
def test_resuming_at_any_step_gives_the_same_batches(make_toy, order, sampler, beside):
    data = make_toy(order=order)
    whole, _ = make_loader(data, sampler, batch_size=16)
    batches = list(whole)
    whole.end_epoch()
    batches += list(whole)
    for cut in (0, 1, len(batches) // 2, len(batches) // 2 + 1):
        first, _ = make_loader(data, sampler, batch_size=16, beside=beside)
        done = 0
        while done < cut:
            for _ in first:
                done += 1
                if done == cut:
                    break
            if done < cut:
                first.end_epoch()
        second, _ = make_loader(data, sampler, batch_size=16, beside=beside)
        second.load_state_dict(first.state_dict())
        rest = list(second)
        while len(rest) < len(batches) - cut:
            second.end_epoch()
            rest += list(second)
        assert all(equal(a, b) for a, b in zip(batches[cut:], rest, strict=True))


def test_a_batch_larger_than_the_data_is_one_smaller_batch(make_toy):
    data = make_toy(users=3)
    loader, events = make_loader(data, batch_size=10_000)
    batches = list(loader)
    assert loader.steps_per_epoch == len(batches) == 1
    assert len(batches[0].targets_BT) == np.count_nonzero(events.target_E)


def test_unknown_times_give_unknown_ages(make_toy):
    toy = make_toy()
    data = dataclasses.replace(toy, timestamp=np.full(len(toy), NO_TIME))
    age = make_loader(data)[0].batch(0, 0).user["history.age"]
    assert set(np.unique(age)) <= {0, 1}


@pytest.mark.parametrize("order", ["set", "time"])
def test_user_batches_hold_all_targets_beside_the_history(make_toy, order):
    data = make_toy(order=order)
    split = data.split.copy()
    split[::7] = 2
    data = dataclasses.replace(data, split=split)
    loader, events = make_loader(data, "user", batch_size=25, length=4)
    id_rows = data.item_features["item.item_id"]
    users = UserSampler(events).epoch(0, 0)[:]
    batches = list(loader)
    assert sum(len(batch.targets_BT) for batch in batches) == len(users) and {batch.sampler for batch in batches} == {"user"}
    row = 0
    for batch in batches:
        for items, targets, weights in zip(batch.user["history.item"], batch.targets_BT, batch.weights_BT, strict=True):
            own = [p for p in range(data.offsets[users[row]], data.offsets[users[row] + 1]) if split[p] == TRAIN]
            wanted = [data.item[p] for p in own if data.weight[p] > 0]
            asked = targets[targets >= 0].tolist()
            pool = list(wanted)
            for item in asked:
                pool.remove(item)  # each event of the user is asked for once at most
            assert set(items[items != PAD_ROW]) <= {id_rows[data.item[p]] for p in own}
            assert ((targets >= 0) == (weights > 0)).all()
            if asked:
                assert weights[targets >= 0] == pytest.approx(len(asked) ** -0.5)
            row += 1


def test_released_pages_are_read_again(make_toy, tmp_path):
    data = Interactions.open(write_prepared(tmp_path / "prepared", make_toy()))
    loader, _ = make_loader(data)
    before = loader.batch(0, 1)
    data.release()
    assert equal(before, loader.batch(0, 1))


def test_windows_of_what_was_released_stay_small(make_toy, tmp_path, monkeypatch):
    data = Interactions.open(write_prepared(tmp_path / "prepared", make_toy()))
    released = []
    monkeypatch.setattr("training.loader.RELEASE_ROWS", 32 * 6 * 2)
    monkeypatch.setattr(Interactions, "release", lambda data: released.append(data))
    loader, _ = make_loader(data)
    released.clear()
    steps = len(list(loader))
    assert len(released) == steps // 3
