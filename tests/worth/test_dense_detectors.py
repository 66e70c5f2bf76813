"""RetinaNet and Faster R-CNN: how they are put together, with the real torchvision where it imports.

Elsewhere a stand-in takes its place: it has torchvision's names and signatures and enough behaviour to train one
step, so that a wrong argument, label or box shows on any machine.
"""

import importlib
import importlib.util
import sys
from abc import ABC, abstractmethod
from collections import OrderedDict
from collections.abc import Callable, Sequence
from types import ModuleType
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from engines.worth.detectors.config import DetectorOptions, NetworkConfig
from engines.worth.detectors.model import new_detector

PLACES = torch.tensor([[4.0, 4.0, 20.0, 20.0], [40.0, 40.0, 60.0, 60.0]])  # of the stand-in's answers
REAL = importlib.util.find_spec("torchvision") is not None
KINDS = ("retinanet", "faster_rcnn")


class FeaturePyramid(nn.Module):
    """torchvision.ops.FeaturePyramidNetwork, without the way down."""

    def __init__(
        self,
        in_channels_list: list[int],
        out_channels: int,
        extra_blocks: nn.Module | None = None,
        norm_layer: Callable[..., nn.Module] | None = None,
    ) -> None:
        super().__init__()
        assert norm_layer is not None
        self.inner = nn.ModuleList(
            nn.Sequential(nn.Conv2d(channels, out_channels, 1), norm_layer(out_channels))
            for channels in in_channels_list
        )
        self.extra_blocks = extra_blocks

    def forward(self, x: "OrderedDict[str, Tensor]") -> "OrderedDict[str, Tensor]":
        levels = OrderedDict((name, inner(x[name])) for name, inner in zip(x, self.inner, strict=True))
        if self.extra_blocks is not None:
            levels |= self.extra_blocks(list(levels.values()))
        return levels


class ExtraLevels(nn.Module):
    """LastLevelP6P7 and LastLevelMaxPool: further levels at half the size each."""

    def __init__(self, in_channels: int = 0, out_channels: int = 0) -> None:
        super().__init__()
        self.names = ("p6", "p7") if in_channels else ("pool",)

    def forward(self, levels: list[Tensor]) -> dict[str, Tensor]:
        added = {}
        for name in self.names:
            levels = [*levels, nn.functional.max_pool2d(levels[-1], 2, ceil_mode=True)]
            added[name] = levels[-1]
        return added


class AnchorGenerator(nn.Module):
    def __init__(self, sizes: Sequence[Sequence[int]], aspect_ratios: Sequence[Sequence[float]]) -> None:
        super().__init__()
        assert len(sizes) == len(aspect_ratios)
        self.sizes, self.aspect_ratios = sizes, aspect_ratios

    def num_anchors_per_location(self) -> list[int]:
        return [len(s) * len(a) for s, a in zip(self.sizes, self.aspect_ratios, strict=True)]


class RetinaNetHead(nn.Module):
    def __init__(
        self, in_channels: int, num_anchors: int, num_classes: int, norm_layer: Callable[..., nn.Module] | None = None
    ) -> None:
        super().__init__()
        self.score = nn.Conv2d(in_channels, num_anchors * num_classes, 1)

    def forward(self, levels: list[Tensor]) -> Tensor:
        return torch.cat([self.score(level).flatten(2) for level in levels], dim=2)


class Transform:
    def resize(self, image: Tensor, target: Any = None) -> tuple[Tensor, Any]:
        raise AssertionError("frames must keep their size")


class StandIn(nn.Module, ABC):
    """What both detectors do from outside: a dict of losses in training, a list of dicts otherwise."""

    def __init__(self, backbone: nn.Module, levels: int, labels: range) -> None:
        super().__init__()
        self.backbone, self.levels, self.labels = backbone, levels, labels
        self.transform = Transform()

    @abstractmethod
    def scores(self, levels: list[Tensor]) -> Tensor:
        """What its heads say of the pyramid's levels."""

    def forward(self, images: list[Tensor], targets: list[dict[str, Tensor]] | None = None) -> Any:
        assert isinstance(images, list)
        for image in images:
            self.transform.resize(image)
        levels = list(self.backbone(torch.stack(images)).values())
        assert len(levels) == self.levels
        assert all(level.dtype == torch.float32 for level in levels)
        value = self.scores(levels).mean()
        if not self.training:
            label = torch.tensor([self.labels[-1]])
            found = {"boxes": torch.tensor([[4.0, 4.0, 20.0, 20.0]]), "scores": torch.tensor([0.5]), "labels": label}
            return [found for _ in images]
        assert targets is not None
        for target in targets:
            assert set(target) == {"boxes", "labels", "crowds", "crowd_labels"}
            assert all(label in self.labels for label in target["labels"].tolist())
        return self.losses(value, targets)

    @abstractmethod
    def losses(self, value: Tensor, targets: list[dict[str, Tensor]]) -> dict[str, Tensor]:
        """Any losses of these scores, by way of what crowds have a say in."""


