"""What an adapter is shown while it learns: style words, scale and frame, as given or as its base has them.

Knows: the notes of a base, and which frames its networks can divide. Knows nothing about batches.
"""

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from engines.adapter.inference import resized_size
from engines.common.files import read_json
from engines.datasets.dataset import Record
from engines.diffusion import prompts
from engines.diffusion.base_model import BASE_NOTES, BaseModel
from engines.errors import ModelError, UsageError
from engines.training.adapter_options import AdapterTrainOptions
from engines.training.augment import FrameOptions
from engines.training.pyramids import SourceOptions

STYLE, SHORT_SIDE = "photo", 512  # for bases without notes
_LONGEST_SIDE = 65_536  # pixels


@dataclass(frozen=True)
class Scene:
    """What the adapter is shown."""

    style: str  # words of prompts
    short_side: int  # pixels of the images' short side
    frame: tuple[int, int]  # (width, height) of training frames
    size_multiple: int  # that the networks can divide


def scene_of(base: BaseModel, records: Sequence[Record], options: AdapterTrainOptions, multiple: int) -> Scene:
    """Style words and short side: as given, else as the base's own notes say, else what suits Stable Diffusion."""
    path = base.folder / BASE_NOTES
    notes = read_json(path, ModelError) if path.exists() else {}
    style, short_side = notes.get("style", STYLE), notes.get("short_side", SHORT_SIDE)
    if not isinstance(style, str) or type(short_side) is not int or not 0 < short_side <= _LONGEST_SIDE:
        raise ModelError(f'{path}: "style" must be a string and "short_side" a whole number from 1 to {_LONGEST_SIDE}.')
    style, short_side = options.style or style, options.short_side or short_side
    return Scene(style, short_side, _frame_size(records, short_side, multiple, options), multiple)


def _frame_size(
    records: Sequence[Record], short_side: int, multiple: int, options: AdapterTrainOptions
) -> tuple[int, int]:
    """(width, height) of the training frames, checked against what the networks can divide."""
    if options.frame != (0, 0):
        if options.frame[0] % multiple or options.frame[1] % multiple:
            width, height = (max(multiple, round(side / multiple) * multiple) for side in options.frame)
            raise UsageError(
                f"`frame={options.frame}`: both must be multiples of {multiple}; `frame={(width, height)}` would do.",
                field="frame",
            )
        return options.frame
    shapes = Counter((record.width, record.height) for record in records)
    image_width, image_height = max(shapes, key=lambda shape: (shapes[shape], shape))
    width, height, _ = resized_size(image_width, image_height, short_side)
    return math.ceil(width / multiple) * multiple, math.ceil(height / multiple) * multiple


def source_options_of(options: AdapterTrainOptions, scene: Scene) -> SourceOptions:
    """How training batches of a scene are made."""
    drawn = FrameOptions(
        width=scene.frame[0],
        height=scene.frame[1],
        short_side=scene.short_side,
        scale=options.scale,
        flips=options.flips,
        rotate=options.rotate,
        colour=options.colour,
        min_visible=options.min_visible,
    )
    probabilities = {kind: options.prompt_probabilities.get(kind, 0.0) for kind in prompts.KIND_PROBABILITIES}
    return SourceOptions(
        frame=drawn,
        style=scene.style,
        prompt_probabilities=probabilities,
        batch=options.batch,
        seed=options.seed,
        cache_views=options.cache_views,
        cache_gb=options.cache_gb,
        workers=options.workers,
    )
