"""One spec for each exported graph: what goes in, what comes out, and how exactly it must match PyTorch.

Knows: tensor names, dtypes and axes of the five graphs of a bundle, which sizes they accept, example inputs and
the tolerance. Everything that runs, exports or checks a graph reads it here, the shapes of TensorRT's profiles too.
Does not know: how a graph is computed (`engines.backends.modules`), where it is stored, or which runtime executes it.

An axis is a number, or a size, possibly scaled: "B", "h", "8*h", "h/2". Sizes:
    B batch (UNet: rows), h/w height and width of the latents, S encoder tokens of the adapter (known only to it)
"""

import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from engines.common.quote import quote, shorten
from engines.common.rng import generator
from engines.errors import BackendError, BundleError

Axis = int | str
GRAPH_NAMES = ("text_encoder", "vae_encoder", "vae_decoder", "unet", "adapter")
DTYPES = ("float32", "float16", "int64")
# Relative norm error against PyTorch fp32 with the same stored weights, by the dtype that a graph computes in. Half
# precision rounds every tensor to 11 bits; through whole networks that was measured at 2e-4 to 2e-3 (ONNX Runtime on a
# CPU: the UNet of the bundled model 1.7e-3, its other graphs 3e-4, random small models 5e-4).
TOLERANCES = {"float32": 1e-4, "float16": 5e-3}
SIZES = ("B", "h", "w")  # sizes that inputs decide; any other symbol is the graph's own
_LONGEST_AXIS, _MOST_TENSORS = 1_000_000, 64
_AXIS = re.compile(r"(?:(?P<times>\d+)\*)?(?P<size>[A-Za-z]\w*)(?:/(?P<over>\d+))?")


@dataclass(frozen=True)
class TensorSpec:
    """One input or output of a graph."""

    name: str
    dtype: str  # one of DTYPES
    axes: tuple[Axis, ...]  # a number, or a size as the module's docstring has it
    below: int | None = None  # integers only: example values are drawn from [0, below)

    def shape(self, sizes: Mapping[str, int]) -> tuple[int | None, ...]:
        """The shape at these sizes; None for an axis that only the graph knows."""
        return tuple(_resolve(axis, sizes) for axis in self.axes)


