"""Export: bundles of random models of both shapes, and the gates that a wrong one does not pass."""

import importlib.metadata
import json
import re
import shutil
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
import toy
from safetensors.torch import load_file, save_file

from engines.backends import open_backend
from engines.bundle import Bundle, open_bundle
from engines.diffusion.base_model import base_hash, load_base
from engines.errors import ExportError, ModelError, UsageError
from engines.graphs import GRAPH_NAMES, GraphSpec, TensorSpec
from engines.modules import graph_modules, run_module
from engines.precision import apply_islands, upcast_scores
from export import assemble, verify
from export.assemble import export_bundle
from export.progress import Progress
from export.store import GRAPH_WEIGHTS
from export.to_onnx import OPSETS, export_graph, read_layout

KINDS = ("sd1", "sd2")


@pytest.fixture
def bundle(request: pytest.FixtureRequest) -> Bundle:
    """The exported bundle of the kind that the test is run for."""
    return open_bundle(request.getfixturevalue({"sd1": "toy_bundle", "sd2": "toy_bundle_sd2"}[request.param]))


both = pytest.mark.parametrize("bundle", KINDS, indirect=True)


@pytest.fixture
def quick_export(toy_bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """`export_bundle` takes the sd1 bundle's graphs in place of tracing them again."""

    def copy(module: Any, spec: GraphSpec, path: Path, weights: str, *, opset: int) -> None:
        shutil.copyfile(toy_bundle / path.name, path)

    monkeypatch.setattr(assemble, "export_graph", copy)


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


def test_every_graph_matches_pytorch_on_every_runtime(toy_bundle: Path, toy_bundle_sd2: Path) -> None:
    for folder in (toy_bundle, toy_bundle_sd2):
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
    root = str(Path(__file__).parent.parent).encode()
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
    steps: list[Progress] = []
    again = export_bundle(
        toy_bundle,
        toy_bundle / "adapter",
        tmp_path / "again",
        threads=1,
        frame=(80, 64),
        generate={"steps": 7},
        report=steps.append,
    )
    manifest = open_bundle(again.folder).manifest
    assert manifest.base_hash == base_hash(toy_bases["sd1"])
    assert manifest.frame == (80, 64)
    assert manifest.generate == {"steps": 7}
    weights = GRAPH_WEIGHTS["unet"]
    assert (again.folder / weights).read_bytes() == (toy_bundle / weights).read_bytes()
    assert [step.done for step in steps] == list(range(steps[0].total))
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

    monkeypatch.setattr(assemble, "export_graph", export_wrong)
    with pytest.raises(verify.ValuesError, match="vae_decoder on onnxruntime: pixels differs"):
        export_bundle(toy_bases["sd1"], toy_adapters["sd1"], tmp_path / "out", threads=1)
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
        with pytest.raises(verify.NamesError, match="vae_decoder: the graph's"):
            verify.check_names(bundle.specs["vae_decoder"], bundle)
        verify.check_names(bundle.specs["unet"], bundle)


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
        export_bundle(toy_bases["sd2"], toy_adapters["sd1"], tmp_path / "out")
    info = json.loads((toy_adapters["sd1"] / "adapter.json").read_text("utf-8"))
    adapter = Path(shutil.copytree(toy_adapters["sd1"], tmp_path / "adapter"))
    info |= {"base_hash": base_hash(toy_bases["sd2"]), "timestep": 1000}
    (adapter / "adapter.json").write_text(json.dumps(info), "utf-8")
    with pytest.raises(ModelError, match=r"pyramid channels \[96, 160\] .*; timestep 1000 where"):
        export_bundle(toy_bases["sd2"], adapter, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_weights_that_overflow_are_named(toy_bases: dict[str, Path], tmp_path: Path) -> None:
    base = Path(shutil.copytree(toy_bases["sd1"], tmp_path / "base"))
    weights = base / "vae" / "diffusion_pytorch_model.safetensors"
    tensors = load_file(weights)
    tensors["decoder.conv_in.bias"][0] = 1e6
    save_file(tensors, weights)
    adapter = toy.make_toy_adapter(tmp_path / "adapter", base)
    with pytest.raises(ModelError, match=r'vae: "decoder.conv_in.bias" is not finite when stored as float16'):
        export_bundle(base, adapter, tmp_path / "out")
    assert {path.name for path in tmp_path.iterdir()} == {"base", "adapter"}


@pytest.mark.parametrize(
    ("options", "complaint"),
    [
        ({"weights_dtype": "int8"}, "float32, float16, bfloat16"),
        ({"graph_dtype": "bfloat16"}, "Unknown graph dtype .*float32, float16"),
        ({"graph_dtype": "float16", "weights_dtype": "float32"}, "read their weights as they are stored"),
        ({"opset": 21}, r"Opset 21 .*23 \(default\) or 18 \(TensorRT before 10.14\)"),
        ({"ranges": Path("photos")}, "--ranges measures for float16 graphs"),
        ({"frame": (64, 50)}, "positive multiples of 16"),
        ({"frame": (0, 64)}, "positive multiples of 16"),
        ({"frame": (16, 16)}, "5 cells for the adapter's 8 queries"),
    ],
)
def test_options_out_of_range_are_refused(
    toy_bases: dict[str, Path], toy_adapters: dict[str, Path], tmp_path: Path, options: Any, complaint: str
) -> None:
    with pytest.raises(UsageError, match=complaint):
        export_bundle(toy_bases["sd1"], toy_adapters["sd1"], tmp_path / "out", **options)
    assert not list(tmp_path.iterdir())


def test_nothing_is_overwritten(toy_bases: dict[str, Path], toy_adapters: dict[str, Path], tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "precious").write_text("x", "utf-8")
    with pytest.raises(UsageError, match="exists already"):
        export_bundle(toy_bases["sd1"], toy_adapters["sd1"], tmp_path / "out")
    assert (tmp_path / "out" / "precious").read_text("utf-8") == "x"


class _Linear(torch.nn.Module):
    """latents [B, 4, h, w] to pixels of the same shape, by one matrix."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.linspace(-1, 1, 16).reshape(4, 4))
        self.size = torch.nn.Parameter(torch.ones(512, 1024), requires_grad=False)

    def forward(self, latents: torch.Tensor) -> torch.Tensor:
        return torch.einsum("bzhw,zy->byhw", latents, self.weight) + self.size.mean()


AXES = ("B", 4, "h", "w")
LINEAR = GraphSpec(
    "vae_decoder",
    (TensorSpec("latents", "float32", AXES),),
    (TensorSpec("pixels", "float32", AXES),),
    {"B": 1, "h": 1, "w": 1},
)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_graph_reads_weights_of_any_stored_dtype(tmp_path: Path, dtype: torch.dtype) -> None:
    import onnxruntime

    module = _Linear()
    with torch.no_grad():
        module.weight.copy_(module.weight.to(dtype))
    # Other names than the module's: tensors are found by content.
    save_file(
        {f"stored.{name}": value.to(dtype) for name, value in module.named_parameters()}, tmp_path / "w.safetensors"
    )
    export_graph(module, LINEAR, tmp_path / "graph.onnx", "w.safetensors")
    assert (tmp_path / "graph.onnx").stat().st_size < 4000
    session = onnxruntime.InferenceSession(tmp_path / "graph.onnx", providers=["CPUExecutionProvider"])
    latents = torch.randn(3, 4, 2, 5)
    (found,) = session.run(None, {"latents": latents.numpy()})
    with torch.no_grad():
        assert np.allclose(found, module(latents).numpy(), atol=1e-6)


def _stores(path: Path) -> dict[str, int]:
    """What an ONNX file's initializers are, and how many casts it makes."""
    graph = onnx.load(str(path), load_external_data=False).graph
    outside = [tensor for tensor in graph.initializer if tensor.data_location == onnx.TensorProto.EXTERNAL]
    assert {tensor.data_type for tensor in outside} == {onnx.TensorProto.FLOAT16}
    stored = {tensor.name for tensor in outside}
    casts = [node for node in graph.node if node.op_type == "Cast" and node.input[0] in stored]
    return {"weights": len(outside), "cast weights": len(casts)}


def test_half_graphs_read_stored_halves_as_they_are_and_islands_cast_them(tmp_path: Path) -> None:
    import onnxruntime

    class Two(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = _Linear(), _Linear()
            self.b.weight = torch.nn.Parameter(self.b.weight / 3)

        def forward(self, latents: torch.Tensor) -> torch.Tensor:
            found: torch.Tensor = self.b(self.a(latents))
            return found

    latents = torch.randn(3, 4, 2, 5, generator=torch.Generator().manual_seed(0))
    spec = LINEAR.as_dtype("float16")
    stored = {name: value.detach().half().contiguous() for name, value in Two().named_parameters()}
    # The two `size` are equal, and stored once: content names a tensor.
    save_file(stored, tmp_path / "w.safetensors")
    for islands, cast in (((), 0), (("b",), 2)):
        module = Two().half().float()
        with torch.no_grad():
            expected = module(latents)
        export_graph(apply_islands(module, islands), spec, tmp_path / "graph.onnx", "w.safetensors")
        assert _stores(tmp_path / "graph.onnx") == {"weights": 3, "cast weights": cast}
        session = onnxruntime.InferenceSession(tmp_path / "graph.onnx", providers=["CPUExecutionProvider"])
        (found,) = session.run(None, {"latents": latents.half().numpy()})
        assert found.dtype == np.float16
        assert verify.relative_error(torch.from_numpy(found), expected) < 2e-3


def test_upcast_attention_goes_through_float32_scores_in_a_half_graph(tmp_path: Path) -> None:
    import onnxruntime
    from diffusers.models.attention_processor import Attention

    torch.manual_seed(4)
    attention: Any = Attention(query_dim=16, heads=2, dim_head=8, upcast_attention=True)
    with torch.no_grad():
        for part in (attention.to_q, attention.to_k):
            part.weight.mul_(2000)  # scores of a million, from numbers that half holds
    module = torch.nn.Sequential(attention).requires_grad_(False).half().float()
    save_file({name: value.half() for name, value in module.state_dict().items()}, tmp_path / "w.safetensors")
    states = (TensorSpec("states", "float16", ("B", 5, 16)),)
    spec = GraphSpec("text_encoder", states, (TensorSpec("found", "float16", ("B", 5, 16)),), {"B": 1})
    x = torch.randn(3, 5, 16, generator=torch.Generator().manual_seed(5)).half()
    expected = module(x.float())
    apply_islands(module, upcast_scores(module))
    for opset in OPSETS.values():
        path = tmp_path / f"{opset}.onnx"
        export_graph(module, spec, path, "w.safetensors", opset=opset)
        graph = onnx.shape_inference.infer_shapes(onnx.load(str(path), load_external_data=False)).graph
        dtypes = {value.name: value.type.tensor_type.elem_type for value in (*graph.value_info, *graph.output)}
        scored = [node for node in graph.node if node.op_type in ("Attention", "Softmax")]
        assert [dtypes[node.output[0]] for node in scored] == [onnx.TensorProto.FLOAT]
        assert dtypes["found"] == onnx.TensorProto.FLOAT16
        session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
        (found,) = session.run(None, {"states": x.numpy()})
        assert verify.relative_error(torch.from_numpy(found), expected) < 5e-3


def test_a_float16_bundle_matches_pytorch_and_names_its_islands(
    toy_bundle_fp16: Path, overflowing_toy: tuple[Path, Path]
) -> None:
    bundle = open_bundle(toy_bundle_fp16)
    manifest = bundle.manifest
    assert (manifest.graph_dtype, manifest.opset, manifest.islands) == ("float16", 23, {"unet": (toy.OVERFLOWING,)})
    assert {spec.dtype for spec in bundle.specs.values()} == {"float16"}
    assert manifest.base_hash == base_hash(overflowing_toy[0])
    for engine in manifest.figures["relative_error"].values():
        assert all(0 < error <= 5e-3 for error in engine.values())
    found = {(agreement["engine"], agreement["precision"]) for agreement in manifest.figures["agreement"]}
    assert {("onnxruntime", "f16"), ("openvino", "f32")} <= found
    block, magnitude = next(iter(manifest.figures["ranges"]["unet"].items()))
    assert block.startswith(toy.OVERFLOWING)
    assert magnitude > 65504
    assert "not on real images" in manifest.figures["ranges_measured_on"]
    for graph in GRAPH_NAMES:
        model = onnx.load(str(bundle.graph_path(graph)), load_external_data=False)
        assert [entry.version for entry in model.opset_import if entry.domain == ""] == [23]
        statistics = [
            {attribute.name: attribute.i for attribute in node.attribute}.get("stash_type", 1)
            for node in model.graph.node
            if node.op_type in ("GroupNormalization", "LayerNormalization")
        ]
        assert set(statistics) <= {1}, f"{graph}: a norm's statistics are not float32"
        assert (_stores(bundle.graph_path(graph))["cast weights"] > 0) == (graph == "unet")


def test_what_is_printed_of_a_float16_bundle_names_the_largest_numbers_and_the_islands(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from dengine_cli.export import show_export
    from export.assemble import ExportSummary
    from export.ranges import BlockRange, Measured

    ranges = {"": BlockRange(gives=3.0), "mid.attn": BlockRange(inside=12.0, scores=70_000.0)}
    measured = Measured({"unet": ranges}, "the checks' own inputs, not on real images")
    islands = {"unet": ("mid.attn.scores", *(f"block.{i}" for i in range(9)))}
    show_export(ExportSummary(tmp_path, 1, (), (), islands=islands, measured=measured))
    printed = capsys.readouterr().out
    assert re.search(r"^unet +mid\.attn\.scores +70000\.0$", printed, re.MULTILINE)
    assert "measured on the checks' own inputs, not on real images" in printed
    assert "in float32: unet: mid.attn.scores, block.0, block.1, block.2 and 6 more" in printed
    assert "doctor --gpu" in printed
    show_export(ExportSummary(tmp_path, 1, (), (), measured=Measured({"unet": {"": BlockRange(gives=3.0)}}, "x")))
    assert re.search(r"^unet +\(the whole graph\) +3\.0$", printed := capsys.readouterr().out, re.MULTILINE)
    assert "in float32: nothing" in printed


def test_a_float16_bundle_paints_and_labels(toy_bundle_fp16: Path, tmp_path: Path) -> None:
    from PIL import Image

    from engines.generation.loop import generate
    from engines.generation.settings import GenerateSettings
    from engines.labelling import LabelSettings, label

    for engine in ("onnxruntime", "openvino", "torch"):
        out = tmp_path / engine
        done = generate(
            GenerateSettings(
                out=out, bundle=toy_bundle_fp16, jobs=2, steps=2, keep_empty=True, engine=engine, threads=1
            )
        )
        assert done.painted == 2
    (tmp_path / "images").mkdir()
    Image.fromarray(np.full((50, 60, 3), 90, np.uint8)).save(tmp_path / "images" / "a.png")
    asked = LabelSettings(
        tmp_path / "images", tmp_path / "labels", bundle=toy_bundle_fp16, engine="onnxruntime", threads=1
    )
    assert label(asked).images == 1


@pytest.mark.parametrize("graph_dtype", ["float32", "float16"])
def test_graphs_of_the_older_opset_match_pytorch_too(toy_bundle: Path, tmp_path: Path, graph_dtype: str) -> None:
    import onnxruntime

    bundle = open_bundle(toy_bundle, verify=False)
    weights = GRAPH_WEIGHTS["vae_decoder"]
    (tmp_path / weights).parent.mkdir()
    shutil.copyfile(toy_bundle / weights, tmp_path / weights)
    module = graph_modules(load_base(toy_bundle), torch.nn.Identity())["vae_decoder"]
    spec = bundle.specs["vae_decoder"].as_dtype(graph_dtype)
    inputs = bundle.specs["vae_decoder"].example({"B": 3, "h": 4, "w": 6}, 3)
    (expected,) = run_module(module, (torch.from_numpy(inputs["latents"]),))
    if graph_dtype == "float16":
        apply_islands(module, ())
    path = tmp_path / "vae_decoder.onnx"
    export_graph(module, spec, path, weights, opset=18)
    model = onnx.load(str(path), load_external_data=False)
    assert [entry.version for entry in model.opset_import if entry.domain == ""] == [18]
    assert not {node.op_type for node in model.graph.node} & {"Attention", "GroupNormalization"}
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    (found,) = session.run(None, {"latents": inputs["latents"].astype(spec.dtype)})
    assert verify.relative_error(torch.from_numpy(found), expected) < spec.tolerance


def test_weights_that_are_not_in_the_file_are_refused(tmp_path: Path) -> None:
    module = _Linear()
    save_file({name: 2 * value for name, value in module.named_parameters()}, tmp_path / "w.safetensors")
    with pytest.raises(ExportError, match=r"2\.0 MiB of weights are not in w.safetensors, .*size"):
        export_graph(module, LINEAR, tmp_path / "graph.onnx", "w.safetensors")
    assert not (tmp_path / "graph.onnx").exists()


def test_a_module_that_cannot_be_traced_is_an_export_error(tmp_path: Path) -> None:
    class Branches(_Linear):
        def forward(self, latents: torch.Tensor) -> torch.Tensor:
            return latents if latents.sum() > 0 else -latents

    with pytest.raises(ExportError, match="vae_decoder: PyTorch could not export it"):
        export_graph(Branches(), LINEAR, tmp_path / "graph.onnx", "w.safetensors")
