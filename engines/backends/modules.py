"""The PyTorch module behind each graph, with the inputs and outputs that its spec names.

Knows: which part of a base model or adapter computes a graph, and in which order its tensors come. The `torch`
backend runs these modules; `export` turns them into ONNX and checks other runtimes against them.
Does not know: axes and tolerances (`engines.bundle.graphs`), or how anything is loaded.

B batch, R rows, L tokens, D text width, Z latent channels, H/W pixels, h/w latents.
"""

import copy
from typing import Any

import torch
from torch import Tensor, nn

from engines.adapter.pyramid import PyramidUNet
from engines.diffusion.base_model import BaseModel, decode_latents, encode_pixels


class TextEncoder(nn.Module):
    """input_ids [B, L] to encoder_hidden_states [B, L, D]."""

    def __init__(self, text_encoder: Any) -> None:
        super().__init__()
        self.text_encoder = text_encoder

    def forward(self, input_ids: Tensor) -> Tensor:
        states: Tensor = self.text_encoder(input_ids).last_hidden_state
        return states


class VaeEncoder(nn.Module):
    """pixels [B, 3, H, W] in [-1, 1] to scaled latents [B, Z, h, w]: the mode of the posterior, no noise."""

    def __init__(self, vae: Any) -> None:
        super().__init__()
        self.vae = _part(vae, "encoder", "quant_conv")

    def forward(self, pixels: Tensor) -> Tensor:
        return encode_pixels(self.vae, pixels)


class VaeDecoder(nn.Module):
    """Scaled latents [B, Z, h, w] to pixels [B, 3, H, W], nominally in [-1, 1], not clipped."""

    def __init__(self, vae: Any) -> None:
        super().__init__()
        self.vae = _part(vae, "post_quant_conv", "decoder")

    def forward(self, latents: Tensor) -> Tensor:
        return decode_latents(self.vae, latents)


def _part(network: Any, *names: str) -> Any:
    """A network with these of its parts and no others: the two halves of a VAE may be cast on their own."""
    part = copy.copy(network)
    part._modules = {name: child for name, child in network._modules.items() if name in names}
    return part


def graph_modules(base: BaseModel, adapter: nn.Module) -> dict[str, nn.Module]:
    """The module of every graph by name, in evaluation mode; weights are shared with `base` and `adapter`, and with no
    other graph's module.
    """
    modules: dict[str, nn.Module] = {
        "text_encoder": TextEncoder(base.text_encoder),
        "vae_encoder": VaeEncoder(base.vae),
        "vae_decoder": VaeDecoder(base.vae if base.decoder is None else base.decoder),
        "unet": PyramidUNet(base.unet),
        "adapter": adapter,
    }
    return {name: module.eval() for name, module in modules.items()}


def run_module(module: nn.Module, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    """Call a graph's module without gradients; a single output comes as a tuple too."""
    with torch.no_grad():
        outputs: Tensor | tuple[Tensor, ...] = module(*inputs)
    return (outputs,) if isinstance(outputs, Tensor) else outputs
