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
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError

from engines.adapter.info import AdapterInfo
from engines.adapter.model import load_adapter
from engines.adapter.pyramid import pyramid_channels
from engines.backends.modules import graph_modules
from engines.bundle.bundle import FORMAT, GRAPH_DTYPES, MANIFEST, WEIGHTS_DTYPES, Manifest, open_bundle
from engines.bundle.graphs import GRAPH_NAMES, GraphSpec, ModelShape, graph_specs
from engines.bundle.islands import apply_islands
from engines.common.events import Report, silent
from engines.common.files import sha256_file, sync_folder, write_json
from engines.common.versions import installed_versions
from engines.datasets.dataset import Record
from engines.diffusion.base_model import BaseModel, load_base
from engines.diffusion.lora import fuse_loras
from engines.errors import ExportError, UsageError
from export.activations import measure_activations
from export.agreement import Agreement, check_agreement, compare_engines, gate_size, variants
from export.agreement import figures as agreement_figures
from export.fit import check_fit, read_origin
from export.memory import release_memory
from export.progress import Steps
from export.ranges import Measured, choose_islands, count_pictures, measure_graphs, open_pictures
from export.ranges import figures as range_figures
from export.store import GRAPH_WEIGHTS, store_model
from export.tensorrt.operators import OperatorCheck, inspect_operators
from export.to_onnx import OPSETS, export_graph
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
    pictures: Sequence[Record] | None  # images to measure ranges on; None for the checks' own inputs
    generate: Mapping[str, Any]  # defaults of `dengine generate`, by setting
    loras: tuple[str, ...] = ()  # LoRA files in the weights, as `fuse_loras` names them


def export_bundle(
    base: Path | str,
    adapter: Path,
    out: Path,
    *,
    loras: Sequence[tuple[Path, float]] = (),
    frame: tuple[int, int] | None = None,
    weights_dtype: str = "float16",
    graph_dtype: str = "float32",
    opset: int = OPSETS["default"],
    ranges: Path | None = None,
    generate: Mapping[str, Any] | None = None,
    engines: Sequence[str] | None = None,
    int8: bool = False,
    threads: int | None = None,
    report: Report | None = None,
) -> ExportSummary:
    """Write a verified bundle to `out`, which must not exist, or be an empty folder.

    Args:
        base: a base model's folder, a bundle's folder, or a name on the Hugging Face hub.
        adapter: an adapter's folder, trained on that base.
        out: the bundle's folder. It appears when every check has passed, and not before.
        loras: LoRA files and their scales, added to the base's weights first. The adapter may be one that was trained
            on the base alone, or with these LoRAs.
        frame: usual (width, height) of painted images in pixels; None for the frame the adapter was trained on.
        weights_dtype: how weights are stored: float32, float16 or bfloat16.
        graph_dtype: what the graphs compute in: float32, or float16 with islands of float32 where it would overflow.
            Their weights are the stored ones, so float16 graphs need weights stored as float16.
        opset: of the graphs, one of the values of `export.to_onnx.OPSETS`.
        ranges: a folder of images like those to be painted, to measure on where float16 would overflow; None for
            the checks' own inputs.
        generate: defaults of `dengine generate` for this bundle, by setting.
        engines: what to check on (`export.verify.ENGINES`); None for all that are installed.
        int8: measure how large the numbers of UNet and VAE get while images are painted, so that the bundle can be
            executed in int8; for float32 graphs.
        threads: CPU threads of the checks; None for each runtime's own choice.
        report: told of every step.

    Raises:
        UsageError: an option out of its range.
        ModelError: a folder that is not what it should be, or a base and an adapter that do not fit each other.
        ExportError: a graph that cannot be exported, or differs from PyTorch.
    """
    _check_dtypes(weights_dtype, graph_dtype, opset, ranges, int8)
    _check_out(out)
    asked = Graphs(graph_dtype, weights_dtype, opset, _pictures(ranges, report or silent), generate or {})
    checked_on = installed_engines() if engines is None else tuple(engines)
    if not checked_on:
        raise ExportError('No runtime to check the graphs on. Install one with "pip install onnxruntime openvino".')
    compared = variants(checked_on, graph_dtype, int8=int8)
    pictures = count_pictures(asked.pictures) if graph_dtype == "float16" else 0
    steps = Steps(3 + int8 + pictures + len(GRAPH_NAMES) + count_steps(checked_on) + len(compared), report or silent)
    steps("reading the models")
    source = load_base(base)
    network, info = load_adapter(adapter)
    names = fuse_loras(source, loras)
    origin = read_origin(source.folder)
    check_fit(source, origin, info, names)
    unseen = bool(names) and info.base_hash in origin.hashes()
    asked = replace(asked, loras=origin.loras + names)
    resolved = _resolve_frame(frame, source, info)
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


def _pictures(folder: Path | None, report: Report) -> Sequence[Record] | None:
    """The images to measure on; None without a folder."""
    if folder is None:
        return None
    found = open_pictures(folder)
    found.tell(report)
    return found.records


def _check_dtypes(weights_dtype: str, graph_dtype: str, opset: int, ranges: Path | None, int8: bool) -> None:
    if weights_dtype not in WEIGHTS_DTYPES:
        raise UsageError(
            f'Unknown weights dtype "{weights_dtype}"; one of {", ".join(WEIGHTS_DTYPES)} was expected.',
            field="weights_dtype",
        )
    if graph_dtype not in GRAPH_DTYPES:
        raise UsageError(
            f'Unknown graph dtype "{graph_dtype}"; one of {", ".join(GRAPH_DTYPES)} was expected.', field="graph_dtype"
        )
    if graph_dtype == "float16" and weights_dtype != "float16":
        raise UsageError(
            f"float16 graphs read their weights as they are stored, and {weights_dtype} was asked for. "
            f"Use `weights_dtype=float16`, or `graph_dtype=float32`.",
            field="weights_dtype",
        )
    if opset not in OPSETS.values():
        known = " or ".join(f"{number} ({what})" for what, number in OPSETS.items())
        raise UsageError(f"Opset {opset} is not one that was checked; {known} was expected.", field="opset")
    if int8 and graph_dtype != "float32":
        raise UsageError("`int8` is for CPUs and float32 graphs. Leave it or `graph_dtype=float16` out.", field="int8")
    if ranges is not None and graph_dtype == "float32":
        raise UsageError(
            "`ranges` measures for float16 graphs. Add `graph_dtype=float16`, or leave it out.", field="ranges"
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
