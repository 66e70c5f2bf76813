"""A base model and an adapter become a bundle.

Knows: which files a bundle holds and where they come from, and that a bundle appears whole or not at all. Does not
know which base and adapter fit each other (`export.fit`), or how a graph is exported (`export.to_onnx`) or checked
(`export.verify`).

Weights are stored once, in the diffusers layout, cast to `weights_dtype`. The networks are then loaded again from
those files, so that the graphs hold, and the checks compare, what is stored and not what it was rounded from.

Two hashes name a base: that of the folder an adapter was trained on, and that of the cast copy in the bundle. The
manifest keeps the first. A bundle's own folder may stand as a base too: its adapters are known by either.
"""

import shutil
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError

from engines.adapter.info import AdapterInfo
from engines.adapter.model import load_adapter
from engines.adapter.pyramid import pyramid_channels
from engines.backends.modules import graph_modules
from engines.bundle.bundle import FORMAT, MANIFEST, Manifest, open_bundle
from engines.bundle.graphs import GRAPH_NAMES, GraphSpec, ModelShape, graph_specs
from engines.bundle.islands import apply_islands
from engines.common.events import Report, note, silent
from engines.common.files import sha256_file, sync_folder, write_json
from engines.common.versions import installed_versions
from engines.diffusion.base_model import BaseModel, load_base, local_folder
from engines.diffusion.lora import fuse_loras
from engines.errors import ExportError, UsageError
from export.activations import measure_activations
from export.agreement import Agreement, check_agreement, compare_engines, gate_size, variants
from export.agreement import figures as agreement_figures
from export.fit import check_fit, read_origin
from export.memory import release_memory
from export.progress import Steps
from export.ranges import Measured, choose_islands, count_pictures, measure_graphs, picture_files
from export.ranges import figures as range_figures
from export.settings import ExportSettings
from export.store import GRAPH_WEIGHTS, store_model
from export.tensorrt.operators import OperatorCheck, inspect_operators
from export.to_onnx import export_graph
from export.verify import GraphCheck, count_steps, figures, installed_engines, verify_bundle

PACKAGES = ("torch", "diffusers", "transformers", "onnx", "onnxscript", "onnxruntime-gpu", "onnxruntime", "openvino")


@dataclass(frozen=True)
class ExportSummary:
    """What an export made."""

    folder: Path  # the bundle
    bytes: int  # of all its files
    checks: tuple[GraphCheck, ...]  # every graph on every engine
    agreements: tuple[Agreement, ...]  # the same jobs on every engine
    islands: Mapping[str, tuple[str, ...]] = field(default_factory=dict)  # of float16 graphs, as in the manifest
    measured: Measured | None = None  # how large the numbers get; None for float32 graphs
    unseen_loras: bool = False  # whether LoRAs were added that the adapter was trained without
    operators: OperatorCheck | None = None  # whether TensorRT's parser has all operators of the graphs


@dataclass(frozen=True)
class Graphs:
    """How the graphs of a bundle are to be."""

    dtype: str  # what they compute in: one of GRAPH_DTYPES
    weights_dtype: str  # what their weights are stored as: one of WEIGHTS_DTYPES
    opset: int  # one of the values of OPSETS
    pictures: list[Path] | None  # image files to measure ranges on; None for the checks' own inputs
    generate: Mapping[str, Any]  # defaults of `dengine generate`, by setting
    loras: tuple[str, ...] = ()  # LoRA files in the weights, as `fuse_loras` names them


