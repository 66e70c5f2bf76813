"""A base model as adapters learn on it: loaded once, with its LoRAs in it, and known by its hash.

Knows: what is opened for a training, and for several on one base. Knows nothing about adapters.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from engines.common.events import Report, note
from engines.diffusion.base_model import BaseModel, base_hash, load_base
from engines.diffusion.lora import fuse_loras
from engines.diffusion.origin import fused_hash


@dataclass(frozen=True)
class OpenedBase:
    """A frozen base model."""

    model: BaseModel
    hashed: str  # of its files, and of the LoRAs
    loras: tuple[str, ...] = ()  # what was added to its weights, as adapter.json names them


def open_base(folder: Path | str, device: str, loras: Sequence[tuple[Path, float]], report: Report) -> OpenedBase:
    """Load the base model in `folder` onto a device, and add LoRA files by their scales. Raises ModelError."""
    base = load_base(folder, device=device)
    names = fuse_loras(base, loras, lambda text: report(note(text)))
    return OpenedBase(base, fused_hash(base_hash(base.folder), names), tuple(names))
