"""Other tools' files: what goes out, and that what comes back becomes decisions."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from command_line import assert_fails, dengine
from made_datasets import BOXES, CLASSES, PICTURES, coco_content, picture, write_coco_file
from refusals import refused
from reviewing import decisions_in, make_review_run

from engines.datasets.dataset import open_dataset
from engines.errors import DatasetError, UsageError
from engines.review.server import ReviewSettings, review


@pytest.fixture
def data(tmp_path: Path) -> Path:
    folder = tmp_path / "data"
    for name in PICTURES:
        picture(folder / "images" / name)
    write_coco_file(folder / "annotations.json", coco_content())
    return folder


def written(folder: Path, kind: str) -> Any:
    file = folder.parent / f"{kind}.json"
    review(ReviewSettings(folder, format=kind, out=file))
    return json.loads(file.read_text("utf-8"))


def test_a_corrected_coco_file_leaves_out_what_was_rejected_and_reads_back(data: Path) -> None:
    (data / "review.jsonl").write_text('{"id": "decision-1", "do": "reject", "images": ["a.png"]}\n', "utf-8")
    content = written(data, "coco")
    assert [one["file_name"] for one in content["images"]] == ["b.png"]
    (data / "annotations.json").write_text(json.dumps(content), "utf-8")
    assert open_dataset(data).objects() == {"cat": 1, "dog": 2}


@pytest.mark.parametrize("kind", ["coco", "cvat", "labelstudio"])
def test_what_comes_back_as_it_went_out_decides_nothing(data: Path, kind: str) -> None:
    written(data, kind)
    summary = review(ReviewSettings(data, corrections=data.parent / f"{kind}.json"))
    assert (summary.taken, decisions_in(data)) == (0, [])


def test_corrections_from_cvat_become_decisions_once(data: Path) -> None:
    content = written(data, "cvat")
    assert content["annotations"][0]["attributes"]["occluded"] is False
    first, second, third, *_ = content["annotations"]
    first["category_id"] = 2
    second["bbox"][0] -= 3
    content["annotations"].remove(third)
    content["annotations"].append({**first, "id": 99, "bbox": [22, 32, 8, 9], "category_id": 1})
    file = data.parent / "back.json"
    file.write_text(json.dumps(content), "utf-8")
    assert review(ReviewSettings(data, corrections=file)).taken == 4
    assert sorted(one["do"] for one in decisions_in(data)) == ["change", "change", "delete", "draw"]
    assert review(ReviewSettings(data, corrections=file)).taken == 0
    after = written(data, "coco")
    boxes = {tuple(one["bbox"]): one["category_id"] for one in after["annotations"] if one["image_id"] == 1}
    assert boxes == {(4.0, 6.0, 16.0, 24.0): 2, (37.0, 20.0, 22.0, 26.0): 2, (22.0, 32.0, 8.0, 9.0): 1}


def test_label_studio_has_percent_and_its_corrections_come_back(data: Path) -> None:
    tasks = written(data, "labelstudio")
    assert sum(len(task["annotations"][0]["result"]) for task in tasks) == BOXES
    value = tasks[0]["annotations"][0]["result"][0]["value"]
    assert (value["x"], value["y"], value["rectanglelabels"]) == (4 / 64 * 100, 6 / 48 * 100, ["cat"])
    value["rectanglelabels"] = ["dog"]
    tasks[1]["annotations"][0]["result"] = []
    tasks[0]["data"]["file"] = "upload/1/a1b2c3-a.png"
    file = data.parent / "back.json"
    file.write_text(json.dumps(tasks), "utf-8")
    assert review(ReviewSettings(data, corrections=file)).taken == 4
    assert [one["do"] for one in decisions_in(data)] == ["change", "delete", "delete", "delete"]


def _backslashes(content: dict[str, Any]) -> None:
    for one in content["images"]:
        one["file_name"] = "images\\" + one["file_name"]


def _ids_as_text_in_one_place(content: dict[str, Any]) -> None:
    for one in content["annotations"]:
        one.update(image_id=str(one["image_id"]), category_id=float(one["category_id"]))


def _crowds_as_text(content: dict[str, Any]) -> None:
    for one in content["annotations"]:
        one["iscrowd"] = "0"


@pytest.mark.parametrize("change", [_backslashes, _ids_as_text_in_one_place, _crowds_as_text])
def test_labels_in_any_dress_are_the_same_labels(data: Path, change: Callable[[dict[str, Any]], None]) -> None:
    content = coco_content()
    change(content)
    file = data.parent / "back.json"
    file.write_text(json.dumps(content), "utf-8-sig")
    summary = review(ReviewSettings(data, corrections=file))
    assert (summary.taken, decisions_in(data)) == (0, [])


def test_boxes_that_were_turned_in_cvat_become_the_upright_ones_round_them(data: Path) -> None:
    content = written(data, "cvat")
    content["annotations"][0]["attributes"]["rotation"] = 90.0
    file = write_coco_file(data.parent / "back.json", content)
    review(ReviewSettings(data, corrections=file))
    (change,) = decisions_in(data)
    assert (change["do"], change["box"]) == ("change", [0.0, 10.0, 24.0, 26.0])


def test_an_annotation_of_no_image_is_refused(data: Path) -> None:
    content = coco_content()
    content["annotations"][0]["image_id"] = 77
    file = write_coco_file(data.parent / "back.json", content)
    with refused(DatasetError, None, "annotations[0].image_id"):
        review(ReviewSettings(data, corrections=file))
    assert decisions_in(data) == []


@pytest.mark.parametrize("annotations", [[], [{"result": [], "was_cancelled": True}]])
def test_tasks_that_nobody_submitted_say_nothing(data: Path, annotations: list[dict[str, Any]]) -> None:
    tasks = written(data, "labelstudio")
    tasks[0]["annotations"] = annotations
    file = write_coco_file(data.parent / "back.json", tasks)
    assert review(ReviewSettings(data, corrections=file)).taken == 0


def test_an_image_of_another_name_is_not_taken_for_one_that_is_here(data: Path) -> None:
    content = coco_content()
    content["images"][0]["file_name"] = "cam-b.png"
    content["images"].pop(1)
    content["annotations"] = []
    file = write_coco_file(data.parent / "back.json", content)
    assert review(ReviewSettings(data, corrections=file)).taken == 0


def test_polygons_of_label_studio_are_refused(data: Path) -> None:
    tasks = written(data, "labelstudio")
    tasks[0]["annotations"][0]["result"][0]["type"] = "polygonlabels"
    file = write_coco_file(data.parent / "back.json", tasks)
    with refused(DatasetError, None, "polygonlabels"):
        review(ReviewSettings(data, corrections=file))


def test_a_run_goes_out_with_its_labels_alone(tmp_path: Path) -> None:
    run = make_review_run(tmp_path / "run", 20)
    content = written(run, "coco")
    kept = json.loads((run / "annotations.json").read_text("utf-8"))
    assert content["annotations"] == kept["annotations"]
    assert [one["file_name"] for one in content["images"]] == [one["file_name"] for one in kept["images"]]


@pytest.mark.parametrize(
    "text",
    ["{", "3", "{}", "[3]", '{"images": 1, "annotations": 2}', '[{"data": {}}]', "[" * 50_000,
     '{"images": [{}], "annotations": []}']
)  # fmt: skip
def test_a_file_that_is_none_of_them_is_refused(data: Path, text: str) -> None:
    file = data.parent / "back.json"
    file.write_text(text, "utf-8")
    with refused(DatasetError, "corrections", "back.json"):
        review(ReviewSettings(data, corrections=file))
    assert decisions_in(data) == []


def test_an_unknown_class_is_refused_by_name(data: Path) -> None:
    content = coco_content()
    content["categories"][0]["name"] = "horse"
    file = write_coco_file(data.parent / "back.json", content)
    with refused(DatasetError, "corrections", '"horse"'):
        review(ReviewSettings(data, corrections=file))


@pytest.mark.parametrize("bbox", [[4, 4, 0, 9], [9, 9, -4, 3], [1e8, 4, 5, 5]])
def test_a_box_that_no_decision_could_be_about_is_refused_with_its_image(data: Path, bbox: list[float]) -> None:
    content = coco_content()
    content["annotations"][0]["bbox"] = bbox
    file = write_coco_file(data.parent / "back.json", content)
    with refused(DatasetError, None, "a.png"):
        review(ReviewSettings(data, corrections=file))
    assert decisions_in(data) == []


def test_a_format_needs_a_file_and_must_be_known() -> None:
    for wrong in ({"format": "coco"}, {"out": "x"}, {"format": "burn", "out": "x"}, {"port": 70000}):
        with pytest.raises(UsageError):
            ReviewSettings("run", **wrong)


def test_the_command_line_writes_and_takes(data: Path, tmp_path: Path) -> None:
    out = tmp_path / "out.json"
    result = dengine("review", data, "--format", "cvat", "--out", out)
    assert (result.exit_code, "2 images in" in result.stdout) == (0, True)
    assert "0 corrections" in dengine("review", data, "--import", out).stdout
    assert_fails(dengine("review", data, "--format", "cvat"), 2, "--format", "--out")
    assert_fails(dengine("review", tmp_path / "nowhere"), 1, "nowhere")
    assert np.all(np.array(CLASSES) == ("cat", "dog"))
