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
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError

from engines.adapter.info import AdapterInfo
from engines.adapter.model import load_adapter
from engines.bundle.bundle import GRAPH_DTYPES, MANIFEST, WEIGHTS_DTYPES, open_bundle
from engines.bundle.graphs import GRAPH_NAMES
from engines.common.events import Report, silent
from engines.common.files import sync_folder, write_json
from engines.datasets.dataset import Record
from engines.diffusion.base_model import BaseModel, load_base
from engines.diffusion.lora import fuse_loras
from engines.errors import ExportError, UsageError
from export.activations import measure_activations
from export.agreement import Agreement, check_agreement, compare_engines, gate_size, variants
from export.agreement import figures as agreement_figures
from export.fit import check_fit, read_origin
from export.progress import Steps
from export.ranges import Measured, count_pictures, open_pictures
from export.ranges import figures as range_figures
from export.store import store_model
from export.tensorrt.operators import OperatorCheck, inspect_operators
from export.to_onnx import OPSETS
from export.verify import GraphCheck, count_steps, figures, installed_engines, verify_bundle
from export.write_graphs import Graphs, write_graphs


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
    checked_on = installed_engines() if engines is None else tuple(engines)
    if not checked_on:
        raise ExportError('No runtime to check the graphs on. Install one with "pip install onnxruntime openvino".')
    gates = _Gates(checked_on, variants(checked_on, graph_dtype, int8=int8), threads)
    asked = Graphs(graph_dtype, weights_dtype, opset, _pictures(ranges, report or silent), generate or {}, int8)
    steps = Steps(_count_steps(asked, gates), report or silent)
    steps("reading the models")
    models = _Models(base, adapter, loras, frame)
    with _appearing(out) as work:
        return _make(work, out, models, asked, gates, steps)


@dataclass(frozen=True)
class _Gates:
    """What a bundle is checked on."""

    engines: tuple[str, ...]  # every graph, one by one
    loops: list[tuple[str, str]]  # (engine, precision) that paint the same jobs
    threads: int | None


class _Models:
    """A base and an adapter that fit each other, until their weights are stored."""

    def __init__(
        self, base: Path | str, adapter: Path, loras: Sequence[tuple[Path, float]], frame: tuple[int, int] | None
    ) -> None:
        """See `export_bundle`."""
        self._base = load_base(base)
        self._network, self.info = load_adapter(adapter)
        names = fuse_loras(self._base, loras)
        origin = read_origin(self._base.folder)
        check_fit(self._base, origin, self.info, names)
        self.unseen_loras = bool(names) and self.info.base_hash in origin.hashes()
        self.loras = origin.loras + names
        self.frame = _resolve_frame(frame, self._base, self.info)

    def store(self, folder: Path, weights_dtype: str) -> None:
        """Write their weights to a folder, and let go of them: the stored ones take their place."""
        store_model(self._base, self._network, self.info, folder, getattr(torch, weights_dtype))
        del self._base, self._network


def _make(work: Path, out: Path, models: _Models, asked: Graphs, gates: _Gates, steps: Steps) -> ExportSummary:
    """Make the bundle in the folder `work`, which becomes `out` once every check has passed."""
    steps(f"storing weights as {asked.weights_dtype}")
    models.store(work, asked.weights_dtype)
    manifest, measured = write_graphs(work, models.info, models.frame, replace(asked, loras=models.loras), steps)
    write_json(work / MANIFEST, manifest.to_json())
    bundle = open_bundle(work)
    if asked.int8:
        steps("measuring the numbers for int8")
        manifest = replace(manifest, activations=measure_activations(bundle, gates.threads))
        write_json(work / MANIFEST, manifest.to_json())
        bundle = open_bundle(work, verify=False)
    operators = inspect_operators(work)
    checks = verify_bundle(bundle, gates.engines, steps, threads=gates.threads)
    jobs, loop_steps = gate_size(bundle)
    agreements = compare_engines(bundle, gates.loops, steps, jobs=jobs, steps=loop_steps, threads=gates.threads)
    check_agreement(agreements)
    found = {"relative_error": figures(checks), "agreement": agreement_figures(agreements)}
    if measured is not None:
        found |= {"ranges": range_figures(measured), "ranges_measured_on": measured.source}
    write_json(work / MANIFEST, manifest.to_json() | {"figures": found})
    size = sum(path.stat().st_size for path in work.rglob("*") if path.is_file())
    return ExportSummary(
        out, size, tuple(checks), tuple(agreements), manifest.islands, measured, models.unseen_loras, operators
    )


def _count_steps(asked: Graphs, gates: _Gates) -> int:
    pictures = count_pictures(asked.pictures) if asked.dtype == "float16" else 0
    return 3 + asked.int8 + pictures + len(GRAPH_NAMES) + count_steps(gates.engines) + len(gates.loops)


@contextmanager
def _appearing(out: Path) -> Iterator[Path]:
    """A new folder beside `out` that becomes `out` if all goes well, and is gone if not. Raises ExportError where
    nothing can be written.
    """
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        work = Path(tempfile.mkdtemp(prefix=f".{out.name}.", suffix=".tmp", dir=out.parent))
    except OSError as cause:
        raise ExportError(
            f"{out.parent} cannot be written: {cause.strerror}. Give another `out`.", field="out"
        ) from cause
    try:
        yield work
        _move(work, out)
    except OSError as cause:
        raise ExportError(f"{out} cannot be written: {cause.strerror or cause}.") from cause
    except SafetensorError as cause:  # how safetensors says that a disk is full
        raise ExportError(f"{out} cannot be written: {cause}.") from cause
    finally:
        shutil.rmtree(work, ignore_errors=True)


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


def _move(work: Path, out: Path) -> None:
    """Give the finished folder its name, in one step."""
    if out.is_dir():
        out.rmdir()  # empty, as `_check_out` saw it; a file that came since makes this fail
    work.chmod(0o755)  # mkdtemp's folders are for their owner alone
    work.rename(out)
    sync_folder(out.parent)
