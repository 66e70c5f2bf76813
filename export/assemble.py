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

import torch
from safetensors import SafetensorError

from engines.adapter.info import AdapterInfo
from engines.adapter.model import load_adapter
from engines.bundle.bundle import open_bundle
from engines.bundle.files import MANIFEST
from engines.bundle.graphs import GRAPH_NAMES
from engines.common.events import Report, note, silent
from engines.common.files import sync_folder, write_json
from engines.common.verbs import verb
from engines.datasets.dataset import Record
from engines.diffusion.base_model import BaseModel, load_base, local_folder
from engines.diffusion.base_notes import bad_base
from engines.diffusion.lora import fuse_loras
from engines.diffusion.origin import read_origin
from engines.errors import ExportError, UsageError
from export import progress
from export.activations import measure_activations
from export.agreement import Agreement, check_agreement, compare_engines, gate_size, variants
from export.agreement import figures as agreement_figures
from export.fit import check_fit
from export.progress import Steps
from export.ranges import Measured, count_pictures, open_pictures
from export.ranges import figures as range_figures
from export.settings import ExportSettings
from export.store import copy_learned, store_model
from export.tensorrt.operators import OperatorCheck, inspect_operators
from export.verify import GraphCheck, count_steps, figures, installed_engines, verify_bundle
from export.write_graphs import Graphs, write_graphs


@dataclass(frozen=True)
class ExportSummary:
    """What `export` made.

    >>> from pathlib import Path
    >>> ExportSummary(Path("bundles/mine"), 12_345_678, checks=(), agreements=()).unseen_loras
    False
    """

    folder: Path  # the bundle
    bytes: int  # of all its files
    checks: tuple[GraphCheck, ...]  # every graph on every engine
    agreements: tuple[Agreement, ...]  # the same jobs on every engine
    islands: Mapping[str, tuple[str, ...]] = field(default_factory=dict)  # of float16 graphs, as in the manifest
    measured: Measured | None = None  # how large the numbers get; None for float32 graphs
    unseen_loras: bool = False  # whether LoRAs were added that the adapter was trained without
    operators: OperatorCheck | None = None  # whether TensorRT's parser has all operators of the graphs


@verb
def export(settings: ExportSettings, *, report: Report | None = None) -> ExportSummary:
    """Write a verified bundle to `settings.out`.

    The adapter may be one that was trained on the base alone, or with the same LoRAs. `report` is told of every step.
    Raises UsageError for options that contradict each other, ModelError for a folder that is not what it should be, or
    a base and an adapter that do not fit each other, ExportError for a graph that cannot be exported, or differs from
    PyTorch.

    >>> export(ExportSettings("bases/mine", "adapters/mine", "bundles/mine")).folder  # doctest: +SKIP
    PosixPath('bundles/mine')
    """
    report = report or silent
    _check_out(settings.out)
    checked_on = installed_engines() if settings.engines is None else tuple(settings.engines)
    if not checked_on:
        raise ExportError('No runtime to check the graphs on. Install one with "pip install onnxruntime openvino".')
    loops = variants(checked_on, settings.graph_dtype, int8=settings.int8)
    gates = _Gates(checked_on, loops, settings.threads)
    pictures = _pictures(settings.ranges, report)
    asked = Graphs(
        settings.graph_dtype, settings.weights_dtype, settings.opset, pictures, settings.generate, settings.int8
    )
    steps = Steps(_foreseen(asked, gates), report)
    steps("reading the models")
    base = local_folder(settings.base, settings.prediction_type, lambda text: report(note(text)), vae=settings.vae)
    if remark := bad_base(base):
        report(note(remark))
    models = _Models(base, settings, report)
    with _appearing(settings.out) as work:
        return _make(work, settings.out, models, asked, gates, steps)


@dataclass(frozen=True)
class _Gates:
    """What a bundle is checked on."""

    engines: tuple[str, ...]  # every graph, one by one
    loops: list[tuple[str, str]]  # (engine, precision) that paint the same jobs
    threads: int | None


class _Models:
    """A base and an adapter that fit each other, until their weights are stored."""

    def __init__(self, base: Path, settings: ExportSettings, report: Report) -> None:
        """Read the base's folder, and the adapter and LoRA files that the settings name."""
        self._base, self._adapter = load_base(base), settings.adapter
        self._network, self.info = load_adapter(settings.adapter)
        names = fuse_loras(self._base, settings.loras, lambda text: report(note(text)))
        origin = read_origin(self._base.folder)
        check_fit(self._base, origin, self.info, names)
        self.unseen_loras = bool(names) and self.info.base_hash in origin.hashes()
        self.loras = origin.loras + names
        self.frame = _resolve_frame(settings.frame, self._base, self.info)

    def store(self, folder: Path, weights_dtype: str) -> None:
        """Write their weights to a folder, and let go of them: the stored ones take their place."""
        store_model(self._base, self._network, self.info, folder, getattr(torch, weights_dtype))
        copy_learned(self._base.folder, folder)
        copy_learned(self._adapter, folder / "adapter")
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


def _foreseen(asked: Graphs, gates: _Gates) -> list[float]:
    """Seconds that each step is thought to take."""
    pictures = count_pictures(asked.pictures) if asked.dtype == "float16" else 0
    made = [progress.READING, progress.STORING, *[progress.MEASURING] * pictures, *progress.EXPORTING.values()]
    checked = [progress.LOADING, *[progress.RUNNING] * len(GRAPH_NAMES)]
    checked += [progress.CHECKING] * (count_steps(gates.engines) - len(checked))
    return [*made, *[progress.PAINTING] * asked.int8, *checked, *[progress.PAINTING] * (1 + len(gates.loops))]


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
