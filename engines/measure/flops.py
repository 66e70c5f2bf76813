"""Floating-point operations of a bundle's graphs.

Knows: how to count them without computing, from the configurations alone. Does not know how long anything takes.

Counted are the products: convolutions, matrix products and both of attention's, a multiply-add as 2 operations.
Norms, activations, additions, softmax and interpolation are not: they are few beside the products, and no part of a
matmul rate. A runtime that computes a product in fewer operations (Winograd) is credited with the plain number.

B batch, h/w latents.
"""

from collections.abc import Callable, Sequence

import torch
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from engines.bundle.bundle import Bundle


def count_flops(run: Callable[[], object]) -> int:
    """Operations of everything that `run` computes with PyTorch; on tensors of the meta device nothing is computed.

    Attention is made to run as its two products: PyTorch's counter does not know the fused kernel of CPUs.
    """
    with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH), torch.no_grad():
        run()
    return int(counter.get_total_flops())


def graph_flops(bundle: Bundle, frame: tuple[int, int]) -> dict[str, int]:
    """Operations of each graph for one image (one row of the UNet) of `frame` pixels (width, height), by graph.

    A batch of B takes B times as many. The pyramid of the label pass is concatenation alone, and costs none.
    """
    w, h = (side // bundle.vae_stride for side in frame)
    found = {}
    for graph, module in _modules(bundle).items():
        spec = bundle.specs[graph]
        device = next(module.parameters()).device
        shapes = spec.input_shapes({"B": 1, "h": h, "w": w})
        inputs = [
            torch.zeros(shapes[tensor.name], dtype=torch.int64 if tensor.below else torch.float32, device=device)
            for tensor in spec.inputs
        ]
        found[graph] = count_flops(lambda module=module, inputs=inputs: _call(module, inputs))  # type: ignore[misc]
    return found


def _call(module: nn.Module, inputs: Sequence[torch.Tensor]) -> None:
    module(*inputs)


def _modules(bundle: Bundle) -> dict[str, nn.Module]:
    """The module of every graph, without weights: on the meta device, but for the adapter, which is small and whose
    layers ask for a device that autocast knows."""
    from diffusers import AutoencoderKL, UNet2DConditionModel
    from transformers import CLIPTextConfig, CLIPTextModel

    from engines.adapter.model import DetectionAdapter
    from engines.backends.modules import graph_modules
    from engines.diffusion.base_model import BaseModel
    from engines.diffusion.libraries import silence_libraries

    silence_libraries()
    folder = bundle.folder
    with torch.device("meta"):
        unet = UNet2DConditionModel.from_config(UNet2DConditionModel.load_config(folder / "unet"))
        vae = AutoencoderKL.from_config(AutoencoderKL.load_config(folder / "vae"))
        text_encoder = CLIPTextModel(CLIPTextConfig.from_pretrained(folder / "text_encoder"))
    adapter = DetectionAdapter(bundle.adapter_info.config)
    return graph_modules(BaseModel(folder, unet, vae, text_encoder, None, bundle.scheduler_config), adapter)
