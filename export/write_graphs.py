"""The graphs of a bundle, from the weights that it stores, and the manifest that says what they are.

Knows: what decides the graphs' tensors, in which order they are made so that memory is that of the largest one, and
what a manifest says of them. Does not know how one graph is exported (`export.to_onnx`), how ranges are measured
(`export.ranges`), or how a bundle comes to be whole (`export.assemble`).
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from engines.adapter.info import AdapterInfo
from engines.adapter.model import load_adapter
from engines.adapter.pyramid import pyramid_channels
from engines.backends.modules import graph_modules
from engines.bundle.bundle import FORMAT, Manifest
from engines.bundle.graphs import GraphSpec, ModelShape, graph_specs
from engines.bundle.islands import apply_islands
from engines.common.files import sha256_file
from engines.common.versions import installed_versions
from engines.datasets.dataset import Record
from engines.diffusion.base_model import BaseModel, load_base
from export.memory import release_memory
from export.progress import Steps
from export.ranges import Measured, choose_islands, measure_graphs
from export.store import weights_file
from export.to_onnx import export_graph

PACKAGES = ("torch", "diffusers", "transformers", "onnx", "onnxscript", "onnxruntime-gpu", "onnxruntime", "openvino")


@dataclass(frozen=True)
class Graphs:
    """How the graphs of a bundle are to be."""

    dtype: str  # what they compute in: one of GRAPH_DTYPES
    weights_dtype: str  # what their weights are stored as: one of WEIGHTS_DTYPES
    opset: int  # one of the values of OPSETS
    pictures: Sequence[Record] | None  # images to measure ranges on; None for the checks' own inputs
    generate: Mapping[str, Any]  # defaults of `dengine generate`, by setting
    int8: bool = False  # whether to measure the numbers that int8 needs
    loras: tuple[str, ...] = ()  # LoRA files in the weights, as `fuse_loras` names them


def write_graphs(
    work: Path, info: AdapterInfo, frame: tuple[int, int], asked: Graphs, steps: Steps
) -> tuple[Manifest, Measured | None]:
    """Export every graph from the weights stored in `work`, and say what `work` then holds, and how large the numbers
    in float16 graphs are.

    Memory: a graph's network is gone when its graph is written.
    """
    base = load_base(work)
    adapter, _ = load_adapter(work / "adapter")
    specs = graph_specs(model_shape(base, info), asked.dtype)
    modules = graph_modules(base, adapter)
    measured, islands = None, {}
    if asked.dtype == "float16":
        measured = measure_graphs(modules, base, info, frame, asked.pictures, steps)
        islands = {name: choose_islands(name, modules[name], measured.ranges[name]) for name in specs}
    manifest = make_manifest(base, info, frame, asked, specs, {name: found for name, found in islands.items() if found})
    weights = {name: weights_file(name, base) for name in specs}
    del base, adapter
    for name, spec in specs.items():
        steps(f"exporting {name}")
        module = modules.pop(name)
        if asked.dtype == "float16":
            apply_islands(module, islands[name])
        export_graph(module, spec, work / f"{name}.onnx", weights[name], opset=asked.opset)
        del module
        release_memory()
    files = sorted(path.relative_to(work).as_posix() for path in work.rglob("*") if path.is_file())
    return replace(manifest, files={name: sha256_file(work / name) for name in files}), measured


def model_shape(base: BaseModel, info: AdapterInfo) -> ModelShape:
    """The numbers that decide the graphs' tensors."""
    return ModelShape(
        latent_channels=base.latent_channels,
        vae_stride=base.vae_stride,
        pyramid=pyramid_channels(base.unet.config),
        text_length=base.text_length,
        hidden_size=int(base.text_encoder.config.hidden_size),
        vocabulary=int(base.text_encoder.config.vocab_size),
        train_timesteps=int(base.scheduler_config.get("num_train_timesteps", 1000)),
        queries=info.config.queries,
        classes=info.config.num_classes,
    )


def make_manifest(
    base: BaseModel,
    info: AdapterInfo,
    frame: tuple[int, int],
    asked: Graphs,
    specs: Mapping[str, GraphSpec],
    islands: dict[str, tuple[str, ...]],
) -> Manifest:
    """What the manifest of a bundle with graphs of these `specs` and `islands` says, but for its files and figures."""
    return Manifest(
        format=FORMAT,
        class_names=info.class_names,
        weights_dtype=asked.weights_dtype,
        graph_dtype=asked.dtype,
        timestep=info.timestep,
        short_side=info.short_side,
        frame=frame,
        base_hash=info.base_hash,
        style=info.style,
        prompts=info.prompts,
        generate=dict(asked.generate),
        latent_channels=base.latent_channels,
        vae_stride=base.vae_stride,
        latent_multiple=base.latent_multiple,
        text_length=base.text_length,
        hidden_size=int(base.text_encoder.config.hidden_size),
        graphs={name: spec.to_json() for name, spec in specs.items()},
        made_with=installed_versions(PACKAGES),
        figures={},
        files={},
        opset=asked.opset,
        islands=islands,
        loras=asked.loras,
    )
