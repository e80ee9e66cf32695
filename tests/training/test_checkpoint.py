import errno
import json

import pytest
import torch

from towers.errors import ConfigError, DataError
from training import checkpoint
from training.checkpoint import Checkpointer


class Part:
    """A part with a tensor and a number."""

    def __init__(self):
        self.value = 0

    def state_dict(self):
        return {"tensor": torch.full((100,), float(self.value)), "value": self.value, "share": 0.1 * self.value}

    def load_state_dict(self, state):
        assert set(state) == {"tensor", "value", "share"}
        assert state["tensor"].tolist() == [float(state["value"])] * 100 and state["share"] == 0.1 * state["value"]
        self.value = state["value"]


@pytest.fixture
def said():
    return []


@pytest.fixture
def make(tmp_path, said):
    def build(config_hash="abc", every=0, keep=2, settings=None):
        part = Part()
        saver = Checkpointer(
            tmp_path / "checkpoints", {"part": part}, config_hash=config_hash, settings=settings, every=every, keep=keep, say=said.append
        )
        return part, saver

    return build


def save_steps(part, saver, steps, best=()):
    for step in steps:
        part.value = step
        saver.save(step, best=step in best)


def names(saver):
    return sorted(p.name for p in saver.folder.iterdir())


def test_the_newest_is_restored(make):
    part, saver = make()
    save_steps(part, saver, [10, 20, 30])
    other, reader = make()
    assert reader.restore() == 30 and other.value == 30


def test_nothing_to_restore(make):
    _part, saver = make()
    assert saver.restore() is None


def test_maybe_save_saves_where_due(make):
    _part, saver = make(every=5, keep=100)
    for step in range(1, 12):
        saver.maybe_save(step)
    assert names(saver) == ["000001-step-5", "000002-step-10"]
    _, never = make(every=0)
    never.maybe_save(5)
    assert len(names(saver)) == 2


def test_the_last_k_and_the_best_are_kept(make):
    part, saver = make(keep=2)
    save_steps(part, saver, [10, 20, 30, 40, 50], best=(10, 20))
    assert names(saver) == ["000002-step-20", "000004-step-40", "000005-step-50"]
    part.value = 0
    saver.load_best("part")
    assert part.value == 20


def test_the_best_is_known_after_a_restore(make):
    part, saver = make()
    save_steps(part, saver, [10, 20, 30], best=(10,))
    other, reader = make()
    reader.restore()
    reader.load_best("part")
    assert other.value == 10


def test_without_a_best_the_newest_is_taken(make):
    part, saver = make()
    save_steps(part, saver, [10, 20])
    part.value = 0
    saver.load_best("part")
    assert part.value == 20


