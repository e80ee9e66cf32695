"""The wheel holds everything, and a job runs from an empty folder with it."""

import importlib.util
import json
import os
import shutil
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path
from types import ModuleType, SimpleNamespace

import pytest

ROOT = Path(__file__).resolve().parent.parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())


def test_every_package_is_named() -> None:
    here = {".".join(p.parent.relative_to(ROOT).parts) for top in ("towers", "training", "serving") for p in (ROOT / top).rglob("*.py")}
    assert here | {"towers.conf"} == set(PROJECT["tool"]["setuptools"]["packages"])


def test_every_requirement_is_pinned() -> None:
    """What `make setup` asks for by name has one exact version, so that two machines run the same code."""
    lines = [line for line in (ROOT / "constraints.txt").read_text().splitlines() if not line.startswith("#")]
    assert all(line.count("==") == 1 and "+" not in line for line in lines)
    pinned = {normal(line.partition("==")[0]) for line in lines}
    extras = PROJECT["project"]["optional-dependencies"].values()
    asked = [*PROJECT["project"]["dependencies"], *(name for extra in extras for name in extra)]
    assert {normal(name.partition(">")[0].partition("=")[0]) for name in asked} <= pinned


def normal(name: str) -> str:
    return name.strip().lower().replace("_", "-").replace(".", "-")


def test_setup_leaves_a_fitting_environment_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """No pip, no network; and another torch is asked for only by name."""
    setup = load_setup()
    calls: list[object] = []
    monkeypatch.setattr(setup, "STAMP", tmp_path / "stamp.json")
    monkeypatch.setattr(setup, "PYTHON", Path(sys.executable))
    monkeypatch.setattr(setup.subprocess, "run", lambda *a, **k: calls.append(a))
    monkeypatch.setenv("TORCH", "skip")
    (tmp_path / "stamp.json").write_text(json.dumps({"dependencies": setup.fingerprint(), "torch_choice": "skip"}))
    assert setup.main() == 0
    assert (calls, capsys.readouterr().out) == ([], "")
    monkeypatch.setenv("TORCH", "gpu")
    assert setup.main() == 2
    assert "expected one of auto, cpu, cuda, skip" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("listed", "index_answers", "expected"),
    [
        ("torch (2.13.0)\nAvailable versions: 2.13.0+cpu, 2.13.0, 2.12.1", True, [["torch==2.13.0+cpu"]]),
        ("torch (2.13.0)\nAvailable versions: 2.13.0, 2.12.1", True, [["cpu-index"]]),
        ("torch (2.13.0)\nAvailable versions: 2.13.0, 2.12.1", False, [["cpu-index"], ["torch==2.13.0"]]),
    ],
    ids=["own sources have it", "the CPU index has it", "neither"],
)
def test_setup_looks_for_a_cpu_build(monkeypatch: pytest.MonkeyPatch, listed: str, index_answers: bool, expected: list[list[str]]) -> None:
    setup = load_setup()
    asked: list[list[str]] = []

    def pip(*arguments: str, check: bool = True) -> bool:
        asked.append(["cpu-index"] if setup.CPU_INDEX in arguments else list(arguments))
        return check or index_answers

    monkeypatch.setattr(setup, "pip", pip)
    monkeypatch.setattr(setup.subprocess, "run", lambda *a, **k: subprocess.CompletedProcess(a, 0, stdout=listed))
    setup.install_cpu_torch("2.13.0")
    assert asked == expected


def load_setup() -> ModuleType:
    """A fresh copy of scripts/setup.py, whose `subprocess` may be replaced without touching the real module."""
    spec = importlib.util.spec_from_file_location("towers_setup", ROOT / "scripts" / "setup.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    module.subprocess = SimpleNamespace(run=subprocess.run)  # type: ignore[attr-defined]
    return module


@pytest.mark.long
def test_wheel_runs_from_an_empty_folder(tmp_path: Path) -> None:
    wheel = build_wheel(tmp_path / "dist")
    names = set(zipfile.ZipFile(wheel).namelist())
    for package in ("towers", "training", "serving"):
        assert {str(p.relative_to(ROOT)) for p in (ROOT / package).rglob("*.py")} <= names
    configs = {f"towers/{p.relative_to(ROOT)}" for p in (ROOT / "conf").rglob("*.yaml")}
    assert configs <= names
    assert "serving/ui/index.html" in names
    assert not any(name.startswith(("tests/", "scripts/", "conf/")) for name in names)

    target, empty = tmp_path / "site", tmp_path / "empty"
    empty.mkdir()
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-index", "--target", str(target), str(wheel)]
    subprocess.run(pip, check=True)
    environment = {**os.environ, "PYTHONPATH": str(target)}

    def run(*command: str) -> str:
        done = subprocess.run([sys.executable, *command], cwd=empty, env=environment, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        return done.stdout

    assert run("-c", "from towers.verbs import conf_dir; print(conf_dir())").strip() == str(target / "towers" / "conf")
    run("-m", "towers", "prepare", "experiment=synthetic_fast")
    assert [path.name for path in empty.iterdir()] == ["runs"]
    assert (empty / "runs/synthetic_fast/prepared/prepare.json").is_file()


def build_wheel(out: Path) -> Path:
    """Built from a copy of what the build reads, so that nothing appears in the checkout."""
    source = out.parent / "source"
    source.mkdir()
    for name in ("towers", "training", "serving", "conf", "pyproject.toml", "README.md"):
        copy = shutil.copytree if (ROOT / name).is_dir() else shutil.copy
        copy(ROOT / name, source / name)
    command = [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", str(out), str(source)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    return next(out.glob("*.whl"))
