"""`benchmarks/ablation.py`: agreement of labels with another detector, variants, and the table."""

import importlib.util
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import pytest
from made_runs import make_run

from engines.errors import UsageError
from engines.labels.boxes import Instances
from engines.painting.settings import GenerateSettings


@pytest.fixture(scope="module")
def ablation() -> ModuleType:
    path = Path(__file__).parents[2] / "benchmarks" / "ablation.py"
    spec = importlib.util.spec_from_file_location("ablation", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["ablation"] = module  # its dataclasses look it up
    spec.loader.exec_module(module)
    return module


def detector(names: tuple[str, ...], seen: list[int]) -> Any:
    """Finds, on the images of `make_run` whose brightness is in `seen`, the box that is there, and a weak one."""

    def predict(images: Any) -> list[Instances]:
        found = []
        for pixels in images:
            index = round(float(pixels.mean()) / 20)
            boxes = np.array([[1.0, 2.0, 30.0, 20.0], [5.0, 5.0, 9.0, 9.0]], dtype=np.float32)
            scores = np.array([0.9 if index in seen else 0.1, 0.2], dtype=np.float32)
            found.append(Instances.of(boxes, [names.index("ab"[index % 2].upper()), 0], scores))
        return found

    return SimpleNamespace(predict=predict, info=SimpleNamespace(class_names=names))


def test_agreement_counts_labels_that_the_detector_finds_by_class_name(ablation: ModuleType, tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", keep_empty=True)  # labels on 0, 1, 3, 4, 6
    found = ablation.agreement(run, detector(("B", "A"), [0, 1, 2, 3]), 0.5)
    assert (found["images"], found["labels"]) == (7, 5 / 7)
    assert (found["precision"], found["recall"]) == (3 / 5, 3 / 4)
    assert found["f1"] == pytest.approx(6 / 9)
    assert 0 < found["ap50"] < 1
    low, high = found["label_ap50_interval"]
    assert 0 <= low < found["label_ap50"] < high <= 1
    with pytest.raises(UsageError, match=r"knows A, C, the bundle a, b"):
        ablation.agreement(run, detector(("A", "C"), []), 0.5)


def test_the_interval_is_that_of_groups_of_images_drawn_again(ablation: ModuleType) -> None:
    box = np.array([[0.0, 0.0, 10.0, 10.0]], dtype=np.float32)
    one, score = np.zeros(1, dtype=np.int64), np.ones(1, dtype=np.float32)
    truth = [ablation.Truth(box, one, np.zeros(1, dtype=bool))] * 40
    right, wrong = Instances.of(box, one, score), Instances.of(box + 20, one, score)
    groups = range(40)
    assert ablation.interval(truth, [right] * 40, ("cell",), groups) == pytest.approx([1.0, 1.0])
    assert ablation.interval(truth, [wrong] * 40, ("cell",), groups) == [0.0, 0.0]
    low, high = ablation.interval(truth, [right, wrong] * 20, ("cell",), groups)
    assert 0.05 < low < 0.25 < high < 0.6  # precision and recall are 0.5 each, so AP is about 0.25
    alike = [number // 4 for number in groups]  # four images of one kind tell as much as one
    wider = ablation.interval(truth, ([right] * 4 + [wrong] * 4) * 5, ("cell",), alike)
    assert wider[1] - wider[0] > 1.5 * (high - low)
    assert ablation.interval([], [], ("cell",), []) == [0.0, 0.0]


def test_every_variant_is_one_that_generate_takes(ablation: ModuleType) -> None:
    made = dict(ablation.variants(True))
    assert len(made) > 10
    for changes in made.values():
        GenerateSettings(out=Path(), jobs=1, reference=Path(), **changes)
    assert not any("strength" in changes for changes in dict(ablation.variants(False)).values())
    chosen = dict(ablation.variants(True, ("steps", "guidance in")))
    assert set(chosen) < set(made)
    assert {name.partition(" ")[0] for name in chosen} == {"as", "steps", "guidance"}
    assert "guidance 2" not in chosen


def test_the_table_has_a_row_for_each_setting_and_a_dash_for_what_is_unknown(ablation: ModuleType) -> None:
    row = {"setting": "steps 10", "ap50": 0.5, "precision": 1, "recall": 0, "f1": 0.25, "labels": 12.0}
    lines = ablation.table([row | {"images_per_second": None}]).splitlines()
    assert lines[2] == "| steps 10 | 0.500 | 1.000 | 0.000 | 0.250 | 12.000 | - |"
    assert len({line.count("|") for line in lines}) == 1
