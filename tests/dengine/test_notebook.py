"""`docs/quickstart.ipynb` runs from its first cell to its last, and what `docs/python-api.md` names is there."""

import re
from pathlib import Path
from typing import Any

import nbclient
import nbformat
import pytest

import dengine
from engines.common.events import Event, EventKind, note

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


@pytest.mark.slow
def test_the_page_shows_how_tensorboard_follows_a_training(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")

    def train(settings: Any, *, report: Any) -> None:
        for step in (10, 20):
            report(Event(EventKind.PROGRESS, "adapter", done=step, total=20, figures={"loss": 1 / step, "lr": 1e-4}))
            report(note("measured"))

    monkeypatch.setattr(dengine, "train_adapter", train)
    monkeypatch.chdir(tmp_path)
    page = (DOCS / "python-api.md").read_text("utf-8")
    (block,) = (code for code in re.findall(r"```python\n(.*?)```", page, re.DOTALL) if "SummaryWriter" in code)
    exec(block, {"dengine": dengine})  # noqa: S102  what the page says
    found = accumulator.EventAccumulator(str(tmp_path / "adapters" / "mine-tensorboard"))
    found.Reload()
    assert [(one.step, one.value) for one in found.Scalars("adapter/loss")] == [
        (10, pytest.approx(0.1)), (20, pytest.approx(0.05)),
    ]  # fmt: skip
