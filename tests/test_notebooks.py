"""Notebooks run from top to bottom, hold no outputs, and name only settings that exist."""

import ast
import os
import re
import sys
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import nbformat
import pytest
from hydra import compose, initialize_config_dir
from jupyter_client.kernelspec import KernelSpec, KernelSpecManager
from nbclient import NotebookClient

import serving.config
import training.config
from towers.verbs import VERBS, conf_dir

ROOT = Path(__file__).resolve().parent.parent
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))
SERVING = ("index", "serve")
PICTURES = {"01_quickstart": 5, "02_embeddings": 7}
"""Least number of pictures that a run must show."""


class ThisPython(KernelSpecManager):
    """Runs kernels with the interpreter of the tests, with warnings as errors: a machine's own kernels do not count."""

    def get_kernel_spec(self, kernel_name: str) -> KernelSpec:
        # Not `-W error` for the whole process: ipykernel warns on its own start. The first cell does it for ours.
        return KernelSpec(argv=[sys.executable, "-m", "ipykernel_launcher", "-f", "{connection_file}"], language="python")


def read(path: Path) -> Any:
    return nbformat.read(path, as_version=4)  # type: ignore[no-untyped-call]


def code_cells(path: Path) -> Iterator[Any]:
    return (cell for cell in read(path).cells if cell.cell_type == "code")


@pytest.mark.long
@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_runs_from_top_to_bottom(path: Path, tmp_path: Path) -> None:
    notebook = read(path)
    notebook.cells.insert(0, nbformat.v4.new_code_cell("import warnings\nwarnings.simplefilter('error')"))  # type: ignore[no-untyped-call]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Jupyter's own, about this process's event loop
        client = NotebookClient(notebook, timeout=240, resources={"metadata": {"path": str(tmp_path)}})
        client.km = client.create_kernel_manager()
        client.km.kernel_spec_manager = ThisPython()
        client.execute(env={**os.environ, "JUPYTER_PLATFORM_DIRS": "1", "MPLBACKEND": "module://matplotlib_inline.backend_inline"})
    outputs = [output for cell in notebook.cells if cell.cell_type == "code" for output in cell.outputs]
    pictures = [output for output in outputs if "image/png" in output.get("data", {})]
    assert len(pictures) >= PICTURES[path.stem]
    said = [output.text for output in outputs if output.output_type == "stream" and output.name == "stderr"]
    complaints = [text for text in said if not text.startswith("Matplotlib is building the font cache")]
    assert complaints == []
    assert [entry.name for entry in tmp_path.iterdir()] == ["runs"], "a notebook leaves nothing outside runs/"


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_is_valid_and_stripped(path: Path) -> None:
    notebook = read(path)
    nbformat.validate(notebook)  # type: ignore[no-untyped-call]
    assert notebook.cells[0].cell_type == "markdown" and notebook.cells[0].source.startswith("# ")
    assert set(notebook.metadata) <= {"kernelspec", "language_info"}
    assert notebook.metadata.kernelspec.name == "python3"
    for cell in code_cells(path):
        assert cell.outputs == [] and cell.execution_count is None and not cell.metadata, f"cell {cell.id} keeps what a run left"
        ast.parse(cell.source)
        assert max(map(len, cell.source.splitlines())) <= 140, f"cell {cell.id} has a line that nobody reads to its end"


def job_calls(path: Path) -> Iterator[tuple[str, list[str]]]:
    """Job and settings of each `towers("<job>", ...)` in the code."""
    for cell in code_cells(path):
        for node in ast.walk(ast.parse(cell.source)):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "towers":
                job, *settings = (ast.literal_eval(argument) for argument in node.args)
                yield job, settings


def told_commands(path: Path) -> Iterator[tuple[str, list[str]]]:
    """Job and settings of each `towers <job> ...` in the text."""
    for cell in read(path).cells:
        if cell.cell_type == "markdown":
            for command in re.findall(r"`towers ([a-z]+[^`]*)`", cell.source):
                job, *settings = command.split()
                yield job, [setting for setting in settings if "=" in setting]


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_names_real_jobs_and_settings(path: Path) -> None:
    training.config.register()
    serving.config.register()
    calls = list(job_calls(path))
    assert calls, "no job is run"
    with initialize_config_dir(str(conf_dir()), version_base="1.3"):
        for job, settings in (*calls, *told_commands(path)):
            assert job in VERBS
            compose(job, overrides=settings)
