"""What an adapter finds on whole images that it does not learn from, and how well.

Knows: how an image becomes the base's pyramid as often as it is looked at, and which pyramids are kept for the next
time. Which images these are is `engines.training.dev_split`'s and `folds`' matter.
"""

import time
from collections import Counter
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from engines.adapter.inference import look_detections, prepare_frame
from engines.adapter.looks import LOOKS, laid, laid_back
from engines.adapter.model import DetectionAdapter
from engines.common.events import Event, EventKind, Report, silent
from engines.common.rng import Stream
from engines.datasets.dataset import Record, instances_of
from engines.diffusion import prompts
from engines.labels.average_precision import mean_average_precision
from engines.labels.boxes import Instances
from engines.training.dev_split import noise
from engines.training.pyramids import FrozenPyramid, SourceOptions
from engines.training.views import ImageStore

MEASURING = "measuring"  # in events


class DevSplit:
    """Whole images held out of training, and how well an adapter does on them, just as `dengine label` would."""

    def __init__(
        self,
        records: Sequence[Record],
        class_names: Sequence[str],
        frozen: FrozenPyramid,
        options: SourceOptions,
        size_multiple: int,
        report: Report = silent,
    ) -> None:
        self._records, self._class_names, self._frozen, self._options = records, class_names, frozen, options
        self._multiple, self._report = size_multiple, report
        self._store = ImageStore(records)
        self._kept: dict[int, tuple[Tensor, ...]] = {}
        self._room = int(options.cache_gb * 2**30)

    def __len__(self) -> int:
        return len(self._records)

    def evaluate(self, model: DetectionAdapter, kind: prompts.PromptKind = "generic") -> dict[str, float]:
        """`mean_average_precision` with prompts of that kind."""
        return mean_average_precision(instances_of(self._records), self.detect(model, kind), self._class_names)

    def evaluate_with_noise(self, model: DetectionAdapter) -> dict[str, float]:
        """The same with generic prompts, and as "noise AP50" and so on how far each may be off: half its interval."""
        found = self.detect(model)
        ends = noise(instances_of(self._records), found, self._class_names)
        measured = mean_average_precision(instances_of(self._records), found, self._class_names)
        return measured | {f"noise {name}": (high - low) / 2 for name, (low, high) in ends.items()}

    @torch.no_grad()
    def detect(self, model: DetectionAdapter, kind: prompts.PromptKind = "generic", looks: int = 1) -> list[Instances]:
        """The detections on every image, with prompts of that kind, in so many looks; a listing names what the
        annotations hold.
        """
        found = []
        for index in range(len(self._records)):
            self._report(Event(EventKind.PROGRESS, MEASURING, done=index, total=len(self._records)))
            found.append(self._found(index, model, kind, looks))
        if found:
            self._report(Event(EventKind.PROGRESS, MEASURING, done=len(found), total=len(found)))
        return found

    @torch.no_grad()
    def seconds(self, model: DetectionAdapter) -> tuple[float, float]:
        """What detecting on an image takes with the base, and where what the base gives is kept."""
        model.eval()
        started = time.monotonic()
        self._found(0, model, "generic")
        between = time.monotonic()
        self._found(0, model, "generic")
        return between - started, time.monotonic() - between

    def _found(self, index: int, model: DetectionAdapter, kind: prompts.PromptKind, looks: int = 1) -> Instances:
        """The detections on an image."""
        record, device = self._records[index], next(model.parameters()).device
        pixels, scale, padded = prepare_frame(self._store[index], self._options.frame.short_side, self._multiple)
        answers = []
        for look in LOOKS[:looks]:
            pyramid = self._pyramid(index, laid(torch.from_numpy(pixels)[None], look), kind, look == LOOKS[0])
            logits, boxes, _, _ = model(*(level.to(device).float() for level in pyramid))
            answers.append((logits[0].float().cpu().numpy(), laid_back(boxes[0].float().cpu(), look).numpy()))
        logits, boxes = (np.stack(values) for values in zip(*answers, strict=True))
        return look_detections(logits, boxes, padded, scale, (record.width, record.height))

    def _pyramid(self, index: int, pixels: Tensor, kind: prompts.PromptKind, first: bool) -> tuple[Tensor, ...]:
        """What the base gives for an image's frame [1, 3, H, W]; that of a `first` look may be kept."""
        keeps = first and kind == "generic"
        pyramid = self._kept.get(index) if keeps else None
        if pyramid is None:
            noise = self._frozen.noise(*pixels.shape[-2:], self._options.seed, Stream.ADAPTER_DEV, index)
            pyramid = self._frozen(pixels, noise[None], [self._prompt(self._records[index], kind)])
            if keeps:
                self._keep(index, pyramid)
        return pyramid

    def _keep(self, index: int, pyramid: tuple[Tensor, ...]) -> None:
        size = sum(level.nbytes for level in pyramid)
        if size <= self._room:
            self._room -= size
            self._kept[index] = pyramid

    def _prompt(self, record: Record, kind: prompts.PromptKind) -> str:
        if kind == "empty":
            return ""
        if kind == "generic":
            return prompts.generic_prompt(self._options.style)
        counts = Counter(self._class_names[label] for label in record.instances.single.labels)
        return prompts.listing_prompt(self._options.style, counts)
