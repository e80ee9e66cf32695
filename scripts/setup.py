"""Make or update .venv: `make setup` calls this with any Python from 3.11 on; it needs nothing but the standard library.

It does nothing, at once and offline, when the environment already has what pyproject.toml and constraints.txt ask for. Otherwise it
installs torch first, by itself, because another package's range would let pip choose a build of several gigabytes.

TORCH=auto   (default) a CPU build where no NVIDIA GPU is seen, else the normal one
TORCH=cpu    a CPU build
TORCH=cuda   the normal build of pip's sources, which on Linux brings CUDA
TORCH=skip   leave torch as it is; where there is none, the training extra is left out
"""

import hashlib
import json
import os
import platform
import re
import shutil
import subprocess
import sys
import time
import tomllib
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
VENV = ROOT / ".venv"
PYTHON = VENV / ("Scripts/python.exe" if os.name == "nt" else "bin/python")
STAMP = VENV / "towers-setup.json"
CONSTRAINTS = ROOT / "constraints.txt"
CPU_INDEX = "https://download.pytorch.org/whl/cpu"


def main() -> int:
    choice = os.environ.get("TORCH") or "auto"
    if choice not in ("auto", "cpu", "cuda", "skip"):
        print(f"TORCH: got {choice!r}, expected one of auto, cpu, cuda, skip", file=sys.stderr)
        return 2
    want = {"dependencies": fingerprint(), "torch_choice": choice}
    if up_to_date(want):
        return 0
    started = time.monotonic()
    make_venv()
    python = ".".join(map(str, version_of(PYTHON)))
    print(f"setup: installing into {VENV.relative_to(ROOT)} (Python {python}); once, a few minutes", flush=True)
    build = install_torch(choice)
    extras = ["train", "serve", "dev"] if build else ["serve", "dev"]
    pip("-e", f".[{','.join(extras)}]")
    missing = install_peers()
    if not missing:
        STAMP.write_text(json.dumps({**want, "torch": build}, indent=2) + "\n")
    print(
        f"setup: done in {time.monotonic() - started:.0f} s. torch: {describe(build)}. Use it: source .venv/bin/activate",
        flush=True,
    )
    return 0


def fingerprint() -> str:
    """Of everything that decides what is installed; a change of pytest's or ruff's settings is no reason to ask the network."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    parts = [project["project"], project["build-system"], project["tool"]["setuptools"], CONSTRAINTS.read_text()]
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()


def up_to_date(want: dict[str, str]) -> bool:
    try:
        have = json.loads(STAMP.read_text())
    except (OSError, ValueError):
        return False
    return PYTHON.exists() and all(have.get(key) == value for key, value in want.items())


def make_venv() -> None:
    """A new environment, or the one there is, unless its Python is gone or too old."""
    if PYTHON.exists() and version_of(PYTHON) >= (3, 11):
        return
    failed = subprocess.run([sys.executable, "-m", "venv", "--clear", str(VENV)], check=False).returncode
    if failed:
        raise SystemExit("setup: could not make .venv. On Debian and Ubuntu: apt-get install python3-venv, then again")


def version_of(python: Path) -> tuple[int, ...]:
    """(major, minor) of an interpreter; () where it does not run."""
    code = "import sys; print(*sys.version_info[:2])"
    answer = subprocess.run([str(python), "-c", code], capture_output=True, text=True, check=False).stdout.split()
    return tuple(int(part) for part in answer)


def install_torch(choice: str) -> str:
    """Install torch by itself; returns the build that is there now (`2.13.0+cpu`), or '' for none."""
    pinned = pinned_torch()
    have = installed_torch()
    if choice == "skip" or (choice == "auto" and have.partition("+")[0] == pinned):
        return have
    gpu = shutil.which("nvidia-smi") is not None and subprocess.run(["nvidia-smi", "-L"], capture_output=True, check=False).returncode == 0
    cpu = choice == "cpu" or (choice == "auto" and not gpu)
    why = "asked for by TORCH" if choice != "auto" else f"{'an' if gpu else 'no'} NVIDIA GPU seen; TORCH=cpu|cuda|skip chooses otherwise"
    print(f"setup: torch {pinned}, {'CPU' if cpu else 'normal'} build ({why})", flush=True)
    if cpu and platform.system() == "Linux":
        install_cpu_torch(pinned)
    elif choice == "cuda" and have.endswith("+cpu"):
        # `==` would be satisfied by the CPU build; `===` is not.
        pip(f"torch==={pinned}")
    else:
        pip(f"torch=={pinned}")
    return installed_torch()


def install_cpu_torch(pinned: str) -> None:
    """On Linux: from pip's own sources where they name a CPU build, else from PyTorch's index, else whatever pip finds."""
    listed = subprocess.run([str(PYTHON), "-m", "pip", "index", "versions", "torch"], capture_output=True, text=True, check=False).stdout
    if f"{pinned}+cpu" in re.split(r"[,\s()]+", listed):
        print("setup: pip's own sources have a CPU build", flush=True)
        pip(f"torch=={pinned}+cpu")
        return
    print(f"setup: asking {CPU_INDEX} for a CPU build", flush=True)
    command = ["--no-deps", "--retries", "0", "--timeout", "15", "--index-url", CPU_INDEX, f"torch=={pinned}"]
    if pip(*command, check=False):
        return
    print(
        f"setup: no CPU build there (the lines above say why), so pip's own torch {pinned} is taken. On Linux x86-64 that may bring CUDA,"
        " some gigabytes; stop with Ctrl-C and use TORCH=skip after installing a torch of your own, if that is too much",
        flush=True,
    )
    pip(f"torch=={pinned}")


def install_peers() -> list[str]:
    """The benchmark peers, one by one: they are not needed to use Towers, and one of them is compiled here."""
    peers = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]["bench"]
    if pip(*peers, check=False):
        return []
    missing = [peer for peer in peers if not pip(peer, check=False)]
    print(
        f"setup: NOT installed: {', '.join(missing)}. Only benchmarks against them are missing. Compiled ones need a C++ compiler"
        " and Python's headers (Debian: apt-get install g++ python3-dev); the next `make setup` tries again",
        flush=True,
    )
    return missing


def pinned_torch() -> str:
    found = re.search(r"^torch==(\S+)$", CONSTRAINTS.read_text(), re.MULTILINE)
    if found is None:
        raise SystemExit("setup: constraints.txt names no version of torch")
    return found.group(1)


def installed_torch() -> str:
    code = "import importlib.metadata as m; print(m.version('torch'))"
    return subprocess.run([str(PYTHON), "-c", code], capture_output=True, text=True, check=False).stdout.strip()


def describe(build: str) -> str:
    if not build:
        return "none (TORCH=skip), so the training jobs are not installed"
    kind = "CPU build" if build.endswith("+cpu") else "normal build of pip's sources"
    return f"{build}, {kind}"


def pip(*arguments: str, check: bool = True) -> bool:
    """pip install, under the constraints, from the repository's root; ends the set-up where it fails and `check` is on."""
    command = [str(PYTHON), "-m", "pip", "install", "-qq", "--disable-pip-version-check", "-c", str(CONSTRAINTS), *arguments]
    done = subprocess.run(command, cwd=ROOT, check=False).returncode == 0
    if check and not done:
        raise SystemExit(f"setup: pip install {' '.join(arguments)} failed; the lines above say why")
    return done


if __name__ == "__main__":
    sys.exit(main())
