"""A part of a base model's folder becomes a network: described, held against its headers, then loaded.

Knows: that memory is taken only when every weight that the configuration describes is in the files, in its shape and
once, and that no number of them is NaN or infinite. Knows nothing about what a part may be (`architecture`), or in
which files weights lie (`weights`).

The networks are built here and not by `from_pretrained`, which leaves weights random that a file lacks, and draws all
of them at random first.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from engines.common.quote import shorten
from engines.common.weight_file import check_described, check_finite
from engines.diffusion.architecture import empty_network
from engines.diffusion.original_layout import stored_name
from engines.diffusion.published import plain, published
from engines.diffusion.weights import DECODER, read_headers
from engines.errors import ModelError

_BESIDE_TEXT = ("position_ids", "text_projection.weight", "logit_scale")  # of CLIP models with an image side, or older


@dataclass(frozen=True)
class Described:
    """A part's network without memory, all of whose weights are in the part's files."""

    folder: Path
    network: Any
    places: Mapping[str, tuple[str, str]]  # a weight's name -> the file, and its name there

    def load(self) -> Any:
        """The network with its weights, in float32, on the CPU; once. Raises ModelError."""
        from safetensors import SafetensorError, safe_open

        state: dict[str, torch.Tensor] = {}
        try:
            for file in sorted({file for file, _ in self.places.values()}):
                with safe_open(self.folder / file, "pt") as opened:
                    for name, (where, stored) in self.places.items():
                        if where == file:
                            state[name] = opened.get_tensor(stored).to(torch.float32, copy=True)
        except (SafetensorError, OSError) as cause:
            raise ModelError(f"{self.folder / file} cannot be read: {shorten(cause, 200)}.") from cause
        check_finite(self.folder, state)
        self.network.load_state_dict(state, strict=True, assign=True)
        _make_buffers(self.network)
        return self.network


def describe(folder: Path, part: str) -> Described:
    """The network of `folder/config.json`, its files found to hold all its weights and no others. Raises ModelError.

    The folder may have another name than the part.
    """
    headers = read_headers(folder, part)
    network = empty_network(folder, part, len(headers))
    described = network.state_dict()
    if part == "text_encoder":  # with and without the prefix of CLIP's two sides
        found = {name: _with_prefix(name, headers) for name in described}
        unused = [name for name in headers if name.endswith(_BESIDE_TEXT)]
    else:
        found = {name: stored_name(name, headers) for name in described}
        unused = [name for name in headers if part == DECODER and name.startswith("encoder.")]
    spare = set(headers) - set(found.values()) - set(unused)
    stored = {name: headers[theirs][1] for name, theirs in found.items() if theirs in headers}
    stored |= {name: headers[name][1] for name in spare}
    check_described(folder, stored, described, "config.json")
    return Described(folder, network, {name: (headers[theirs][0], theirs) for name, theirs in found.items()})


def _with_prefix(name: str, headers: dict[str, Any]) -> str:
    return plain(name) if plain(name) in headers else published(name)


def _make_buffers(network: torch.nn.Module) -> None:
    """Give memory to what is in no file and follows from the configuration: the places of a text encoder's tokens."""
    for module in network.modules():
        for name, value in module.named_buffers(recurse=False):
            if value.is_meta:
                assert name == "position_ids", name
                setattr(module, name, torch.arange(value.shape[-1]).expand(value.shape))
