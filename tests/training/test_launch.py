"""Who starts the processes of a run, and what a launcher must have set."""

import pytest

from towers.errors import ConfigError
from training.config import TrainerConfig, TrainingConfig
from training.launch import wanted


def config(processes: int) -> TrainingConfig:
    return TrainingConfig(run_dir="a", trainer=TrainerConfig(processes=processes))


@pytest.fixture
def launched(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RANK", "1")
    monkeypatch.setenv("WORLD_SIZE", "2")


def test_processes_are_started_where_no_launcher_has(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("RANK", raising=False)
    assert [wanted(config(n)) for n in (0, 1, 2)] == [False, False, True]


@pytest.mark.parametrize(("cores", "most"), [(1, 2), (2, 2), (16, 16), (None, 2)])
def test_more_processes_than_cores_are_refused(monkeypatch: pytest.MonkeyPatch, cores: int | None, most: int) -> None:
    monkeypatch.delenv("RANK", raising=False)
    monkeypatch.setattr("os.cpu_count", lambda: cores)
    assert wanted(config(most))
    with pytest.raises(ConfigError, match=rf"trainer\.processes: got {most + 1}, .* Use at most {most}$"):
        wanted(config(most + 1))


@pytest.mark.usefixtures("launched")
def test_what_a_launcher_has_started_is_taken_as_it_is() -> None:
    assert not wanted(config(0)) and not wanted(config(2))


@pytest.mark.usefixtures("launched")
def test_another_number_than_the_launcher_started_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"trainer\.processes: got 4, and the launcher has started 2"):
        wanted(config(4))


@pytest.mark.usefixtures("launched")
@pytest.mark.parametrize("size", [None, "", "two", "1", "0"])
def test_half_of_what_a_launcher_sets_is_refused(monkeypatch: pytest.MonkeyPatch, size: str | None) -> None:
    monkeypatch.delenv("WORLD_SIZE") if size is None else monkeypatch.setenv("WORLD_SIZE", size)
    with pytest.raises(ConfigError, match="RANK is '1' and WORLD_SIZE is"):
        wanted(config(0))
