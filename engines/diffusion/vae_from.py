"""The weights of one part wherever they lie, and a VAE that is taken from elsewhere than the checkpoint.

Knows: the files and folders that a VAE is shared as, and how the weights of a part are read one by one, in the shape
and dtype that they are stored in. Does not know how a checkpoint is converted (`checkpoints`).
"""

import contextlib
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from engines.common.files import read_json
from engines.common.quote import quote
from engines.common.verbs import setting
from engines.common.weight_file import check_finite, check_no_quantisation, read_header
from engines.diffusion.architecture import empty_network
from engines.diffusion.families import foreign_vae
from engines.diffusion.ldm_names import Source
from engines.diffusion.loading import describe
from engines.diffusion.original_layout import find_vae_alone
from engines.diffusion.published import published
from engines.diffusion.weights import PICKLES, pickle_message, read_headers
from engines.errors import ModelError

_EXPECTED = "a VAE of Stable Diffusion 1.x or 2.x, as a .safetensors file or a diffusers folder,"
_LATENTS = re.compile(r"(first_stage_model\.|vae\.)?encoder\.conv_out\.weight")  # mean and deviation of each channel
_OTHER_SCALE = re.compile(r"sdxl|(?<![a-z])xl(?![a-z])", re.IGNORECASE)  # in a file's name
_DTYPES = {"F64": torch.float32, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}


@dataclass(frozen=True)
class Part:
    """Where the weights of a network lie, and how they are to be."""

    places: Mapping[str, tuple[Path, Source]]  # a weight's name -> the file, and where in it
    shapes: Mapping[str, tuple[int, ...]]  # a weight's name -> its shape in the network
    dtype: torch.dtype  # to store
    config: Mapping[str, Any] | None  # of the part; None for the one that comes with the family
    setting: str | None = None  # the one that names the files, where it is a part's own

    @property
    def files(self) -> set[Path]:
        """The files that weights are read from."""
        return {file for file, _ in self.places.values()}


def read_part(part: Part, name: str) -> dict[str, torch.Tensor]:
    """The weights of a part, read and cast one after the other; `name` is the part's. Raises ModelError for NaN."""
    from safetensors import safe_open

    found: dict[str, torch.Tensor] = {}
    with contextlib.ExitStack() as stack:
        if part.setting is not None:
            stack.enter_context(setting(part.setting))
        opened = {file: stack.enter_context(safe_open(file, "pt")) for file in sorted(part.files)}
        for weight, (file, place) in part.places.items():
            value = opened[file].get_tensor(place.name)
            if place.third is not None:
                value = value.chunk(3)[place.third]
            value = value.reshape(part.shapes[weight]).to(part.dtype, copy=True)
            check_finite(file, {place.name: value})
            found[published(weight) if name == "text_encoder" else weight] = value
    return found


def open_vae(vae: Path, source: Path, note: Callable[[str], None]) -> Part:
    """The VAE in a file or folder, for a family whose configurations are in `source`; checked by its headers alone.

    `note` is told of a file that by its name belongs to another family: its numbers cannot tell. Raises ModelError for
    what is no VAE, and for one whose latents are not the family's.
    """
    with setting("vae"):
        found = _vae_of_folder(vae, source) if vae.is_dir() else _vae_of_file(vae, source, note)
    return replace(found, setting="vae")


def _vae_of_file(vae: Path, source: Path, note: Callable[[str], None]) -> Part:
    """The VAE of a file: of a VAE alone, or of a checkpoint."""
    if vae.suffix in PICKLES:
        raise ModelError(pickle_message(vae))
    if not vae.is_file():
        raise ModelError(f"{vae} does not exist; {_EXPECTED} was expected.")
    header = read_header(vae)
    check_no_quantisation(vae, header.tensors)
    if (foreign := foreign_vae(header)) is not None:
        raise ModelError(f"{vae} is {foreign}; {_EXPECTED} was expected.")
    out = [info.shape[0] for name, info in header.tensors.items() if _LATENTS.fullmatch(name) and info.shape]
    if not out:
        raise ModelError(
            f"{vae} holds no encoder of a VAE, but {quote(next(iter(header.tensors), 'nothing'))}; {_EXPECTED} was "
            "expected."
        )
    config = read_json(source / "vae" / "config.json", ModelError)
    if out[0] != 2 * (channels := config.get("latent_channels", 4)):
        raise ModelError(
            f"{vae} is a VAE of another family: its latents have {out[0] // 2} channels, and {channels} were expected."
        )
    if _OTHER_SCALE.search(vae.stem):
        note(
            f"{vae.name} looks like Stable Diffusion XL's VAE, whose latents are scaled by another number than those "
            "of this model; it is taken as if they were not"
        )
    described = empty_network(source / "vae", "vae").state_dict()
    sources = find_vae_alone(header, described, config, vae)
    dtypes = {header.tensors[place.name].dtype for place in sources.values()}
    return Part({name: (vae, place) for name, place in sources.items()}, shapes_of(described), one_dtype(dtypes), None)


def _vae_of_folder(folder: Path, source: Path) -> Part:
    """The VAE of a diffusers folder: one of a VAE alone, or of a base model with its vae/."""
    inner = folder / "vae" if (folder / "vae").is_dir() else folder
    if not (inner / "config.json").is_file():
        raise ModelError(f"{inner} has no config.json; {_EXPECTED} was expected.")
    config = read_json(inner / "config.json", ModelError)
    if (kind := config.get("_class_name", "AutoencoderKL")) != "AutoencoderKL":
        raise ModelError(f"{inner} holds {quote(kind)}; an AutoencoderKL was expected.")
    own = read_json(source / "vae" / "config.json", ModelError)
    for key, default in (("scaling_factor", 0.18215), ("latent_channels", 4)):
        if config.get(key, default) != own.get(key, default):
            raise ModelError(
                f"{inner} is a VAE of another family: its {key} is {quote(config.get(key, default))}, and "
                f"{own.get(key, default)} was expected."
            )
    if len(blocks_of(config)) != len(blocks_of(own)):
        raise ModelError(
            f"{inner} is a VAE of another family: it has {len(blocks_of(config))} levels, and "
            f"{len(blocks_of(own))} were expected."
        )
    described = describe(inner, "vae")
    return Part(
        {name: (inner / file, Source(place)) for name, (file, place) in described.places.items()},
        shapes_of(described.network.state_dict()),
        one_dtype({info.dtype for _, info in read_headers(inner, "vae").values()}),
        config,
    )


def blocks_of(config: Mapping[str, Any]) -> list[Any]:
    """The widths of a VAE's levels, as its configuration has them."""
    value = config.get("block_out_channels")
    return value if isinstance(value, list) else []


def shapes_of(described: Mapping[str, torch.Tensor]) -> dict[str, tuple[int, ...]]:
    """The shape of every weight of a network without memory."""
    return {name: tuple(value.shape) for name, value in described.items()}


def one_dtype(found: set[str]) -> torch.dtype:
    """The dtype to store: the weights' own where it is the same for all, else float32."""
    return _DTYPES[next(iter(found))] if len(found) == 1 else torch.float32
