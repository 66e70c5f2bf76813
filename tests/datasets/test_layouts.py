"""Folders as tools leave them: which are read, and what is said of the rest."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from made_datasets import (
    BOXES,
    ONE,
    PICTURES,
    TWO,
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
from engines.errors import DatasetError

Make = Callable[[Path], object]


def _flat_yolo(root: Path) -> None:
    make_yolo(root, "", "")


def _cvat_yolo(root: Path) -> None:
    make_yolo(root, "obj_train_data", "obj_train_data", "obj.names")
    text(root / "obj.data", "classes = 2\ntrain = data/train.txt\nnames = data/obj.names\nbackup = backup/\n")
    text(root / "train.txt", "data/obj_train_data/a.png\ndata/obj_train_data/b.png\n")


def _darknet(root: Path) -> None:
    for split, name in (("train", "a"), ("valid", "b")):
        picture(root / split / f"{name}.png")
        text(root / split / f"{name}.txt", yolo_lines(PICTURES[f"{name}.png"]))
        text(root / split / "_darknet.labels", "cat\ndog\n")


def _ultralytics_of_cvat(root: Path) -> None:
    make_yolo(root, "images/train", "labels/train", None)
    text(root / "data.yaml", "path: .\ntrain: train.txt\nnames:\n  0: cat\n  1: dog\n")
    text(root / "train.txt", "data/images/train/a.png\ndata/images/train/b.png\n")


def _label_studio_yolo(root: Path) -> None:
    make_yolo(root)
    text(root / "notes.json", '{"categories": [{"id": 0, "name": "cat"}, {"id": 1, "name": "dog"}]}')


def _fiftyone_yolo(root: Path) -> None:
    make_yolo(root, "data", "data", "obj.names")
    text(root / "images.txt", "data/a.png\ndata/b.png\n")


def _nested_voc(root: Path) -> None:
    for folder, name in (("day", "a"), ("night", "b")):
        picture(root / "JPEGImages" / folder / f"{name}.png")
        text(root / "Annotations" / folder / f"{name}.xml", voc_xml(f"{name}.png", PICTURES[f"{name}.png"]))


def _partly_nested_voc(root: Path) -> None:
    make_voc(root)
    (root / "Annotations" / "checked").mkdir()
    (root / "Annotations" / "b.xml").rename(root / "Annotations" / "checked" / "b.xml")


def _voc_in_splits(root: Path) -> None:
    for split, name in (("train", "a"), ("test", "b")):
        picture(root / split / "images" / f"{name}.png")
        text(root / split / "annotations" / f"{name}.xml", voc_xml(f"{name}.png", PICTURES[f"{name}.png"]))


def _roboflow_coco(root: Path) -> None:
    make_coco(root / "train")
    (root / "train" / "annotations" / "instances.json").rename(root / "train" / "_annotations.coco.json")
    for name in PICTURES:
        (root / "train" / "images" / name).rename(root / "train" / name)


def _open_images(root: Path) -> None:
    rows = ["ImageID,Source,LabelName,Confidence,XMin,XMax,YMin,YMax,IsGroupOf"]
    for name, objects in PICTURES.items():
        picture(root / "train" / name)
        for label, (x0, y0, x1, y1) in objects:
            rows.append(f"{name[:-4]},xclick,/m/{label},1,{x0 / 64},{x1 / 64},{y0 / 48},{y1 / 48},0")
    text(root / "train-annotations-bbox.csv", "\n".join(rows))
    text(root / "class-descriptions-boxable.csv", "/m/cat,cat\n/m/dog,dog\n/m/cow,cow\n")


def _tensorflow_csv(root: Path) -> None:
    rows = ["filename,width,height,class,xmin,ymin,xmax,ymax"]
    for name, objects in PICTURES.items():
        picture(root / name)
        rows += [f"{name},64,48,{label},{x0},{y0},{x1},{y1}" for label, (x0, y0, x1, y1) in objects]
    text(root / "_annotations.csv", "\n".join(rows))


def _cvat_images(root: Path) -> None:
    parts = []
    for name, objects in PICTURES.items():
        picture(root / "images" / name)
        shapes = "".join(
            f'<box label="{label}" xtl="{x0}" ytl="{y0}" xbr="{x1}" ybr="{y1}" occluded="0"/>'
            if label == "cat"
            else f'<polygon label="{label}" points="{x0},{y0};{x1},{y0};{x1},{y1}"/>'
            for label, (x0, y0, x1, y1) in objects
        )
        parts.append(f'<image name="{name}" width="64" height="48">{shapes}<tag label="dog"/></image>')
    text(root / "annotations.xml", f"<?xml version='1.0'?><annotations>{''.join(parts)}</annotations>")


def _labelme(root: Path) -> None:
    for name, objects in PICTURES.items():
        picture(root / name)
        shapes = [
            {"label": label, "points": [[x0, y0], [x1, y1]], "shape_type": "rectangle"}
            for label, (x0, y0, x1, y1) in objects
        ]
        shapes.append({"label": "dog", "points": [[3, 3]], "shape_type": "point"})
        content = {"shapes": shapes, "imagePath": f"..\\pics\\{name}", "imageData": None, "imageWidth": 64}
        write_coco_file(root / f"{name[:-4]}.json", content)


LAYOUTS: dict[str, Make] = {
    "coco": make_coco,
    "coco of roboflow": _roboflow_coco,
    "coco in Annotations": lambda root: make_coco(root) and (root / "annotations").rename(root / "Annotations"),
    "coco one folder too high": lambda root: make_coco(root / "blood-cells-1"),
    "coco two folders too high": lambda root: make_coco(root / "download" / "set"),
    "voc": make_voc,
    "voc of fiftyone": lambda root: make_voc(root, "labels", "data"),
    "voc in annotations/xmls": lambda root: make_voc(root, "annotations/xmls", "images"),
    "voc in Annotation beside pics": lambda root: make_voc(root, "Annotation", "pics"),
    "voc beside the images": lambda root: make_voc(root, "", ""),
    "voc in folders of Annotations": _nested_voc,
    "voc partly in a folder": _partly_nested_voc,
    "voc in split folders": _voc_in_splits,
    "VOCdevkit": lambda root: make_voc(root / "VOCdevkit" / "VOC2007", "Annotations", "JPEGImages"),
    "yolo": make_yolo,
    "yolo in Images and Labels": lambda root: make_yolo(root, "Images", "Labels"),
    "yolo in IMAGES and labels": lambda root: make_yolo(root, "IMAGES", "labels"),
    "yolo of labelImg": _flat_yolo,
    "yolo of labelImg, one folder too high": lambda root: _flat_yolo(root / "mine"),
    "yolo 1.1 of CVAT": _cvat_yolo,
    "yolo with labels in a folder more": lambda root: make_yolo(root, "images", "labels/train"),
    "yolo with images in a folder more": lambda root: make_yolo(root, "images/all", "labels"),
    "yolo with labels in folders of images": lambda root: make_yolo(root, "set", "set/labels"),
    "yolo of Darknet": _darknet,
    "yolo of CVAT for ultralytics": _ultralytics_of_cvat,
    "yolo of Label Studio": _label_studio_yolo,
    "yolo of fiftyone": _fiftyone_yolo,
    "Open Images": _open_images,
    "csv of TensorFlow": _tensorflow_csv,
    "CVAT for images": _cvat_images,
    "labelme": _labelme,
}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_layouts_of_common_tools_are_read_whole(tmp_path: Path, layout: str) -> None:
    LAYOUTS[layout](tmp_path)
    dataset = read_whole(tmp_path)
    assert dataset.class_names == ("cat", "dog")
    assert (dataset.dropped, dataset.skipped) == ((), ())


JUNK = (
    "Annotations/._a.xml", "labels/._a.txt", "images/._a.png", ".DS_Store", "__MACOSX/images/a.png",
    "images/.ipynb_checkpoints/a-checkpoint.png", "labels/.ipynb_checkpoints/a-checkpoint.txt",
    "labels/README.txt", "labels/classes.txt.bak", "images/Thumbs.db", "labels.cache", "README.roboflow.txt",
    "@eaDir/a.png/SYNOPHOTO_THUMB_M.jpg", "desktop.ini",
)  # fmt: skip


@pytest.mark.parametrize("make", [make_coco, make_voc, make_yolo])
def test_what_systems_and_tools_leave_behind_is_passed_over(tmp_path: Path, make: Make) -> None:
    make(tmp_path)
    for name in JUNK:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(b"\0\5\26\7Mac OS X: no labels in this one")
    read_whole(tmp_path)


def test_part_of_the_annotations_in_a_folder_is_not_lost_and_what_is_left_out_is_said(tmp_path: Path) -> None:
    _partly_nested_voc(tmp_path)
    picture(tmp_path / "JPEGImages" / "c.png")
    dataset = open_dataset(tmp_path)
    assert sum(len(record.instances) for record in dataset.records) == BOXES
    assert any(line.startswith("1 images have no XML file") for line in dataset.remarks)


def test_images_without_a_label_file_are_counted(tmp_path: Path) -> None:
    make_yolo(tmp_path)
    picture(tmp_path / "images" / "c.png")
    assert any(line.startswith("1 of 3 images have no label file") for line in open_dataset(tmp_path).remarks)


@pytest.mark.parametrize("form", ["images/{}", "{}/images"])
def test_a_split_that_nobody_labelled_is_no_split_of_empty_images(tmp_path: Path, form: str) -> None:
    make_yolo(tmp_path, form.format("train"), form.format("train").replace("images", "labels"))
    for name in ("c", "d"):
        picture(tmp_path / form.format("test") / f"{name}.png")
    assert any("test" in line for line in read_whole(tmp_path).remarks)
    alone = open_dataset(tmp_path, split="test", require_boxes=False)
    assert sorted(record.file.name for record in alone.records) == ["c.png", "d.png"]


def test_images_beside_the_folders_that_settings_name_are_said_to_be_left_out(tmp_path: Path) -> None:
    make_yolo(tmp_path, "images/train", "labels/train", None)
    text(tmp_path / "data.yaml", "train: images/train\nnames: [cat, dog]\n")
    picture(tmp_path / "more" / "z.png")
    assert any("more/z.png" in line for line in read_whole(tmp_path).remarks)


def test_label_files_are_known_behind_many_empty_ones(tmp_path: Path) -> None:
    _flat_yolo(tmp_path)
    for index in range(30):
        picture(tmp_path / f"0{index}.png")
        text(tmp_path / f"0{index}.txt", "")
    dataset = open_dataset(tmp_path)
    assert (len(dataset.records), dataset.class_names) == (32, ("cat", "dog"))


def test_label_files_that_numpy_wrote_are_known(tmp_path: Path) -> None:
    _flat_yolo(tmp_path)
    for name in ("a.txt", "b.txt"):
        np.savetxt(tmp_path / name, np.loadtxt(tmp_path / name))
    read_whole(tmp_path)


@pytest.mark.parametrize("between", [";", "\t"])
@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16"])
def test_tables_that_a_spreadsheet_saved_are_read(tmp_path: Path, between: str, encoding: str) -> None:
    _tensorflow_csv(tmp_path)
    table = tmp_path / "_annotations.csv"
    table.write_bytes(table.read_text().replace(",", between).replace("\n", "\r\n").encode(encoding))
    read_whole(tmp_path)


def test_a_row_of_an_image_alone_says_that_it_has_no_objects(tmp_path: Path) -> None:
    _tensorflow_csv(tmp_path)
    picture(tmp_path / "c.png")
    table = tmp_path / "_annotations.csv"
    text(table, table.read_text() + "\nc.png,64,48,,,,,")
    assert len(open_dataset(tmp_path).records) == 3


@pytest.mark.parametrize("yes", ["1", "True", "1.0"])
def test_groups_of_open_images_are_crowds_however_pandas_wrote_them(tmp_path: Path, yes: str) -> None:
    _open_images(tmp_path)
    table = tmp_path / "train-annotations-bbox.csv"
    head, first, *others = table.read_text().splitlines()
    text(table, "\n".join([head, first.removesuffix(",0") + f",{yes}", *others]))
    dataset = open_dataset(tmp_path)
    assert sum(int(record.instances.crowd.sum()) for record in dataset.records) == 1


def test_names_of_classes_come_from_the_table_of_the_seventh_open_images(tmp_path: Path) -> None:
    _open_images(tmp_path)
    older = tmp_path / "class-descriptions-boxable.csv"
    text(tmp_path / "oidv7-class-descriptions-boxable.csv", "LabelName,DisplayName\n" + older.read_text())
    older.unlink()
    assert read_whole(tmp_path).class_names == ("cat", "dog")


def _mask(x0: float, y0: float, x1: float, y1: float) -> str:
    return f'<mask label="{{}}" rle="1, 2" left="{x0}" top="{y0}" width="{x1 - x0}" height="{y1 - y0}"/>'


def _cuboid(x0: float, y0: float, x1: float, y1: float) -> str:
    sides = [
        f'x{name}{side}="{x if side == 1 else x1}" y{name}{side}="{y}"'
        for side in (1, 2)
        for name, x, y in (("tl", x0, y0), ("bl", x0, y1), ("tr", x0 + 3, y0), ("br", x0 + 3, y1))
    ]
    return f'<cuboid label="{{}}" {" ".join(sides)}/>'


@pytest.mark.parametrize("shape", [_mask, _cuboid])
def test_masks_and_cuboids_of_cvat_become_the_boxes_round_them(tmp_path: Path, shape: Callable[..., str]) -> None:
    _cvat_images(tmp_path)
    images = (
        f'<image name="{name}">{"".join(shape(*box).format(label) for label, box in objects)}</image>'
        for name, objects in PICTURES.items()
    )
    text(tmp_path / "annotations.xml", f"<annotations>{''.join(images)}</annotations>")
    read_whole(tmp_path)


def _change_labelme(root: Path, change: Callable[[dict[str, Any]], object]) -> None:
    for file in root.glob("*.json"):
        content = json.loads(file.read_text())
        change(content)
        write_coco_file(file, content)


def _as_masks(content: dict[str, Any]) -> None:
    for shape in content["shapes"][:-1]:
        (x0, y0), (x1, y1) = shape["points"]
        shape.update(points=[[x0, y0], [x1 - 1, y1 - 1]], shape_type="mask", mask="iVBORw0K")


def _in_parts(content: dict[str, Any]) -> None:
    shapes = []
    for group, shape in enumerate(content["shapes"][:-1]):
        (x0, y0), (x1, y1) = shape["points"]
        for points in ([[x0, y0], [x0 + 2, y0], [x0 + 2, y1]], [[x1 - 2, y0], [x1, y0], [x1, y1]]):
            shapes.append({**shape, "points": points, "shape_type": "polygon", "group_id": group})
    content["shapes"] = shapes


def _renamed(content: dict[str, Any]) -> None:
    content["imagePath"] = "IMG_0001.png"


@pytest.mark.parametrize("change", [_as_masks, _in_parts, _renamed])
def test_shapes_of_labelme_are_one_box_an_object(tmp_path: Path, change: Callable[[dict[str, Any]], object]) -> None:
    _labelme(tmp_path)
    _change_labelme(tmp_path, change)
    read_whole(tmp_path)


def test_labelme_is_known_behind_many_other_json_files(tmp_path: Path) -> None:
    _labelme(tmp_path)
    for index in range(30):
        text(tmp_path / f"0{index}.json", "{}")
    read_whole(tmp_path)


def test_a_shape_of_labelme_without_a_label_is_no_class(tmp_path: Path) -> None:
    _labelme(tmp_path)
    _change_labelme(tmp_path, lambda content: content["shapes"][0].update(label=None))
    with refused(DatasetError, None, "a.json, shapes[0].label"):
        open_dataset(tmp_path)
    assert open_dataset(tmp_path, skip_bad=True).class_names == ("cat", "dog")


def test_several_datasets_below_are_named(tmp_path: Path) -> None:
    make_coco(tmp_path / "first")
    make_voc(tmp_path / "second")
    make_yolo(tmp_path / "third")
    with refused(DatasetError, None, "first", "second", "third"):
        open_dataset(tmp_path, require_boxes=False)


def test_a_split_among_several_datasets_below_is_taken(tmp_path: Path) -> None:
    make_voc(tmp_path / "sets" / "train", "Annotations", "JPEGImages")
    make_voc(tmp_path / "sets" / "val", "Annotations", "JPEGImages")
    read_whole(tmp_path, split="train")


@pytest.mark.parametrize("folders", ["train val", "set/train set/valid", "train2017 val2017"])
def test_a_split_that_is_a_dataset_below_is_taken_beside_those_of_the_others(tmp_path: Path, folders: str) -> None:
    for folder in folders.split():
        make_coco(tmp_path / folder)
    read_whole(tmp_path, split="val")


def test_images_beside_a_dataset_below_are_not_read_without_it(tmp_path: Path) -> None:
    make_coco(tmp_path / "set")
    picture(tmp_path / "other" / "c.png")
    with refused(DatasetError, None, "/set"):
        open_dataset(tmp_path, require_boxes=False)


UNKNOWN = {
    "via.json": ('{"_via_settings": {}}', "1 .json"),
    "createml.json": ('[{"image": "a.png", "annotations": []}]', "1 .json"),
    "annotations.json": ('{"images": [], "annotations": []}', "COCO but for categories"),
    "boxes.csv": ("path,x1,y1,x2,y2,label\na.png,1,2,3,4,cat\n", "whose columns are path,x1"),
    "a.txt": ("a photo of a cat\n", "whose lines are not YOLO's"),
    "boxes.xml": ("<dataset><images/></dataset>", "<dataset>"),
}


@pytest.mark.parametrize("name", UNKNOWN)
def test_a_layout_that_is_not_known_is_counted_and_the_nearest_is_named(tmp_path: Path, name: str) -> None:
    content, said = UNKNOWN[name]
    picture(tmp_path / "a.png")
    text(tmp_path / name, content)
    dataset = open_dataset(tmp_path, require_boxes=False)
    assert len(dataset.records) == 1
    (remark,) = dataset.remarks
    assert said in remark
    assert "passed over" in remark
    with pytest.raises(DatasetError, match="passed over"):
        open_dataset(tmp_path)


def test_images_alone_are_no_remark(tmp_path: Path) -> None:
    picture(tmp_path / "a.png")
    text(tmp_path / "README.md", "pictures")
    text(tmp_path / "LICENSE.txt", "yours")
    assert open_dataset(tmp_path, require_boxes=False).remarks == ()


def test_cvat_subsets_are_splits_and_videos_are_refused(tmp_path: Path) -> None:
    for name in PICTURES:
        picture(tmp_path / "images" / name)
    text(
        tmp_path / "annotations.xml",
        '<annotations><image name="a.png" subset="Train"><box label="cat" xtl="1" ytl="2" xbr="9" ybr="9"/></image>'
        '<image name="b.png" subset="Val"/></annotations>',
    )
    assert [record.name for record in open_dataset(tmp_path, split="train").records] == ["a.png"]
    text(tmp_path / "annotations.xml", "<annotations><track id='0' label='cat'/></annotations>")
    with refused(DatasetError, None, "annotations.xml"):
        open_dataset(tmp_path)


def test_imagesets_name_images_with_suffixes_folders_and_memberships(tmp_path: Path) -> None:
    make_voc(tmp_path)
    main = tmp_path / "ImageSets" / "Main"
    lists = {"train": "a.png\n", "val": "JPEGImages/b.png\n", "cats": "a  1\nb -1\n", "test": "D:\\x\\b.jpg\r\n"}
    for name, lines in lists.items():
        text(main / f"{name}.txt", lines)
    read_whole(tmp_path, {"a.png": ONE}, split="train")
    read_whole(tmp_path, {"b.png": TWO}, split="val")
    read_whole(tmp_path, {"b.png": TWO}, split="test")
    read_whole(tmp_path, split="cats")


def test_the_split_is_the_list_of_detection_where_other_tasks_have_shorter_ones(tmp_path: Path) -> None:
    make_voc(tmp_path)
    for task, lines in (("Action", "a 1\n"), ("Main", "a\nb\n"), ("Segmentation", "a\n")):
        text(tmp_path / "ImageSets" / task / "train.txt", lines)
    read_whole(tmp_path, split="train")


def test_splits_are_known_whatever_their_case(tmp_path: Path) -> None:
    make_voc(tmp_path / "voc")
    text(tmp_path / "voc" / "ImageSets" / "Main" / "Train.txt", "a\nb\n")
    read_whole(tmp_path / "voc", split="train")
    make_coco(tmp_path / "coco")
    file = tmp_path / "coco" / "annotations" / "instances.json"
    text(file.with_name("instances_Val.json"), file.read_text())
    file.rename(file.with_name("instances_Train.json"))
    read_whole(tmp_path / "coco", split="val")


def test_a_number_at_the_end_of_a_listed_name_is_part_of_it_where_such_a_file_is_there(tmp_path: Path) -> None:
    named = {"photo.png": ONE, "photo 1.png": TWO}
    for name, objects in named.items():
        picture(tmp_path / "JPEGImages" / name)
        text(tmp_path / "Annotations" / f"{name[:-4]}.xml", voc_xml(name, objects))
    text(tmp_path / "ImageSets" / "Main" / "train.txt", "photo\nphoto 1\n")
    read_whole(tmp_path, named, split="train")


def test_a_comment_before_the_first_element_hides_no_xml(tmp_path: Path) -> None:
    make_voc(tmp_path)
    for file in (tmp_path / "Annotations").iterdir():
        text(file, f"<?xml version='1.0'?>\n<!-- <image> by a tool -->\n{file.read_text()}")
    read_whole(tmp_path)


def test_other_suffixes_of_images_are_images(tmp_path: Path) -> None:
    make_yolo(tmp_path)
    for suffix in (".jfif", ".gif", ".jpe", ".JPG", ".webp", ".ppm"):
        name = f"x{suffix[1:]}"
        made = picture(tmp_path / "tmp" / f"x{'.jpg' if suffix in ('.jfif', '.jpe') else suffix.lower()}")
        made.rename(tmp_path / "images" / f"{name}{suffix}")
        text(tmp_path / "labels" / f"{name}.txt", yolo_lines(ONE))
    (tmp_path / "tmp").rmdir()
    assert len(open_dataset(tmp_path).records) == 8


def test_a_coco_file_beside_a_folder_of_labels_is_read_first(tmp_path: Path) -> None:
    make_yolo(tmp_path)
    write_coco_file(tmp_path / "result.json", coco_content())
    assert open_dataset(tmp_path).source == "COCO, result.json"
