import numpy as np
import pytest

from training import choice
from training.choice import Sizes, choose, fitting_length
from training.config import TrainerConfig, TrainingConfig


def chosen(sizes, history="mean", **changes):
    config = TrainingConfig()
    config.model.history.name = history
    for key, value in changes.items():
        part, name = key.split("__")
        setattr(getattr(config, part), name, value)
    return choose(config, sizes)


GOWALLA = Sizes(targets=719_081, users=29_858, items=40_979, shuffled=True)
SHOP = Sizes(targets=50_000_000, users=1_000_000, items=1_000_000, shuffled=False)


@pytest.mark.parametrize(
    "sizes,history,expected",
    [
        (GOWALLA, "mean", ("user", "full_softmax", 512)),
        (Sizes(1_000_000, 6_040, 3_416, False), "transformer", ("sequence", "full_softmax", 100)),
        (Sizes(100_000, 2_000, 1_000, False), "mean", ("event", "full_softmax", 1024)),
        (SHOP, "mean", ("event", "sampled_softmax", 1024)),
        (SHOP, "transformer", ("sequence", "sampled_softmax", 100)),
        (Sizes(150_000, 22_000, 12_000, False), "transformer", ("sequence", "sampled_softmax", 110)),
        (Sizes(50_000_000, 1_000_000, 1_000_000, True), "mean", ("event", "sampled_softmax", 1024)),
    ],
)
def test_what_the_data_call_for(sizes, history, expected):
    choice = chosen(sizes, history)
    assert (choice.sampler, choice.loss, choice.batch_size) == expected
    assert "a target costs about" in choice.why


def test_what_is_asked_for_is_taken():
    assert chosen(GOWALLA, trainer__sampler="event").sampler == "event"
    assert chosen(GOWALLA, loss__name="sampled_softmax").loss == "sampled_softmax"
    assert chosen(SHOP, loss__name="full_softmax").loss == "full_softmax"
    assert chosen(SHOP, loss__name="full_softmax").why == "loss.name=full_softmax"
    assert chosen(GOWALLA, trainer__batch_size=7).batch_size == 7


def test_exactness_has_a_price():
    assert chosen(GOWALLA, loss__exact_worth=0.0).loss == "sampled_softmax"
    assert chosen(SHOP, loss__exact_worth=1e9).loss == "full_softmax"


def test_the_estimate_counts_a_users_scores_once():
    by_user, by_event = chosen(GOWALLA, trainer__sampler="user").why, chosen(GOWALLA, trainer__sampler="event").why
    assert float(by_user.split(" us")[0].split()[-1]) < 0.3 * float(by_event.split(" us")[0].split()[-1])


@pytest.mark.parametrize("users,expected", [(10, 64), (6_040, 104), (29_858, 512), (1_000_000, 512)])
def test_few_users_make_small_batches_not_short_epochs(users, expected):
    assert chosen(Sizes(20 * users, users, 3_000, True), trainer__sampler="user").batch_size == expected


def test_the_help_tells_the_sizes_that_are_taken():
    help_text = " ".join((TrainerConfig.__doc__ or "").split())
    for numbers in (
        f"{choice.BATCH_SIZES['event']} events",
        f"windows of at most {choice.WINDOW_TARGETS} targets together ({choice.WINDOW_STEPS} steps an epoch or more)",
        f"{choice.FEWEST_USERS} to {choice.BATCH_SIZES['user']} users ({choice.STEPS_A_PASS} steps an epoch)",
    ):
        assert numbers in help_text


@pytest.mark.parametrize("sizes", [Sizes(1, 1, 1, True), Sizes(2, 2, 1, False), Sizes(3, 1, 50, True)])
def test_tiny_data_are_no_obstacle(sizes):
    assert chosen(sizes).loss == "full_softmax"


@pytest.mark.parametrize(
    "name,events,length",
    [
        ("transformer", [5] * 90 + [33] * 10, 40),  # in tens
        ("transformer", [5] * 99 + [5000], 20),  # one long history does not pay for columns that the others leave empty
        ("transformer", [5000] * 10, 100),
        ("mean", [5] * 99 + [333], 333),
        ("mean", [5000], 1000),
    ],
)
def test_the_length_of_histories_follows_from_the_data(name, events, length):
    config = TrainingConfig()
    config.model.history.name, config.model.history.length = name, 0
    assert fitting_length(config, np.array(events)).model.history.length == length
    config.model.history.length = 7
    assert fitting_length(config, np.array(events)).model.history.length == 7
