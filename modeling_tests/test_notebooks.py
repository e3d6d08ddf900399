# Copyright 2026 The hf_segcap authors. Licensed under the Apache License, Version 2.0.
"""The notebooks run from beginning to end, offline, and are committed with what they show."""

import os
import sys
from pathlib import Path

import nbformat
import pytest
from jupyter_client import KernelManager
from nbclient import NotebookClient

from .tracked_files import ROOT

NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))
MAX_BYTES = 1_500_000


def code_cells(notebook: nbformat.NotebookNode) -> list[nbformat.NotebookNode]:
    return [cell for cell in notebook.cells if cell.cell_type == "code"]


def shown(cell: nbformat.NotebookNode) -> set[str]:
    """The kinds of output of a cell that do not depend on the machine: everything but what goes to stderr."""
    kinds: set[str] = set()
    for output in cell.outputs:
        if output.output_type in ("display_data", "execute_result"):
            kinds |= {kind for kind in output.data if kind.startswith("image/")} or {"result"}
        elif output.output_type == "error" or output.get("name") == "stdout":
            kinds.add(output.get("name") or "error")
    return kinds


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_notebook_runs_and_shows_what_is_committed(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    committed = nbformat.read(path, as_version=4)
    fresh = nbformat.from_dict(committed)
    for cell in code_cells(fresh):
        cell.outputs, cell.execution_count = [], None
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    # Kernels of other environments on this machine may have the same name: this one is this interpreter's.
    manager = KernelManager(kernel_name="python3")
    manager.kernel_spec.argv[0] = sys.executable
    client = NotebookClient(fresh, km=manager, timeout=600, resources={"metadata": {"path": str(path.parent)}})

    client.execute(env=dict(os.environ))

    assert [shown(cell) for cell in code_cells(fresh)] == [shown(cell) for cell in code_cells(committed)]


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_committed_notebook_is_complete_and_small(path: Path) -> None:
    notebook = nbformat.read(path, as_version=4)
    nbformat.validate(notebook)
    assert path.stat().st_size < MAX_BYTES
    cells = code_cells(notebook)
    assert [cell.execution_count for cell in cells] == list(range(1, len(cells) + 1)), "not run from top to bottom"
    assert "error" not in set().union(*map(shown, cells))
    assert any("image/jpeg" in shown(cell) or "image/png" in shown(cell) for cell in cells), "no picture is kept"
    assert set(notebook.metadata) <= {"kernelspec", "language_info"}
    assert notebook.metadata.kernelspec.name == "python3"
    assert all("execution" not in cell.metadata for cell in cells)


def test_there_are_notebooks() -> None:
    assert [path.name for path in NOTEBOOKS][:1] == ["01_region_captioning.ipynb"]