@dataclass(frozen=True)
class GraphSpec:
    """One graph: its tensors in order, and what it accepts."""

    name: str  # one of GRAPH_NAMES
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    multiples: Mapping[str, int]  # size -> what it must divide by
    tolerance: float = TOLERANCES["float32"]  # largest relative norm error of an output

    @property
    def dtype(self) -> str:
        """What the float tensors are, the same for all: float32 or float16."""
        floats = (tensor.dtype for tensor in (*self.inputs, *self.outputs) if tensor.below is None)
        return next(floats, "float32")

    def as_dtype(self, dtype: str) -> "GraphSpec":
        """The same graph with float tensors of `dtype` (float32 or float16), and the tolerance that belongs to it."""

        def change(tensors: tuple[TensorSpec, ...]) -> tuple[TensorSpec, ...]:
            return tuple(tensor if tensor.below is not None else replace(tensor, dtype=dtype) for tensor in tensors)

        return replace(self, inputs=change(self.inputs), outputs=change(self.outputs), tolerance=TOLERANCES[dtype])

    def input_shapes(self, sizes: Mapping[str, int]) -> dict[str, tuple[int, ...]]:
        """Shapes of all inputs at these sizes."""
        return {spec.name: tuple(n for n in spec.shape(sizes) if n is not None) for spec in self.inputs}

    def output_shapes(self, sizes: Mapping[str, int]) -> dict[str, tuple[int | None, ...]]:
        """Shapes of all outputs at these sizes; None for an axis that only the graph knows."""
        return {spec.name: spec.shape(sizes) for spec in self.outputs}

    def sizes(self, shapes: Mapping[str, tuple[int, ...]]) -> dict[str, int]:
        """The sizes that these input shapes mean. Raises BackendError that names the input and axis that don't fit."""
        if set(shapes) != {spec.name for spec in self.inputs}:
            names = ", ".join(spec.name for spec in self.inputs)
            raise BackendError(f"{self.name}: shapes for {', '.join(sorted(shapes))} given; its inputs are {names}.")
        sizes: dict[str, int] = {}
        for spec in self.inputs:
            shape = tuple(shapes[spec.name])
            found = _solve(spec.axes, shape)
            if found is None or any(sizes.get(size, value) != value for size, value in found.items()):
                raise BackendError(
                    f'{self.name}: input "{spec.name}" has shape {list(shape)}; {list(spec.axes)} was expected'
                    + (f" with {sizes}." if sizes else ".")
                )
            sizes |= found
        for size, multiple in self.multiples.items():
            if sizes[size] % multiple:
                raise BackendError(f"{self.name}: {size} is {sizes[size]}; it must be a multiple of {multiple}.")
        return sizes

    def example(self, sizes: Mapping[str, int], *key: int) -> dict[str, npt.NDArray[Any]]:
        """Inputs at these sizes, a pure function of `key`: standard normal floats, uniform integers."""
        shapes = self.input_shapes(sizes)
        arrays: dict[str, npt.NDArray[Any]] = {}
        for place, spec in enumerate(self.inputs):
            rng = generator(*key, place)
            if spec.below is None:
                arrays[spec.name] = rng.standard_normal(shapes[spec.name], dtype=np.float32).astype(spec.dtype)
            else:
                arrays[spec.name] = rng.integers(spec.below, size=shapes[spec.name], dtype=np.int64)
        return arrays

    def to_json(self) -> dict[str, Any]:
        """The JSON object that the manifest holds."""
        value = asdict(self)
        for tensor in (*value["inputs"], *value["outputs"]):
            tensor["axes"] = list(tensor["axes"])
        lists = {"inputs": list(value["inputs"]), "outputs": list(value["outputs"])}
        return value | lists | {"multiples": dict(self.multiples)}

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> "GraphSpec":
        """Read what `to_json` wrote. Raises BundleError that says what is wrong."""
        try:
            spec = cls(
                name=str(value["name"]),
                inputs=tuple(_tensor(tensor) for tensor in _some(value["inputs"])),
                outputs=tuple(_tensor(tensor) for tensor in _some(value["outputs"])),
                multiples={str(size): _whole(n, 1, 4096) for size, n in value["multiples"].items()},
                tolerance=float(value["tolerance"]),
            )
        except (KeyError, TypeError, ValueError, AttributeError, OverflowError) as cause:
            reason = shorten(repr(cause))
            raise BundleError(f"The spec of a graph is not readable ({reason}). Export the bundle again.") from cause
        used = {_parse(axis)[0] for tensor in spec.inputs for axis in tensor.axes if isinstance(axis, str)}
        fits = set(spec.multiples) == used and min(spec.multiples.values(), default=0) > 0
        if spec.name not in GRAPH_NAMES or not 0 < spec.tolerance < 1 or not fits:
            raise BundleError(
                f"The spec of graph {quote(spec.name)} is not one this version knows. Export the bundle again."
            )
        return spec


@dataclass(frozen=True)
class ModelShape:
    """The numbers of a base model and an adapter that decide the graphs' tensors."""

    latent_channels: int  # Z
    vae_stride: int  # pixels a latent, along one side
    pyramid: tuple[int, ...]  # channels of div1, div2, div4, ...
    text_length: int  # L, tokens a prompt
    hidden_size: int  # D, width of encoder_hidden_states
    vocabulary: int  # number of token ids
    train_timesteps: int  # T, noise levels of the base model
    queries: int  # Q, boxes the adapter gives for an image
    classes: int  # K


