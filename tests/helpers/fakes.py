"""A bundle and a backend without networks: each graph is a small pure function of its inputs, row by row.

Knows: enough of both to send `generate` and `label` through all they do in milliseconds. The pictures are smooth
noise; a box's score and place follow from the picture's latents, so that some images have boxes and some have none.
"""

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import torch
from torch import Tensor

from engines.adapter.info import AdapterConfig
from engines.backends.base import Backend, Role
from engines.bundle.bundle import Bundle
from engines.bundle.graphs import GraphSpec, ModelShape, graph_specs

Z, STRIDE, LENGTH, WIDTH, QUERIES = 4, 4, 8, 6, 3
CLASS_NAMES = ("rbc", "wbc", "platelets")
FRAME = (48, 32)
SPECS = graph_specs(ModelShape(Z, STRIDE, (Z, 2 * Z), LENGTH, WIDTH, 256, 1000, QUERIES, len(CLASS_NAMES)))
SCHEDULER = {
    "_class_name": "DDIMScheduler",
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
    "clip_sample": False,
    "set_alpha_to_one": False,
    "steps_offset": 1,
}


class FakeTokenizer:
    """A prompt's bytes as its tokens."""

    model_max_length = LENGTH

    def __call__(self, prompts: Sequence[str] | str, **_: Any) -> SimpleNamespace:
        if isinstance(prompts, str):  # asked how much of it is read: all
            return SimpleNamespace(input_ids=[0, 0], offset_mapping=[(0, 0), (0, 0)])
        ids = torch.zeros(len(prompts), LENGTH, dtype=torch.int64)
        for row, prompt in enumerate(prompts):
            for place, byte in enumerate(prompt.encode()):
                ids[row, place % LENGTH] = (31 * ids[row, place % LENGTH] + byte) % 256
        return SimpleNamespace(input_ids=ids)


@dataclass
class FakeBundle:
    """What `generate` and `label` read of a bundle."""

    folder: Path
    digest: str = "fake"
    class_names: tuple[str, ...] = CLASS_NAMES
    timestep: int = 1
    short_side: int = 32
    frame: tuple[int, int] = FRAME
    style: str = "microscope photo"
    vae_stride: int = STRIDE
    size_multiple: int = 2 * STRIDE
    generate_defaults: dict[str, Any] = field(default_factory=lambda: {"steps": 4, "guidance": 2.0})
    specs: Mapping[str, GraphSpec] = field(default_factory=lambda: SPECS)
    scheduler_config: dict[str, Any] = field(default_factory=lambda: SCHEDULER)
    adapter_info: Any = field(
        default_factory=lambda: SimpleNamespace(
            class_statistics=({"rbc": 9, "wbc": 1}, {"platelets": 2}),
            frequencies={"rbc": 9.0},
            thresholds={},
            rotate=None,
            config=AdapterConfig(channels=(8, 8), num_classes=3, queries=4),
        )
    )

    def tokenizer(self) -> FakeTokenizer:
        return FakeTokenizer()


def make_bundle(folder: Path, **changes: Any) -> Bundle:
    """A fake bundle that says it lies in `folder`."""
    return cast(Bundle, FakeBundle(folder, digest=str(sorted(changes.items())), **changes))


def _text_encoder(x: Mapping[str, Tensor]) -> dict[str, Tensor]:
    ids = x["input_ids"].float()[..., None] / 256
    return {"encoder_hidden_states": torch.sin(ids * torch.arange(1, WIDTH + 1))}


def _vae_encoder(x: Mapping[str, Tensor]) -> dict[str, Tensor]:
    small = torch.nn.functional.avg_pool2d(x["pixels"], STRIDE)
    return {"latents": torch.cat([small, small.mean(1, keepdim=True)], dim=1)}


def _vae_decoder(x: Mapping[str, Tensor]) -> dict[str, Tensor]:
    large = torch.nn.functional.interpolate(x["latents"][:, :3], scale_factor=STRIDE, mode="nearest")
    return {"pixels": torch.tanh(large)}


