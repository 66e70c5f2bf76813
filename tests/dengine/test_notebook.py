"""`docs/quickstart.ipynb` runs from its first cell to its last, and what `docs/python-api.md` names is there."""

import re
from pathlib import Path

import nbclient
import nbformat
import pytest

import dengine

DOCS = Path(__file__).parents[2] / "docs"


@pytest.mark.slow
def test_the_notebook_runs(tmp_path: Path) -> None:
    notebook = nbformat.read(DOCS / "quickstart.ipynb", as_version=4)  # type: ignore[no-untyped-call]
    assert all(not cell.outputs for cell in notebook.cells if cell.cell_type == "code"), "outputs are not kept"
    client = nbclient.NotebookClient(notebook, timeout=600, resources={"metadata": {"path": str(tmp_path)}})
    client.execute()
    data = [output.get("data", {}) for cell in notebook.cells if cell.cell_type == "code" for output in cell.outputs]
    assert any("image/png" in each for each in data), "an image shows itself"


def test_the_page_names_what_is_there_and_all_of_it() -> None:
    page = (DOCS / "python-api.md").read_text("utf-8")
    words = set(re.findall(r"\b\w+\b", page))
    assert set(dengine.__all__) - {"ImageNews", "Diagnosis", "Times"} <= words
    assert set(re.findall(r"dengine\.(\w+)\(", page)) <= set(dengine.__all__)
