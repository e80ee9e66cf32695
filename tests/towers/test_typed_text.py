"""A setting that is text holds what was typed, or the job does not begin: 1_000 is nobody's other name."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from omegaconf import DictConfig, OmegaConf

from serving.subject_config import SubjectJobConfig
from towers.errors import EXIT_CONFIG, ConfigError
from towers.typed_text import refuse_numbers_for_text

ROOT = Path(__file__).resolve().parents[2]


def composed(**values: object) -> DictConfig:
    return OmegaConf.merge(OmegaConf.structured(SubjectJobConfig), values)  # type: ignore[return-value]


@pytest.mark.parametrize("typed", ["1_000", "12e4", "1.50", "+5", "true", "-0", "NaN"])
def test_who_is_forgotten_is_who_was_typed(tmp_path: Path, typed: str) -> None:
    command = [sys.executable, "-m", "towers", "subject", "action=forget", f"user={typed}", "run_dir=r"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == EXIT_CONFIG
    assert f"user: got {typed}, which reads as" in done.stderr
    assert f"""user='"{typed}"'""" in done.stderr
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "override",
    [
        "user=1000", "user=007", "user=1.5", "user=a b", "user=null", "user='\"1_000\"'", "user=\"1_000\"", "user=1__0", "user=12,13",
        "serving.selector.blocked=[12,\"1_000\",'2e3',a b]", "seed=1_000", "serving.selector.popularity=1e-1",
        "+serving.selector.caps.x=1_0", "--config-dir", "serving=default", "~user", "user=a:1_000",
    ],
)  # fmt: skip
def test_what_reads_as_typed_passes(override: str) -> None:
    refuse_numbers_for_text(composed(), [override], [])


@pytest.mark.parametrize(
    ("override", "advice"),
    [
        ("serving.selector.blocked=[a, 12e4,b]", """serving.selector.blocked='[a, "12e4",b]'"""),
        ("++serving.selector.blocked=['7',1_000]", "1_000"),
        ("user=a,1_000", "1_000"),
        ("user=choice(a,1_000)", "1_000"),
    ],
)
def test_lists_and_sweeps_are_looked_through(override: str, advice: str) -> None:
    with pytest.raises(ConfigError) as told:
        refuse_numbers_for_text(composed(), [override], [])
    assert advice in str(told.value)


def test_yaml_of_ones_own_is_looked_through(tmp_path: Path) -> None:
    (tmp_path / "serving").mkdir()
    file = tmp_path / "serving" / "mine.yaml"
    file.write_text("host: a\nselector:\n  blocked: [one, 1_000]\n  popularity: 1e-1\n")
    in_use = composed(serving={"selector": {"blocked": ["one", "1000"]}})
    with pytest.raises(ConfigError, match=r"blocked: got 1_000.*mine\.yaml"):
        refuse_numbers_for_text(in_use, [], [tmp_path])
    refuse_numbers_for_text(composed(), [], [tmp_path])  # not chosen
    file.write_text("# @package _global_\nuser: no\n")
    with pytest.raises(ConfigError, match="user: got no"):
        refuse_numbers_for_text(composed(user="False"), [], [tmp_path])
    file.write_text("selector:\n  blocked: [one, '1_000']\n")
    refuse_numbers_for_text(in_use, [], [tmp_path])


def test_signs_within_a_text_of_a_yaml_are_text(tmp_path: Path) -> None:
    """A sentence such as `you tried {}` needs no quotes in YAML; nor does what other settings are put into."""
    (tmp_path / "serving").mkdir()
    texts = ["you tried {}", "a, b] c", 'it\'s "odd"', "${run_dir}/x", "${oc.env:NOT_SET_ANYWHERE}", "over\n      two lines", "="]
    listed = "\n".join(f"    - {text}" for text in [*texts, "1_000"])
    (tmp_path / "serving" / "mine.yaml").write_text(f"host: you tried {{}}\nselector:\n  blocked:\n{listed}\n")
    refuse_numbers_for_text(composed(), [], [tmp_path])
    with pytest.raises(ConfigError, match="blocked: got 1_000"):
        refuse_numbers_for_text(composed(serving={"selector": {"blocked": ["1000"]}}), [], [tmp_path])