def _unet(x: Mapping[str, Tensor]) -> dict[str, Tensor]:
    sample, t = x["sample"], x["timesteps"].float().reshape(-1, 1, 1, 1) / 1000
    text = x["encoder_hidden_states"].mean((1, 2)).reshape(-1, 1, 1, 1)
    half = torch.nn.functional.avg_pool2d(sample, 2)
    return {
        "model_output": 0.7 * sample * t + 0.1 * text,
        "div1": sample + 0.01 * text,
        "div2": torch.cat([half, -half], dim=1),
    }


def _adapter(x: Mapping[str, Tensor]) -> dict[str, Tensor]:
    level = x["div1"]
    rows = level.reshape(level.shape[0], Z, -1)[:, :QUERIES]  # one channel a query
    parts = rows.unfold(2, rows.shape[2] // 7, rows.shape[2] // 7).mean(3)[:, :, :7]
    logits = 6 * torch.sin(40 * parts[:, :, :3]) - 4
    boxes = torch.sigmoid(3 * parts[:, :, 3:7])
    return {"logits": logits, "boxes": boxes, "encoder_logits": logits, "encoder_boxes": boxes}


GRAPHS: dict[str, Callable[[Mapping[str, Tensor]], dict[str, Tensor]]] = {
    "text_encoder": _text_encoder,
    "vae_encoder": _vae_encoder,
    "vae_decoder": _vae_decoder,
    "unet": _unet,
    "adapter": _adapter,
}


class FakeCall:
    """One graph at one set of shapes."""

    capturable = False

    def __init__(self, backend: "FakeBackend", graph: str, shapes: Mapping[str, tuple[int, ...]]) -> None:
        dtypes = {spec.name: getattr(torch, spec.dtype) for spec in SPECS[graph].inputs}
        self.inputs = {name: torch.zeros(shape, dtype=dtypes[name]) for name, shape in shapes.items()}
        self.outputs: dict[str, Tensor] = {}
        self._backend, self._graph = backend, graph

    def run(self) -> None:
        self._backend.calls[self._graph] += 1
        self.outputs.clear()
        self.outputs.update(GRAPHS[self._graph](self.inputs))
        self._backend.after(self._graph, self)


@dataclass
class FakeBackend:
    """Runs the functions above; counts calls, and lets a test look in, or spoil an output, after each."""

    after: Callable[[str, FakeCall], None] = lambda graph, call: None
    name: str = "onnxruntime"  # an engine that is asked for nothing of its own
    description: str = "fake, cpu, f32, 1 thread"
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))
    precision: str = "f32"
    threads: int = 1
    calls: Counter[str] = field(default_factory=Counter)
    prepared: list[tuple[str, dict[str, tuple[int, ...]]]] = field(default_factory=list)
    varying: list[str | None] = field(default_factory=list)  # of each that was prepared, which input pairs differ in
    roles: list[Role | None] = field(default_factory=list)  # of each that was prepared, what it is for

    def prepare(
        self,
        graph: str,
        shapes: Mapping[str, tuple[int, ...]],
        outputs: Sequence[str] | None = None,
        varies: str | None = None,
        role: Role | None = None,
    ) -> FakeCall:
        assert SPECS[graph].sizes(shapes)["B"] > 0
        assert outputs is None or set(outputs) <= {spec.name for spec in SPECS[graph].outputs}
        self.prepared.append((graph, dict(shapes)))
        self.varying.append(varies)
        self.roles.append(role)
        return FakeCall(self, graph, shapes)


def as_backend(backend: FakeBackend) -> Backend:
    """The fake where a Backend is due."""
    return cast(Backend, backend)


def tree(folder: Path) -> dict[str, bytes]:
    """Every file of a folder, with its bytes."""
    return {p.relative_to(folder).as_posix(): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}