@pytest.mark.parametrize("file", ["tensors.safetensors", "state.json"])
@pytest.mark.parametrize("damage", ["truncate", "flip", "remove"])
def test_a_damaged_newest_is_passed_over_and_said(make, said, file, damage):
    part, saver = make()
    save_steps(part, saver, [10, 20])
    path = saver.folder / "000002-step-20" / file
    content = path.read_bytes()
    if damage == "remove":
        path.unlink()
    elif damage == "truncate":
        path.write_bytes(content[: len(content) // 2])
    else:
        middle = len(content) // 2
        path.write_bytes(content[:middle] + bytes([content[middle] ^ 1]) + content[middle + 1 :])
    other, reader = make()
    assert reader.restore() == 10 and other.value == 10
    assert "000002-step-20" in said[0] and "damaged" in said[0] and "before it" in said[0]
    save_steps(other, reader, [20])  # the run goes on, past the damaged one
    _third, again = make()
    assert again.restore() == 20


def test_the_best_of_the_one_before_survives(make):
    """Newest and best damaged: the one before must still find the best that it knows."""
    part, saver = make(keep=2)
    save_steps(part, saver, [10, 20, 30], best=(10, 30))
    (saver.folder / "000003-step-30" / "state.json").write_text("{")
    other, reader = make()
    assert reader.restore() == 20
    reader.load_best("part")
    assert other.value == 10


def test_all_damaged_is_an_error_that_says_what_to_do(make):
    part, saver = make()
    save_steps(part, saver, [10])
    (saver.folder / "000001-step-10" / "state.json").write_text("{}")
    for _ in range(2):  # the second attempt must not take the folder for a new one
        with pytest.raises(DataError, match=r"no checkpoint is whole.*trainer\.resume=false"):
            make()[1].restore()
    make()[1].clear()
    assert make()[1].restore() is None


def test_another_config_is_refused(make):
    part, saver = make(config_hash="abc")
    save_steps(part, saver, [10])
    other, reader = make(config_hash="xyz")
    with pytest.raises(ConfigError, match=r"trainer\.resume=false.*run_dir"):
        reader.restore()
    assert other.value == 0
    assert names(saver) == ["000001-step-10"], "refusing damages nothing"


@pytest.mark.parametrize(
    "now,words",
    [
        ({"optim.lr": 0.1, "model.dim": 64}, r"other settings \(optim\.lr was 0\.003, now 0\.1\), and"),
        ({"optim.lr": 0.003, "model.dim": 64}, "other prepared data, and"),
        ({"optim.lr": 0.003}, r"model\.dim was 64, now null"),
    ],
)
def test_a_refusal_names_the_setting_that_differs(make, now, words):
    part, saver = make(settings={"optim.lr": 0.003, "model.dim": 64})
    save_steps(part, saver, [10])
    with pytest.raises(ConfigError, match=words):
        make(config_hash="xyz", settings=now)[1].restore()


@pytest.mark.parametrize("others", ["whole", "damaged"])
def test_a_damaged_best_gives_way_to_the_newest_whole_one(make, said, others):
    part, saver = make(keep=2)
    save_steps(part, saver, [10, 20, 30], best=(10,))
    (saver.folder / "000001-step-10" / "tensors.safetensors").write_bytes(b"half")
    if others == "damaged":
        (saver.folder / "000003-step-30" / "state.json").write_text("{")
    other, reader = make()
    assert reader.restore() == (30 if others == "whole" else 20)
    reader.best = "000001-step-10"
    assert not reader.load_best("part")
    assert other.value == (30 if others == "whole" else 20)
    assert any("000001-step-10" in line and "was the best" in line for line in said)


@pytest.mark.parametrize("function", ["save_file", "sync"])
def test_a_full_disk_loses_nothing_saved(make, monkeypatch, function):
    part, saver = make(keep=1)
    save_steps(part, saver, [10])

    def full(*args):
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(checkpoint, function, full)
        part.value = 20
        with pytest.raises(DataError, match=r"No space left.*000001-step-10 and older ones are kept.*continue"):
            saver.save(20)
    other, reader = make(keep=1)
    assert reader.restore() == 10 and other.value == 10
    save_steps(other, reader, [20])
    assert make()[1].restore() == 20
    assert not list(saver.folder.glob("*.tmp"))


def test_a_kill_while_writing_leaves_the_saved_ones(make):
    part, saver = make()
    save_steps(part, saver, [10])
    half = saver.folder / "000002-step-20.tmp"
    half.mkdir()
    (half / "tensors.safetensors").write_bytes(b"half")
    other, reader = make()
    assert reader.restore() == 10
    save_steps(other, reader, [20])
    assert not half.exists()


def test_saving_the_same_step_twice(make):
    part, saver = make()
    save_steps(part, saver, [10, 10])
    assert make()[1].restore() == 10


def test_clear_starts_anew(make):
    part, saver = make()
    save_steps(part, saver, [10], best=(10,))
    saver.clear()
    assert saver.restore() is None and saver.best is None


def test_nothing_is_pickled(make):
    part, saver = make()
    save_steps(part, saver, [10])
    folder = saver.folder / "000001-step-10"
    assert sorted(p.name for p in folder.iterdir()) == ["state.json", "tensors.safetensors"]
    assert json.loads((folder / "state.json").read_text())["values"]["part"]["value"] == 10


def test_of_damaged_ones_the_newest_is_kept(make, said):
    part, saver = make(keep=4)
    save_steps(part, saver, [10, 20, 30, 40])
    for step in (2, 3, 4):
        (saver.folder / f"{step:06d}-step-{step * 10}" / "state.json").write_text("{")
    _, reader = make(keep=4)
    assert reader.restore() == 10 and len(said) == 3
    assert names(reader) == ["000001-step-10", "000004-step-40.damaged"]


@pytest.mark.parametrize("action", ["restore", "clear"])
def test_a_file_in_the_place_of_the_folder_is_told_before_any_training(make, action):
    _, saver = make()
    saver.folder.write_text("not ours")
    with pytest.raises(ConfigError, match="checkpoints is a file"):
        getattr(saver, action)()
    assert saver.folder.read_text() == "not ours"