class RetinaNet(StandIn):
    def __init__(
        self,
        backbone: nn.Module,
        num_classes: int,
        image_mean: list[float],
        image_std: list[float],
        anchor_generator: AnchorGenerator,
        head: RetinaNetHead,
        score_thresh: float,
        detections_per_img: int,
    ) -> None:
        assert [sizes[0] for sizes in anchor_generator.sizes] == [16, 32, 64, 128, 256]
        super().__init__(backbone, len(anchor_generator.sizes), range(num_classes))
        self.head = head

    def scores(self, levels: list[Tensor]) -> Tensor:
        return torch.as_tensor(self.head(levels))

    def losses(self, value: Tensor, targets: list[dict[str, Tensor]]) -> dict[str, Tensor]:
        outputs = {"cls_logits": value.expand(len(targets), len(PLACES), 2), "bbox_regression": value}
        return self.compute_loss(targets, outputs, [PLACES for _ in targets])

    def compute_loss(
        self, targets: list[dict[str, Tensor]], head_outputs: dict[str, Tensor], anchors: list[Tensor]
    ) -> dict[str, Tensor]:
        assert len(targets) == len(anchors)
        names = {"cls_logits": "classification", "bbox_regression": "bbox_regression"}
        return {names[name]: output.sigmoid().mean() for name, output in head_outputs.items()}


class TwoMLPHead(nn.Module):
    def __init__(self, in_channels: int, representation_size: int) -> None:
        super().__init__()
        self.layer = nn.Linear(in_channels, representation_size)

    def forward(self, x: Tensor) -> Tensor:
        return torch.as_tensor(self.layer(x.flatten(1)))


class FastRCNNPredictor(nn.Module):
    def __init__(self, in_channels: int, num_classes: int) -> None:
        super().__init__()
        self.layer = nn.Linear(in_channels, num_classes)
        self.num_classes = num_classes

    def forward(self, x: Tensor) -> Tensor:
        return torch.as_tensor(self.layer(x))


class FasterRCNN(StandIn):
    def __init__(
        self,
        backbone: Any,
        *,
        rpn_anchor_generator: AnchorGenerator,
        box_roi_pool: Any,
        box_head: TwoMLPHead,
        box_predictor: FastRCNNPredictor,
        **settings: Any,
    ) -> None:
        assert all(name.startswith(("rpn_", "box_", "image_")) for name in settings)
        super().__init__(backbone, len(rpn_anchor_generator.sizes), range(1, box_predictor.num_classes))
        self.rpn = Proposals(nn.Conv2d(backbone.out_channels, 1, 1))
        self.roi_heads = Heads(box_head, box_predictor)

    def scores(self, levels: list[Tensor]) -> Tensor:
        proposals = torch.cat([self.rpn.head(level).flatten(2) for level in levels], dim=2)
        boxes = nn.functional.adaptive_avg_pool2d(levels[0], 7)
        return torch.as_tensor(proposals.mean() + self.roi_heads.box_predictor(self.roi_heads.box_head(boxes)))

    def losses(self, value: Tensor, targets: list[dict[str, Tensor]]) -> dict[str, Tensor]:
        places = [PLACES for _ in targets]
        labels, _ = self.rpn.assign_targets_to_anchors(places, targets)
        left = self.roi_heads.select_training_samples(places, targets)
        assert len(labels) == len(left[0]) == len(targets)
        return {"classification": value.square().mean(), "bbox_regression": value.abs().mean()}


class Proposals(nn.Module):
    def __init__(self, head: nn.Module) -> None:
        super().__init__()
        self.head = head

    def assign_targets_to_anchors(
        self, anchors: list[Tensor], targets: list[dict[str, Tensor]]
    ) -> tuple[list[Tensor], list[Tensor]]:
        return [torch.zeros(len(own)) for own in anchors], anchors


class Heads(nn.Module):
    def __init__(self, box_head: nn.Module, box_predictor: nn.Module) -> None:
        super().__init__()
        self.box_head, self.box_predictor = box_head, box_predictor

    def select_training_samples(
        self, proposals: list[Tensor], targets: list[dict[str, Tensor]]
    ) -> tuple[list[Tensor], None, None, None]:
        assert len(proposals) == len(targets)
        return proposals, None, None, None


def stand_in() -> dict[str, ModuleType]:
    """torchvision's modules, as far as the detectors use them."""
    contents: dict[str, dict[str, Any]] = {
        "torchvision": {},
        "torchvision.models": {},
        "torchvision.models.detection": {"RetinaNet": RetinaNet, "FasterRCNN": FasterRCNN},
        "torchvision.models.detection.anchor_utils": {"AnchorGenerator": AnchorGenerator},
        "torchvision.models.detection.retinanet": {"RetinaNetHead": RetinaNetHead},
        "torchvision.models.detection.faster_rcnn": {
            "FastRCNNPredictor": FastRCNNPredictor, "TwoMLPHead": TwoMLPHead,
        },
        "torchvision.ops": {"FeaturePyramidNetwork": FeaturePyramid, "MultiScaleRoIAlign": lambda **_: None},
        "torchvision.ops.feature_pyramid_network": {"LastLevelP6P7": ExtraLevels, "LastLevelMaxPool": ExtraLevels},
    }  # fmt: skip
    modules = {name: ModuleType(name) for name in contents}
    for name, content in contents.items():
        modules[name].__dict__.update(content)
        if "." in name:
            parent, _, child = name.rpartition(".")
            setattr(modules[parent], child, modules[name])
    return modules


