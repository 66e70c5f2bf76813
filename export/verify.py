"""Parity gates: does every runtime compute what PyTorch computes?

Knows: how to run each graph of a bundle on PyTorch in float32, with the stored weights, and on other runtimes, on the
same inputs, and how far they may differ. Does not know how graphs are made (`export.to_onnx`), or how a runtime
executes them (`engines.backends`).

Names come first, then shapes, then values: each has its own error, so that the first line says what kind of trouble
it is. The adapter is compared before its top-k; after it, boxes are matched (`export.matching`).

Memory: PyTorch runs every graph first and is gone before a runtime opens, and a runtime holds one graph at a time, so
that the peak is that of the largest graph on the hungriest runtime, and not a sum.

CPU runtimes compute float16 graphs partly in float32. What is seen here is the rounding of the graph's weights and
tensors; that nothing overflows on a GPU is not shown by it.

B batch, h/w latents.
"""

import dataclasses
import importlib.util
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from engines.backends.base import Backend
from engines.backends.registry import open_backend
from engines.backends.rows import is_full_size
from engines.bundle.bundle import Bundle
from engines.bundle.graphs import GRAPH_NAMES, GraphSpec
from engines.common.rng import generator, normal
from engines.common.tokenizer import tokenize
from engines.diffusion.latents import add_noise
from engines.diffusion.noise import alphas_cumprod
from engines.diffusion.prompts import generic_prompt, listing_prompt
from engines.errors import ExportError
from export.graph_names import NamesError, check_names
from export.matching import MATCHINGS, match_boxes
from export.memory import release_memory

ENGINES = ("onnxruntime", "openvino")  # what a bundle is checked on, where it is installed
MATCHED = ("logits", "boxes")  # outputs behind the adapter's top-k: compared as boxes, not element by element
_KEY = 20_309  # of the random inputs
_HALF_ADVICE = (
    " The graph is in half precision: export with `ranges` on images of your own, or with `graph_dtype=float32`."
)

Tensors = Mapping[str, torch.Tensor]


class ShapesError(ExportError):
    """A graph gave an output of another shape than PyTorch."""


class ValuesError(ExportError):
    """A graph gave other values than PyTorch."""


@dataclass(frozen=True)
class GraphCheck:
    """How closely one engine followed PyTorch on one graph, over all sizes tried."""

    graph: str
    engine: str
    errors: dict[str, float]  # output -> largest relative norm error
    boxes: int = 0  # adapter only: boxes that were matched


def installed_engines() -> tuple[str, ...]:
    """Those of ENGINES that are installed here."""
    return tuple(engine for engine in ENGINES if importlib.util.find_spec(engine) is not None)


def check_precision(engine: str, graph_dtype: str) -> str:
    """What an engine's arithmetic is checked in: f32, but for ONNX Runtime, which has only the graphs' own."""
    return "f16" if engine == "onnxruntime" and graph_dtype == "float16" else "f32"


def count_steps(engines: Sequence[str]) -> int:
    """How many times `verify_bundle` reports."""
    return 1 + len(GRAPH_NAMES) * (1 + len(engines))


def verify_bundle(
    bundle: Bundle, engines: Sequence[str], report: Callable[[str], None], *, threads: int | None = None
) -> list[GraphCheck]:
    """Compare every graph on every engine with PyTorch fp32, at two batch sizes and two image sizes.

    Args:
        bundle: what was exported; PyTorch reads its stored weights, and takes and gives float32 whatever the graphs do.
        engines: names for `open_backend`; each runs in its `check_precision`.
        report: told what is being done.
        threads: CPU threads of every engine; None for their own choice.

    Raises NamesError, ShapesError or ValuesError, naming the engine, graph and tensor.
    """
    for graph in GRAPH_NAMES:
        check_names(bundle.specs[graph], bundle)
    chains = _run_reference(bundle, report, threads)
    checks = []
    for engine in engines:
        precision = check_precision(engine, bundle.manifest.graph_dtype)
        for graph in GRAPH_NAMES:
            report(f"checking {graph} on {engine}")
            backend = open_backend(
                bundle, engine, precision=precision, threads=threads, device="cpu", keep_compiled=False, whole=True
            )
            found = [
                check_graph(backend, bundle.specs[graph], chain.inputs[graph], chain.outputs[graph]) for chain in chains
            ]
            del backend  # and with it the graph's weights, before the next graph's come
            release_memory()
            errors = {name: max(check.errors[name] for check in found) for name in found[0].errors}
            checks.append(GraphCheck(graph, engine, errors, sum(check.boxes for check in found)))
    return checks


