"""What the four numbers of a box become, in each form and through each turn: corners in pixels."""

import math
from pathlib import Path

import numpy as np
import pytest
from made_datasets import coco_content, picture, read_whole, text, voc_xml, write_coco_file
from PIL import Image, ImageOps

from engines.datasets.evidence import Picture
from engines.datasets.images import Header
from engines.datasets.readings import CORNERS, SIDES, VOC, YOLO, turned_hull, turned_upright
from engines.datasets.records import Draft


def test_readings_give_corners_in_pixels() -> None:
    rows = np.array([[1.0, 2.0, 3.0, 5.0]])
    assert SIDES.corners(rows, (9, 9)).tolist() == [[1, 2, 4, 7]]
    assert CORNERS.corners(rows, (9, 9)).tolist() == [[1, 2, 3, 5]]
    assert VOC.corners(rows, (9, 9)).tolist() == [[0, 1, 3, 5]]
    assert YOLO.corners(np.array([[0.5, 0.5, 1.0, 0.5]]), (8, 4)).tolist() == [[0, 1, 8, 3]]
    draft = Draft(Path("a"), "a", "a", stated=(10, 10))
    assert Picture(draft, Header((5, 5), (5, 5), 1, False)).frame == (10, 10)


def test_every_exif_turn_takes_a_box_with_its_pixels() -> None:
    pixels = np.zeros((20, 30), dtype=np.uint8)
    pixels[3:8, 5:21] = 255
    box = np.array([[5.0, 3.0, 21.0, 8.0]])
    for orientation in range(1, 9):
        exif = Image.Exif()
        exif[0x0112] = orientation
        image = Image.fromarray(pixels)
        image.info["exif"] = exif.tobytes()
        rows, columns = np.nonzero(np.asarray(ImageOps.exif_transpose(image)))
        wanted = [columns.min(), rows.min(), columns.max() + 1, rows.max() + 1]
        assert turned_upright(box, (30, 20), orientation)[0].tolist() == wanted


def test_turned_hulls_are_round_the_turned_corners() -> None:
    assert turned_hull((0, 0, 4, 2), 90) == pytest.approx((1, -1, 3, 3))
    assert turned_hull((0, 0, 4, 2), 180) == pytest.approx((0, 0, 4, 2))
    degrees = math.degrees(math.atan2(3, 4))  # whose cosine is 0.8, and its sine 0.6
    for turn in (degrees, -degrees):
        assert turned_hull((0, 0, 10, 5), turn) == pytest.approx((-0.5, -2.5, 10.5, 7.5))


@pytest.mark.parametrize("degrees", [30.0, 90.0, -45.0])
def test_rotated_boxes_become_the_upright_boxes_round_them(tmp_path: Path, degrees: float) -> None:
    content = coco_content({"a.png": (("cat", (20.0, 16.0, 44.0, 32.0)),)})
    content["annotations"][0]["attributes"] = {"occluded": False, "rotation": degrees}
    picture(tmp_path / "a.png")
    write_coco_file(tmp_path / "a.json", content)
    box = turned_hull((20.0, 16.0, 44.0, 32.0), degrees)
    read_whole(tmp_path, {"a.png": [("cat", box)]})
    attribute = f"<attributes><attribute><name>rotation</name><value>{degrees}</value></attribute></attributes>"
    text(tmp_path / "a.xml", voc_xml("a.png", [("cat", (20.0, 16.0, 44.0, 32.0))], extra=attribute))
    (tmp_path / "a.json").unlink()
    dataset = read_whole(tmp_path, {"a.png": [("cat", box)]})
    assert any("turned by a rotation" in line for line in dataset.remarks)
