"""Whether an adapter belongs to a base model.

Knows: the hashes a base goes by, alone and with LoRAs added, and what of a base an adapter has to match. Does not know
how networks are exported, or what the base and the adapter compute.

A bundle's own folder may stand as a base, and has three names: that of its folder, that of the base its own adapter
was trained on, and, where LoRAs are in its weights, that of this base with them.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from engines.adapter.info import AdapterInfo
from engines.adapter.pyramid import pyramid_channels
from engines.bundle.bundle import open_bundle
from engines.bundle.files import MANIFEST
from engines.diffusion.base_model import BaseModel, base_hash
from engines.diffusion.lora import fused_hash
from engines.errors import BundleError, ModelError


@dataclass(frozen=True)
class Origin:
    """What a base model's folder is known by."""

    hash: str  # `base_hash` of the folder
    source: str | None = None  # of an unchanged bundle: the hash of the base that its own adapter was trained on
    loras: tuple[str, ...] = ()  # of an unchanged bundle: the LoRAs in its weights, as `fuse_loras` names them

    def hashes(self, loras: Sequence[str] = ()) -> tuple[str, ...]:
        """The hashes of this base with further LoRAs (as `fuse_loras` names them) added: the folder's own first."""
        names = [fused_hash(self.hash, loras)]
        if self.source is not None:
            names += [fused_hash(self.source, loras), fused_hash(self.source, (*self.loras, *loras))]
        return tuple(dict.fromkeys(names))


def read_origin(folder: Path) -> Origin:
    """Hash a base model's folder, each of its files once. A bundle that was changed is a base like any other."""
    if not (folder / MANIFEST).is_file():
        return Origin(base_hash(folder))
    try:
        manifest = open_bundle(folder).manifest
    except BundleError:
        return Origin(base_hash(folder))
    return Origin(base_hash(folder, manifest.files), manifest.base_hash, manifest.loras)


def check_fit(base: BaseModel, origin: Origin, info: AdapterInfo, loras: Sequence[str] = ()) -> None:
    """Raise ModelError unless the adapter was trained on this base, and reads what its UNet gives.

    With `loras` (as `fuse_loras` names them), an adapter of the base alone fits, and one trained with these.
    """
    names = origin.hashes()
    if info.base_hash not in (*names, *origin.hashes(loras)):
        if trained_with := info.figures.get("loras"):
            raise ModelError(
                f"The adapter was trained on a base model with {', '.join(map(str, trained_with))}, and this is not "
                "that. Give the base it was trained on, and the same `loras`.",
                field="loras",
            )
        raise ModelError(
            f"The adapter was trained on another base model: adapter.json has base_hash {info.base_hash[:12]}..., "
            f"{base.folder} has {' or '.join(f'{name[:12]}...' for name in names)}. Give the base it was trained on."
        )
    channels = pyramid_channels(base.unet.config)
    steps = int(base.scheduler_config.get("num_train_timesteps", 1000))
    mistakes = [
        f"{what} {found} where the base has {expected}"
        for what, found, expected, fits in (
            ("pyramid channels", list(info.config.channels), list(channels), info.config.channels == channels),
            ("timestep", info.timestep, f"0 to {steps - 1}", 0 <= info.timestep < steps),
            ("size_multiple", info.size_multiple, base.size_multiple, info.size_multiple == base.size_multiple),
        )
        if not fits
    ]
    if mistakes:
        raise ModelError(f"The adapter does not fit {base.folder}: it has {'; '.join(mistakes)}.")
