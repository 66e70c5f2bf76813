"""One graph on its way to ONNX: weights of any stored dtype, halves with islands, the older opset, what is refused."""

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from safetensors.torch import save_file
from small_graphs import stores

from engines.bundle.graphs import GraphSpec, TensorSpec
from engines.bundle.islands import apply_islands, upcast_scores
from engines.errors import ExportError
from export import verify
from export.to_onnx import OPSETS, export_graph


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


@pytest.mark.slow
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


@pytest.mark.slow
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
        assert stores(tmp_path / "graph.onnx") == {"weights": 3, "cast weights": cast}
        session = onnxruntime.InferenceSession(tmp_path / "graph.onnx", providers=["CPUExecutionProvider"])
        (found,) = session.run(None, {"latents": latents.half().numpy()})
        assert found.dtype == np.float16
        assert verify.relative_error(torch.from_numpy(found), expected) < 2e-3


@pytest.mark.slow
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


@pytest.mark.slow
@pytest.mark.parametrize("graph_dtype", ["float32", "float16"])
def test_graphs_of_the_older_opset_match_pytorch_too(tmp_path: Path, graph_dtype: str) -> None:
    """On a part of a VAE: group norms, convolutions and attention."""
    import onnxruntime
    from diffusers.models.unets.unet_2d_blocks import UNetMidBlock2D

    torch.manual_seed(6)
    block: Any = UNetMidBlock2D(4, temb_channels=None, resnet_groups=2, attention_head_dim=4)
    module = torch.nn.Sequential(block).eval().requires_grad_(False).half().float()
    save_file({name: value.half() for name, value in module.state_dict().items()}, tmp_path / "w.safetensors")
    inputs = LINEAR.example({"B": 3, "h": 4, "w": 6}, 3)
    expected = module(torch.from_numpy(inputs["latents"]))
    spec = LINEAR.as_dtype(graph_dtype)
    if graph_dtype == "float16":
        apply_islands(module, ())
    path = tmp_path / "vae_decoder.onnx"
    export_graph(module, spec, path, "w.safetensors", opset=18)
    model = onnx.load(str(path), load_external_data=False)
    assert [entry.version for entry in model.opset_import if entry.domain == ""] == [18]
    assert not {node.op_type for node in model.graph.node} & {"Attention", "GroupNormalization"}
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    (found,) = session.run(None, {"latents": inputs["latents"].astype(spec.dtype)})
    assert verify.relative_error(torch.from_numpy(found), expected) < spec.tolerance


@pytest.mark.slow
def test_weights_that_are_not_in_the_file_are_refused(tmp_path: Path) -> None:
    module = _Linear()
    save_file({name: 2 * value for name, value in module.named_parameters()}, tmp_path / "w.safetensors")
    with pytest.raises(ExportError, match=r"2\.0 MiB of weights are not in w.safetensors, .*size"):
        export_graph(module, LINEAR, tmp_path / "graph.onnx", "w.safetensors")
    assert not (tmp_path / "graph.onnx").exists()


@pytest.mark.slow
def test_a_module_that_cannot_be_traced_is_an_export_error(tmp_path: Path) -> None:
    class Branches(_Linear):
        def forward(self, latents: torch.Tensor) -> torch.Tensor:
            return latents if latents.sum() > 0 else -latents

    with pytest.raises(ExportError, match="vae_decoder: PyTorch could not export it"):
        export_graph(Branches(), LINEAR, tmp_path / "graph.onnx", "w.safetensors")
