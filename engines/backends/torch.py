"""PyTorch as a backend: the modules themselves, with the bundle's own weights.

Knows: how to load a bundle's networks at a precision, on the CPU or a CUDA GPU. Does not know: ONNX.

On a CPU, bf16 converts the weights: as fast as autocast and the same numbers to the last bit (measured on a UNet of
11 M parameters), in half the memory.

On CUDA, attention is PyTorch's fused one (SDPA) but where a configuration wants its scores in float32. A run enqueues
its work on PyTorch's current stream and waits for nothing, so that the sampler may record it into a CUDA graph
(`capturable`). Weights keep PyTorch's own order: channels last was slower, as group norm and attention want the plain
one (Stable Diffusion 2's UNet at 16 rows on an H200, f16: 51.0 against 45.9 ms).

On CUDA the modules are rewritten where that saves arithmetic: a convolution of a doubled image is computed on the image
itself (`upsampling`), and what the two rows of a guided image share, once (`pairs`). On a CPU they are as they were:
that is what other engines are compared with.

Compiled (`compiled=True`, CUDA only), the networks that a run calls all the time (UNet for ticks and for labels, VAE
decoder, adapter) pass through torch.compile when they are prepared (`compiling`), with convolutions channels last,
which its own kernels do profit from: before, Stable Diffusion 2's UNet took 46 seconds to compile and 31.8 ms a call.
It has no CUDA graphs of its own, since whoever calls records what he calls.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from engines.adapter.pyramid import PyramidUNet
from engines.backends.base import (
    Call,
    OpenOptions,
    Role,
    Shapes,
    Tensors,
    cpu_precision,
    is_wide,
    known_shapes,
    new_buffers,
    wanted_outputs,
)
from engines.backends.compiling import compile_network
from engines.backends.modules import graph_modules, run_module
from engines.backends.pairs import share_pairs
from engines.backends.probe import Device, Probe, has_nvidia, tiny_input, tiny_weights, try_device
from engines.backends.upsampling import fold_modules
from engines.bundle.bundle import Bundle
from engines.bundle.graphs import TensorSpec
from engines.bundle.islands import apply_islands, upcast_scores
from engines.common.devices import cpu_has_bf16, cpu_name, resolve_threads
from engines.common.plurals import counted
from engines.errors import UsageError

_DTYPES = {"f32": torch.float32, "bf16": torch.bfloat16, "f16": torch.float16}
_COMPILED = ("unet", "vae_decoder", "adapter")
_CONVOLUTIONAL = ("unet", "vae_decoder")  # of these, what compiled kernels want channels last


def open_bundle(bundle: Bundle, options: OpenOptions) -> "TorchBackend":
    """See `registry.open_backend`."""
    return TorchBackend(
        bundle,
        precision=options.precision,
        threads=options.threads,
        device=options.device,
        compiled=options.compiled,
    )


class TorchBackend:
    """Executes a bundle's graphs as PyTorch modules."""

    name = "torch"

    def __init__(
        self,
        bundle: Bundle,
        *,
        precision: str,
        threads: int | None,
        device: torch.device,
        compiled: bool = False,
        rewritten: bool | None = None,
    ) -> None:
        """Load the networks.

        `precision` f16 is for CUDA, where it is also what auto means. Threads are PyTorch's own, set for the whole
        process. `rewritten`: whether modules are changed to save arithmetic; None for what the device has.
        Raises UsageError for `compiled` on a CPU, where openvino is what compiles.
        """
        if compiled and device.type == "cpu":
            raise UsageError(
                "`compiled` is for `engine=torch` on CUDA; on a CPU take `engine=openvino`, which compiles.",
                field="compiled",
            )
        self.device = device
        self.threads = resolve_threads(threads)
        if threads is not None:
            torch.set_num_threads(threads)
        on_cpu = device.type == "cpu"
        self.precision = cpu_precision(precision, self.name) if on_cpu else precision.replace("auto", "f16")
        if not on_cpu:
            # Bytes repeat only if cuDNN may not choose its algorithm by the clock, and f32 is f32, not TF32.
            torch.backends.cudnn.benchmark = False
            torch.backends.cudnn.deterministic = True
            torch.backends.cudnn.allow_tf32 = False
        where = f"CPU ({cpu_name()}), {counted(self.threads, 'thread')}"
        place = where if on_cpu else torch.cuda.get_device_name(device)
        self.description = f"torch {torch.__version__} on {place}, {self.precision}{', compiled' if compiled else ''}"
        self._specs = bundle.specs
        self._compiled = compiled
        self._rewritten = not on_cpu if rewritten is None else rewritten
        self._key = {"bundle": bundle.digest, "precision": self.precision, "rewritten": self._rewritten}
        self._modules = _load_modules(bundle, _DTYPES[self.precision], device, self._rewritten)
        for graph in _CONVOLUTIONAL if compiled else ():
            self._modules[graph].to(memory_format=torch.channels_last)  # type: ignore[call-overload]

    @property
    def unet(self) -> nn.Module:
        """The UNet2DConditionModel itself, for those who watch it work."""
        unet: nn.Module = self._modules["unet"].get_submodule("unet")
        return unet

    def vae(self, graph: str) -> nn.Module:
        """The half of the AutoencoderKL in `vae_encoder` or `vae_decoder`, for those who watch it work."""
        half: nn.Module = self._modules[graph].get_submodule("vae")
        return half

    def prepare(
        self,
        graph: str,
        shapes: Shapes,
        outputs: Sequence[str] | None = None,
        varies: str | None = None,
        role: Role | None = None,
    ) -> Call:
        """See `Backend.prepare`."""
        spec = self._specs[graph]
        sizes = spec.sizes(shapes)
        wanted = wanted_outputs(spec, outputs)
        inputs = new_buffers(spec.inputs, shapes, self.device)
        module, order = self._modules[graph], spec.outputs
        if role == "sampler":
            paired = self._rewritten and varies == "encoder_hidden_states" and sizes["B"] % 2 == 0
            module, order = _NoPyramid(module, paired), wanted
        elif isinstance(module, PyramidUNet):
            module = module.twin()  # of its own, since another thread may call another one
        if self._compiled and graph in _COMPILED and (graph != "unet" or role is not None):
            key = {**self._key, "role": role, "paired": isinstance(module, _NoPyramid) and module.paired}
            module = compile_network(module, _cast(module, tuple(inputs.values())), graph, key)
        shapes_out = known_shapes(wanted, sizes)
        if shapes_out is None:
            results = _run(module, tuple(inputs.values()))
            shapes_out = {tensor.name: tuple(result.shape) for tensor, result in zip(order, results, strict=True)}
        return _TorchCall(module, inputs, new_buffers(wanted, shapes_out, self.device), order)


