"""A bundle on disk: its manifest, and the checks that make it safe to run.

Knows: which files a bundle holds, what its manifest says, and that every byte is the one that was exported.
Does not know: what the graphs compute, which runtime executes them, or how a bundle is made (`export.assemble`).

Nothing in a bundle can run code or reach outside its folder: `files` says how that is held.
"""

import dataclasses
import math
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from engines.adapter.info import AdapterInfo, are_names
from engines.bundle.files import MANIFEST, unlisted, wrong_external_data, wrong_files
from engines.bundle.graphs import GRAPH_NAMES, GraphSpec, ModelShape, graph_specs
from engines.common.files import read_json, sha256_file
from engines.common.quote import list_mistakes, quote
from engines.common.schema import from_object, hold, in_range
from engines.errors import BundleError, DengineError

FORMAT = 1
WEIGHTS_DTYPES = ("float32", "float16", "bfloat16")
GRAPH_DTYPES = ("float32", "float16")
_RANGES = (  # lowest and highest value of each number
    ("opset", 1, 100),
    ("timestep", 0, 100_000),
    ("short_side", 1, 65_536),
    ("frame", 1, 65_536),
    ("latent_channels", 1, 64),
    ("vae_stride", 1, 128),
    ("latent_multiple", 1, 128),
    ("text_length", 1, 4096),
    ("hidden_size", 1, 16_384),
)
_AGAIN = "Export the bundle again, or get a fresh copy."


@dataclass(frozen=True)
class Manifest:
    """What `manifest.json` says. Keys in the file are these names; only those with a default may be missing, none may
    be added.
    """

    format: int  # version of this layout: FORMAT
    class_names: tuple[str, ...]  # what the adapter tells apart, in the order of its logits
    weights_dtype: str  # how weights are stored: one of WEIGHTS_DTYPES
    graph_dtype: str  # how the graphs compute: one of GRAPH_DTYPES
    timestep: int  # t of the label pass (1)
    short_side: int  # pixels of the short side of the images the adapter was trained on
    frame: tuple[int, int]  # default (width, height) of a painted image, in pixels
    base_hash: str  # `base_model.base_hash` of the base model at export
    style: str  # style words of the prompts, such as "microscope photo"
    prompts: dict[str, Any]  # further prompt settings: templates, negative prompt
    generate: dict[str, Any]  # defaults of `dengine generate` for this bundle: setting -> value
    latent_channels: int  # Z
    vae_stride: int  # pixels a latent (8)
    latent_multiple: int  # latent height and width divide by this
    text_length: int  # L, tokens a prompt
    hidden_size: int  # D, width of encoder_hidden_states
    graphs: dict[str, dict[str, Any]]  # graph name -> `GraphSpec.to_json()`
    made_with: dict[str, str]  # package -> version at export (information only)
    figures: dict[str, Any]  # what export measured (information only)
    files: dict[str, str]  # POSIX path relative to the folder -> SHA-256, for every file but the manifest
    opset: int = 23  # of the graphs (ONNX); what older manifests, which do not say, have
    islands: dict[str, tuple[str, ...]] = field(default_factory=dict)  # graph -> parts that a float16 graph computes in
    # float32, as `engines.bundle.islands` names them; ("",) is the whole graph. Graphs without any are left out.
    loras: tuple[str, ...] = ()  # LoRA files fused into the base before export, as "name:scale sha256:..."
    activations: dict[str, tuple[float, float]] = field(
        default_factory=dict
    )  # weight of the UNet or the VAE -> lowest and highest
    # number that its product reads (`export.activations`), for int8; empty where they were not measured

    @property
    def size_multiple(self) -> int:
        """Pixels that an image's height and width must divide by."""
        return self.vae_stride * self.latent_multiple

    def to_json(self) -> dict[str, Any]:
        """The JSON object written to `manifest.json`."""
        return dataclasses.asdict(self)

    @classmethod
    def from_json(cls, value: Mapping[str, Any], where: str = MANIFEST) -> "Manifest":
        """Read what `to_json` wrote. Raises BundleError that lists every mistake at once, prefixed with `where`."""
        if value.get("format") != FORMAT:
            found = quote(value.get("format"))
            raise BundleError(f"{where}: bundle format {found} was found; this version reads format {FORMAT}. {_AGAIN}")
        manifest = from_object(cls, value, BundleError, where)
        hold(manifest, manifest._checks(), BundleError, where, _AGAIN)
        return manifest

    def _checks(self) -> Iterator[tuple[str, str, bool]]:
        """(field, what it must be, whether it is), beyond its type."""
        hashes = self.files.values()
        yield "class_names", "different names without line breaks", are_names(self.class_names)
        yield "weights_dtype", f"one of {', '.join(WEIGHTS_DTYPES)}", self.weights_dtype in WEIGHTS_DTYPES
        yield "graph_dtype", f"one of {', '.join(GRAPH_DTYPES)}", self.graph_dtype in GRAPH_DTYPES
        half = self.graph_dtype == "float16"
        yield "islands", "names by graph, in a float16 bundle", set(self.islands) <= set(GRAPH_NAMES if half else ())
        spans = self.activations.values()
        yield "activations", "finite, lowest first", all(-math.inf < low <= high < math.inf for low, high in spans)
        for name, low, high in _RANGES:
            yield name, f"{low} to {high}", in_range(getattr(self, name), low, high)
        multiple = max(1, self.size_multiple)
        yield "frame", f"two multiples of {quote(multiple)}", all(side % multiple == 0 for side in self.frame)
        yield "graphs", f"the graphs {', '.join(GRAPH_NAMES)}", set(self.graphs) == set(GRAPH_NAMES)
        yield "files", "SHA-256 by file", all(re.fullmatch("[0-9a-f]{64}", digest) for digest in hashes)


