"""Objects cut from pictures and pasted into others: which, where, and what can then be seen."""

from pathlib import Path

import numpy as np
import pytest
from made_objects import COLOURS, GROUND, NAMES, SIZE, make_objects
from refusals import refused

from engines.composing.composer import Composer, label_map
from engines.composing.given import Given
from engines.composing.paste import Cutter, compose
from engines.composing.plan import Paste
from engines.composing.stock import take_stock
from engines.datasets.dataset import Dataset, open_dataset
from engines.errors import DatasetError
from engines.labels.boxes import Instances, covered

WHOLE = (0.0, 0.0, float(SIZE[0]), float(SIZE[1]))


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    return open_dataset(make_objects(tmp_path_factory.mktemp("objects") / "data"))


def make_composer(data: Dataset, rotate: bool = False) -> Composer:
    return Composer(data.records, data.class_names, SIZE, SIZE[1], flip=True, rotate=rotate)


def test_what_touches_the_border_is_not_cut_and_rare_classes_come_more_often(data: Dataset) -> None:
    stock = take_stock(data.records, 3, SIZE, SIZE[1])
    assert len(stock.places) == 8
    assert (2, 3) not in set(zip(stock.records.tolist(), stock.places.tolist(), strict=True))
    assert np.allclose(stock.shares, np.sqrt([5, 2, 2]) / np.sqrt([5, 2, 2]).sum())
    assert stock.counts.tolist() == [2, 3, 4]


def test_objects_that_others_cover_and_crowds_are_not_cut(tmp_path: Path) -> None:
    covering = make_objects(tmp_path / "data", [((30, 30, 0), (38, 30, 0)), ((30, 30, 1), (70, 50, 2))], crowds=0)
    stock = take_stock(open_dataset(covering).records, 3, SIZE, SIZE[1])
    assert set(stock.records.tolist()) == {1}
    assert stock.without == (0,)
    crowds = open_dataset(make_objects(tmp_path / "crowds", [((30, 30, 0), (70, 50, 2))], crowds=1))
    assert take_stock(crowds.records, 3, SIZE, SIZE[1]).labels.tolist() == [2]


def test_draws_are_a_function_of_seed_and_index(data: Dataset) -> None:
    first, again = make_composer(data), make_composer(data)
    draws = [first.draw(7, index, index % 3, WHOLE, False) for index in range(40)]
    assert draws == [again.draw(7, index, index % 3, WHOLE, False) for index in reversed(range(40))][::-1]
    assert draws != [first.draw(8, index, index % 3, WHOLE, False) for index in range(40)]
    assert {paste.label for pastes in draws for paste in pastes} == {0, 1, 2}
    assert all(0.8 <= paste.scale <= 1.25 for pastes in draws for paste in pastes)
    assert {paste.turns for pastes in draws for paste in pastes} == {0}


def test_pasted_objects_are_whole_and_overlap_no_more_than_those_of_the_data(data: Dataset) -> None:
    """The discs of this data lie apart."""
    composer, labels = make_composer(data, rotate=True), (0, 1, 2)
    canvas = np.full((SIZE[1], SIZE[0], 3), GROUND, dtype=np.uint8)
    own = Instances.of(np.array([[10.0, 10.0, 50.0, 50.0]]), [0], np.ones(1))
    pasted = 0
    for index in range(60):
        stock_record = data.records[index % 3].instances
        pastes = composer.draw(0, index, index % 3, WHOLE, False)
        _, given = composer.compose(canvas, Given(own), pastes, labels)
        boxes = given.instances.boxes[1:]
        assert (boxes >= 0).all()
        assert (boxes <= [*SIZE, *SIZE]).all()
        assert len(given.pasted) == len(pastes)
        there = np.concatenate([stock_record.boxes.astype(np.float64), boxes])
        shares = covered(there, there)
        np.fill_diagonal(shares, 0.0)
        assert shares[len(stock_record) :].max(initial=0.0) < 0.08  # half a pixel of rounding on each side
        pasted += len(pastes)
    assert pasted > 40


