"""YOLO lines that hold more than a box: keypoints, polygons, scores."""

from pathlib import Path

import pytest
from made_datasets import PICTURES, make_yolo, read_whole, text, yolo_lines

from engines.datasets.dataset import open_dataset

KEYPOINTS = {
    "in two values": " 0.35 0.35 0.45 0.45",
    "in three values": " 0.35 0.35 2 0 0 0 0.45 0.45 1",
}


@pytest.mark.parametrize("stated", [True, False])
@pytest.mark.parametrize("kind", KEYPOINTS)
def test_lines_with_keypoints_give_their_own_boxes(tmp_path: Path, kind: str, stated: bool) -> None:
    make_yolo(tmp_path, names=None)
    shape = "[2, 2]" if kind == "in two values" else "[3, 3]"
    text(tmp_path / "data.yaml", "names: [cat, dog]\n" + (f"kpt_shape: {shape}\n" if stated else ""))
    for name in PICTURES:
        text(tmp_path / "labels" / f"{name[:-4]}.txt", f"0 0.4 0.4 0.2 0.2{KEYPOINTS[kind]}\n")
    box = (19.2, 14.4, 32.0, 24.0)
    dataset = read_whole(tmp_path, {name: [("cat", box)] for name in PICTURES})
    assert any("keypoints" in line for line in dataset.remarks)


def test_polygons_stay_polygons(tmp_path: Path) -> None:
    make_yolo(tmp_path)
    for name in PICTURES:
        text(tmp_path / "labels" / f"{name[:-4]}.txt", "0 0.1 0.1 0.9 0.1 0.5 0.9\n1 0.2 0.2 0.6 0.2 0.6 0.8 0.2 0.8\n")
    boxes = [("cat", (6.4, 4.8, 57.6, 43.2)), ("dog", (12.8, 9.6, 38.4, 38.4))]
    assert open_dataset(tmp_path).remarks == ()
    read_whole(tmp_path, dict.fromkeys(PICTURES, boxes))


@pytest.mark.parametrize("turned", [False, True])
def test_corners_of_turned_boxes_are_no_keypoints(tmp_path: Path, turned: bool) -> None:
    """Far from the left and the upper edge, the last corners lie in the box that the first four values would be."""
    make_yolo(tmp_path)
    corners = "0.5 0.45 0.55 0.5 0.5 0.55 0.45 0.5" if turned else "0.45 0.45 0.55 0.45 0.55 0.55 0.45 0.55"
    for name in PICTURES:
        text(tmp_path / "labels" / f"{name[:-4]}.txt", f"0 {corners}\n1 {corners}\n")
    box = (28.8, 21.6, 35.2, 26.4)
    boxes = [("cat", box), ("dog", box)]
    read_whole(tmp_path, dict.fromkeys(PICTURES, boxes))


def test_triangles_are_no_keypoints_where_their_box_would_leave_the_image(tmp_path: Path) -> None:
    make_yolo(tmp_path)
    for name in PICTURES:
        text(tmp_path / "labels" / f"{name[:-4]}.txt", "0 0.4 0.4 0.5 0.4 0.5 0.5\n1 0.7 0.4 0.8 0.4 0.8 0.5\n")
    boxes = [("cat", (25.6, 19.2, 32.0, 24.0)), ("dog", (44.8, 19.2, 51.2, 24.0))]
    read_whole(tmp_path, dict.fromkeys(PICTURES, boxes))


def test_lines_with_a_score_are_read_without_it(tmp_path: Path) -> None:
    make_yolo(tmp_path)
    for name, objects in PICTURES.items():
        lines = yolo_lines(objects).replace("\n", " 0.87\n")
        text(tmp_path / "labels" / f"{name[:-4]}.txt", lines)
    assert any("a score, which is not read" in line for line in read_whole(tmp_path).remarks)


def test_scores_before_the_boxes_are_known_by_what_fits(tmp_path: Path) -> None:
    make_yolo(tmp_path)
    for file in (tmp_path / "labels").iterdir():
        lines = [line.split(" ", 1) for line in file.read_text().splitlines()]
        text(file, "\n".join(f"{label} 0.9{index} {box}" for index, (label, box) in enumerate(lines)))
    assert len(read_whole(tmp_path).remarks) == 2
