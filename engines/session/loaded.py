"""A bundle that is open on an engine: `paint` and `label`.

Knows: which networks are kept between calls. They are prepared once for each size of image and number of slots, and
later calls use them again while few others came between; two paintings that go on at the same time do not share any.
Writes nothing: runs (`engines.runs`) and labels of whole folders (`engines.labelling`) are other rooms' matters.

H/W pixels.
"""

import hashlib
import os
import threading
from collections import OrderedDict
from collections.abc import Generator, Mapping, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
from PIL import Image

from engines.adapter.looks import TTA_LOOKS, TTA_WANTED, check_looks
from engines.common.verbs import setting
from engines.datasets.images import pixels_of, read_image
from engines.diffusion.prompts import generic_prompt
from engines.errors import UsageError
from engines.labels.boxes import Instances
from engines.labels.rules import Rules, chosen, label_rules
from engines.labels.scores import ScoreKind, ScoreLike, ScorePolicy
from engines.painting.finisher import Outcome
from engines.painting.jobs import JobSource, make_job
from engines.painting.networks import TextEncoder, cores_for_graphs
from engines.painting.reader import Reader, batch_for, padded_size
from engines.painting.references import job_source, open_references
from engines.painting.resolve import resolve
from engines.painting.run_settings import RunSettings
from engines.painting.settings import GenerateSettings
from engines.painting.unpainted import open_painter
from engines.session.image import PaintedImage

if TYPE_CHECKING:
    from engines.backends.base import Backend, Call, Role, Shapes
    from engines.bundle.bundle import Bundle

Picture = npt.NDArray[np.uint8] | Image.Image | str | os.PathLike[str]  # what `label` takes
# Settings of `generate` that decide an image or its labels, and not what a run does with it.
OF_IMAGES = frozenset({
    "seed", "reference", "reference_split", "strength", "flip", "size", "steps", "sampler", "eta", "guidance",
    "guidance_interval", "prompt_template", "negative_prompt", "score", "ignore_score", "max_overlap", "tta",
    "balance", "skip_bad", "follow_links", "boxes", "slots", "rows", "labels", "compose", "rotate",
    "repaint", "keep_detail",
})  # fmt: skip
_SIZES_KEPT = 4  # sizes of pictures whose networks `label` keeps
_CALLS_KEPT = 40  # prepared graphs that are kept for painting: each size of images takes some seven


