"""What the adapter is trained on: pyramids of a frozen base model.

Knows: how frames of training images become batches of pyramids with targets, and which of them are kept in memory.
Knows nothing about losses or optimisers.
Every batch is a pure function of (seed, step): a resumed training sees the same ones.

B batch, N boxes, H/W pixels.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from engines.adapter.losses import xyxy_to_cxcywh
from engines.adapter.pyramid import PyramidUNet, label_pass
from engines.common.rng import Stream, generator, normal
from engines.datasets.dataset import Record
from engines.diffusion import prompts
from engines.diffusion.base_model import BaseModel
from engines.diffusion.latents import add_noise, to_pixels
from engines.diffusion.noise import alphas_cumprod
from engines.training.augment import FrameOptions, draw_frame
from engines.training.together import share
from engines.training.trainer import autocast
from engines.training.views import ImageStore, View


@dataclass(frozen=True)
class Batch:
    """Pyramids and targets of a few frames: of a whole batch, or of this process's share of it."""

    pyramid: tuple[Tensor, ...]  # div1 [B, C_0, h, w], div2, ...
    targets: tuple[dict[str, Tensor], ...]  # class_labels int64 [N]; boxes float32 [N, 4], centre and size as shares

    def nbytes(self) -> int:
        """Memory of the pyramid."""
        return sum(level.nbytes for level in self.pyramid)


