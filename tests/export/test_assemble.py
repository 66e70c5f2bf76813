"""Export: bundles of random models of both shapes, and the gates that a wrong one does not pass."""

import importlib.metadata
import json
import shutil
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import onnx
import pytest
import torch
import toy
from published import assert_published
from refusals import refused
from safetensors.torch import load_file, save_file

from engines.backends.registry import open_backend
from engines.bundle.bundle import Bundle, open_bundle
from engines.bundle.graphs import GRAPH_NAMES, GraphSpec
from engines.common.events import Event
from engines.diffusion.base_model import base_hash, load_base
from engines.errors import ModelError, UsageError
from export import graph_names, verify, write_graphs
from export.assemble import export
from export.settings import ExportSettings
from export.store import GRAPH_WEIGHTS
from export.to_onnx import read_layout

KINDS = ("sd1", "sd2")


@pytest.fixture
def bundle(request: pytest.FixtureRequest, toy_bundle: Path, toy_bundle_sd2: Path) -> Bundle:
    """The exported bundle of the kind that the test is run for."""
    return open_bundle({"sd1": toy_bundle, "sd2": toy_bundle_sd2}[request.param])


both = pytest.mark.parametrize("bundle", KINDS, indirect=True)


@pytest.fixture
def quick_export(toy_bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """`export` takes the sd1 bundle's graphs in place of tracing them again."""

    def copy(module: Any, spec: GraphSpec, path: Path, weights: str, *, opset: int) -> None:
        shutil.copyfile(toy_bundle / path.name, path)

    monkeypatch.setattr(write_graphs, "export_graph", copy)


def spoil(folder: Path, graph: str, change: Callable[[onnx.ModelProto], None]) -> None:
    """Rewrite a graph of a bundle after `change`, without touching its weights."""
    path = folder / f"{graph}.onnx"
    model = onnx.load(str(path), load_external_data=False)
    change(model)
    path.write_bytes(model.SerializeToString())


def swap_weights(model: onnx.ModelProto) -> None:
    """Make one weight read the bytes of another of the same shape."""
    seen: dict[tuple[int, ...], onnx.TensorProto] = {}
    for tensor in model.graph.initializer:
        if tensor.data_location == onnx.TensorProto.EXTERNAL and len(tensor.dims) > 1:
            other = seen.setdefault(tuple(tensor.dims), tensor)
            if other is not tensor:
                del tensor.external_data[:]
                tensor.external_data.extend(other.external_data)
                return
    raise AssertionError("the graph has no two weights of one shape")


def test_every_graph_matches_pytorch_on_every_runtime(fresh_toy_bundle: Path, toy_bundle_sd2: Path) -> None:
    for folder in (fresh_toy_bundle, toy_bundle_sd2):
        errors = open_bundle(folder).manifest.figures["relative_error"]
        assert set(errors) == set(verify.installed_engines()) == {"onnxruntime", "openvino"}
        for engine in errors.values():
            assert set(engine) == set(GRAPH_NAMES)
            assert all(0 <= error <= 1e-4 for error in engine.values())


@both
def test_a_graph_runs_at_sizes_that_no_check_used(bundle: Bundle) -> None:
    import onnxruntime

    sizes = {"B": 2, "h": 5 * bundle.manifest.latent_multiple, "w": 6 * bundle.manifest.latent_multiple}
    assert all(tried["h"] != sizes["h"] for tried in verify.check_sizes(bundle))
    spec = bundle.specs["unet"]
    inputs = {name: torch.from_numpy(array) for name, array in spec.example(sizes, 5).items()}
    expected = verify.run_graph(open_backend(bundle, "torch", precision="f32", device="cpu"), spec, inputs)
    session = onnxruntime.InferenceSession(bundle.graph_path("unet"), providers=["CPUExecutionProvider"])
    found = session.run(None, {name: value.numpy() for name, value in inputs.items()})
    for array, (name, value) in zip(found, expected.items(), strict=True):
        assert verify.relative_error(torch.from_numpy(array), value) < 1e-5, name


@both
def test_weights_are_stored_once_as_half(bundle: Bundle) -> None:
    for graph in GRAPH_NAMES:
        stored = read_layout(bundle.folder / GRAPH_WEIGHTS[graph])
        assert {tensor.dtype for tensor in stored} <= {"F16", "I64"}
        model = onnx.load(str(bundle.graph_path(graph)), load_external_data=False)
        places = {tensor.offset: tensor for tensor in stored}
        inside = outside = 0
        for tensor in model.graph.initializer:
            if tensor.data_location == onnx.TensorProto.EXTERNAL:
                entries = {entry.key: entry.value for entry in tensor.external_data}
                assert entries["location"] == GRAPH_WEIGHTS[graph]
                place = places[int(entries["offset"])]
                assert (list(place.shape), place.length) == (list(tensor.dims), int(entries["length"]))
                outside += place.length
            else:
                inside += len(tensor.raw_data)
        assert inside < 20_000 < outside


@both
def test_the_exported_folder_is_a_diffusers_pipeline(bundle: Bundle, toy_bases: dict[str, Path]) -> None:
    from diffusers import StableDiffusionImg2ImgPipeline
    from PIL import Image

    assert_published(bundle.folder)
    pipeline = StableDiffusionImg2ImgPipeline.from_pretrained(bundle.folder)
    pipeline.set_progress_bar_config(disable=True)
    width, height = bundle.frame
    image = Image.new("RGB", (width, height))
    painted = pipeline("a photo", image=image, num_inference_steps=4, strength=0.5, output_type="np").images
    assert painted.shape == (1, height, width, 3)
    source = load_base(toy_bases["sd1" if bundle.vae_stride == 8 else "sd2"])
    for name, value in source.unet.state_dict().items():
        assert torch.equal(pipeline.unet.state_dict()[name].float(), value.half().float()), name


@both
def test_a_bundle_holds_no_path_of_the_machine_it_was_made_on(
    bundle: Bundle, tmp_path_factory: pytest.TempPathFactory
) -> None:
    root = str(Path(__file__).parents[2]).encode()
    temporary = str(tmp_path_factory.getbasetemp()).encode()
    for path in bundle.folder.rglob("*"):
        if path.is_file() and path.name != "tokenizer_config.json":
            content = path.read_bytes()
            assert root not in content, path
            assert temporary not in content, path


@both
def test_tensorrt_knows_every_operation(bundle: Bundle) -> None:
    """Its parser reads Attention and GroupNormalization whole, and has no sequences."""
    for graph in GRAPH_NAMES:
        model = onnx.load(str(bundle.graph_path(graph)), load_external_data=False)
        operations = Counter(node.op_type for node in model.graph.node)
        assert not [name for name in operations if "Sequence" in name]
        assert not model.functions
        if graph == "unet":
            assert operations["GroupNormalization"] > 0
            assert operations["Attention"] > 0


def test_the_manifest_says_what_was_exported(toy_bundle: Path, toy_bases: dict[str, Path]) -> None:
    manifest = open_bundle(toy_bundle).manifest
    assert manifest.class_names == toy.CLASS_NAMES
    assert manifest.base_hash == base_hash(toy_bases["sd1"]) != base_hash(toy_bundle)
    assert (manifest.weights_dtype, manifest.graph_dtype, manifest.timestep) == ("float16", "float32", 1)
    assert (manifest.vae_stride, manifest.latent_multiple, manifest.frame) == (8, 2, (64, 48))
    assert (manifest.text_length, manifest.hidden_size) == (toy.TEXT_LENGTH, toy.TEXT_WIDTH)
    assert manifest.made_with["torch"] == importlib.metadata.version("torch")


@pytest.mark.usefixtures("quick_export")
def test_a_bundle_stands_as_a_base_for_its_own_adapter(
    toy_bundle: Path, toy_bases: dict[str, Path], tmp_path: Path
) -> None:
    steps: list[Event] = []
    settings = ExportSettings(
        toy_bundle, toy_bundle / "adapter", tmp_path / "again", threads=1, frame=(80, 64), generate={"steps": 7}
    )
    again = export(settings, report=steps.append)
    manifest = open_bundle(again.folder).manifest
    assert manifest.base_hash == base_hash(toy_bases["sd1"])
    assert manifest.frame == (80, 64)
    assert manifest.generate == {"steps": 7}
    weights = GRAPH_WEIGHTS["unet"]
    assert (again.folder / weights).read_bytes() == (toy_bundle / weights).read_bytes()
    assert [step.done for step in steps] == list(range(int(steps[0].total or 0)))
    assert len(again.checks) == 2 * len(GRAPH_NAMES)
    assert sum(check.boxes for check in again.checks if check.graph == "adapter") > 0
    assert again.bytes == sum(path.stat().st_size for path in again.folder.rglob("*") if path.is_file())


def test_a_graph_with_a_wrong_weight_leaves_no_bundle(
    toy_bundle: Path,
    toy_bases: dict[str, Path],
    toy_adapters: dict[str, Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def export_wrong(module: Any, spec: GraphSpec, path: Path, weights: str, *, opset: int) -> None:
        shutil.copyfile(toy_bundle / path.name, path)
        if spec.name == "vae_decoder":
            spoil(path.parent, spec.name, swap_weights)

    monkeypatch.setattr(write_graphs, "export_graph", export_wrong)
    with pytest.raises(verify.ValuesError, match="vae_decoder on onnxruntime: pixels differs"):
        export(ExportSettings(toy_bases["sd1"], toy_adapters["sd1"], tmp_path / "out", threads=1))
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("engine", ["onnxruntime", "openvino"])
def test_a_wrong_value_is_found_on_each_runtime(toy_bundle: Path, tmp_path: Path, engine: str) -> None:
    folder = Path(shutil.copytree(toy_bundle, tmp_path / engine))
    spoil(folder, "text_encoder", swap_weights)
    with pytest.raises(verify.ValuesError, match=f"text_encoder on {engine}: encoder_hidden_states"):
        verify.verify_bundle(open_bundle(folder, verify=False), [engine], lambda text: None, threads=1)


def test_a_wrong_name_or_axis_is_found_before_anything_runs(toy_bundle: Path, tmp_path: Path) -> None:
    def rename(model: onnx.ModelProto) -> None:
        model.graph.output[0].name = model.graph.node[-1].output[0] = "pixel"

    def fix_batch(model: onnx.ModelProto) -> None:
        model.graph.input[0].type.tensor_type.shape.dim[0].dim_value = 1

    for name, change in (("rename", rename), ("fix_batch", fix_batch)):
        folder = Path(shutil.copytree(toy_bundle, tmp_path / name))
        spoil(folder, "vae_decoder", change)
        bundle = open_bundle(folder, verify=False)
        with pytest.raises(graph_names.NamesError, match="vae_decoder: the graph's"):
            graph_names.check_names(bundle.specs["vae_decoder"], bundle)
        graph_names.check_names(bundle.specs["unet"], bundle)


def test_an_output_of_another_shape_is_found(toy_bundle: Path) -> None:
    bundle = open_bundle(toy_bundle)
    backend = open_backend(bundle, "onnxruntime", precision="f32", threads=1)
    spec = bundle.specs["vae_decoder"]
    inputs = {"latents": torch.zeros(1, 4, 4, 4)}
    with pytest.raises(verify.ShapesError, match=r"pixels has shape \[1, 3, 32, 32\]"):
        verify.check_graph(backend, spec, inputs, {"pixels": torch.zeros(1, 3, 32, 40)})


def test_an_adapter_of_another_base_is_refused(
    toy_bases: dict[str, Path], toy_adapters: dict[str, Path], tmp_path: Path
) -> None:
    with pytest.raises(ModelError, match="trained on another base model"):
        export(ExportSettings(toy_bases["sd2"], toy_adapters["sd1"], tmp_path / "out"))
    info = json.loads((toy_adapters["sd1"] / "adapter.json").read_text("utf-8"))
    adapter = Path(shutil.copytree(toy_adapters["sd1"], tmp_path / "adapter"))
    info |= {"base_hash": base_hash(toy_bases["sd2"]), "timestep": 1000}
    (adapter / "adapter.json").write_text(json.dumps(info), "utf-8")
    with pytest.raises(ModelError, match=r"pyramid channels \[96, 160\] .*; timestep 1000 where"):
        export(ExportSettings(toy_bases["sd2"], adapter, tmp_path / "out"))
    assert not (tmp_path / "out").exists()


def test_weights_that_overflow_are_named(toy_bases: dict[str, Path], tmp_path: Path) -> None:
    base = Path(shutil.copytree(toy_bases["sd1"], tmp_path / "base"))
    weights = base / "vae" / "diffusion_pytorch_model.safetensors"
    tensors = load_file(weights)
    tensors["decoder.conv_in.bias"][0] = 1e6
    save_file(tensors, weights)
    adapter = toy.make_toy_adapter(tmp_path / "adapter", base)
    with refused(ModelError, "weights_dtype", "vae", "decoder.conv_in.bias", "float16"):
        export(ExportSettings(base, adapter, tmp_path / "out"))
    assert {path.name for path in tmp_path.iterdir()} == {"base", "adapter"}


@pytest.mark.parametrize(
    ("options", "field", "expected"),
    [
        ({"weights_dtype": "int8"}, "weights_dtype", "float32, float16, bfloat16"),
        ({"graph_dtype": "bfloat16"}, "graph_dtype", "float32, float16"),
        ({"graph_dtype": "float16", "weights_dtype": "float32"}, "weights_dtype", "`graph_dtype=float32`"),
        ({"opset": 21}, "opset", "18"),
        ({"ranges": Path("photos")}, "ranges", "`graph_dtype=float16`"),
        ({"int8": True, "graph_dtype": "float16"}, "int8", "`graph_dtype=float16`"),
        ({"frame": (64, 50)}, "frame", "multiples of 16"),
        ({"frame": (0, 64)}, "frame", "multiples of 16"),
        ({"frame": (16, 16)}, "frame", "8 queries"),
    ],
)
def test_options_out_of_range_are_refused(
    toy_bases: dict[str, Path], toy_adapters: dict[str, Path], tmp_path: Path, options: Any, field: str, expected: str
) -> None:
    with refused(UsageError, field, expected):
        export(ExportSettings(toy_bases["sd1"], toy_adapters["sd1"], tmp_path / "out", **options))
    assert not list(tmp_path.iterdir())


def test_nothing_is_overwritten(toy_bases: dict[str, Path], toy_adapters: dict[str, Path], tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "precious").write_text("x", "utf-8")
    with refused(UsageError, "out", tmp_path / "out"):
        export(ExportSettings(toy_bases["sd1"], toy_adapters["sd1"], tmp_path / "out"))
    assert (tmp_path / "out" / "precious").read_text("utf-8") == "x"