def reference_backend(bundle: Bundle, threads: int | None = None) -> Backend:
    """PyTorch on the CPU with the stored weights; it computes, takes and gives float32, whatever the graphs do."""
    specs = {name: spec.as_dtype("float32") for name, spec in bundle.specs.items()}
    wide = dataclasses.replace(bundle, specs=specs)
    return open_backend(wide, "torch", precision="f32", threads=threads, device="cpu", whole=True)


def _run_reference(bundle: Bundle, report: Callable[[str], None], threads: int | None) -> list["Chain"]:
    """Inputs and PyTorch's outputs of every graph at every size; the networks are gone when this returns."""
    report("loading the networks in PyTorch")
    reference = reference_backend(bundle, threads)
    chains = [Chain(bundle, sizes, case) for case, sizes in enumerate(check_sizes(bundle))]
    for graph in GRAPH_NAMES:
        report(f"running {graph} on PyTorch")
        for chain in chains:
            chain.run(graph, reference)
    del reference
    release_memory()
    return chains


def check_sizes(bundle: Bundle) -> tuple[dict[str, int], dict[str, int]]:
    """Two sizes (B, h, w) that share no number: one image of the bundle's frame, three of another, smaller where the
    adapter's queries allow.

    A bundle of full size is checked on half the frame's sides, which takes a quarter of the time and goes through the
    same operations; the last gate (`export.agreement`) paints its whole frame.
    """
    multiple = bundle.manifest.latent_multiple
    width, height = (side // bundle.vae_stride for side in bundle.frame)
    config = bundle.adapter_info.config

    def cells(h: int, w: int) -> int:
        return sum(math.ceil(h / 2**level) * math.ceil(w / 2**level) for level in range(config.levels))

    half_height, half_width = _share(height, 0.5, multiple), _share(width, 0.5, multiple)
    if is_full_size(bundle) and cells(half_height, half_width) >= config.queries:
        height, width = half_height, half_width
    others = [(_share(height, s, multiple), _share(width, t, multiple)) for s, t in ((0.5, 0.75), (0.75, 0.5))]
    larger = (height + multiple, width + 2 * multiple)
    fitting = ((h, w) for h, w in others if h != height and w != width and cells(h, w) >= config.queries)
    other_height, other_width = next(fitting, larger)
    return {"B": 1, "h": height, "w": width}, {"B": 3, "h": other_height, "w": other_width}


def _share(length: int, share: float, multiple: int) -> int:
    return max(1, round(length * share / multiple)) * multiple


class Chain:
    """The graphs' inputs and PyTorch's outputs at one size; each graph reads what PyTorch gave for those before.

    All floats are float32, on the CPU. `case` is part of the key of what is drawn.
    """

    def __init__(self, bundle: Bundle, sizes: Mapping[str, int], case: int) -> None:
        self._bundle, self._sizes, self._case = bundle, sizes, case
        self.inputs: dict[str, dict[str, torch.Tensor]] = {}
        self.outputs: dict[str, dict[str, torch.Tensor]] = {}

    def run(self, graph: str, reference: Backend) -> None:
        """Make the inputs of `graph` and run it on a `reference_backend`. Graphs come in the order of GRAPH_NAMES."""
        spec = self._bundle.specs[graph]
        inputs = getattr(self, f"_{graph}_inputs")()
        outputs = run_graph(reference, spec, inputs)
        for name, value in outputs.items():
            if not torch.isfinite(value).all():
                raise ValuesError(
                    f"{graph}: PyTorch itself gives {name} with values that are not finite, from the stored weights. "
                    f"Store them as float32 (`weights_dtype=float32`), or mend the model.",
                    field="weights_dtype",
                )
        self.inputs[graph], self.outputs[graph] = inputs, outputs

    def _text_encoder_inputs(self) -> dict[str, torch.Tensor]:
        style, names = self._bundle.style, self._bundle.class_names
        prompts = [generic_prompt(style), "", listing_prompt(style, dict.fromkeys(names, 3))]
        # The first prompt is the generic one, which the label pass uses.
        rows = [prompts[row % len(prompts)] for row in range(self._sizes["B"])]
        return {"input_ids": tokenize(self._bundle.tokenizer(), rows)}

    def _vae_encoder_inputs(self) -> dict[str, torch.Tensor]:
        shape = self._bundle.specs["vae_encoder"].input_shapes(self._sizes)["pixels"]
        return {"pixels": smooth_pictures(shape, self._case)}

    def _vae_decoder_inputs(self) -> dict[str, torch.Tensor]:
        return {"latents": self.outputs["vae_encoder"]["latents"]}

    def _unet_inputs(self) -> dict[str, torch.Tensor]:
        """Noised latents: the first row at the label pass' timestep, the others anywhere."""
        latents = self.outputs["vae_encoder"]["latents"]
        abar = alphas_cumprod(self._bundle.scheduler_config)
        drawn = generator(_KEY, self._case, 2).integers(len(abar), size=len(latents))
        drawn[0] = self._bundle.timestep
        timesteps = torch.from_numpy(drawn)
        noise = torch.from_numpy(normal(tuple(latents.shape), _KEY, self._case, 3))
        return {
            "sample": add_noise(latents, noise, abar, timesteps),
            "timesteps": timesteps,
            "encoder_hidden_states": self.outputs["text_encoder"]["encoder_hidden_states"],
        }

    def _adapter_inputs(self) -> dict[str, torch.Tensor]:
        return {spec.name: self.outputs["unet"][spec.name] for spec in self._bundle.specs["adapter"].inputs}


def smooth_pictures(shape: tuple[int, ...], case: int) -> torch.Tensor:
    """Pixels [B, 3, H, W] in (-1, 1), a function of `case`: smooth noise, more of a picture than white noise is."""
    batch, _, height, width = shape
    coarse = torch.from_numpy(normal((batch, 3, 4, 6), _KEY, case, 0))
    smooth = torch.nn.functional.interpolate(coarse, (height, width), mode="bicubic", align_corners=False)
    fine = torch.from_numpy(normal((batch, 3, height, width), _KEY, case, 1))
    return torch.tanh(0.8 * smooth + 0.05 * fine)


def run_graph(backend: Backend, spec: GraphSpec, inputs: Tensors) -> dict[str, torch.Tensor]:
    """All outputs of a graph for these inputs, as copies on the CPU."""
    call = backend.prepare(spec.name, {name: tuple(value.shape) for name, value in inputs.items()})
    for name, value in inputs.items():
        call.inputs[name].copy_(value)
    call.run()
    return {name: value.detach().cpu().clone() for name, value in call.outputs.items()}


def check_graph(backend: Backend, spec: GraphSpec, inputs: Tensors, expected: Tensors) -> GraphCheck:
    """Run a graph and compare it with PyTorch's outputs. Raises ShapesError or ValuesError."""
    where = f"{spec.name} on {backend.name}"
    found = run_graph(backend, spec, inputs)
    if list(found) != list(expected):
        raise NamesError(f"{where}: outputs {', '.join(found)}; {', '.join(expected)} were expected.")
    for name, value in found.items():
        if value.shape != expected[name].shape:
            raise ShapesError(
                f"{where}: {name} has shape {list(value.shape)}; PyTorch gives {list(expected[name].shape)}."
            )
    errors = {name: relative_error(value, expected[name]) for name, value in found.items() if name not in MATCHED}
    advice = _HALF_ADVICE if spec.dtype == "float16" else ""
    for name, error in errors.items():
        if not error <= spec.tolerance:  # NaN fails too
            raise ValuesError(
                f"{where}: {name} differs from PyTorch by {error:.1e} (relative norm); {spec.tolerance:.0e} is "
                f"allowed.{advice}"
            )
    boxes = 0
    if set(MATCHED) <= set(found):
        matching = MATCHINGS[spec.dtype]
        boxes, missing = match_boxes(found, expected, matching)
        if missing > matching.missing * boxes:
            raise ValuesError(
                f"{where}: {missing} of {boxes} boxes have no counterpart in PyTorch's, or the reverse.{advice}"
            )
    return GraphCheck(spec.name, backend.name, errors, boxes)


def relative_error(found: torch.Tensor, expected: torch.Tensor) -> float:
    """Norm of the difference over the norm of `expected`."""
    difference = (found.double() - expected.double()).norm()
    return float(difference / expected.double().norm().clamp(min=1e-12))


def figures(checks: Sequence[GraphCheck]) -> dict[str, Any]:
    """What the manifest keeps of the checks: engine -> graph -> largest error."""
    result: dict[str, Any] = {}
    for check in checks:
        entry = dataclasses.asdict(check)
        result.setdefault(check.engine, {})[check.graph] = max(entry["errors"].values())
    return result