@pytest.fixture(params=[pytest.param(False, id="stand-in"), pytest.param(True, id="torchvision")])
def library(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> bool:
    """True where the real torchvision is under test."""
    if request.param and not REAL:
        pytest.skip("torchvision is not installed")
    if not request.param:
        # transformers looks for torchvision when it is first imported: it must not find the stand-in.
        importlib.import_module("engines.worth.detectors.dense")
        for name, module in stand_in().items():
            monkeypatch.setitem(sys.modules, name, module)
    return bool(request.param)


def options(kind: Any) -> DetectorOptions:
    return DetectorOptions(NetworkConfig(kind=kind, backbone_width=16, depths=(1, 1, 1, 1), width=32))


def target(
    boxes: Sequence[Sequence[float]], labels: Sequence[int], crowds: Sequence[Sequence[float]]
) -> dict[str, Tensor]:
    """A frame's; its crowds are of class 0."""
    corners = [torch.tensor(some, dtype=torch.float32).reshape(-1, 4) for some in (boxes, crowds)]
    classes = [torch.tensor(some, dtype=torch.int64) for some in (labels, [0] * len(crowds))]
    return dict(zip(("boxes", "crowds", "labels", "crowd_labels"), corners + classes, strict=True))


@pytest.mark.parametrize("kind", KINDS)
def test_a_step_of_training_moves_every_weight(library: bool, kind: str) -> None:
    detector = new_detector(("a", "b"), options(kind), 64, seed=0)
    targets = [
        target([[8.0, 8.0, 40.0, 40.0]], [1], []),
        target([], [], []),
    ]
    detector.network.train()
    with torch.autocast("cpu", torch.bfloat16):
        loss, parts = detector.detection.loss(torch.rand(2, 3, 64, 96), targets)
    torch.autograd.backward(loss)
    assert loss.dtype == torch.float32
    assert float(loss.detach()) == pytest.approx(sum(float(part) for part in parts.values()), rel=1e-5)
    still = [name for name, weight in detector.network.named_parameters() if weight.grad is None]
    assert still == []


@pytest.mark.parametrize("kind", KINDS)
def test_labels_come_back_as_they_went_in(library: bool, kind: str) -> None:
    detector = new_detector(("a", "b"), options(kind), 64, seed=0)
    found = detector.predict([torch.randint(0, 256, (64, 96, 3), dtype=torch.uint8).numpy() for _ in range(2)])
    for one in found:
        assert set(one.labels.tolist()) <= {0, 1}
        assert len(one.boxes) <= 100
        if not library:
            assert one.labels.tolist() == [1]
            assert one.boxes.tolist() == [[4.0, 4.0, 20.0, 20.0]]


def crowded() -> dict[str, Tensor]:
    """The target of a frame whose second place lies in a crowd."""
    return target([], [], [[30.0, 30.0, 70.0, 70.0]])


def test_retinanet_teaches_no_background_in_a_crowd(library: bool) -> None:
    network: Any = new_detector(("a", "b"), options("retinanet"), 64, seed=0).detection
    logits = torch.randn(1, len(PLACES), 2, requires_grad=True)
    outputs = {"cls_logits": logits, "bbox_regression": torch.zeros(1, len(PLACES), 4)}
    losses = network.network.compute_loss([crowded()], outputs, [PLACES])
    torch.autograd.backward(losses["classification"])
    assert logits.grad is not None
    assert logits.grad.ne(0).tolist() == [[[True, True], [False, True]]], "the crowd is of class 0"


def test_faster_rcnn_teaches_no_background_in_a_crowd(library: bool) -> None:
    network: Any = new_detector(("a", "b"), options("faster_rcnn"), 64, seed=0).detection
    (labels,), _ = network.network.rpn.assign_targets_to_anchors([PLACES], [crowded()])
    assert labels[1] == -1
    assert labels[0] == 0
    (left,), *_ = network.network.roi_heads.select_training_samples([PLACES], [crowded()])
    assert left.tolist() == PLACES[:1].tolist()


@pytest.mark.parametrize("kind", KINDS)
def test_a_batch_of_crowds_alone_has_a_loss(library: bool, kind: str) -> None:
    detector = new_detector(("a", "b"), options(kind), 64, seed=0)
    detector.network.train()
    everywhere = target([], [], [[-900.0, -900.0, 900.0, 900.0]])
    loss, _ = detector.detection.loss(torch.rand(2, 3, 64, 96), [everywhere, everywhere])
    assert loss.isfinite()
