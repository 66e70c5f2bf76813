"""File names of other machines, and links: what is found, what is said, and what is never read."""

import os
import unicodedata
from collections.abc import Callable
from pathlib import Path

import pytest
from made_datasets import (
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
)
from refusals import refused

from engines.datasets.dataset import list_images, open_dataset, open_images
from engines.datasets.paths import parts_of
from engines.errors import DatasetError

FOREIGN = [
    "images\\{}",
    "..\\images\\{}",
    "../../upload/4/{}",
    "/home/someone/data/images/{}",
    "D:\\data\\set\\images\\{}",
    "d:/data/{}",
    "\\\\server\\share\\{}",
    "file:///home/me/images/{}",
    "http://images.cocodataset.org/train2017/{}",
    "https://label.example.org/data/upload/1/{}?token=1",
    "/data/local-files/?d={}",
    "http://localhost:8080/data/local-files/?d=some%5Cimages%5C{}",
    "./images/{}",
    "other/folder/{}",
    "my%20images/{}",
]


@pytest.mark.parametrize("form", ["coco", "voc", "yolo"])
@pytest.mark.parametrize("name", FOREIGN)
def test_names_of_another_machine_are_found_by_their_end(tmp_path: Path, name: str, form: str) -> None:
    if form == "coco":
        pictures = {name.format(file): objects for file, objects in PICTURES.items()}
        make_coco(tmp_path, coco_content(pictures))
    elif form == "voc":
        make_voc(tmp_path)
        for file, objects in PICTURES.items():
            text(tmp_path / "Annotations" / f"{file[:-4]}.xml", voc_xml(name.format(file), objects))
    else:
        make_yolo(tmp_path, names=None)
        text(tmp_path / "data.yaml", "train: train.txt\nnames: [cat, dog]\n")
        text(tmp_path / "train.txt", "\n".join(name.format(file) for file in PICTURES))
    dataset = read_whole(tmp_path)
    foreign = parts_of(name.format("a.png"))[1]
    if form != "voc":  # there, the file's own name agrees
        assert any("another machine" in line for line in dataset.remarks) == foreign


def test_absolute_names_of_this_very_folder_are_read(tmp_path: Path) -> None:
    pictures = {str(tmp_path / "images" / file): objects for file, objects in PICTURES.items()}
    make_coco(tmp_path, coco_content(pictures), PICTURES)
    read_whole(tmp_path)


@pytest.mark.parametrize("name", ["../../secret/a.png", "{}/secret/a.png", "images/../../secret/a.png"])
def test_nothing_outside_the_folder_is_read_though_it_is_there(tmp_path: Path, name: str) -> None:
    picture(tmp_path / "secret" / "a.png", size=(9, 9))
    root = make_coco(tmp_path / "data" / "set", coco_content({name.format(tmp_path): ONE}), {})
    picture(root / "images" / "b.png")
    with refused(DatasetError, None, "images[0].file_name"):
        open_dataset(root)


@pytest.mark.parametrize("form", ["NFD on disk", "NFC on disk"])
def test_names_with_accents_are_found_in_either_form(tmp_path: Path, form: str) -> None:
    name = "Präparat_세포.png"
    there, written = (unicodedata.normalize(one, name) for one in (("NFD", "NFC") if "NFD" in form else ("NFC", "NFD")))
    picture(tmp_path / "images" / there)
    write_coco_file(tmp_path / "a.json", coco_content({written: ONE}))
    assert len(open_dataset(tmp_path).records[0].instances) == len(ONE)
    picture(tmp_path / "flat" / there)
    (tmp_path / "a.json").unlink()
    text(tmp_path / "flat" / f"{Path(written).stem}.xml", voc_xml(written, ONE))
    (tmp_path / "images" / there).unlink()
    assert len(open_dataset(tmp_path).records[0].instances) == len(ONE)


def test_label_files_are_found_whatever_form_their_accents_have(tmp_path: Path) -> None:
    make_yolo(tmp_path)
    picture(tmp_path / "images" / (unicodedata.normalize("NFD", "é") + ".png"))
    text(tmp_path / "labels" / "é.txt", "0 0.5 0.5 0.1 0.1\n")
    assert sum(len(record.instances) for record in open_dataset(tmp_path).records) == 7


@pytest.mark.parametrize("suffix", [".PNG", ".Png", ".jpg", ".jpeg"])
def test_suffixes_of_another_case_or_kind_are_found_and_remarked(tmp_path: Path, suffix: str) -> None:
    make_coco(tmp_path, coco_content({f"{name[:-4]}{suffix}": objects for name, objects in PICTURES.items()}), PICTURES)
    assert len(read_whole(tmp_path).remarks) == 1


def test_parts_of_names() -> None:
    assert parts_of("a/b.png") == (["a", "b.png"], False)
    assert parts_of("./a/../b.png") == (["b.png"], False)
    assert parts_of("../b.png") == (["b.png"], True)
    assert parts_of("C:\\a\\b.png") == (["a", "b.png"], True)
    assert parts_of("s3://bucket/a%20b.png") == (["a b.png"], True)
    assert parts_of("  ") == ([], False)