@dataclass(frozen=True)
class _TorchCall:
    module: nn.Module
    inputs: Tensors
    outputs: Tensors
    order: tuple[TensorSpec, ...]  # of the module's results

    @property
    def capturable(self) -> bool:
        return next(iter(self.inputs.values())).is_cuda

    def run(self) -> None:
        results = _run(self.module, tuple(self.inputs.values()))
        for spec, result in zip(self.order, results, strict=True):
            if spec.name in self.outputs:
                self.outputs[spec.name].copy_(result)


class _NoPyramid(nn.Module):
    """A PyramidUNet's model output without its taps: nothing is concatenated that nobody reads. `paired`: rows 2k and
    2k + 1 hold the same but for their texts."""

    def __init__(self, pyramid_unet: Any, paired: bool = False) -> None:
        super().__init__()
        self.unet = share_pairs(pyramid_unet.unet) if paired else pyramid_unet.unet
        self.paired = paired

    def forward(
        self, sample: torch.Tensor, timesteps: torch.Tensor, encoder_hidden_states: torch.Tensor
    ) -> torch.Tensor:
        output: torch.Tensor = self.unet(sample, timesteps, encoder_hidden_states, return_dict=False)[0]
        return output


def _run(module: nn.Module, inputs: tuple[torch.Tensor, ...]) -> tuple[torch.Tensor, ...]:
    """Call a module with floats in its own dtype."""
    return run_module(module, _cast(module, inputs))


def _cast(module: nn.Module, inputs: tuple[torch.Tensor, ...]) -> tuple[torch.Tensor, ...]:
    dtype = next(module.parameters()).dtype
    return tuple(x.to(dtype) if x.is_floating_point() else x for x in inputs)


def _load_modules(
    bundle: Bundle, dtype: torch.dtype, device: torch.device, rewritten: bool = False
) -> dict[str, nn.Module]:
    """The module of every graph, from the stored weights: first to f32, which is exact, then to `dtype`.

    In half, a float16 bundle's islands stay in float32, and the attention scores that a configuration asks for.
    """
    from engines.adapter.model import load_adapter
    from engines.diffusion.base_model import load_base

    base = load_base(bundle.folder)
    adapter, _ = load_adapter(bundle.folder / "adapter")
    modules = graph_modules(base, adapter.requires_grad_(False))
    for name, module in modules.items():
        if rewritten:
            fold_modules(module)  # while the weights are in float32
        if is_wide(name, dtype == torch.float16):
            module.to(device)
        elif dtype == torch.float16:
            islands = (*bundle.manifest.islands.get(name, ()), *upcast_scores(module))
            apply_islands(module, islands).to(device)
        else:
            module.to(device, dtype)
    return modules


def probe() -> Probe:
    """What PyTorch can do here: a tiny module really runs on the CPU and on every GPU. Raises nothing."""
    devices = [try_device("CPU", ("f32", "bf16") if cpu_has_bf16() else ("f32",), _tiny_on(torch.device("cpu")))]
    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    for index in range(count):
        place = torch.device("cuda", index)
        devices.append(try_device(torch.cuda.get_device_name(place), ("f32", "bf16", "f16"), _tiny_on(place)))
    details = {"cuDNN": str(torch.backends.cudnn.version())} if count else {}
    return Probe("torch", torch.__version__, tuple(devices), _advice(devices), details)


def _tiny_on(device: torch.device) -> Callable[[str], Any]:
    def run(precision: str) -> Any:
        x, w = (torch.from_numpy(array).to(device, _DTYPES[precision]) for array in (tiny_input(), tiny_weights()))
        with torch.no_grad():
            return torch.nn.functional.conv2d(x, w).relu().float().cpu().numpy()

    return run


def _advice(devices: Sequence[Device]) -> str:
    """What would let PyTorch use an NVIDIA GPU that is here and that it does not use."""
    broken = next((device for device in devices if not device.works), None)
    if broken is not None:
        return f"{broken.name} fails ({broken.problem}); reinstall PyTorch: pip install --force-reinstall torch"
    if len(devices) > 1 or not has_nvidia():
        return ""
    if torch.version.cuda is None:
        return (
            "an NVIDIA GPU is here, but this is a CPU build; install a CUDA build: pip install --force-reinstall torch"
        )
    return (
        f"an NVIDIA GPU is here, but CUDA does not start: a driver for CUDA {torch.version.cuda} or later is needed, "
        f"and CUDA_VISIBLE_DEVICES must not hide the GPU; nvidia-smi shows both"
    )