class LoadedBundle:
    """A bundle that is open on an engine; made with `load`.

    >>> import dengine
    >>> bundle = dengine.load(engine="onnxruntime", precision="f32")
    >>> bundle.class_names
    ('Platelets', 'RBC', 'WBC')
    """

    def __init__(self, bundle: "Bundle", backend: "Backend") -> None:
        self._bundle, self._backend = bundle, backend
        self._free: list[_KeptCalls] = []  # of paintings that are over
        self._readers: OrderedDict[tuple[tuple[int, int], int], Reader] = OrderedDict()
        self._text: TextEncoder | None = None
        self._lock = threading.Lock()  # one picture is labelled at a time

    @property
    def folder(self) -> Path:
        """Where it lies."""
        return self._bundle.folder

    @property
    def class_names(self) -> tuple[str, ...]:
        """What labels count."""
        return tuple(self._bundle.class_names)

    @property
    def frame(self) -> tuple[int, int]:
        """Usual (width, height) of an image in pixels."""
        return self._bundle.frame

    @property
    def thresholds(self) -> Mapping[str, float]:
        """The adapter's own lowest score of a label, of each class that it has one for."""
        return self._bundle.adapter_info.thresholds

    @property
    def backend(self) -> str:
        """One line: engine, device, precision, threads."""
        return self._backend.description

    def __repr__(self) -> str:
        return f"<LoadedBundle {self.folder.name} on {self.backend}>"

    def paint(
        self,
        count: int,
        *,
        seed: int = 0,
        reference: str | os.PathLike[str] | None = None,
        strength: tuple[float, float] | None = None,
        size: tuple[int, int] | None = None,
        steps: int | None = None,
        **options: Any,
    ) -> "Generator[PaintedImage]":
        """Paint images 0 to count - 1 of a seed, and give each as it is ready.

        They are those that `generate` paints with the same settings, to the last bits of the arithmetic where it puts
        them together in other chunks; none is dropped. `options` are the other settings of `generate` that decide an
        image or its labels (`OF_IMAGES`), such as guidance, score or prompt_template. What is left out is the bundle's.
        Raises UsageError, DatasetError, BundleError before anything is painted; NumericalError.

        >>> import dengine
        >>> for image in dengine.load().paint(2, seed=3, steps=2, score=0.5):
        ...     assert image.instances.scores.min(initial=1.0) >= 0.5
        """
        given = {"seed": seed, "reference": reference, "strength": strength, "size": size, "steps": steps} | options
        known = {item.name for item in fields(GenerateSettings)}
        for name in sorted(set(given) - OF_IMAGES):
            text = "is a setting of runs: see `generate`" if name in known else "is unknown"
            raise UsageError(f"`{name}` {text}; {', '.join(sorted(OF_IMAGES))} were expected.", field=name)
        if type(count) is not int or count < 1:
            raise UsageError(f"`count` is {count!r:.60}; a whole number from 1 was expected.", field="count")
        asked = GenerateSettings(out="unused", jobs=count, **given)
        references = None
        if asked.reference is not None:
            with setting("reference"):
                references = open_references(asked)
        run = resolve(asked, self._bundle, self._backend, references, None)
        return self._painted(count, run, job_source(run.options, self._bundle, references))

    def label(
        self, picture: Picture, score: ScoreLike | None = None, *, name: str | None = None, tta: int = 1
    ) -> Instances:
        """What the adapter finds in a picture, best first, in the picture's own pixels.

        Args:
            picture: an image file, a Pillow image, or uint8 pixels [H, W, 3] (RGB) or [H, W] (grey).
            score: a box below it is left out: a number, numbers by class, or "adapter" for its own; None: from 0.05 on.
            name: key of the noise of the label pass, which moves scores a little. None takes the file's name, as the
                verb `label` does in a folder of images, or, without a file, the SHA-256 of the pixels: the same picture
                has the same boxes.
            tta: looks that boxes are read from, 1, 2, 4 or 8: 2 is with the mirror image, more are turned.

        Equal to what `label` writes for the same pixels and name, but for the last bits where that labels several
        pictures in one call. Raises UsageError, DatasetError for a file that is no image, NumericalError.

        >>> import numpy as np, dengine
        >>> len(dengine.load().label(np.full((256, 320, 3), 240, np.uint8), score=0.5))
        0
        """
        rules = None if score is None else self._rules(score)
        if self._backend.precision == "int8":
            raise UsageError("`precision=int8` is for painting: load the bundle with another one.", field="precision")
        if tta not in TTA_LOOKS:
            raise UsageError(f"`tta` is {tta!r:.60}; {TTA_WANTED} was expected.", field="tta")
        check_looks(tta, self._bundle.adapter_info.rotate)
        if not isinstance(name, str | None):
            raise UsageError(f"`name` is {name!r:.60}; a text was expected.", field="name")
        pixels, own = _pixels(picture)
        key = own if name is None else name
        size = padded_size(pixels.shape[1], pixels.shape[0], self._bundle)
        with self._lock, cores_for_graphs(self._backend):
            reader, text = self._reader(size, tta)
            (found,) = reader([pixels], [text(generic_prompt(self._bundle.style))], [key])
        return chosen(found, rules)

    def _painted(self, count: int, run: RunSettings, source: JobSource) -> "Generator[PaintedImage]":
        try:
            calls = self._free.pop()
        except IndexError:  # asked beforehand, it might be another thread's by now
            calls = _KeptCalls(self._backend)
        rules = run.rules
        try:
            with cores_for_graphs(self._backend):
                painter = open_painter(
                    self._bundle, calls, run.options, source, stage=lambda text: None, tick=lambda: None
                )
            jobs = (make_job(source, run.options.seed, index) for index in range(count))
            outcomes = painter.paint(jobs, lambda: False)
            while True:
                with cores_for_graphs(self._backend):  # and between two images they are the caller's
                    outcome = next(outcomes, None)
                if outcome is None:
                    break
                if outcome.pixels is not None:
                    yield self._image(outcome, outcome.pixels, source, rules)
        finally:
            self._free.append(calls)

    def _image(self, outcome: Outcome, pixels: npt.NDArray[np.uint8], source: JobSource, rules: Rules) -> PaintedImage:
        job = outcome.job
        return PaintedImage(
            pixels=pixels,
            instances=chosen(outcome.instances, rules, outcome.given.instances if outcome.given else None),
            detections=outcome.instances,
            prompt=job.prompt,
            class_names=self.class_names,
            index=job.index,
            reference=None if job.reference is None else source.references[job.reference].name,
            strength=job.strength,
        )

    def _rules(self, score: ScoreLike) -> Rules:
        if ScorePolicy.of(score).kind is ScoreKind.MATCHED:
            raise UsageError("`score=matched` looks at many pictures at once: see `label`.", field="score")
        return label_rules(score, 0.0, 1.0, self.thresholds, self.class_names)

    def _reader(self, size: tuple[int, int], views: int) -> tuple[Reader, TextEncoder]:
        """The networks for frames of a size, the last used of which are kept, and the text encoder."""
        if self._text is None:
            self._text = TextEncoder(self._bundle, self._backend)
        reader = self._readers.pop((size, views), None)
        if reader is None:
            reader = Reader(self._bundle, self._backend, size, batch_for(self._backend, 1), views)
        self._readers[size, views] = reader
        if len(self._readers) > _SIZES_KEPT:
            self._readers.popitem(last=False)
        return reader, self._text