def export(settings: ExportSettings, *, report: Report | None = None) -> ExportSummary:
    """Write a verified bundle to `settings.out`.

    The adapter may be one that was trained on the base alone, or with the same LoRAs. `report` is told of every step.
    Raises UsageError for options that contradict each other, ModelError for a folder that is not what it should be, or
    a base and an adapter that do not fit each other, ExportError for a graph that cannot be exported, or differs from
    PyTorch.

    >>> export(ExportSettings("bases/mine", "adapters/mine", "bundles/mine")).folder  # doctest: +SKIP
    PosixPath('bundles/mine')
    """
    report, out, threads = report or silent, settings.out, settings.threads
    weights_dtype, graph_dtype, int8 = settings.weights_dtype, settings.graph_dtype, settings.int8
    _check_out(out)
    asked = Graphs(graph_dtype, weights_dtype, settings.opset, picture_files(settings.ranges), settings.generate)
    checked_on = installed_engines() if settings.engines is None else tuple(settings.engines)
    if not checked_on:
        raise ExportError('No runtime to check the graphs on. Install one with "pip install onnxruntime openvino".')
    compared = variants(checked_on, graph_dtype, int8=int8)
    pictures = count_pictures(asked.pictures) if graph_dtype == "float16" else 0
    steps = Steps(3 + int8 + pictures + len(GRAPH_NAMES) + count_steps(checked_on) + len(compared), report)
    steps("reading the models")
    source = load_base(local_folder(settings.base, settings.prediction_type, lambda text: report(note(text))))
    network, info = load_adapter(settings.adapter)
    names = fuse_loras(source, settings.loras)
    origin = read_origin(source.folder)
    check_fit(source, origin, info, names)
    unseen = bool(names) and info.base_hash in origin.hashes()
    asked = replace(asked, loras=origin.loras + names)
    resolved = _resolve_frame(settings.frame, source, info)
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        work = Path(tempfile.mkdtemp(prefix=f".{out.name}.", suffix=".tmp", dir=out.parent))
    except OSError as cause:
        raise ExportError(
            f"{out.parent} cannot be written: {cause.strerror}. Give another `out`.", field="out"
        ) from cause
    try:
        steps(f"storing weights as {weights_dtype}")
        store_model(source, network, info, work, getattr(torch, weights_dtype))
        del source, network  # the stored ones take their place
        manifest, measured = _export_graphs(work, info, resolved, asked, steps)
        write_json(work / MANIFEST, manifest.to_json())
        bundle = open_bundle(work)
        if int8:
            steps("measuring the numbers for int8")
            manifest = replace(manifest, activations=measure_activations(bundle, threads))
            write_json(work / MANIFEST, manifest.to_json())
            bundle = open_bundle(work, verify=False)
        operators = inspect_operators(work)
        checks = verify_bundle(bundle, checked_on, steps, threads=threads)
        jobs, loop_steps = gate_size(bundle)
        agreements = compare_engines(bundle, compared, steps, jobs=jobs, steps=loop_steps, threads=threads)
        check_agreement(agreements)
        found = {"relative_error": figures(checks), "agreement": agreement_figures(agreements)}
        if measured is not None:
            found |= {"ranges": range_figures(measured), "ranges_measured_on": measured.source}
        write_json(work / MANIFEST, manifest.to_json() | {"figures": found})
        size = sum(path.stat().st_size for path in work.rglob("*") if path.is_file())
        _move(work, out)
    except OSError as cause:
        raise ExportError(f"{out} cannot be written: {cause.strerror or cause}.") from cause
    except SafetensorError as cause:  # how safetensors says that a disk is full
        raise ExportError(f"{out} cannot be written: {cause}.") from cause
    finally:
        shutil.rmtree(work, ignore_errors=True)
    return ExportSummary(out, size, tuple(checks), tuple(agreements), manifest.islands, measured, unseen, operators)


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


def _check_out(out: Path) -> None:
    if out.is_dir() and not any(out.iterdir()):
        return
    if out.exists() or out.is_symlink():
        raise UsageError(f"{out} exists already. Give a new folder with `out`, or remove it first.", field="out")


def _resolve_frame(frame: tuple[int, int] | None, base: BaseModel, info: AdapterInfo) -> tuple[int, int]:
    width, height = info.frame if frame is None else frame
    multiple = base.size_multiple
    if min(width, height) < 1 or width % multiple or height % multiple:
        raise UsageError(
            f"The frame is {width}x{height}; both sides must be positive multiples of {multiple}.", field="frame"
        )
    cells = info.config.cells(height // base.vae_stride, width // base.vae_stride)
    if cells < info.config.queries:
        raise UsageError(
            f"The frame {width}x{height} has {cells} cells for the adapter's {info.config.queries} queries. "
            f"Give a larger one with `frame`.",
            field="frame",
        )
    return width, height


def _export_graphs(
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
    manifest = _manifest(base, info, frame, asked, specs, {name: found for name, found in islands.items() if found})
    del base, adapter
    for name, spec in specs.items():
        steps(f"exporting {name}")
        module = modules.pop(name)
        if asked.dtype == "float16":
            apply_islands(module, islands[name])
        export_graph(module, spec, work / f"{name}.onnx", GRAPH_WEIGHTS[name], opset=asked.opset)
        del module
        release_memory()
    files = sorted(path.relative_to(work).as_posix() for path in work.rglob("*") if path.is_file())
    return replace(manifest, files={name: sha256_file(work / name) for name in files}), measured


def _manifest(
    base: BaseModel,
    info: AdapterInfo,
    frame: tuple[int, int],
    asked: Graphs,
    specs: Mapping[str, GraphSpec],
    islands: dict[str, tuple[str, ...]],
) -> Manifest:
    """What the bundle's manifest says, but for its files and figures."""
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


def _move(work: Path, out: Path) -> None:
    """Give the finished folder its name, in one step."""
    if out.is_dir():
        out.rmdir()  # empty, as `_check_out` saw it; a file that came since makes this fail
    work.chmod(0o755)  # mkdtemp's folders are for their owner alone
    work.rename(out)
    sync_folder(out.parent)
