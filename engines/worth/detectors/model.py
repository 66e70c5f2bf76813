"""A detector with its classes and scale: built, asked about images of any size, saved and loaded.

Knows: which kinds there are and how each is built, the folder `detector.json` + `detector.safetensors`, and how boxes
in a frame become boxes on the image. Knows nothing about training loops or measures.

H, W pixels; N boxes.
"""

from collections.abc import Iterable, Iterator
from itertools import groupby, islice
from pathlib import Path
from typing import cast

import numpy as np
import numpy.typing as npt
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from engines.adapter.inference import prepare_frame
from engines.common.files import write_json
from engines.common.quote import shorten
from engines.common.weight_file import check_described, check_finite, check_no_quantisation, read_header, save_tensors
from engines.errors import DengineError, ModelError
from engines.labels.boxes import Instances
from engines.worth.detectors.config import (
    INFO_FILE,
    MULTIPLE,
    WEIGHTS_FILE,
    DetectorInfo,
    DetectorOptions,
    NetworkConfig,
)
from engines.worth.detectors.parts import DetectionNetwork, Found

_BATCH = 8  # images of one size that are looked at at once


class Detector:
    """A network and what is needed to use it."""

    def __init__(self, network: nn.Module, info: DetectorInfo) -> None:
        self.network, self.info = network, info

    @property
    def detection(self) -> DetectionNetwork:
        """The network, with what every detector can do."""
        return cast(DetectionNetwork, self.network)

    @torch.no_grad()
    def predict(self, images: Iterable[npt.NDArray[np.uint8]]) -> list[Instances]:
        """Detections, best first, at most 100 an image, on images uint8 [H, W, 3] of any size, in their own pixels.

        Images are resized so that their short side is `info.short_side`. What is found on one does not depend on
        the others, but for rounding.
        """
        self.network.eval()
        device = next(self.network.parameters()).device
        found: list[Instances] = []
        for batch in _same_size(images, self.info.short_side):
            pixels = torch.from_numpy(np.stack([frame for frame, _ in batch])).to(device)
            results = self.detection.detect(pixels / 2 + 0.5)
            found += [
                _on_image(result, size, self.info.short_side) for result, (_, size) in zip(results, batch, strict=True)
            ]
        return found


def check_library(kind: str) -> None:
    """BackendError, with the way to mend it, where the library of a kind of detector does not import."""
    if kind != "rt_detr":
        from engines.worth.detectors.dense import torchvision_detection

        torchvision_detection()


