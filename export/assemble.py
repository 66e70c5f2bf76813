"""A base model and an adapter become a bundle.

Knows: which files a bundle holds and where they come from, whether base and adapter fit each other, and that a bundle
appears whole or not at all. Does not know how a graph is exported (`export.to_onnx`) or checked (`export.verify`).

Weights are stored once, in the diffusers layout, cast to `weights_dtype`. The networks are then loaded again from
those files, so that the graphs hold, and the checks compare, what is stored and not what it was rounded from.

Two hashes name a base: that of the folder an adapter was trained on, and that of the cast copy in the bundle. The
manifest keeps the first. A bundle's own folder may stand as a base too: its adapters are known by either.
"""

import importlib.metadata
import shutil
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError

from engines.adapter.info import WEIGHTS_FILE, AdapterInfo
from engines.adapter.model import DetectionAdapter, load_adapter, save_adapter
from engines.adapter.pyramid import pyramid_channels
from engines.bundle import FORMAT, MANIFEST, WEIGHTS_DTYPES, Manifest, open_bundle
from engines.diffusion.base_model import BASE_NOTES, BaseModel, base_hash, load_base
from engines.errors import BundleError, ExportError, ModelError, UsageError
from engines.files import read_json, sha256_file, sync_folder, write_json
from engines.graphs import GRAPH_NAMES, ModelShape, graph_specs
from engines.modules import graph_modules
from export.agreement import Agreement, check_agreement, compare_engines, variants
from export.agreement import figures as agreement_figures
from export.progress import Report, Steps
from export.to_onnx import export_graph
from export.verify import GraphCheck, count_steps, figures, installed_engines, verify_bundle

GRAPH_WEIGHTS = {  # the file that each graph's initializers point into
    "text_encoder": "text_encoder/model.safetensors",
    "vae_encoder": "vae/diffusion_pytorch_model.safetensors",
    "vae_decoder": "vae/diffusion_pytorch_model.safetensors",
    "unet": "unet/diffusion_pytorch_model.safetensors",
    "adapter": f"adapter/{WEIGHTS_FILE}",
}
PACKAGES = ("torch", "diffusers", "transformers", "onnx", "onnxscript", "onnxruntime-gpu", "onnxruntime", "openvino")

_PARTS = {
    "scheduler": ["diffusers", "DDIMScheduler"],
    "text_encoder": ["transformers", "CLIPTextModel"],
    "tokenizer": ["transformers", "CLIPTokenizer"],
    "unet": ["diffusers", "UNet2DConditionModel"],
    "vae": ["diffusers", "AutoencoderKL"],
}
_ABSENT = ("feature_extractor", "image_encoder", "safety_checker")  # parts of a pipeline that dengine has no use for


@dataclass(frozen=True)
class ExportSummary:
    """What an export made."""

    folder: Path  # the bundle
    bytes: int  # of all its files
    checks: tuple[GraphCheck, ...]  # every graph on every engine
    agreements: tuple[Agreement, ...]  # the same jobs on every engine


