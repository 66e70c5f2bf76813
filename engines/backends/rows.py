"""One row at a time: how a CPU runs networks of full size.

Knows: which bundles are of full size, and how to make a call of many rows out of a call of one; or, for the sampler in
int8, of a pair of rows, which share a part of the work. Does not know any runtime.

A row of a full-size UNet keeps all cores busy for seconds, so that a batch gains nothing: 0.88 s of one core a row at
batch 1 and at batch 4 (SD 2.1's UNet, 32x32 latents, OpenVINO bf16). But it costs memory. OpenVINO holds the weights
twice for each shape it compiles, 5.2 GB for that UNet in bf16 and 6.9 GB in f32, and a run compiles two, one for the
sampler's rows and one for the label pass; a single row serves both. And what is computed on the way grows with the
rows: at 768x768 ONNX Runtime's attention scores alone are 1.7 GB a row.
"""

import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch

from engines.backends.base import Backend, Call, Role, Shapes, Tensors, wanted_outputs
from engines.bundle.bundle import Bundle
from engines.bundle.graphs import GraphSpec

FULL_SIZE = 200_000_000  # parameters of a UNet, from which on a bundle is of full size; Stable Diffusion's have 860 M
_BYTES = {"float32": 4, "float16": 2, "bfloat16": 2}  # of a parameter, as stored


def is_full_size(bundle: Bundle) -> bool:
    """Whether a bundle's UNet has FULL_SIZE parameters or more."""
    return unet_parameters(bundle) >= FULL_SIZE


def unet_parameters(bundle: Bundle) -> int:
    """How many parameters a bundle's UNet has, by the size of its weights."""
    stored = sum(path.stat().st_size for path in (bundle.folder / "unet").glob("*.safetensors"))
    return stored // _BYTES[bundle.manifest.weights_dtype]


class RowBackend:
    """A backend whose calls run row by row, all calls of one graph at one size on the same prepared row."""

    def __init__(self, backend: Backend, specs: Mapping[str, GraphSpec]) -> None:
        self._backend, self._specs = backend, specs
        self._rows: dict[tuple[str, tuple[tuple[int, ...], ...], tuple[str, ...] | None], Call] = {}
        self._preparing = threading.Lock()  # two threads that ask for one row get the same
        self.name = backend.name
        self.description = f"{backend.description}, row by row"
        self.device = backend.device
        self.precision = backend.precision
        self.threads = backend.threads

    def prepare(
        self,
        graph: str,
        shapes: Shapes,
        outputs: Sequence[str] | None = None,
        varies: str | None = None,
        role: Role | None = None,
    ) -> Call:
        """See `Backend.prepare`. The row has every output, so that it serves whoever comes next; but in int8, where
        the sampler's UNet and the label pass's are two: there, rows that `varies` pairs are computed in pairs.
        """
        spec = self._specs[graph]
        batch = spec.sizes(shapes)["B"]
        wanted = [tensor.name for tensor in wanted_outputs(spec, outputs)]
        alone = wanted if self.precision == "int8" and role is not None else None
        varies = varies if alone and batch % 2 == 0 else None
        single = {tensor.name: (2 if varies else 1, *shapes[tensor.name][1:]) for tensor in spec.inputs}
        key = (graph, tuple(single.values()), None if alone is None else tuple(alone))
        with self._preparing:
            if key not in self._rows:
                self._rows[key] = self._backend.prepare(graph, single, alone, varies, role if alone else None)
            row = self._rows[key]
        inputs = {name: value.new_zeros((batch, *value.shape[1:])) for name, value in row.inputs.items()}
        results = {name: row.outputs[name].new_zeros((batch, *row.outputs[name].shape[1:])) for name in wanted}
        return _RowCall(inputs, results, row)


@dataclass(frozen=True)
class _RowCall:
    inputs: Tensors
    outputs: Tensors
    row: Call  # or a pair of rows

    @property
    def capturable(self) -> bool:
        return False

    def run(self) -> None:
        """Compute every row; one that repeats an earlier row, as spare rows do, takes its result."""
        size = len(next(iter(self.row.inputs.values())))
        inputs = {name: value.split(size) for name, value in self.inputs.items()}
        outputs = {name: value.split(size) for name, value in self.outputs.items()}

        def same(one: int, other: int) -> bool:
            return all(torch.equal(parts[one], parts[other]) for parts in inputs.values())

        for place in range(len(next(iter(inputs.values())))):
            twin = next((earlier for earlier in range(place) if same(place, earlier)), None)
            if twin is None:
                for name, value in self.row.inputs.items():
                    value.copy_(inputs[name][place])
                self.row.run()
            for name, parts in outputs.items():
                parts[place].copy_(self.row.outputs[name] if twin is None else parts[twin])