def new_detector(class_names: tuple[str, ...], options: DetectorOptions, short_side: int, seed: int) -> Detector:
    """A detector with random weights, which `seed` decides. Raises BackendError where its library is missing."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        network = _build(options.network, len(class_names))
    return Detector(network.to(options.device), DetectorInfo(class_names, short_side, options.network))


def start_from(
    folder: Path, class_names: tuple[str, ...], options: DetectorOptions, short_side: int, seed: int
) -> Detector:
    """A detector that begins with a checkpoint's weights: a dengine detector's folder, or one of transformers.

    Layers whose size depends on the classes start anew where the classes differ in number.
    Raises ModelError for a folder that holds neither, or another kind of detector.
    """
    kind = options.network.kind
    if (folder / INFO_FILE).exists():
        stored = DetectorInfo.read(folder)
        if stored.network.kind != kind:
            raise ModelError(f'{folder} holds a "{stored.network.kind}"; a "{kind}" was asked for.')
        _check_stored(stored, folder)
        info = DetectorInfo(class_names, short_side, stored.network, stored.library)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            network = _rebuild(info)
        _install(network, folder)
        return Detector(network.to(options.device), info)
    if kind != "rt_detr" or not (folder / "config.json").exists():
        raise ModelError(f"{folder} holds no {INFO_FILE} of a {kind}; give the folder of a trained detector.")
    from engines.worth.detectors.rt_detr import load_checkpoint

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        loaded = load_checkpoint(folder, len(class_names))
    info = DetectorInfo(class_names, short_side, options.network, loaded.settings())
    return Detector(loaded.to(options.device), info)


def save_detector(folder: Path, detector: Detector) -> None:
    """Write a detector to `folder`; `detector.json` comes last and makes it whole."""
    folder.mkdir(parents=True, exist_ok=True)
    save_tensors(folder / WEIGHTS_FILE, {name: value.detach().cpu() for name, value in _tensors(detector.network)})
    write_json(folder / INFO_FILE, detector.info.to_json())


def load_detector(folder: Path | str, device: str = "cpu") -> Detector:
    """Read what `save_detector` wrote, in evaluation mode. Raises ModelError for a folder that is not that."""
    info = DetectorInfo.read(Path(folder))
    _check_stored(info, Path(folder))
    with torch.random.fork_rng(devices=[]):
        network = _rebuild(info)
    _install(network, Path(folder))
    return Detector(network.to(device).eval(), info)


def _build(network: NetworkConfig, num_classes: int) -> nn.Module:
    if network.kind == "rt_detr":
        from engines.worth.detectors import rt_detr

        return rt_detr.build(network, num_classes)
    from engines.worth.detectors import dense

    return dense.build(network, num_classes)


def _rebuild(info: DetectorInfo) -> nn.Module:
    if not info.library:
        return _build(info.network, len(info.class_names))
    from engines.worth.detectors.rt_detr import from_settings

    return from_settings(info.library, len(info.class_names))


def _tensors(network: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """Weights and buffers by name; one that two layers share comes once."""
    yield from network.named_parameters()
    yield from network.named_buffers()


@torch.no_grad()
def _install(network: nn.Module, folder: Path) -> None:
    """Give a network the weights of a folder, but those of layers whose shape follows from other classes."""
    path = folder / WEIGHTS_FILE
    try:
        stored: dict[str, Tensor] = load_file(path)
    except (OSError, SafetensorError) as cause:
        raise ModelError(f"{path} cannot be read: {shorten(cause, 200)}.") from cause
    check_finite(path, stored)
    for name, value in _tensors(network):
        if value.shape == stored[name].shape:
            value.copy_(stored[name])


def _check_stored(info: DetectorInfo, folder: Path) -> None:
    """Raise ModelError unless the header of the folder's weights holds the network that `info`, its own, describes:
    before memory is taken for either."""
    path = folder / WEIGHTS_FILE
    stored = read_header(path).tensors
    check_no_quantisation(path, stored)
    try:
        with torch.device("meta"):
            described = dict(_tensors(_rebuild(info)))
    except DengineError:
        raise
    except Exception as cause:  # the libraries validate with errors of their own
        raise ModelError(f"{folder / INFO_FILE} describes no network: {shorten(cause, 200)}.") from cause
    check_described(path, stored, described, INFO_FILE)


def _same_size(
    images: Iterable[npt.NDArray[np.uint8]], short_side: int
) -> Iterator[list[tuple[npt.NDArray[np.float32], tuple[int, int]]]]:
    """(frame [3, H, W] in [-1, 1], (width, height) of the image), in batches of neighbours of one size."""
    frames = ((prepare_frame(image, short_side, MULTIPLE)[0], (image.shape[1], image.shape[0])) for image in images)
    for _, members in groupby(frames, key=lambda frame: frame[0].shape):
        while batch := list(islice(members, _BATCH)):
            yield batch


def _on_image(found: Found, size: tuple[int, int], short_side: int) -> Instances:
    """Boxes in a frame's pixels as boxes in the image's, clipped to it, without those that lie in the padding."""
    width, height = size
    scale = short_side / min(width, height)
    # The resized size was rounded to whole pixels, so the two axes differ a little from `scale`.
    factors = np.array([width / max(1, round(width * scale)), height / max(1, round(height * scale))] * 2)
    boxes = found.boxes.float().cpu().numpy() * factors
    boxes = np.clip(boxes, 0, (width, height, width, height)).astype(np.float32)
    kept = (boxes[:, 2] > boxes[:, 0]) & (boxes[:, 3] > boxes[:, 1])
    scores, labels = found.scores.float().cpu().numpy(), found.labels.cpu().numpy()
    return Instances.of(boxes[kept], labels[kept], scores[kept])