def graph_specs(shape: ModelShape, graph_dtype: str = "float32") -> dict[str, GraphSpec]:
    """The spec of every graph of a bundle, by name, in the order of GRAPH_NAMES.

    Args:
        shape: the numbers of the base model and the adapter.
        graph_dtype: of every float tensor, float32 or float16; token ids and timesteps stay int64.
    """
    z, d, length, stride = shape.latent_channels, shape.hidden_size, shape.text_length, shape.vae_stride
    latents = TensorSpec("latents", "float32", ("B", z, "h", "w"))
    pixels = TensorSpec("pixels", "float32", ("B", 3, _scaled("h", stride), _scaled("w", stride)))
    states = TensorSpec("encoder_hidden_states", "float32", ("B", length, d))
    pyramid = tuple(
        TensorSpec(f"div{2**k}", "float32", ("B", channels, _halved("h", k), _halved("w", k)))
        for k, channels in enumerate(shape.pyramid)
    )
    unet_inputs = (
        TensorSpec("sample", "float32", ("B", z, "h", "w")),
        TensorSpec("timesteps", "int64", ("B",), below=shape.train_timesteps),
        states,
    )
    detections = (
        TensorSpec("logits", "float32", ("B", shape.queries, shape.classes)),
        TensorSpec("boxes", "float32", ("B", shape.queries, 4)),
        TensorSpec("encoder_logits", "float32", ("B", "S", shape.classes)),
        TensorSpec("encoder_boxes", "float32", ("B", "S", 4)),
    )
    tensors: dict[str, tuple[tuple[TensorSpec, ...], tuple[TensorSpec, ...]]] = {
        "text_encoder": (
            (TensorSpec("input_ids", "int64", ("B", length), below=shape.vocabulary),),
            (states,),
        ),
        "vae_encoder": ((pixels,), (latents,)),
        "vae_decoder": ((latents,), (pixels,)),
        "unet": (unet_inputs, (TensorSpec("model_output", "float32", ("B", z, "h", "w")), *pyramid)),
        "adapter": (pyramid, detections),
    }
    deepest = 2 ** (len(shape.pyramid) - 1)
    specs = {}
    for name, (inputs, outputs) in tensors.items():
        multiple = deepest if name in ("unet", "adapter") else 1
        spatial = () if name == "text_encoder" else ("h", "w")
        spec = GraphSpec(name, inputs, outputs, {"B": 1} | dict.fromkeys(spatial, multiple))
        specs[name] = spec.as_dtype(graph_dtype)
    return specs


def _scaled(size: str, times: int) -> str:
    return size if times == 1 else f"{times}*{size}"


def _halved(size: str, level: int) -> str:
    return size if level == 0 else f"{size}/{2**level}"


def _parse(axis: str) -> tuple[str, int, int]:
    """An axis as (size, times, over)."""
    match = _AXIS.fullmatch(axis)
    if match is None:
        raise ValueError(f"axis {quote(axis)}")
    return match["size"], int(match["times"] or 1), int(match["over"] or 1)


def _resolve(axis: Axis, sizes: Mapping[str, int]) -> int | None:
    if isinstance(axis, int):
        return axis
    size, times, over = _parse(axis)
    return sizes[size] * times // over if size in SIZES else None


def _solve(axes: tuple[Axis, ...], shape: tuple[int, ...]) -> dict[str, int] | None:
    """The sizes that make `axes` equal `shape`, or None when there are none."""
    if len(axes) != len(shape):
        return None
    sizes: dict[str, int] = {}
    for axis, length in zip(axes, shape, strict=True):
        if isinstance(axis, int):
            if axis != length:
                return None
            continue
        size, times, over = _parse(axis)
        if (
            length < 1
            or length * over % times
            or sizes.setdefault(size, length * over // times) != length * over // times
        ):
            return None
    return sizes


def _tensor(value: Mapping[str, Any]) -> TensorSpec:
    axes: tuple[Axis, ...] = tuple(
        axis if isinstance(axis, str) else _whole(axis, 1, _LONGEST_AXIS) for axis in _some(value["axes"])
    )
    for axis in axes:
        if isinstance(axis, str):
            _, *scale = _parse(axis)
            for number in scale:
                _whole(number, 1, 4096)
    if value["dtype"] not in DTYPES:
        raise ValueError(f"dtype {value['dtype']!r}")
    below = value["below"]
    if below is not None:
        _whole(below, 1, 1_000_000)
    return TensorSpec(str(value["name"]), str(value["dtype"]), axes, below)


def _whole(value: Any, low: int, high: int) -> int:
    """`value`, a whole number in its range; ValueError for anything else."""
    if type(value) is not int or not low <= value <= high:
        raise ValueError(f"{quote(value)} is not a whole number from {low} to {high}")
    return value


def _some(value: Any) -> list[Any]:
    """`value`, a list that is not too long to be meant; ValueError for anything else."""
    if not isinstance(value, list | tuple) or len(value) > _MOST_TENSORS:
        raise ValueError(f"{quote(value)} is not a list of 0 to {_MOST_TENSORS}")
    return list(value)