def export_bundle(
    base: Path | str,
    adapter: Path,
    out: Path,
    *,
    frame: tuple[int, int] | None = None,
    weights_dtype: str = "float16",
    generate: Mapping[str, Any] | None = None,
    engines: Sequence[str] | None = None,
    threads: int | None = None,
    report: Report = lambda progress: None,
) -> ExportSummary:
    """Write a verified bundle to `out`, which must not exist, or be an empty folder.

    Args:
        base: a base model's folder, a bundle's folder, or a name on the Hugging Face hub.
        adapter: an adapter's folder, trained on that base.
        out: the bundle's folder. It appears when every check has passed, and not before.
        frame: usual (width, height) of painted images in pixels; None for the frame the adapter was trained on.
        weights_dtype: how weights are stored: float32, float16 or bfloat16.
        generate: defaults of `dengine generate` for this bundle, by setting.
        engines: what to check on (`export.verify.ENGINES`); None for all that are installed.
        threads: CPU threads of the checks; None for each runtime's own choice.
        report: told of every step.

    Raises:
        UsageError: an option out of its range.
        ModelError: a folder that is not what it should be, or a base and an adapter that do not fit each other.
        ExportError: a graph that cannot be exported, or differs from PyTorch.
    """
    if weights_dtype not in WEIGHTS_DTYPES:
        raise UsageError(f'Unknown weights dtype "{weights_dtype}"; one of {", ".join(WEIGHTS_DTYPES)} was expected.')
    _check_out(out)
    checked_on = installed_engines() if engines is None else tuple(engines)
    if not checked_on:
        raise ExportError('No runtime to check the graphs on. Install one with "pip install onnxruntime openvino".')
    steps = Steps(3 + len(GRAPH_NAMES) + count_steps(checked_on) + len(variants(checked_on)), report)
    steps("reading the models")
    source = load_base(base)
    network, info = load_adapter(adapter)
    check_fit(source, info)
    resolved = _resolve_frame(frame, source, info)
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        work = Path(tempfile.mkdtemp(prefix=f".{out.name}.", suffix=".tmp", dir=out.parent))
    except OSError as cause:
        raise ExportError(f"{out.parent} cannot be written: {cause.strerror}. Give another --out.") from cause
    try:
        steps(f"storing weights as {weights_dtype}")
        _store(source, network, info, work, getattr(torch, weights_dtype))
        del source, network  # the stored ones take their place
        manifest = _export_graphs(work, info, resolved, weights_dtype, generate or {}, steps)
        write_json(work / MANIFEST, manifest.to_json())
        bundle = open_bundle(work)
        checks = verify_bundle(bundle, checked_on, steps, threads=threads)
        agreements = compare_engines(bundle, variants(checked_on), steps, threads=threads)
        check_agreement(agreements)
        measured = {"relative_error": figures(checks), "agreement": agreement_figures(agreements)}
        write_json(work / MANIFEST, manifest.to_json() | {"figures": measured})
        size = sum(path.stat().st_size for path in work.rglob("*") if path.is_file())
        _move(work, out)
    except OSError as cause:
        raise ExportError(f"{out} cannot be written: {cause.strerror or cause}.") from cause
    except SafetensorError as cause:  # how safetensors says that a disk is full
        raise ExportError(f"{out} cannot be written: {cause}.") from cause
    finally:
        shutil.rmtree(work, ignore_errors=True)
    return ExportSummary(out, size, tuple(checks), tuple(agreements))


def check_fit(base: BaseModel, info: AdapterInfo) -> None:
    """Raise ModelError unless the adapter was trained on this base, and reads what its UNet gives."""
    if info.base_hash not in (names := known_hashes(base.folder)):
        raise ModelError(
            f"The adapter was trained on another base model: adapter.json has base_hash {info.base_hash[:12]}..., "
            f"{base.folder} has {' or '.join(f'{name[:12]}...' for name in names)}. Give the base it was trained on."
        )
    channels = pyramid_channels(base.unet.config)
    steps = int(base.scheduler_config.get("num_train_timesteps", 1000))
    mistakes = [
        f"{what} {found} where the base has {expected}"
        for what, found, expected, fits in (
            ("pyramid channels", list(info.config.channels), list(channels), info.config.channels == channels),
            ("timestep", info.timestep, f"0 to {steps - 1}", 0 <= info.timestep < steps),
            ("size_multiple", info.size_multiple, base.size_multiple, info.size_multiple == base.size_multiple),
        )
        if not fits
    ]
    if mistakes:
        raise ModelError(f"The adapter does not fit {base.folder}: it has {'; '.join(mistakes)}.")


def known_hashes(folder: Path) -> tuple[str, ...]:
    """The hashes a base goes by: its folder's own and, for an unchanged bundle, that of the base it was made of."""
    own = base_hash(folder)
    if not (folder / MANIFEST).is_file():
        return (own,)
    try:
        return own, open_bundle(folder).manifest.base_hash
    except BundleError:
        return (own,)


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
        raise UsageError(f"{out} exists already. Give a new folder with --out, or remove it first.")


