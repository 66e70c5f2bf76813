"""Whether an adapter belongs to a base model.

Knows: what of a base an adapter has to match. Does not know which hashes a base goes by (`engines.diffusion.origin`),
how networks are exported, or what the base and the adapter compute.
"""

from collections.abc import Sequence

from engines.adapter.info import AdapterInfo
from engines.adapter.pyramid import pyramid_channels
from engines.diffusion.base_model import BaseModel
from engines.diffusion.origin import Origin
from engines.errors import ModelError


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
