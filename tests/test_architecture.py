"""The rules of the house, held by reading the code: imports go one way, NumPy's tier knows no torch, files stay short."""

import ast
import graphlib
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
PACKAGES = ("towers", "training", "serving")
MAY_IMPORT = {"towers": {"towers"}, "training": {"training", "towers"}, "serving": {"serving", "towers"}}

TORCH_TIER = {
    "towers.blocks",
    "towers.dot_products",
    "towers.bags",
    "towers.features",
    "towers.fixed_sum",
    "towers.heads",
    "towers.hiding",
    "towers.encoders",
    "towers.model",
    "towers.runtime",
    "towers.topk",
    "towers.unit",
}
"""Of towers/: everything else there is NumPy's tier."""

DOORS = {
    "torch": lambda m: m in TORCH_TIER or m.startswith("training.") or m == "serving.torch_runtime",
    "torch.distributed": lambda m: m == "training.distributed",
    "hydra": lambda m: m in ("towers.job", "towers.typed_text", "training.config", "serving.config"),
    "omegaconf": lambda m: m in ("towers.job", "towers.typed_text", "training.config", "training.data_config", "serving.config"),
    "faiss": lambda m: m.startswith("serving.index."),
    "scann": lambda m: m == "serving.index.scann_index",
    "starlette": lambda m: m == "serving.app",
    "uvicorn": lambda m: m in ("serving.app", "serving.connection"),
    "tensorboard": lambda m: m == "training.tracking",
    "torch.utils.tensorboard": lambda m: m == "training.tracking",
    "onnxruntime": lambda m: m in ("serving.onnx_runtime", "training.onnx_export"),
    "pandas": lambda m: m.startswith("training."),
}
"""Each heavy library, and the modules that may import it."""

LONGEST = 300
LONGER_ALLOWED: dict[str, int] = {}
"""Files allowed past LONGEST lines, with their bound. Empty is how it should stay."""


def files() -> dict[str, Path]:
    """Path by dotted module name, of the three packages."""
    found = {}
    for package in PACKAGES:
        for path in sorted((ROOT / package).rglob("*.py")):
            parts = path.relative_to(ROOT).with_suffix("").parts
            found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return found


FILES = files()


def imported(tree: ast.AST, module: str) -> set[str]:
    """Dotted names that the code imports; `from a import b` counts as a.b where that is one of our modules, else as a."""
    names = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{module}: relative import"
            for alias in node.names:
                full = f"{node.module}.{alias.name}"
                names.add(full if full in FILES or full in DOORS else str(node.module))
    return names


IMPORTS = {name: imported(ast.parse(path.read_text()), name) for name, path in FILES.items()}


def test_the_packages_are_there() -> None:
    assert {name.partition(".")[0] for name in FILES} == set(PACKAGES)


@pytest.mark.parametrize("module", FILES)
def test_imports_go_one_way(module: str) -> None:
    allowed = MAY_IMPORT[module.partition(".")[0]]
    for other in IMPORTS[module]:
        top = other.partition(".")[0]
        assert top not in {*PACKAGES, "scripts", "tests", "notebooks"} - allowed, f"{module} imports {other}"


@pytest.mark.parametrize("library", DOORS)
def test_heavy_libraries_have_one_door(library: str) -> None:
    through = {m for m, names in IMPORTS.items() if any(n == library or n.startswith(f"{library}.") for n in names)}
    assert {m for m in through if not DOORS[library](m)} == set()


def test_numpy_tier_reaches_no_torch() -> None:
    """Not directly and not through another module."""
    for module in FILES:
        if module.startswith("towers") and module not in TORCH_TIER:
            assert reachable(module).isdisjoint(TORCH_TIER), f"{module} reaches the torch tier"


def reachable(module: str) -> set[str]:
    seen, ahead = set(), [module]
    while ahead:
        here = ahead.pop()
        if here not in seen:
            seen.add(here)
            ahead += [name for name in IMPORTS.get(here, ()) if name in FILES]
    return seen


BLOCKED = """
import importlib, sys
class Block:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in {blocked!r}:
            raise ModuleNotFoundError(f"No module named {{name!r}}", name=name)
sys.meta_path.insert(0, Block())
for module in {modules!r}:
    importlib.import_module(module)
"""