def _resolve_frame(frame: tuple[int, int] | None, base: BaseModel, info: AdapterInfo) -> tuple[int, int]:
    width, height = info.frame if frame is None else frame
    multiple = base.size_multiple
    if min(width, height) < 1 or width % multiple or height % multiple:
        raise UsageError(f"The frame is {width}x{height}; both sides must be positive multiples of {multiple}.")
    cells = info.config.cells(height // base.vae_stride, width // base.vae_stride)
    if cells < info.config.queries:
        raise UsageError(
            f"The frame {width}x{height} has {cells} cells for the adapter's {info.config.queries} queries. "
            f"Give a larger one with --frame."
        )
    return width, height


def _store(base: BaseModel, adapter: DetectionAdapter, info: AdapterInfo, work: Path, dtype: torch.dtype) -> None:
    """Write the diffusers folder and the adapter to `work`, weights cast to `dtype`."""
    for part, module in (("unet", base.unet), ("vae", base.vae), ("text_encoder", base.text_encoder)):
        torch.nn.Module.to(module, dtype)  # diffusers' own `to` warns about casts, whatever is cast
        _check_finite(module, part, dtype)
        module.save_pretrained(work / part, safe_serialization=True, max_shard_size="1TB")
        config = read_json(work / part / "config.json", ModelError)
        config.pop("_name_or_path", None)  # a path of the machine that exported
        if "dtype" in config:  # transformers would compute as weights are stored, and diffusers' parts in float32
            config["dtype"] = "float32"
        write_json(work / part / "config.json", config)
        expected = Path(GRAPH_WEIGHTS.get(part, GRAPH_WEIGHTS["vae_encoder"])).name
        if [path.name for path in (work / part).glob("*.safetensors")] != [expected]:
            raise ExportError(f"{part}: its library did not write one {expected}; its version is not one we know.")
    for part in ("tokenizer", "scheduler"):
        (work / part).mkdir()
        for path in sorted((base.folder / part).iterdir()):
            if path.is_file() and path.suffix in (".json", ".txt"):
                shutil.copyfile(path, work / part / path.name)
    if (base.folder / BASE_NOTES).is_file():
        shutil.copyfile(base.folder / BASE_NOTES, work / BASE_NOTES)
    write_json(work / "model_index.json", _model_index(base))
    _check_finite(adapter.to(dtype), "adapter", dtype)
    save_adapter(work / "adapter", adapter, info)


def _check_finite(module: torch.nn.Module, part: str, dtype: torch.dtype) -> None:
    for name, value in module.state_dict().items():
        if value.is_floating_point() and not torch.isfinite(value).all():
            raise ModelError(
                f'{part}: "{name}" is not finite when stored as {str(dtype).removeprefix("torch.")}. '
                f"Use --weights-dtype float32 (or bfloat16), unless the model itself is broken."
            )


def _model_index(base: BaseModel) -> dict[str, Any]:
    """What makes the folder load with StableDiffusionPipeline and StableDiffusionImg2ImgPipeline.from_pretrained."""
    scheduler = ["diffusers", str(base.scheduler_config.get("_class_name", "DDIMScheduler"))]
    return {
        "_class_name": "StableDiffusionPipeline",
        "_diffusers_version": importlib.metadata.version("diffusers"),
        "requires_safety_checker": False,
        **{part: [None, None] for part in _ABSENT},
        **(_PARTS | {"scheduler": scheduler}),
    }


def _export_graphs(
    work: Path,
    info: AdapterInfo,
    frame: tuple[int, int],
    weights_dtype: str,
    generate: Mapping[str, Any],
    steps: Steps,
) -> Manifest:
    """Export every graph from the weights stored in `work`, and say what `work` then holds."""
    base = load_base(work)
    adapter, _ = load_adapter(work / "adapter")
    specs = graph_specs(model_shape(base, info), frame)
    modules = graph_modules(base, adapter)
    for name, spec in specs.items():
        steps(f"exporting {name}")
        export_graph(modules[name], spec, work / f"{name}.onnx", GRAPH_WEIGHTS[name])
    files = sorted(path.relative_to(work).as_posix() for path in work.rglob("*") if path.is_file())
    return Manifest(
        format=FORMAT,
        class_names=info.class_names,
        weights_dtype=weights_dtype,
        graph_dtype="float32",
        timestep=info.timestep,
        short_side=info.short_side,
        frame=frame,
        base_hash=info.base_hash,
        style=info.style,
        prompts=info.prompts,
        generate=dict(generate),
        latent_channels=base.latent_channels,
        vae_stride=base.vae_stride,
        latent_multiple=base.latent_multiple,
        text_length=base.text_length,
        hidden_size=int(base.text_encoder.config.hidden_size),
        graphs={name: spec.to_json() for name, spec in specs.items()},
        made_with=_versions(),
        figures={},
        files={name: sha256_file(work / name) for name in files},
    )


def _versions() -> dict[str, str]:
    """Versions of the packages that made the bundle, where installed."""
    found = {}
    for package in PACKAGES:
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def _move(work: Path, out: Path) -> None:
    """Give the finished folder its name, in one step."""
    if out.is_dir():
        out.rmdir()  # empty, as `_check_out` saw it; a file that came since makes this fail
    work.chmod(0o755)  # mkdtemp's folders are for their owner alone
    work.rename(out)
    sync_folder(out.parent)