@pytest.mark.parametrize(
    ("scale", "flip", "turns"), [(1.0, False, 0), (1.25, True, 0), (0.8, False, 1), (1.1, True, 3)]
)
def test_the_box_is_round_what_was_pasted_and_says_where_it_is_from(
    data: Dataset, scale: float, flip: bool, turns: int
) -> None:
    canvas = np.full((SIZE[1], SIZE[0], 3), (200, 190, 180), dtype=np.uint8)
    paste = Paste(record=0, place=1, label=1, scale=scale, flip=flip, turns=turns, x=40.4, y=30.7)
    cutter = Cutter(data.records)
    picture, given = compose(canvas, Instances.none(), [paste], data.records, cutter, (4, 5, 6))
    assert given.instances.labels.tolist() == [5]
    assert given.pasted[0].reference == "0.png"
    assert given.pasted[0].annotation == 1
    assert given.pasted[0].box == (49.0, 39.0, 71.0, 61.0)
    x0, y0, x1, y1 = given.instances.boxes[0]
    assert abs(x1 - x0 - 22 * scale) < 1.0
    assert abs(x0 - 40.4) <= 0.51
    changed = np.abs(picture.astype(int) - canvas).sum(axis=2) > 120
    rows, columns = np.flatnonzero(changed.any(axis=1)), np.flatnonzero(changed.any(axis=0))
    seen = np.array([columns[0], rows[0], columns[-1] + 1, rows[-1] + 1])
    assert np.abs(seen - [x0, y0, x1, y1]).max() <= 1.5
    assert (cutter.done, cutter.ellipses, cutter.nothing) == (1, 0, 0)


def test_colours_follow_the_background_and_no_edge_of_the_box_is_seen(data: Dataset) -> None:
    darker = np.array(GROUND) - 30
    canvas = np.full((SIZE[1], SIZE[0], 3), darker, dtype=np.uint8)
    paste = Paste(record=0, place=1, label=1, scale=1.0, flip=False, turns=0, x=30.0, y=30.0)
    picture, _ = compose(canvas, Instances.none(), [paste], data.records, Cutter(data.records), (0, 1, 2))
    assert np.abs(picture[41, 41].astype(int) - (np.array(COLOURS[1]) - 30)).max() <= 6
    ring = np.concatenate([picture[28, 28:55], picture[55, 28:55], picture[28:55, 28], picture[28:55, 55]])
    assert np.abs(ring.astype(int) - darker).max() <= 3


def test_cuts_are_kept_and_few(data: Dataset, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("engines.composing.paste._CUTS_KEPT", 2)
    cutter = Cutter(data.records)
    first = cutter(0, 0)
    assert cutter(0, 0) is first
    cutter(0, 1)
    cutter(1, 0)
    assert cutter.done == 3
    assert cutter(0, 0) is not first
    assert cutter.done == 4


def test_data_without_an_object_to_cut_is_refused_and_a_class_without_one_named(tmp_path: Path) -> None:
    edges = open_dataset(make_objects(tmp_path / "edges", [((3, 8, 0), (93, 40, 1))]))
    with refused(DatasetError, "compose"):
        make_composer(edges)
    some = open_dataset(make_objects(tmp_path / "some", [((3, 8, 0), (50, 40, 1))]))
    remark = make_composer(some).remark
    assert remark is not None
    assert "rbc" in remark
    assert "wbc" not in remark
    assert make_composer(some).cut_remark is None


def test_classes_that_the_run_does_not_know_are_refused() -> None:
    assert label_map(("WBC", "dust", "rbc"), NAMES, [0, 2]) == (1, -1, 0)
    with refused(DatasetError, "labels", "dust"):
        label_map(("WBC", "dust"), NAMES, [0, 1])