class FrozenPyramid:
    """A base model that gives pyramids, and takes no gradient."""

    def __init__(self, base: BaseModel, timestep: int, precision: str, device: str) -> None:
        self.base = base
        self.timestep = timestep
        self._network = PyramidUNet(base.unet)
        self._alphas = alphas_cumprod(base.scheduler_config)
        self._precision, self._device = precision, device

    @torch.no_grad()
    def __call__(self, pixels: Tensor, noise: Tensor, texts: Sequence[str]) -> tuple[Tensor, ...]:
        """Pixels float32 [B, 3, H, W] in [-1, 1], noise of the latents' shape, B prompts: (div1, div2, ...)."""
        with autocast(self._precision, self._device):
            latents = self.base.encode_images(pixels.to(self._device))
            states = self.base.encode_prompts(texts)
            noisy = add_noise(latents.float(), noise.to(self._device), self._alphas, self.timestep)
            return label_pass(self._network, noisy, states, self.timestep)

    def noise(self, height: int, width: int, *key: int) -> Tensor:
        """Standard normal noise for the latents of a frame, [Z, h, w]."""
        stride = self.base.vae_stride
        return torch.from_numpy(normal((self.base.latent_channels, height // stride, width // stride), *key))


@dataclass(frozen=True)
class SourceOptions:
    """How training batches are made."""

    frame: FrameOptions  # scale, crop and colours
    style: str  # style words of the prompts
    prompt_probabilities: Mapping[prompts.PromptKind, float]  # of the three kinds
    batch: int  # frames a batch
    seed: int  # decides every draw
    cache_views: int = 0  # pyramids of this many views of each record are kept and used again; 0: every view is new
    cache_gb: float = 4.0  # memory for them; views that do not fit are computed again
    workers: int = 0  # threads that draw the next batch's frames beforehand


class BatchSource:
    """Training batches by step.

    An epoch shows one view of every record; one that comes several times has a view for each. The images of a view are
    put in groups of B, once for that view; epochs take the groups in an order of their own. So a kept group is the same
    tensor, bit for bit, as one made anew.
    """

    def __init__(
        self, records: Sequence[Record], class_names: Sequence[str], frozen: FrozenPyramid, options: SourceOptions
    ) -> None:
        self._records, self._class_names, self._frozen, self._options = records, class_names, frozen, options
        self._store = ImageStore(records)
        self._groups = max(1, len(records) // options.batch)
        self._kept: dict[tuple[int, int], Batch] = {}
        self._room = int(options.cache_gb * 2**30) if options.cache_views else 0
        self._pool = ThreadPoolExecutor(options.workers) if options.workers else None
        self._coming: dict[tuple[int, int], list[Future[tuple[View, str]]]] = {}
        self._size = 0  # bytes of a batch's pyramid, as it is kept

    def at(self, step: int) -> Batch:
        """The batch of a step; its pyramid is bfloat16 where views are kept."""
        key = self._key(step)
        batch = self._kept.get(key)
        if batch is None:
            batch = self._make(key)
            if batch.nbytes() <= self._room:
                self._room -= batch.nbytes()
                self._kept[key] = batch
        self._start(self._key(step + 1))
        return batch

    @property
    def keeps(self) -> bool:
        """Whether pyramids are kept."""
        return self._options.cache_views > 0

    def fresh(self, steps: int) -> int:
        """About how many of the next steps take pyramids that are not kept yet."""
        keys = self._groups * self._options.cache_views
        if not keys:
            return steps
        fits = min(keys, len(self._kept) + self._room // self._size) if self._size else 0
        return _fresh(steps, keys, fits)

    def fresh_of(self, steps: int, images: int, views: int) -> int:
        """About how many of so many steps take new pyramids, of a training on `images` that keeps so many views of
        each in as much memory; known behind the first batch."""
        keys = max(1, images // self._options.batch) * views
        return _fresh(steps, keys, min(keys, int(self._options.cache_gb * 2**30) // max(1, self._size)))

    def statistics(self, images: int) -> tuple[dict[str, int], ...]:
        """Objects by class in one random frame of each of the first `images` images that hold any."""
        found = []
        for index in range(min(images, len(self._records))):
            view = self._draw_view(index, generator(self._options.seed, Stream.ADAPTER_STATISTICS, index))
            counts = self._counts(view)
            if counts:
                found.append(counts)
        return tuple(found)

    def _key(self, step: int) -> tuple[int, int]:
        epoch, place = divmod(step, self._groups)
        view = epoch % self._options.cache_views if self._options.cache_views else epoch
        order = generator(self._options.seed, Stream.ADAPTER_ORDER, epoch).permutation(self._groups)
        return view, int(order[place])

    def _members(self, key: tuple[int, int]) -> list[int]:
        view, group = key
        size = self._options.batch
        images = generator(self._options.seed, Stream.ADAPTER_GROUPS, view).permutation(len(self._records))
        return [int(i) for i in np.resize(images, self._groups * size)[group * size : (group + 1) * size][share(size)]]

    def _make(self, key: tuple[int, int]) -> Batch:
        coming = self._coming.pop(key, None)
        members = self._members(key)
        drawn = [future.result() for future in coming] if coming else [self._draw(key[0], i) for i in members]
        frame, seed = self._options.frame, self._options.seed
        pixels = torch.stack([to_pixels(view.pixels) for view, _ in drawn])
        noise = [self._frozen.noise(frame.height, frame.width, seed, Stream.ADAPTER_NOISE, key[0], i) for i in members]
        pyramid = self._frozen(pixels, torch.stack(noise), [text for _, text in drawn])
        self._size = sum(level.numel() for level in pyramid) * torch.bfloat16.itemsize
        if self._options.cache_views:
            pyramid = tuple(level.to("cpu", torch.bfloat16) for level in pyramid)
        return Batch(pyramid, tuple(_target(view, frame.width, frame.height) for view, _ in drawn))

    def _start(self, key: tuple[int, int]) -> None:
        if self._pool and key not in self._kept and key not in self._coming:
            self._coming[key] = [self._pool.submit(self._draw, key[0], i) for i in self._members(key)]

    def _draw(self, view_index: int, image: int) -> tuple[View, str]:
        rng = generator(self._options.seed, Stream.ADAPTER_VIEWS, view_index, image)
        view = self._draw_view(image, rng)
        text = prompts.training_prompt(
            rng, self._options.style, self._counts(view), self._class_names, self._options.prompt_probabilities
        )
        return view, text

    def _draw_view(self, image: int, rng: np.random.Generator) -> View:
        record = self._records[image]
        pixels, frame = self._store[image], self._options.frame
        return draw_frame(pixels, record.instances, frame, rng)

    def _counts(self, view: View) -> dict[str, int]:
        found = Counter(view.instances.single.labels.tolist())
        return {name: found[i] for i, name in enumerate(self._class_names) if found[i]}


def _fresh(steps: int, keys: int, fits: int) -> int:
    """Steps that take new pyramids, where `fits` of so many groups are kept behind their first."""
    return steps if steps <= keys else keys + round((steps - keys) * (1 - fits / keys))


def _target(view: View, width: int, height: int) -> dict[str, Tensor]:
    """The labels of a frame as the head's losses want them."""
    size = torch.tensor([width, height, width, height], dtype=torch.float32)
    single, several = view.instances.single, view.instances.crowds
    boxes, crowds = (xyxy_to_cxcywh(torch.from_numpy(some.boxes) / size) for some in (single, several))
    labels, crowd_labels = (torch.from_numpy(some.labels) for some in (single, several))
    return {"class_labels": labels, "boxes": boxes, "crowds": crowds, "crowd_labels": crowd_labels}
