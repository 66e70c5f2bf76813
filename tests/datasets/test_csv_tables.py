"""Tables of boxes, of TensorFlow and Open Images: as spreadsheets and pandas save them, with crowds and names."""

from pathlib import Path

import pytest
from made_datasets import picture, read_whole, text
from made_layouts import make_open_images, make_tensorflow_csv
from refusals import refused

from engines.datasets.dataset import open_dataset
from engines.errors import DatasetError


@pytest.mark.parametrize("between", [";", "\t"])
@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16"])
def test_tables_that_a_spreadsheet_saved_are_read(tmp_path: Path, between: str, encoding: str) -> None:
    make_tensorflow_csv(tmp_path)
    table = tmp_path / "_annotations.csv"
    table.write_bytes(table.read_text().replace(",", between).replace("\n", "\r\n").encode(encoding))
    read_whole(tmp_path)


def test_a_row_of_an_image_alone_says_that_it_has_no_objects(tmp_path: Path) -> None:
    make_tensorflow_csv(tmp_path)
    picture(tmp_path / "c.png")
    table = tmp_path / "_annotations.csv"
    text(table, table.read_text() + "\nc.png,64,48,,,,,")
    assert len(open_dataset(tmp_path).records) == 3


@pytest.mark.parametrize("yes", ["1", "True", "1.0"])
def test_groups_of_open_images_are_crowds_however_pandas_wrote_them(tmp_path: Path, yes: str) -> None:
    make_open_images(tmp_path)
    table = tmp_path / "train-annotations-bbox.csv"
    head, first, *others = table.read_text().splitlines()
    text(table, "\n".join([head, first.removesuffix(",0") + f",{yes}", *others]))
    dataset = open_dataset(tmp_path)
    assert sum(int(record.instances.crowd.sum()) for record in dataset.records) == 1


def test_images_of_two_folders_are_not_joined_in_one_of_that_name(tmp_path: Path) -> None:
    picture(tmp_path / "images" / "1.png")
    head = "filename,width,height,class,xmin,ymin,xmax,ymax\n"
    table = text(tmp_path / "boxes.csv", f"{head}cam1/1.png,64,48,cat,4,6,20,30\ncam2/1.png,64,48,dog,40,20,62,46\n")
    with refused(DatasetError, None, "line 3", '"cam2/1.png"', '"cam1/1.png"'):
        open_dataset(tmp_path)
    text(table, f"{head}images/1.png,64,48,cat,4,6,20,30\n.\\1.png,64,48,dog,40,20,62,46\n1,64,48,cat,1,2,9,9\n")
    assert [len(record.instances) for record in open_dataset(tmp_path).records] == [3]


def test_names_of_classes_come_from_the_table_of_the_seventh_open_images(tmp_path: Path) -> None:
    make_open_images(tmp_path)
    older = tmp_path / "class-descriptions-boxable.csv"
    text(tmp_path / "oidv7-class-descriptions-boxable.csv", "LabelName,DisplayName\n" + older.read_text())
    older.unlink()
    assert read_whole(tmp_path).class_names == ("cat", "dog")


def test_classes_that_are_called_by_codes_are_remarked_on(tmp_path: Path) -> None:
    make_open_images(tmp_path)
    assert read_whole(tmp_path).remarks == ()
    (tmp_path / "class-descriptions-boxable.csv").unlink()
    dataset = open_dataset(tmp_path)
    assert dataset.class_names == ("/m/cat", "/m/dog")
    assert any("/m/cat" in line for line in dataset.remarks)