def test_numpy_tier_imports_where_torch_is_not_installed() -> None:
    modules = [m for m in FILES if m.startswith("towers") and m not in TORCH_TIER]
    import_in_fresh_process(modules, ("torch", "pandas", "faiss", "tensorboard"))


def test_serving_imports_where_torch_is_not_installed() -> None:
    """All of it but the door to torch, which nothing imports at its top."""
    assert not [module for module, names in IMPORTS.items() if "serving.torch_runtime" in names]
    modules = [m for m in FILES if m.startswith("serving") and m != "serving.torch_runtime"]
    import_in_fresh_process(modules, ("torch", "pandas", "tensorboard", "onnx", "scipy"))


def test_verb_table_imports_on_a_base_install() -> None:
    import_in_fresh_process(["towers.cli"], ("torch", "hydra", "omegaconf", "numpy", "pyarrow"))


def import_in_fresh_process(modules: list[str], blocked: tuple[str, ...]) -> None:
    code = BLOCKED.format(blocked=blocked, modules=modules)
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment, check=False)
    assert done.returncode == 0, done.stderr[-2000:]


def test_no_import_cycles() -> None:
    graph = {m: {n for n in names if n in FILES and n != m} for m, names in IMPORTS.items()}
    list(graphlib.TopologicalSorter(graph).static_order())


@pytest.mark.parametrize("module", FILES)
def test_own_packages_are_imported_at_the_top(module: str) -> None:
    for function in ast.walk(ast.parse(FILES[module].read_text())):
        if isinstance(function, (ast.FunctionDef, ast.AsyncFunctionDef)):
            inside = {n for n in imported(function, module) if n.partition(".")[0] in PACKAGES}
            assert not inside, f"{module}.{function.name} imports {inside}"


def python_files() -> list[Path]:
    return [*FILES.values(), *(p for folder in ("scripts", "tests") for p in sorted((ROOT / folder).rglob("*.py")))]


def test_files_stay_short() -> None:
    lengths = {str(p.relative_to(ROOT)): len(p.read_text().splitlines()) for p in python_files()}
    assert {name: n for name, n in lengths.items() if n > LONGER_ALLOWED.get(name, LONGEST)} == {}
    assert set(LONGER_ALLOWED) <= set(lengths), "LONGER_ALLOWED names a file that is gone"


@pytest.mark.parametrize("package", PACKAGES)
def test_errors_of_users_are_not_asserts(package: str) -> None:
    """`python -O` removes asserts, and their messages help nobody."""
    for module, path in FILES.items():
        if module.partition(".")[0] == package:
            asserts = [n.lineno for n in ast.walk(ast.parse(path.read_text())) if isinstance(n, ast.Assert) and n.msg is not None]
            assert not asserts, f"{module}: assert with a message at lines {asserts}; raise an error from towers.errors"


def test_no_module_hides_a_well_known_one() -> None:
    hidden = {m for m in FILES if m.rpartition(".")[2] in {"http", "types", "logging", "requests", "random", "select", "json", "io"}}
    assert hidden == set()


def test_nothing_of_one_machine_is_written_down() -> None:
    """No absolute path of a developer's machine in code, configs or docs."""
    homes = ("/" + "work/", "/" + "home/", "/" + "Users/", "/" + "root/")
    texts = [*python_files(), *ROOT.glob("conf/**/*.yaml"), *ROOT.glob("*.md"), *ROOT.glob("*.toml"), ROOT / "Makefile", ROOT / ".ci/run"]
    found = [str(p.relative_to(ROOT)) for p in texts if p.exists() and any(home in p.read_text() for home in homes)]
    assert found == []


def test_pickle_is_nowhere() -> None:
    users = {m for m, names in IMPORTS.items() if any(n.partition(".")[0] in ("pickle", "dill", "joblib", "cloudpickle") for n in names)}
    assert users == set()


@pytest.mark.parametrize("command", [["ruff", "check", "."], ["ruff", "format", "--check", "."]], ids=["check", "format"])
def test_ruff(command: list[str]) -> None:
    done = subprocess.run([sys.executable, "-m", *command], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout[-3000:]


def test_mypy_strict() -> None:
    done = subprocess.run([sys.executable, "-m", "mypy"], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout[-3000:]
