"""Finds that a file held: believed only where a detector could have found them."""

import pytest

from engines.labels.finds import finds_of

SIZES = [(20, 10), (20, 10)]
ROW = [1.0, 2.0, 9.0, 8.0, 0.5, 1]


def test_rows_come_back_image_by_image() -> None:
    first, second = finds_of([[ROW], []], SIZES, classes=2)
    assert (first.to_rows(), len(second)) == ([ROW], 0)


@pytest.mark.parametrize(
    "rows",
    [
        None, {}, [[ROW]], [[ROW], 3], [[ROW[:5]], []], [[[*ROW[:5], 2]], []], [[[*ROW[:5], -1]], []],
        [[[*ROW[:4], 1.5, 0]], []], [[[1.0, 2.0, 30.0, 8.0, 0.5, 0]], []], [[[float("nan"), *ROW[1:]]], []],
        [[[10**400, *ROW[1:]]], []], [[["x", *ROW[1:]]], []],
    ],
)  # fmt: skip
def test_what_no_detector_finds_is_refused(rows: object) -> None:
    with pytest.raises(ValueError, match=r"image|has"):
        finds_of(rows, SIZES, classes=2)
