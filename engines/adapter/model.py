"""The Detection-Adapter: pyramid in, scored boxes out; and its folder on disk.

Knows: the neck (one projection for each pyramid level), which head a configuration names, and how weights and
`adapter.json` are saved and loaded. Knows nothing about how the pyramid was made, or how the adapter is trained.

Shapes: B batch, C channels, h/w cells of a level, Q queries, K classes, S cells of all levels, N boxes,
M crowds.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save
from torch import Tensor, nn

from engines.adapter.encoders import DeformableEncoder, HybridEncoder
from engines.adapter.heads import DetrHead, decoder_config
from engines.adapter.info import INFO_FILE, WEIGHTS_FILE, AdapterConfig, AdapterInfo, read_info
from engines.common.files import write_atomic, write_json
from engines.common.quote import shorten
from engines.common.weight_file import check_described, check_finite, check_no_quantisation, read_header
from engines.errors import ModelError

__all__ = ["AdapterConfig", "AdapterInfo", "DetectionAdapter", "load_adapter", "read_info", "save_adapter"]

_NORM_GROUPS = 32  # of the neck's group norms, as in DiffusionEngine; fewer where the width does not divide


class DetectionAdapter(nn.Module):
    """Neck and head. Frames of any size do, as long as every level is exactly half the one before."""

    def __init__(self, config: AdapterConfig) -> None:
        super().__init__()
        self.config = config
        groups = math.gcd(_NORM_GROUPS, config.width)
        self.neck = nn.ModuleList(
            nn.Sequential(nn.Conv2d(channels, config.width, 1), nn.GroupNorm(groups, config.width))
            for channels in config.channels
        )
        self.extra = nn.ModuleList(
            nn.Sequential(
                nn.Conv2d(config.width, config.width, 3, stride=2, padding=1), nn.GroupNorm(groups, config.width)
            )
            for _ in range(config.extra_levels)
        )
        head = decoder_config(
            levels=config.levels,
            num_classes=config.num_classes,
            width=config.width,
            encoder_layers=config.encoder_layers,
            decoder_layers=config.decoder_layers,
            queries=config.queries,
            denoising=config.denoising,
            heads=config.heads,
            ffn_width=config.ffn_width,
            points=config.points,
            expansion=float(config.expansion),
        )
        encoder = HybridEncoder(head) if config.head == "rt_detr" else DeformableEncoder(head)
        self.head = DetrHead(encoder, head, config.anchor_cells)

    def forward(self, *pyramid: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Detect.

        Args:
            pyramid: div1 [B, C_0, h, w], div2 [B, C_1, h/2, w/2], ...

        Returns:
            (logits [B, Q, K], boxes [B, Q, 4], encoder_logits [B, S, K], encoder_boxes [B, S, 4]). Logits are before
            the sigmoid; boxes are (centre x, centre y, width, height) as shares of the frame. The encoder's are those
            of every cell, before the best Q are chosen.
        """
        result: tuple[Tensor, Tensor, Tensor, Tensor] = self.head(self._levels(pyramid))
        return result

    def loss(
        self,
        pyramid: Sequence[Tensor],
        targets: Sequence[Mapping[str, Tensor]],
        ignore_finds: float = 0.0,
        first: int = 0,
    ) -> tuple[Tensor, dict[str, float | Tensor]]:
        """The training loss of a batch, and its parts by kind.

        `targets`: for each image `class_labels` int64 [N], `boxes` float32 [N, 4] (centre x, centre y, width,
        height, as shares of the frame) and `crowds` float32 [M, 4] with `crowd_labels` int64 [M] likewise; N and M
        may be 0. `ignore_finds`: the score from which a find without a label counts neither way; 0: it is background.
        Where the pyramid shows a share of the targets' images, from number `first` on, the mean of the losses of equal
        shares is that of all images. Denoising draws from torch's global generator.
        """
        return self.head.loss(self._levels(pyramid), targets, ignore_finds, first)

    @torch.no_grad()
    def calibrate(self, pyramids: Iterable[Sequence[Tensor]]) -> None:
        """Scale the neck's first weights so that every pyramid channel starts with equal say.

        Block outputs differ in magnitude from channel to channel. The statistics of a few batches go into the
        initial weights, so nothing has to be normalised afterwards.
        """
        batches = list(pyramids)
        for level, projection in enumerate(self.neck):
            values = torch.cat([batch[level].float().transpose(0, 1).flatten(1) for batch in batches], dim=1)
            spread, mean = torch.std_mean(values, dim=1)
            convolution = projection[0]  # type: ignore[index]
            convolution.weight.div_(spread.clamp(min=1e-4)[None, :, None, None])
            convolution.bias.sub_((convolution.weight[:, :, 0, 0] * mean).sum(dim=1))

    def _levels(self, pyramid: Sequence[Tensor]) -> list[Tensor]:
        """The head's levels [B, W, h_l, w_l]. Raises ModelError where the pyramid does not fit."""
        if len(pyramid) != len(self.neck):
            raise ModelError(f"The adapter reads {len(self.neck)} pyramid levels, but {len(pyramid)} were given.")
        levels = [projection(level) for projection, level in zip(self.neck, pyramid, strict=True)]
        for convolution in self.extra:
            levels.append(convolution(levels[-1]))
        if not torch.compiler.is_exporting():
            cells = sum(level.shape[2] * level.shape[3] for level in levels)
            if cells < self.config.queries:
                raise ModelError(
                    f"The frame has {cells} cells for {self.config.queries} queries; take larger frames, or train an "
                    "adapter with fewer queries."
                )
        return levels


def save_adapter(folder: Path, model: DetectionAdapter, info: AdapterInfo) -> None:
    """Write `adapter.safetensors`, then `adapter.json`, each atomically; `folder` is made where it is missing."""
    folder.mkdir(parents=True, exist_ok=True)
    tensors = {name: value.detach().cpu().contiguous().clone() for name, value in model.state_dict().items()}
    write_atomic(folder / WEIGHTS_FILE, save(tensors))
    write_json(folder / INFO_FILE, info.to_json())


def load_adapter(folder: Path, *, device: str | torch.device = "cpu") -> tuple[DetectionAdapter, AdapterInfo]:
    """The adapter of a folder, in evaluation mode and without gradients, and its information.

    Raises ModelError naming what is missing or does not fit.
    """
    info = read_info(folder)
    path = folder / WEIGHTS_FILE
    if not path.is_file():
        raise ModelError(f"{path} is missing.")
    _check_described(info.config, path)
    model = DetectionAdapter(info.config)
    try:
        model.load_state_dict(load_file(path))
    except (SafetensorError, RuntimeError, OSError) as cause:
        raise ModelError(f"{path} cannot be read: {shorten(cause, 200)}.") from cause
    check_finite(path, model.state_dict())
    return model.requires_grad_(False).eval().to(device), info


def _check_described(config: AdapterConfig, path: Path) -> None:
    """Raise ModelError unless the file's header has every weight of the network that adapter.json describes, in its
    shape, and no other: before memory is taken for either."""
    header = read_header(path)
    check_no_quantisation(path, header.tensors)
    try:
        with torch.device("meta"):
            described = DetectionAdapter(config).state_dict()
    except Exception as cause:  # the libraries validate with errors of their own
        raise ModelError(f"{path.with_name(INFO_FILE)} describes no network: {shorten(cause, 200)}.") from cause
    check_described(path, header.tensors, described, INFO_FILE)
