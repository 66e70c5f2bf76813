"""Every verb that opens a dataset says the same of what was dropped, left out, corrected and passed over."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from command_line import dengine
from fakes import FakeBackend, as_backend, make_bundle
from made_datasets import ONE, coco_content, make_coco, make_voc, picture, text, voc_xml

from engines.common.events import Event, EventKind
from engines.datasets.dataset import Dataset, open_dataset, open_images
from engines.errors import DatasetError, UsageError
from engines.labelling import LabelSettings, label, label_images
from engines.painting.settings import GenerateSettings
from engines.runs.generate import generate
from engines.worth.data import open_data
from engines.worth.settings import EvaluateSettings
from export.assemble import _pictures

Lines = list[str]


class ReadError(Exception):
    """Ends a verb once its dataset was read."""


def stop(*_: object, **__: object) -> Any:
    raise ReadError


@pytest.fixture
def odd(tmp_path: Path) -> Path:
    """A dataset with swapped corners, a box without area, a class of no name, and an image without annotations."""
    root = make_voc(tmp_path / "odd")
    swapped = [("cat", (19.0, 6.0, 5.0, 30.0)), ("dog", (4.0, 4.0, 5.0, 9.0)), ("", ONE[0][1]), ONE[2]]
    text(root / "Annotations" / "a.xml", voc_xml("a.png", swapped))
    picture(root / "JPEGImages" / "c.png")
    return root


def wanted(root: Path) -> Lines:
    dataset = open_dataset(root, skip_bad=True)
    assert dataset.remarks
    assert dataset.dropped
    assert dataset.skipped
    return list(dataset.lines())


def heard(verb: Callable[[Any], object]) -> Lines:
    """The notes of a verb that ends once it has read."""
    notes: Lines = []

    def report(event: Event) -> None:
        if event.kind is EventKind.NOTE:
            notes.append(str(event))

    with pytest.raises((ReadError, DatasetError)):
        verb(report)
    return notes


@pytest.fixture
def stopped(monkeypatch: pytest.MonkeyPatch) -> None:
    """No backend is opened, nothing is trained or compared."""
    monkeypatch.setattr("engines.backends.registry.open_backend", stop)
    monkeypatch.setattr("engines.worth.data.fingerprints", stop)
    monkeypatch.setattr("engines.training.train_base.fit_base", stop)
    monkeypatch.setattr("engines.training.train_adapter.local_folder", stop)


@pytest.mark.usefixtures("stopped")
def test_label_generate_and_evaluate_report_the_same(
    odd: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lines = wanted(odd)
    bundle = tmp_path / "bundle"
    monkeypatch.setattr("engines.bundle.bundle.open_bundle", make_bundle)
    asked = LabelSettings(images=odd, out=tmp_path / "labels", bundle=bundle, skip_bad=True)
    paint = GenerateSettings(out=tmp_path / "run", bundle=bundle, count=1, reference=odd, skip_bad=True)
    compare = EvaluateSettings(real=odd, synthetic=(), val=odd, out=tmp_path / "worth", skip_bad=True)
    assert [line for line in heard(lambda report: label(asked, report=report)) if line in lines] == lines
    assert [line for line in heard(lambda report: generate(paint, report=report)) if line in lines] == lines
    said = heard(lambda report: open_data(compare, 64, report))
    assert [line for line in said if line in lines] == lines * 2, "of real and validation images"


@pytest.mark.usefixtures("stopped")
@pytest.mark.parametrize("verb", ["train-base", "train-adapter"])
def test_the_trainings_report_the_same(odd: Path, tmp_path: Path, verb: str) -> None:
    more = ["--model", tmp_path] if verb == "train-adapter" else []
    result = dengine(verb, odd, "--out", tmp_path / "out", "--skip-bad", *more)
    assert isinstance(result.exception, ReadError) or "ReadError" in result.output
    for line in wanted(odd):
        assert line.split("`")[0] in result.output


def test_the_pictures_of_export_are_reported_on(tmp_path: Path) -> None:
    picture(tmp_path / "a.png")
    (tmp_path / "b.png").write_bytes(b"no image")
    notes: Lines = []
    records = _pictures(tmp_path, lambda event: notes.append(str(event)))
    assert records is not None
    assert [record.name for record in records] == ["a.png"]
    assert notes == list(open_images(tmp_path, skip_bad=True).lines())
    assert any("b.png" in line for line in notes)


def events_of(dataset: Dataset) -> Iterator[str]:
    notes: Lines = []
    dataset.tell(lambda event: notes.append(str(event)))
    return iter(notes)


def test_what_is_told_is_what_is_listed(odd: Path) -> None:
    dataset = open_dataset(odd, skip_bad=True)
    assert list(events_of(dataset)) == list(dataset.lines())


def test_crowds_alone_have_no_figures(tmp_path: Path) -> None:
    content = coco_content()
    for annotation in content["annotations"]:
        annotation["iscrowd"] = 1
    for category, name in zip(content["categories"], ("rbc", "wbc"), strict=True):
        category["name"] = name
    data = open_dataset(make_coco(tmp_path / "data", content), require_boxes=False)
    bundle = make_bundle(tmp_path / "bundle")
    summary = label_images(bundle, as_backend(FakeBackend()), data, tmp_path / "out")
    assert summary.figures == {}
    assert summary.annotated
    with pytest.raises(UsageError):
        label_images(bundle, as_backend(FakeBackend()), data, tmp_path / "more", "listing")


def test_crowds_alone_are_shown_as_a_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from dengine_cli.label import show_labels
    from engines.labelling import LabelSummary

    show_labels(
        LabelSummary(
            annotations=tmp_path / "a.json", images=1, boxes=2, boxes_by_class={"rbc": 2}, ignored=0, skipped=(),
            unreadable=(), score=None, annotated=True, figures={}, unknown_classes=(), seconds=1.0, backend="",
        )
    )  # fmt: skip
    assert "rbc        2  -   -\n" in capsys.readouterr().out
