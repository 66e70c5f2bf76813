"""What the detectors share: their interface, a ResNet, and which parts of them compute in bf16.

Knows: transformers' ResNet backbone at any width, how a network that a library draws for loading is made ready to
learn from scratch, and how autocast is kept to the parts that stand it. Knows nothing about detection heads.

B batch, H/W pixels, N boxes, C crowds.
"""

from collections.abc import Callable, Mapping, MutableMapping, Sequence
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor, nn

from engines.worth.detectors.config import NetworkConfig

# boxes float32 [N, 4] and crowds [C, 4], corners in pixels of the frame; labels int64 [N], and crowd_labels [C]
Target = Mapping[str, Tensor]


class Found(NamedTuple):
    """What was found in one frame, best first."""

    boxes: Tensor  # float32 [N, 4], corners in pixels of the frame
    scores: Tensor  # float32 [N]
    labels: Tensor  # int64 [N]


class DetectionNetwork(Protocol):
    """A detector as training and measuring see it; it is an nn.Module, too."""

    def loss(self, pixels: Tensor, targets: Sequence[Target]) -> tuple[Tensor, dict[str, float | Tensor]]:
        """The loss of frames [B, 3, H, W] in 0..1, and its parts. Called in training mode."""
        ...

    def detect(self, pixels: Tensor) -> list[Found]:
        """What is found in frames [B, 3, H, W] in 0..1. Called in evaluation mode."""
        ...


def resnet_config(network: NetworkConfig, stages: Sequence[int]) -> Any:
    """Settings of a ResNet that gives the outputs of `stages`; stage 1 is at stride 4, stage 4 at stride 32."""
    from transformers import RTDetrResNetConfig

    growth = 4 if network.bottleneck else 1
    return RTDetrResNetConfig(
        embedding_size=network.backbone_width,
        hidden_sizes=[network.backbone_width * growth * 2**stage for stage in range(4)],
        depths=list(network.depths),
        layer_type="bottleneck" if network.bottleneck else "basic",
        out_indices=list(stages),
    )


def start_fresh(module: nn.Module) -> None:
    """Draw convolutions and norms as PyTorch does.

    transformers draws batch norm's scales from N(0, 0.01), which suits weights that are loaded afterwards; a network
    that has to learn from that point stands still for long.
    """
    part: Any
    for part in module.modules():
        if isinstance(part, nn.Conv2d | nn.BatchNorm2d):
            part.reset_parameters()


@torch.no_grad()
def renew_statistics(module: nn.Module, forward: Callable[[int], object], batches: int) -> None:
    """Measure batch norm's statistics anew, as the plain mean over `batches` calls of `forward(number)`.

    Those of training lag behind its weights, and belong to other weights than the averaged ones. Without any batch
    norm that learns (a checkpoint's may be frozen) nothing is called.
    """
    norms = [part for part in module.modules() if isinstance(part, nn.BatchNorm2d)]
    momenta = [norm.momentum for norm in norms]
    for norm in norms:
        norm.reset_running_stats()
        norm.momentum = None  # PyTorch's sign for a plain mean
    module.train()
    for number in range(batches if norms else 0):
        forward(number)
    module.eval()
    for norm, momentum in zip(norms, momenta, strict=True):
        norm.momentum = momentum


class Autocast:
    """Keeps autocast to the named parts of a network; everything else computes in float32.

    Boxes need the digits: in bf16 a coordinate moves in steps of a pixel, and thousands of scores tie. So matching,
    refinement, decoding and losses stay in float32, and what the named parts give is brought back to float32.
    """

    def __init__(self, module: nn.Module, names: Sequence[str]) -> None:
        self.on = False
        self.device = "cpu"
        for name in names:
            part = module.get_submodule(name)
            setattr(part, "forward", self._wrapped(part.forward))  # noqa: B010  mypy refuses to assign a method

    def _wrapped(self, forward: Callable[..., Any]) -> Callable[..., Any]:
        def call(*values: Any, **named: Any) -> Any:
            if not self.on:
                return forward(*values, **named)
            with torch.autocast(self.device, dtype=torch.bfloat16):
                return _to_float(forward(*values, **named))

        return call

    def run(self, function: Callable[..., Any], pixels: Tensor, *values: Any, **named: Any) -> Any:
        """Call `function(pixels, ...)` with autocast, where it is on at present, kept to the named parts."""
        self.device = pixels.device.type
        self.on = torch.is_autocast_enabled(self.device)
        with torch.autocast(self.device, enabled=False):
            return function(pixels, *values, **named)


def _to_float(value: Any) -> Any:
    """The same structure with every floating tensor in float32."""
    if isinstance(value, Tensor):
        return value.float() if value.is_floating_point() else value
    if isinstance(value, MutableMapping):
        for key in list(value):
            value[key] = _to_float(value[key])
        return value
    if isinstance(value, list | tuple):
        return type(value)(_to_float(item) for item in value)
    return value
