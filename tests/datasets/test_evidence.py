"""What a whole file shows of its boxes: sizes that are not the images', forms and units that are not the format's."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from made_datasets import (
    CLASSES,
    ONE,
    PICTURES,
    SIZE,
    Box,
    coco_content,
    make_coco,
    make_voc,
    make_yolo,
    picture,
    read_whole,
    text,
    voc_xml,
    write_coco_file,
    yolo_lines,
)
from refusals import refused

from engines.datasets.dataset import open_dataset
from engines.datasets.evidence import Picture
from engines.datasets.images import Header
from engines.datasets.readings import BOXES, CORNERS, SIDES, VOC, YOLO, turned_hull, turned_upright
from engines.datasets.records import Draft
from engines.errors import DatasetError, UsageError

CENTRAL = {"a.png": (("cat", (4.0, 6.0, 20.0, 20.0)), ("dog", (10.0, 10.0, 24.0, 22.0)))}  # inside half an image


def scaled(pictures: Any, factor: float) -> dict[str, list[tuple[str, Box]]]:
    return {
        name: [(label, tuple(side * factor for side in box)) for label, box in objects]
        for name, objects in pictures.items()
    }


def make_resized(root: Path, pictures: Any = PICTURES, by: float = 0.5, form: str = "coco") -> Path:
    """Annotated at SIZE, and then the images were scaled."""
    size = (round(SIZE[0] * by), round(SIZE[1] * by))
    for name in pictures:
        picture(root / "images" / name, size=size)
    if form == "coco":
        write_coco_file(root / "annotations" / "all.json", coco_content(pictures))
    else:
        for name, objects in pictures.items():
            text(root / "annotations" / f"{name[:-4]}.xml", voc_xml(name, objects))
    return root


@pytest.mark.parametrize("form", ["coco", "voc"])
def test_boxes_of_the_size_before_scaling_are_scaled_where_they_leave_the_image(tmp_path: Path, form: str) -> None:
    dataset = read_whole(make_resized(tmp_path, form=form), scaled(PICTURES, 0.5))
    (remark,) = dataset.remarks
    assert "2 images are not as stated" in remark
    assert "`boxes=written`" in remark


def test_boxes_of_the_image_are_kept_where_they_leave_the_stated_size(tmp_path: Path) -> None:
    make_coco(tmp_path, coco_content(size=(32, 24)))
    assert "fit the image alone" in read_whole(tmp_path).remarks[0]


def in_corner(count: int, far: float) -> dict[str, list[tuple[str, Box]]]:
    """So many boxes that fill a square in the corner of one image."""
    steps = [3.25 + (far - 3.25) * place / (count - 1) for place in range(count)]
    return {"a.png": [("cat", (side - 3.0, side / 2, side, side)) for side in steps]}


@pytest.mark.parametrize(
    ("count", "size", "far", "right"),
    [(24, (320, 240), 99.5, False), (8, (320, 240), 99.5, True), (24, (160, 120), 99.5, True),
     (24, (320, 240), 140.0, True), (24, (320, 240), 60.0, True)],
)  # fmt: skip
def test_boxes_in_percents_are_refused_and_others_are_not(
    tmp_path: Path, count: int, size: tuple[int, int], far: float, right: bool
) -> None:
    pictures = in_corner(count, far)
    picture(tmp_path / "images" / "a.png", size=size)
    write_coco_file(tmp_path / "annotations" / "all.json", coco_content(pictures, size=size))
    if right:
        read_whole(tmp_path, pictures)
        return
    with refused(DatasetError, "boxes", "all.json", "percents"):
        open_dataset(tmp_path)
    read_whole(tmp_path, pictures, boxes="written")


@pytest.mark.parametrize("form", ["coco", "voc"])
@pytest.mark.parametrize("by", [0.5, 2.0])
def test_boxes_that_fit_both_sizes_are_refused_naming_both_readings(tmp_path: Path, form: str, by: float) -> None:
    make_resized(tmp_path, CENTRAL, by, form)
    with pytest.raises(
        DatasetError, match=r"64x48 is stated and the image is .*`boxes=stated`.*`boxes=written`"
    ) as caught:
        open_dataset(tmp_path)
    assert caught.value.field == "boxes"
    read_whole(tmp_path, scaled(CENTRAL, by), boxes="stated")
    read_whole(tmp_path, CENTRAL, boxes="written")
    with pytest.raises(DatasetError, match="All of it was bad"):
        open_dataset(tmp_path, skip_bad=True)


def test_many_boxes_that_keep_to_a_small_stated_size_are_of_it(tmp_path: Path) -> None:
    boxes = [("cat", (x, y, x + 9, y + 9)) for x in range(0, 50, 10) for y in range(0, 39, 9)]
    make_resized(tmp_path, {"a.png": boxes}, 2.0)
    read_whole(tmp_path, scaled({"a.png": boxes}, 2.0))


@pytest.mark.parametrize("stated", [(0, 0), (65, 48), ("", None)])
def test_sizes_that_say_nothing_are_not_believed(tmp_path: Path, stated: Any) -> None:
    if stated == (65, 48):
        pytest.importorskip("PIL")
        for name in CENTRAL:
            picture(tmp_path / "images" / name, size=(640, 480))
        content = coco_content(CENTRAL, (641, 480))
    else:
        for name in CENTRAL:
            picture(tmp_path / "images" / name)
        content = coco_content(CENTRAL, stated)
    write_coco_file(tmp_path / "all.json", content)
    assert read_whole(tmp_path, CENTRAL).remarks == ()


def test_images_of_another_shape_than_stated_are_refused_unless_said(tmp_path: Path) -> None:
    make_coco(tmp_path, coco_content(CENTRAL, (48, 64)), CENTRAL)
    with refused(DatasetError, "boxes", "48x64", "64x48"):
        open_dataset(tmp_path)
    read_whole(tmp_path, CENTRAL, boxes="written")


def turned(root: Path, orientation: int, objects: Any, stated: tuple[int, int] | None) -> Path:
    picture(root / "images" / "a.png", orientation=orientation)
    write_coco_file(root / "a.json", coco_content({"a.png": objects}, stated))
    return root


def test_boxes_of_the_stored_frame_are_turned_where_they_leave_the_upright_one(tmp_path: Path) -> None:
    turned(tmp_path, 6, ONE, SIZE)
    upright = [(label, (48.0 - y1, x0, 48.0 - y0, x1)) for label, (x0, y0, x1, y1) in ONE]
    dataset = read_whole(tmp_path, {"a.png": upright})
    assert "before its EXIF turn" in dataset.remarks[0]


def test_boxes_of_a_turned_image_that_fit_both_frames_are_refused(tmp_path: Path) -> None:
    turned(tmp_path, 8, CENTRAL["a.png"], SIZE)
    with pytest.raises(DatasetError, match="before its EXIF turn") as caught:
        open_dataset(tmp_path)
    assert caught.value.field == "boxes"
    read_whole(tmp_path, CENTRAL, boxes="written")
    back = [(label, (y0, 64.0 - x1, y1, 64.0 - x0)) for label, (x0, y0, x1, y1) in CENTRAL["a.png"]]
    read_whole(tmp_path, {"a.png": back}, boxes="stored")
    read_whole(tmp_path, {"a.png": back}, boxes="stated")


def test_boxes_of_the_upright_frame_are_as_written(tmp_path: Path) -> None:
    turned(tmp_path, 6, CENTRAL["a.png"], SIZE[::-1])
    assert read_whole(tmp_path, CENTRAL).remarks == ()


def test_turned_images_without_a_stated_size_are_remarked(tmp_path: Path) -> None:
    make_yolo(tmp_path)
    picture(tmp_path / "images" / "a.png", size=SIZE[::-1], orientation=6)
    dataset = read_whole(tmp_path)
    assert any("`boxes=stored`" in line for line in dataset.remarks)


def test_an_orientation_that_is_none_is_no_turn(tmp_path: Path) -> None:
    make_coco(tmp_path)
    for name in PICTURES:
        picture(tmp_path / "images" / name, orientation=0)
    assert read_whole(tmp_path).remarks == ()


def test_half_turned_images_whose_size_says_nothing_are_remarked(tmp_path: Path) -> None:
    turned(tmp_path, 3, ONE, SIZE)
    dataset = read_whole(tmp_path, {"a.png": ONE})
    assert "`boxes=stored`" in dataset.remarks[0]


def test_every_exif_turn_takes_a_box_with_its_pixels() -> None:
    import numpy as np
    from PIL import Image

    pixels = np.zeros((20, 30), dtype=np.uint8)
    pixels[3:8, 5:21] = 255
    box = np.array([[5.0, 3.0, 21.0, 8.0]])
    for orientation in range(1, 9):
        exif = Image.Exif()
        exif[0x0112] = orientation
        image = Image.fromarray(pixels)
        image.info["exif"] = exif.tobytes()
        from PIL import ImageOps

        rows, columns = np.nonzero(np.asarray(ImageOps.exif_transpose(image)))
        wanted = [columns.min(), rows.min(), columns.max() + 1, rows.max() + 1]
        assert turned_upright(box, (30, 20), orientation)[0].tolist() == wanted


def corners_for_sides(content: dict[str, Any]) -> dict[str, Any]:
    for annotation in content["annotations"]:
        x, y, width, height = annotation["bbox"]
        annotation["bbox"] = [x, y, x + width, y + height]
    return content


def fractions(content: dict[str, Any]) -> dict[str, Any]:
    for annotation in content["annotations"]:
        annotation["bbox"] = [side / full for side, full in zip(annotation["bbox"], SIZE * 2, strict=True)]
    return content


@pytest.mark.parametrize(
    ("change", "said"), [(corners_for_sides, "x0, y0, x1, y1"), (fractions, "fractions of the image")]
)
def test_coco_boxes_in_another_form_are_read_as_they_fit_with_a_remark(tmp_path: Path, change: Any, said: str) -> None:
    make_coco(tmp_path, change(coco_content()))
    dataset = read_whole(tmp_path)
    assert said in dataset.remarks[0]
    assert "`boxes=written`" in dataset.remarks[0]


def test_a_bad_box_among_many_does_not_hide_the_form(tmp_path: Path) -> None:
    many = {
        "a.png": [("cat", (float(x), float(y), x + 9.0, y + 8.0)) for x in range(0, 50, 9) for y in range(0, 39, 9)]
    }
    content = corners_for_sides(coco_content(many))
    content["annotations"].append({"id": 99, "image_id": 1, "category_id": 1, "bbox": [30, 30, 30, 30]})
    dataset = read_whole(make_coco(tmp_path, content, many), many)
    assert "x0, y0, x1, y1" in dataset.remarks[0]
    assert len(dataset.dropped) == 1


def test_coco_boxes_that_are_corners_in_fractions_are_read(tmp_path: Path) -> None:
    make_coco(tmp_path, fractions(corners_for_sides(coco_content())))
    assert "[x0, y0, x1, y1] in fractions" in read_whole(tmp_path).remarks[0]


@pytest.mark.parametrize("stray", [[0.9, 0.9, 1.002, 0.2], [30, 30, 20, 10], [0, 0, 0, 0]])
def test_a_number_above_one_does_not_make_fractions_boxes_of_a_pixel(tmp_path: Path, stray: list[float]) -> None:
    content = fractions(coco_content())
    content["annotations"].append({"id": 99, "image_id": 1, "category_id": 1, "bbox": stray})
    make_coco(tmp_path, content)
    dataset = open_dataset(tmp_path)
    areas = np.concatenate([record.instances.boxes for record in dataset.records])
    assert ((areas[:, 2:] - areas[:, :2]).prod(axis=1) > 10).all(), "no box is a pixel"
    assert len(areas) + len(dataset.dropped) == 1 + sum(map(len, PICTURES.values()))
    assert "fractions" in dataset.remarks[0]


def test_rows_of_zeros_do_not_make_pixels_fractions(tmp_path: Path) -> None:
    content = coco_content()
    content["annotations"][0]["bbox"][0] += 0.25
    content["annotations"] += [{"image_id": 1, "category_id": 1, "bbox": [0, 0, 0, 0]} for _ in range(9)]
    dataset = open_dataset(make_coco(tmp_path, content))
    assert (len(dataset.dropped), dataset.remarks) == (9, ())


def test_the_form_that_is_asked_for_is_taken(tmp_path: Path) -> None:
    make_coco(tmp_path, corners_for_sides(coco_content(CENTRAL)), CENTRAL)
    assert open_dataset(tmp_path).remarks == (), "these fit as width and height, too"
    read_whole(tmp_path, CENTRAL, boxes="corners")
    with pytest.raises(UsageError) as caught:
        open_dataset(tmp_path, boxes="xyxy")
    assert caught.value.field == "boxes"
    assert all(word == "auto" or f"`boxes={word}`" for word in BOXES)


def test_voc_boxes_with_sides_for_far_corners_are_read_as_they_fit(tmp_path: Path) -> None:
    make_voc(tmp_path)
    for name, objects in PICTURES.items():
        rows = "".join(
            f"<object><name>{label}</name><bndbox><xmin>{x0}</xmin><ymin>{y0}</ymin><xmax>{x1 - x0}</xmax>"
            f"<ymax>{y1 - y0}</ymax></bndbox></object>"
            for label, (x0, y0, x1, y1) in objects
        )
        text(
            tmp_path / "Annotations" / f"{name[:-4]}.xml", f"<annotation><filename>{name}</filename>{rows}</annotation>"
        )
    dataset = read_whole(tmp_path)
    assert "x, y, width, height" in dataset.remarks[0]


@pytest.mark.parametrize("form", ["corners", "sides"])
def test_yolo_boxes_in_another_form_are_read_as_they_fit(tmp_path: Path, form: str) -> None:
    make_yolo(tmp_path)
    for name, objects in PICTURES.items():
        lines = []
        for label, (x0, y0, x1, y1) in objects:
            far = (x1, y1) if form == "corners" else (x1 - x0, y1 - y0)
            values = (x0 / 64, y0 / 48, far[0] / 64, far[1] / 48)
            lines.append(f"{CLASSES.index(label)} {' '.join(f'{value:.6f}' for value in values)}")
        text(tmp_path / "labels" / f"{name[:-4]}.txt", "\n".join(lines))
    assert len(read_whole(tmp_path).remarks) == 1


def test_yolo_boxes_in_pixels_are_refused_saying_so(tmp_path: Path) -> None:
    make_yolo(tmp_path)
    text(tmp_path / "labels" / "a.txt", "0 30 20 10 10\n1 20 12 8 8\n")
    text(tmp_path / "labels" / "b.txt", "0 30 20 10 10\n")
    with refused(DatasetError, None, "labels/a.txt, line 1"):
        open_dataset(tmp_path)


def test_boxes_that_fit_several_other_forms_are_refused_naming_them(tmp_path: Path) -> None:
    make_coco(tmp_path)
    content = coco_content({"a.png": ()})
    content["annotations"] = [
        {"id": index, "image_id": 1, "category_id": 1, "bbox": [30, 22, 40 + index, 26]} for index in range(5)
    ]
    write_coco_file(tmp_path / "annotations" / "instances.json", content)
    with pytest.raises(DatasetError, match="`boxes=corners` or `boxes=centres`") as caught:
        open_dataset(tmp_path)
    assert caught.value.field == "boxes"
    assert open_dataset(tmp_path, boxes="corners").records[0].instances.boxes[0].tolist() == [30, 22, 40, 26]


def test_boxes_that_lie_mostly_outside_are_refused(tmp_path: Path) -> None:
    far = {"a.png": tuple(("cat", (x, 40.0, x + 30.0, 90.0)) for x in (50.0, 55.0, 58.0, 60.0))}
    make_coco(tmp_path, coco_content(far, None), far)
    with refused(DatasetError, "boxes", "4 of 4"):
        open_dataset(tmp_path)
    assert len(open_dataset(tmp_path, boxes="written").records[0].instances) == 4


def test_many_boxes_that_leave_their_images_are_remarked(tmp_path: Path) -> None:
    content = coco_content()
    for annotation in content["annotations"]:
        annotation["bbox"][2:] = [side * 1.9 for side in annotation["bbox"][2:]]
    dataset = open_dataset(make_coco(tmp_path, content))
    assert any("leave their images" in line for line in dataset.remarks)


def test_swapped_corners_are_put_in_order_with_a_remark(tmp_path: Path) -> None:
    make_voc(tmp_path)
    swapped = [(label, (x1 - 1, y0, x0 + 1, y1)) for label, (x0, y0, x1, y1) in ONE[:2]]
    text(tmp_path / "Annotations" / "a.xml", voc_xml("a.png", [*swapped, ONE[2]]))
    dataset = read_whole(tmp_path)
    assert dataset.dropped == ()
    assert any(line.startswith("2 boxes have their corners swapped") for line in dataset.remarks)


@pytest.mark.parametrize("degrees", [30.0, 90.0, -45.0])
def test_rotated_boxes_become_the_upright_boxes_round_them(tmp_path: Path, degrees: float) -> None:
    content = coco_content({"a.png": (("cat", (20.0, 16.0, 44.0, 32.0)),)})
    content["annotations"][0]["attributes"] = {"occluded": False, "rotation": degrees}
    picture(tmp_path / "a.png")
    write_coco_file(tmp_path / "a.json", content)
    box = turned_hull((20.0, 16.0, 44.0, 32.0), degrees)
    rounded = tuple(round(side, 1) for side in box)
    read_whole(tmp_path, {"a.png": [("cat", rounded)]})  # type: ignore[list-item]
    attribute = f"<attributes><attribute><name>rotation</name><value>{degrees}</value></attribute></attributes>"
    text(tmp_path / "a.xml", voc_xml("a.png", [("cat", (20.0, 16.0, 44.0, 32.0))], extra=attribute))
    (tmp_path / "a.json").unlink()
    dataset = read_whole(tmp_path, {"a.png": [("cat", rounded)]})  # type: ignore[list-item]
    assert any("turned by a rotation" in line for line in dataset.remarks)


def test_turned_hulls_are_round_the_turned_corners() -> None:
    assert turned_hull((0, 0, 4, 2), 90) == pytest.approx((1, -1, 3, 3))
    assert turned_hull((0, 0, 4, 2), 180) == pytest.approx((0, 0, 4, 2))


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


def test_readings_give_corners_in_pixels() -> None:
    import numpy as np

    rows = np.array([[1.0, 2.0, 3.0, 5.0]])
    assert SIDES.corners(rows, (9, 9)).tolist() == [[1, 2, 4, 7]]
    assert CORNERS.corners(rows, (9, 9)).tolist() == [[1, 2, 3, 5]]
    assert VOC.corners(rows, (9, 9)).tolist() == [[0, 1, 3, 5]]
    assert YOLO.corners(np.array([[0.5, 0.5, 1.0, 0.5]]), (8, 4)).tolist() == [[0, 1, 8, 3]]
    draft = Draft(Path("a"), "a", "a", stated=(10, 10))
    assert Picture(draft, Header((5, 5), (5, 5), 1, False)).frame == (10, 10)
