"""Crowds count neither way in a loss."""

from collections.abc import Sequence

import torch
from torch import Tensor

from engines.adapter.losses import cxcywh_to_xyxy, ignore_crowds, ignored, with_finds, xyxy_to_cxcywh

Box = Sequence[float]

SINGLE, CROWD = [0.0, 0.0, 4.0, 4.0], [10.0, 0.0, 20.0, 10.0]


def answer(*boxes: Box, singles: Sequence[Box], crowds: Sequence[Box]) -> list[bool]:
    tensors = (torch.tensor(some, dtype=torch.float32).reshape(-1, 4) for some in (boxes, singles, crowds))
    found: list[bool] = ignored(*tensors).any(dim=1).tolist()
    return found


def gradient(output: Tensor, of: Tensor) -> Tensor:
    return torch.autograd.grad(output.sum(), of, retain_graph=True)[0]


def test_a_box_is_ignored_where_half_of_it_lies_in_a_crowd() -> None:
    inside, half, less, outside = [11, 1, 13, 3], [8, 0, 12, 4], [7.9, 0, 12, 4], [0, 20, 4, 24]
    assert answer(inside, half, less, outside, singles=[], crowds=[CROWD]) == [True, True, False, False]
    assert answer(inside, outside, singles=[], crowds=[CROWD, [0, 19, 5, 25]]) == [True, True]
    assert answer(inside, singles=[SINGLE], crowds=[]) == [False]
    assert answer([12, 3, 12, 3], singles=[], crowds=[CROWD]) == [False], "a box without area lies nowhere"


def test_a_single_object_in_a_crowd_still_teaches() -> None:
    single = [11.0, 1.0, 15.0, 5.0]
    assert answer([11, 1, 15, 4.9], [15, 5, 19, 9], singles=[single], crowds=[CROWD]) == [False, True]


def test_corners_and_centres_are_one_another() -> None:
    boxes = torch.rand(2, 3, 4)
    torch.testing.assert_close(xyxy_to_cxcywh(cxcywh_to_xyxy(boxes)), boxes)
    assert cxcywh_to_xyxy(torch.tensor([5.0, 6.0, 4.0, 2.0])).tolist() == [3.0, 5.0, 7.0, 7.0]


def target(boxes: Tensor, crowd: Tensor, *labels: int) -> dict[str, Tensor]:
    """Of an image whose crowds lie at one place, each of a class."""
    return {"boxes": boxes, "crowds": crowd.repeat(len(labels), 1), "crowd_labels": torch.tensor(labels)}


def test_what_lowers_a_crowds_class_is_cut_and_nothing_else() -> None:
    boxes = torch.tensor([[[0.2, 0.2, 0.1, 0.1], [0.8, 0.8, 0.1, 0.1]]]).repeat(2, 1, 1)
    crowd, nothing = torch.tensor([[0.8, 0.8, 0.3, 0.3]]), torch.zeros(0, 4)
    targets = [target(nothing, crowd, 2, 0), target(boxes[1, 1:], crowd, 1)]
    logits = torch.randn(2, 2, 3, requires_grad=True)
    for shaped, at in ((logits, boxes), (logits[:, None].expand(2, 5, 2, 3), boxes[:, None].expand(2, 5, 2, 4))):
        found = ignore_crowds(shaped, at, targets)
        torch.testing.assert_close(found, shaped)
        assert gradient(-found, logits).ne(0).all(), "what raises a score is kept"
        lowered = gradient(found, logits).ne(0)
        assert lowered[0].tolist() == [[True, True, True], [False, True, False]]
        assert lowered[1].all(), "there is a single object at its place"


def test_denoising_queries_keep_their_say() -> None:
    boxes = torch.full((1, 4, 4), 0.5)
    everywhere = torch.tensor([[0.5, 0.5, 1.0, 1.0]])
    logits = torch.randn(1, 4, 2, requires_grad=True)
    found = ignore_crowds(logits, boxes, [target(torch.zeros(0, 4), everywhere, 0)], first=3)
    assert gradient(found, logits)[0, :, 0].tolist() == [1.0, 1.0, 1.0, 0.0]


def test_without_crowds_nothing_is_touched() -> None:
    logits = torch.randn(1, 4, 2)
    assert ignore_crowds(logits, torch.rand(1, 4, 4), [target(torch.rand(2, 4), torch.zeros(1, 4))]) is logits


def test_a_confident_find_without_a_label_becomes_a_crowd_of_its_class() -> None:
    single = torch.tensor([[0.2, 0.2, 0.1, 0.1]])
    boxes = torch.tensor([[[0.21, 0.2, 0.1, 0.1], [0.8, 0.8, 0.1, 0.1], [0.5, 0.5, 0.1, 0.1]]])
    logits = torch.tensor([[[3.0, -9, -9], [-9, -9, 3.0], [-2.0, -9, -9]]])  # on the label, without one, unsure
    targets = [target(single, torch.zeros(0, 4))]
    targets[0]["crowd_labels"] = torch.zeros(0, dtype=torch.int64)
    (found,) = with_finds(targets, logits, boxes, 0.5)
    torch.testing.assert_close(found["crowds"], boxes[0, 1:2])
    assert found["crowd_labels"].tolist() == [2]
    assert len(targets[0]["crowds"]) == 0, "the labels themselves stay as they are"