@dataclass(frozen=True)
class Bundle:
    """A bundle that was opened and found whole."""

    folder: Path
    manifest: Manifest
    specs: dict[str, GraphSpec]  # by graph
    adapter_info: AdapterInfo  # adapter/adapter.json
    scheduler_config: dict[str, Any]  # scheduler/scheduler_config.json
    digest: str  # SHA-256 of manifest.json, which holds those of all other files: names the bundle's content

    @property
    def class_names(self) -> tuple[str, ...]:
        """Classes in the order of the adapter's logits."""
        return self.manifest.class_names

    @property
    def timestep(self) -> int:
        """t of the label pass."""
        return self.manifest.timestep

    @property
    def short_side(self) -> int:
        """Pixels of the short side of the images the adapter was trained on."""
        return self.manifest.short_side

    @property
    def frame(self) -> tuple[int, int]:
        """Default (width, height) of a painted image, in pixels."""
        return self.manifest.frame

    @property
    def style(self) -> str:
        """Style words of the prompts."""
        return self.manifest.style

    @property
    def generate_defaults(self) -> dict[str, Any]:
        """Settings that `dengine generate` takes for this bundle unless told otherwise."""
        return self.manifest.generate

    @property
    def latent_channels(self) -> int:
        """Z, channels of the latents."""
        return self.manifest.latent_channels

    @property
    def vae_stride(self) -> int:
        """Pixels that a latent cell spans along one side."""
        return self.manifest.vae_stride

    @property
    def size_multiple(self) -> int:
        """Pixels that an image's height and width must divide by."""
        return self.manifest.size_multiple

    @property
    def text_length(self) -> int:
        """L, tokens a prompt."""
        return self.manifest.text_length

    @property
    def hidden_size(self) -> int:
        """D, width of encoder_hidden_states."""
        return self.manifest.hidden_size

    def graph_path(self, graph: str) -> Path:
        """The ONNX file of a graph."""
        return self.folder / f"{graph}.onnx"

    def tokenizer(self) -> Any:
        """The bundle's transformers.CLIPTokenizer; `tokenizer.tokenize` turns prompts into ids with it."""
        from engines.common.tokenizer import load_tokenizer

        (ids,) = self.specs["text_encoder"].inputs
        return load_tokenizer(self.folder / "tokenizer", ids.below or 0, self.text_length)


