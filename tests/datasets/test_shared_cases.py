"""Folders that other tools left, where they are beside the checkout: the right number of boxes, or a refusal."""

import json
from pathlib import Path

import pytest

from engines.datasets.dataset import open_dataset
from engines.errors import DatasetError

CASES = Path(__file__).parents[3] / "shared" / "cases" / "datasets"
ALL = 55
# folder -> boxes by split ("" is none); 0 is a refusal, or no single object
BOXES: dict[str, dict[str, int]] = {
    "00-baseline": {"": ALL},
    "01-roboflow-coco": {"train": 20, "val": 16, "test": 19},
    "03-cvat-subsets-same-frames": {"train": 20, "val": 16},
    "04-labelstudio-backslash": {"": ALL},
    "06b-exif-raw-frame-central": {"": 46},
    "06c-exif-upright-frame": {"": 46},
    "07c-resized-central": {"": 38},
    "08-azureml-fractions": {"": ALL},
    "11-all-iscrowd": {"": 0},
    "12-string-ids": {"": ALL},
    "14-json-bom": {"": ALL},
    "16c-voc-filename-of-another": {"": 36},
    "17-voc-swapped": {"": ALL},
    "20-fiftyone-voc": {"": ALL},
    "20c-voc-annotations-xmls": {"": ALL},
    "21-appledouble-voc": {"": ALL},
    "22-ipynb-checkpoints": {"": ALL},
    "23-cvat-yolo11": {"": ALL},
    "24-labelimg-yolo": {"": ALL},
    "25-yolo-own-yaml": {"": ALL},
    "26-yolo-absolute-list": {"": ALL},
    "27-yolo-pose": {"": 1},
    "31d-hf-cache": {"": ALL},
    "32-nfd-names": {"": 20},
    "33-one-folder-too-high": {"": ALL},
    "36-alike-names": {"": 0},
    "37-tiff-12bit": {"": ALL},
    "42-imagesets-with-suffix": {"train": ALL},
    "43-openimages-csv": {"": 1},
    "46-other-suffixes": {"": 100},
    "48-duplicate-annotation-ids": {"": ALL},
}
REMARKED = ("01", "04", "06b", "07c", "08", "16c", "17", "25", "26", "27", "32", "33", "37", "43")


@pytest.mark.skipif(not CASES.is_dir(), reason="the cases are not beside this checkout")
@pytest.mark.parametrize("name", BOXES)
def test_folders_of_other_tools_have_their_boxes(name: str) -> None:
    folder = CASES / name / "snapshots" / "0f1e2d3c" if name.startswith("31d") else CASES / name
    for split, boxes in BOXES[name].items():
        if not boxes:
            with pytest.raises(DatasetError):
                open_dataset(folder, split=split or None)
            continue
        dataset = open_dataset(folder, split=split or None)
        assert sum(len(record.instances.single) for record in dataset.records) == boxes
        assert len(dataset.class_names) in (1, 2, 3)
        assert dataset.dropped == dataset.skipped == ()
        assert bool(dataset.remarks) == (name.partition("-")[0] in REMARKED), json.dumps(dataset.remarks)
