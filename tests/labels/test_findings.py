"""What is suspicious about labels, by what a detector finds."""

from collections.abc import Sequence
from dataclasses import replace

import pytest

from engines.labels.boxes import Instances
from engines.labels.findings import Finding, FindingKind, Judgement, Picture, judge, refined
from engines.labels.gaps import looks_incomplete

SQUARE = [20.0, 20.0, 40.0, 40.0]
FAR = [60.0, 60.0, 80.0, 80.0]


def picture(
    truth: Sequence[tuple[Sequence[float], int]], found: Sequence[tuple[Sequence[float], int, float]]
) -> Picture:
    """100 x 100 pixels with (box, class) labels and (box, class, score) finds."""
    labels = Instances.of([box for box, _ in truth], [label for _, label in truth])
    finds = Instances.of([box for box, *_ in found], [one[1] for one in found], [one[2] for one in found])
    return Picture(100, 100, labels, finds)


def one(found: Judgement) -> Finding:
    assert len(found.findings) == 1, found
    return found.findings[0]


def test_labels_that_are_found_are_not_suspicious() -> None:
    assert judge([picture([(SQUARE, 0), (FAR, 1)], [(SQUARE, 0, 0.8), (FAR, 1, 0.7)])], 2).findings == ()


def test_a_find_without_a_label_is_missing_one() -> None:
    finding = one(judge([picture([(SQUARE, 0)], [(SQUARE, 0, 0.9), (FAR, 1, 0.6)])], 2))
    assert (finding.kind, finding.box, finding.label) == (FindingKind.MISSING, tuple(FAR), 1)
    assert finding.confidence == pytest.approx(0.6)
    assert (finding.given, finding.given_box, finding.given_label) == (None, None, None)


def test_several_finds_of_one_object_are_one() -> None:
    near, part = [61.0, 60.0, 81.0, 80.0], [62.0, 62.0, 72.0, 72.0]
    finds = [(FAR, 0, 0.9), (near, 0, 0.8), (part, 0, 0.5), (near, 1, 0.4)]
    assert one(judge([picture([], finds)], 2)).box == tuple(FAR)


def test_a_find_in_a_crowd_or_within_a_label_is_about_that() -> None:
    crowd = picture([(SQUARE, 0)], [([22, 22, 30, 30], 0, 0.9)])
    inside = picture([(SQUARE, 0)], [(SQUARE, 0, 0.9), ([22, 22, 30, 30], 0, 0.8)])
    crowd = replace(crowd, truth=replace(crowd.truth, crowd=~crowd.truth.crowd))
    assert judge([crowd, inside], 1).findings == ()


def test_a_label_without_a_find_is_spurious_as_surely_as_its_class_is_found() -> None:
    good = picture([(SQUARE, 0)], [(SQUARE, 0, 0.8)])
    finding = one(judge([good] * 3 + [picture([(FAR, 0)], [])], 1))
    assert (finding.image, finding.kind, finding.given, finding.given_label) == (3, FindingKind.SPURIOUS, 0, 0)
    assert finding.confidence == pytest.approx(0.75)
    assert judge([picture([(FAR, 0)], [])], 1).findings == (), "a detector that finds nothing says nothing"


def test_a_find_of_another_class_makes_a_label_suspicious() -> None:
    good = picture([(SQUARE, 0), (FAR, 1)], [(SQUARE, 0, 0.8), (FAR, 1, 0.8)])
    finding = one(judge([good, picture([(SQUARE, 0)], [(SQUARE, 1, 0.8)])], 2))
    assert (finding.kind, finding.label, finding.given_label) == (FindingKind.CLASS, 1, 0)
    assert finding.confidence == pytest.approx(1.0)
    both = judge([good, picture([(SQUARE, 0)], [(SQUARE, 1, 0.4), (SQUARE, 0, 0.8)])], 2)
    assert both.findings == (), "the surer one is of the label's class"


def test_a_box_beside_its_object_is_loose_and_nothing_else() -> None:
    good = picture([(FAR, 0)], [(FAR, 0, 0.8)])
    for shift, kinds in ((2, []), (5, [FindingKind.LOOSE]), (9, [FindingKind.LOOSE])):
        moved = [20.0 + shift, 20.0, 40.0 + shift, 40.0]
        found = judge([good, picture([(SQUARE, 0)], [(moved, 0, 0.8)])], 1)
        assert [finding.kind for finding in found.findings] == kinds


def test_of_two_labels_on_one_object_the_one_with_the_weaker_find_is_double() -> None:
    again = [21.0, 20.0, 41.0, 40.0]
    finding = one(judge([picture([(again, 0), (SQUARE, 0)], [(SQUARE, 0, 0.9)])], 1, [False]))
    assert (finding.kind, finding.given) == (FindingKind.DUPLICATE, 0)


def test_labels_that_leave_the_picture_are_as_sure_as_much_of_them_does() -> None:
    outside = replace(picture([(SQUARE, 0), (FAR, 0)], [(SQUARE, 0, 0.9), (FAR, 0, 0.9)]), outside=(0.0, 0.4))
    finding = one(judge([outside], 1))
    assert (finding.kind, finding.given) == (FindingKind.OUTSIDE, 1)
    assert finding.confidence == pytest.approx(0.4)


def test_classes_that_the_detector_does_not_know_are_not_judged() -> None:
    pictures = [picture([(SQUARE, 0), (FAR, 1)], [(SQUARE, 0, 0.9)])]
    assert judge(pictures, 2, [True, False]).findings == ()


def half_labelled() -> list[Picture]:
    """40 pictures with two objects each, of which every second has a label in turn."""
    both = [(SQUARE, 0, 0.8), (FAR, 0, 0.8)]
    return [picture([(SQUARE if number % 2 else FAR, 0)], both) for number in range(40)]


def test_the_surest_come_first_and_completeness_is_believed() -> None:
    found = judge([*half_labelled(), picture([], [(FAR, 0, 0.3)])], 1)
    confidences = [finding.confidence for finding in found.findings]
    assert confidences == sorted(confidences, reverse=True)
    assert len(found.confident(FindingKind.MISSING)) == 40
    assert found.completeness[0] == pytest.approx(40 / 72.3, abs=0.02)


def test_a_refined_box_lies_in_the_middle_between_label_and_find() -> None:
    own = [((10, 10, 30, 30), 0), ((50, 50, 70, 70), 0), ((10, 60, 30, 80), 0)]
    # The second find is unsure, the third of another class.
    finds = [((12, 10, 34, 30), 0, 0.9), ((50, 54, 70, 74), 0, 0.2), ((11, 60, 31, 80), 1, 0.9)]
    boxes = refined(picture(own, finds))
    assert boxes.tolist() == [[11, 10, 32, 30], [50, 50, 70, 70], [10, 60, 30, 80]]


def test_a_dataset_that_looks_incomplete_is_said_in_a_line() -> None:
    said = looks_incomplete(half_labelled(), ["cell"], "data")
    assert said is not None
    assert "audit" in said
    assert "40 cell" in said
    complete = [replace(one, truth=one.found) for one in half_labelled()]
    assert looks_incomplete(complete, ["cell"], "data") is None
    assert looks_incomplete(half_labelled()[:9], ["cell"], "data") is None, "nine finds are no pattern"