def default_bundle() -> Path:
    """The folder of the bundle that comes with dengine. Raises BundleError where this copy of dengine has none."""
    folder = Path(__file__).parents[1] / "pretrained" / "blood-cells"
    if not (folder / MANIFEST).is_file():
        raise BundleError(f"This copy of dengine has no bundled model at {folder}. Give a `bundle`.", field="bundle")
    return folder


def open_bundle(folder: Path, *, verify: bool = True) -> Bundle:
    """Read a bundle and check it.

    Args:
        folder: what `dengine export` wrote.
        verify: compare every file's SHA-256 with the manifest's. Without, names, links, graphs and settings are still
            checked.

    Raises BundleError that names every file that is missing, changed, unlisted or unsafe.
    """
    if not folder.is_dir():
        found = "is a file" if folder.exists() else "does not exist"
        raise BundleError(f'{folder} {found}; a bundle folder was expected, as "dengine export" writes it.')
    path = folder / MANIFEST
    if not path.is_file():
        raise BundleError(f'{folder} has no {MANIFEST}; a bundle folder was expected, as "dengine export" writes it.')
    manifest = Manifest.from_json(read_json(path, BundleError), str(path))
    mistakes = [*wrong_files(folder, manifest.files, verify), *unlisted(folder, manifest.files)]
    if not mistakes:
        mistakes = [line for graph in GRAPH_NAMES for line in wrong_external_data(folder, graph, manifest.files)]
    if mistakes:
        raise BundleError(f"{folder} is not the bundle that was exported: {list_mistakes(mistakes)}. {_AGAIN}")
    try:
        specs = {name: GraphSpec.from_json(manifest.graphs[name]) for name in GRAPH_NAMES}
        info_path = folder / "adapter" / "adapter.json"
        info = AdapterInfo.from_json(read_json(info_path, BundleError), str(info_path))
    except DengineError as cause:
        raise BundleError(f"{path}: {cause}") from cause
    if wrong := [name for name, spec in specs.items() if spec.dtype != manifest.graph_dtype]:
        raise BundleError(f"{path}: the specs of {', '.join(wrong)} are not in {manifest.graph_dtype}. {_AGAIN}")
    scheduler = read_json(folder / "scheduler" / "scheduler_config.json", BundleError)
    if wrong := list(_wrong_specs(manifest, specs, info, scheduler)):
        raise BundleError(f"{path}: the specs of {', '.join(wrong)} are not those of its networks. {_AGAIN}")
    if (info.class_names, info.timestep) != (manifest.class_names, manifest.timestep):
        raise BundleError(f"{path} and adapter/adapter.json differ in class names or timestep. {_AGAIN}")
    return Bundle(folder, manifest, specs, info, scheduler, sha256_file(path))


def _wrong_specs(
    manifest: Manifest, specs: Mapping[str, GraphSpec], info: AdapterInfo, scheduler: Mapping[str, Any]
) -> Iterator[str]:
    """Graphs whose tensors are not those that follow from the bundle's own numbers."""
    shape = ModelShape(
        latent_channels=manifest.latent_channels,
        vae_stride=manifest.vae_stride,
        pyramid=info.config.channels,
        text_length=manifest.text_length,
        hidden_size=manifest.hidden_size,
        vocabulary=next((tensor.below for tensor in specs["text_encoder"].inputs if tensor.below), 0),
        train_timesteps=scheduler.get("num_train_timesteps", 1000),
        queries=info.config.queries,
        classes=info.config.num_classes,
    )
    for name, expected in graph_specs(shape, manifest.graph_dtype).items():
        if replace(specs[name], tolerance=expected.tolerance) != expected:
            yield name
