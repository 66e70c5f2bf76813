"""The few boxes of `made_datasets` in the folders that common tools leave, by the name of the layout."""

from collections.abc import Callable
from pathlib import Path

from made_datasets import PICTURES, make_coco, make_voc, make_yolo, picture, text, voc_xml, write_coco_file, yolo_lines

Make = Callable[[Path], object]


def make_flat_yolo(root: Path) -> None:
    """Label files beside their pictures."""
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


def make_partly_nested_voc(root: Path) -> None:
    """One XML file of two lies in a folder more."""
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


def make_open_images(root: Path) -> None:
    """Tables of boxes and of class names."""
    rows = ["ImageID,Source,LabelName,Confidence,XMin,XMax,YMin,YMax,IsGroupOf"]
    for name, objects in PICTURES.items():
        picture(root / "train" / name)
        for label, (x0, y0, x1, y1) in objects:
            rows.append(f"{name[:-4]},xclick,/m/{label},1,{x0 / 64},{x1 / 64},{y0 / 48},{y1 / 48},0")
    text(root / "train-annotations-bbox.csv", "\n".join(rows))
    text(root / "class-descriptions-boxable.csv", "/m/cat,cat\n/m/dog,dog\n/m/cow,cow\n")


def make_tensorflow_csv(root: Path) -> None:
    """One table of corners in pixels."""
    rows = ["filename,width,height,class,xmin,ymin,xmax,ymax"]
    for name, objects in PICTURES.items():
        picture(root / name)
        rows += [f"{name},64,48,{label},{x0},{y0},{x1},{y1}" for label, (x0, y0, x1, y1) in objects]
    text(root / "_annotations.csv", "\n".join(rows))


def make_cvat_images(root: Path) -> None:
    """One XML file: cats are boxes, dogs polygons; a tag is no object."""
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


def make_labelme(root: Path) -> None:
    """A JSON file an image: rectangles, and a point, which is no box."""
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
    "voc partly in a folder": make_partly_nested_voc,
    "voc in split folders": _voc_in_splits,
    "VOCdevkit": lambda root: make_voc(root / "VOCdevkit" / "VOC2007", "Annotations", "JPEGImages"),
    "yolo": make_yolo,
    "yolo in Images and Labels": lambda root: make_yolo(root, "Images", "Labels"),
    "yolo in IMAGES and labels": lambda root: make_yolo(root, "IMAGES", "labels"),
    "yolo of labelImg": make_flat_yolo,
    "yolo of labelImg, one folder too high": lambda root: make_flat_yolo(root / "mine"),
    "yolo 1.1 of CVAT": _cvat_yolo,
    "yolo with labels in a folder more": lambda root: make_yolo(root, "images", "labels/train"),
    "yolo with images in a folder more": lambda root: make_yolo(root, "images/all", "labels"),
    "yolo with labels in folders of images": lambda root: make_yolo(root, "set", "set/labels"),
    "yolo of Darknet": _darknet,
    "yolo of CVAT for ultralytics": _ultralytics_of_cvat,
    "yolo of Label Studio": _label_studio_yolo,
    "yolo of fiftyone": _fiftyone_yolo,
    "Open Images": make_open_images,
    "csv of TensorFlow": make_tensorflow_csv,
    "CVAT for images": make_cvat_images,
    "labelme": make_labelme,
}