@dataclass
class _KeptCalls:
    """A backend that prepares a graph once at the same shapes, and keeps the last used; for one painting at a time."""

    backend: "Backend"
    calls: dict[Any, "Call"] = field(default_factory=dict)

    def __post_init__(self) -> None:
        backend = self.backend
        self.name, self.description, self.device = backend.name, backend.description, backend.device
        self.precision, self.threads = backend.precision, backend.threads

    def prepare(
        self,
        graph: str,
        shapes: "Shapes",
        outputs: Sequence[str] | None = None,
        varies: str | None = None,
        role: "Role | None" = None,
    ) -> "Call":
        """See `Backend.prepare`."""
        key = (graph, tuple(sorted(shapes.items())), None if outputs is None else tuple(outputs), varies, role)
        call = self.calls.pop(key, None)
        if call is None:
            call = self.backend.prepare(graph, shapes, outputs, varies, role)
        self.calls[key] = call  # the last used come last
        while len(self.calls) > _CALLS_KEPT:
            self.calls.pop(next(iter(self.calls)), None)
        return call


def _pixels(picture: object) -> tuple[npt.NDArray[np.uint8], str]:
    """The pixels of a picture, uint8 [H, W, 3], and what keys its noise unless the caller says."""
    if isinstance(picture, str | os.PathLike):
        with setting("picture"):
            return read_image(Path(picture)), Path(picture).name
    if isinstance(picture, np.ndarray):
        if picture.dtype != np.uint8 or picture.ndim not in (2, 3) or picture.shape[2:] not in ((), (3,)):
            raise UsageError(
                f"`picture` has {picture.dtype} values, shape {picture.shape}; uint8 [H, W, 3] or [H, W] was expected.",
                field="picture",
            )
        if 0 in picture.shape:
            raise UsageError(f"`picture` has the shape {picture.shape}: no pixels.", field="picture")
        colours = picture if picture.ndim == 3 else np.repeat(picture[:, :, None], 3, axis=2)
        pixels = np.ascontiguousarray(colours)
    elif isinstance(picture, Image.Image):
        pixels = pixels_of(picture)
    else:
        kind = type(picture).__name__
        raise UsageError(
            f"`picture` is a {kind:.60}; a path, a Pillow image, or an array of pixels was expected.", field="picture"
        )
    return pixels, f"pixels {hashlib.sha256(pixels.tobytes()).hexdigest()}"
