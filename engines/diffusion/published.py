"""A text encoder's weights by the names that Stable Diffusion's are published with.

transformers has written others since 5.6, and reads both; an older release that meets the others draws the whole
encoder at random, with a warning alone.
"""

from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from transformers import CLIPTextModel

_PREFIX = "text_model."


def published(name: str) -> str:
    """What a text encoder's weight is published as, from that name or a newer one."""
    return _PREFIX + name.removeprefix(_PREFIX)


def plain(name: str) -> str:
    """The newer name."""
    return name.removeprefix(_PREFIX)


def save_text_encoder(text_encoder: "CLIPTextModel", folder: Path) -> None:
    """Write config.json and model.safetensors: one file, however large."""
    from safetensors.torch import load_file, save_file

    text_encoder.save_pretrained(folder, safe_serialization=True, max_shard_size="1TB")
    weights = folder / "model.safetensors"
    tensors = {published(name): value for name, value in load_file(weights).items()}
    written = weights.with_suffix(".tmp")  # the tensors may be the old file's own memory
    save_file(tensors, written, {"format": "pt"})
    written.replace(weights)