def make_cache(tmp_path: Path) -> Path:
    """A dataset in a Hugging Face cache: its files are links to blobs."""
    make_coco(tmp_path / "made")
    root = tmp_path / "datasets--x" / "snapshots" / "0f1e2d3c"
    (tmp_path / "datasets--x" / "blobs").mkdir(parents=True)
    for number, file in enumerate(sorted(path for path in (tmp_path / "made").rglob("*") if path.is_file())):
        blob = tmp_path / "datasets--x" / "blobs" / f"{number:064x}"
        link = root / file.relative_to(tmp_path / "made")
        link.parent.mkdir(parents=True, exist_ok=True)
        file.rename(blob)
        link.symlink_to(os.path.relpath(blob, link.parent))
    return root


def test_links_into_the_cache_that_the_dataset_lies_in_are_followed(tmp_path: Path) -> None:
    assert read_whole(make_cache(tmp_path)).remarks == ()


def test_links_that_were_copied_as_text_are_followed_too(tmp_path: Path) -> None:
    root = make_cache(tmp_path)
    for link in [path for path in root.rglob("*") if path.is_symlink()]:
        target = os.readlink(link)
        link.unlink()
        link.write_text(target)
    read_whole(root)


def test_text_that_leads_elsewhere_is_no_link(tmp_path: Path) -> None:
    root = make_cache(tmp_path)
    picture(tmp_path / "secret.png")
    link = root / "images" / "a.png"
    link.unlink()
    link.write_text("../../../../secret.png")
    with refused(DatasetError, None, "images[0]"):
        open_dataset(root)


def make_linked(tmp_path: Path, form: str) -> Path:
    """A dataset one of whose images is a link out of it."""
    root = tmp_path / "set"
    makers: dict[str, Callable[[Path], object]] = {"coco": make_coco, "voc": make_voc, "yolo": make_yolo}
    if form == "plain":
        picture(root / "a.png")
    else:
        makers[form](root)
    image = next(path for path in root.rglob("a.png"))
    image.rename(tmp_path / "a.png")
    image.symlink_to(tmp_path / "a.png")
    return root


@pytest.mark.parametrize("form", ["coco", "voc", "yolo"])
def test_links_that_lead_outside_are_named_in_every_format_and_read_when_asked_for(tmp_path: Path, form: str) -> None:
    root = make_linked(tmp_path, form)
    with pytest.raises(DatasetError, match=r"a\.png.*leads outside.*`follow_links`"):
        open_dataset(root)
    dataset = open_dataset(root, skip_bad=True)
    assert len(dataset.records) == 1
    assert any("links lead outside" in line for line in dataset.remarks)
    read_whole(root, follow_links=True)


def test_links_among_images_alone_are_named(tmp_path: Path) -> None:
    root = make_linked(tmp_path, "plain")
    picture(root / "b.png")
    reads: list[Callable[[], object]] = [
        lambda: open_dataset(root, require_boxes=False),
        lambda: open_images(root),
        lambda: list_images(root),
    ]
    for read in reads:
        with refused(DatasetError, "follow_links", "a.png"):
            read()
    assert len(open_images(root, follow_links=True).records) == len(list_images(root, follow_links=True)) == 2


def test_a_linked_folder_of_images_is_named_and_read_when_asked_for(tmp_path: Path) -> None:
    root = make_coco(tmp_path / "set")
    (root / "images").rename(tmp_path / "elsewhere")
    (root / "images").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(DatasetError, match="leads outside"):
        open_dataset(root)
    read_whole(root, follow_links=True)


def test_a_linked_folder_of_yolo_images_is_named(tmp_path: Path) -> None:
    root = make_yolo(tmp_path / "set", names=None)
    text(root / "data.yaml", "train: images\nnames: [cat, dog]\n")
    (root / "images").rename(tmp_path / "elsewhere")
    (root / "images").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(DatasetError, match="`follow_links`"):
        open_dataset(root)
    read_whole(root, follow_links=True)


def test_a_linked_annotation_file_is_named(tmp_path: Path) -> None:
    root = make_coco(tmp_path / "set")
    (root / "annotations" / "instances.json").rename(tmp_path / "a.json")
    (root / "annotations" / "instances.json").symlink_to(tmp_path / "a.json")
    dataset = open_dataset(root, require_boxes=False)
    assert any("`follow_links`" in line for line in dataset.remarks)
    read_whole(root, follow_links=True)


def test_links_inside_and_in_circles_do_no_harm(tmp_path: Path) -> None:
    root = make_yolo(tmp_path / "set")
    (root / "images" / "again").symlink_to(root / "images")
    (root / "loop").symlink_to(root)
    (root / "nowhere.png").symlink_to(root / "missing.png")
    (root / "self").symlink_to("self")
    read_whole(root)
    assert len(list_images(root)) == 2


def test_a_folder_that_is_reached_by_a_link_is_read(tmp_path: Path) -> None:
    make_coco(tmp_path / "set")
    (tmp_path / "link").symlink_to(tmp_path / "set")
    read_whole(tmp_path / "link")


def test_lvis_names_images_by_their_address(tmp_path: Path) -> None:
    content = coco_content()
    for image in content["images"]:
        image["coco_url"] = f"http://images.cocodataset.org/val2017/{image.pop('file_name')}"
    make_coco(tmp_path, content)
    read_whole(tmp_path)


def test_names_are_those_of_the_folder_of_images(tmp_path: Path) -> None:
    dataset = open_dataset(make_coco(tmp_path))
    assert [record.name for record in dataset.records] == ["a.png", "b.png"]
    spread = {"train/a.png": ONE, "val/b.png": TWO}
    make_coco(tmp_path / "second", coco_content(spread), spread)
    assert [record.name for record in open_dataset(tmp_path / "second").records] == ["train/a.png", "val/b.png"]
