"""Row by row: what full-size bundles run like on a CPU is what a whole batch gives, on one prepared row."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import fakes
import pytest
import torch

import engines.backends.rows as rows_module
from engines.backends.base import Role
from engines.backends.registry import open_backend
from engines.backends.rows import FULL_SIZE, RowBackend, is_full_size
from engines.bundle.bundle import Bundle, open_bundle

SIZES = {"B": 3, "h": 8, "w": 12}


class _Ready(fakes.FakeBackend):
    """A fake whose calls have their outputs from the start, as those of every real backend."""

    def prepare(
        self,
        graph: str,
        shapes: Mapping[str, tuple[int, ...]],
        outputs: Sequence[str] | None = None,
        varies: str | None = None,
        role: Role | None = None,
    ) -> fakes.FakeCall:
        call = super().prepare(graph, shapes, outputs, varies, role)
        call.run()
        self.calls.clear()
        return call


def backends() -> tuple[_Ready, RowBackend]:
    fake = _Ready()
    return fake, RowBackend(fakes.as_backend(fake), fakes.SPECS)


def write(call: Any, inputs: Mapping[str, torch.Tensor]) -> None:
    for name, value in inputs.items():
        call.inputs[name].copy_(value)


def example(graph: str, *key: int) -> dict[str, torch.Tensor]:
    return {name: torch.from_numpy(array) for name, array in fakes.SPECS[graph].example(SIZES, *key).items()}


@pytest.mark.parametrize("graph", ["text_encoder", "vae_encoder", "vae_decoder", "unet"])
def test_rows_give_what_a_whole_batch_gives(graph: str) -> None:
    fake, by_rows = backends()
    shapes = fakes.SPECS[graph].input_shapes(SIZES)
    whole, found = fake.prepare(graph, shapes), by_rows.prepare(graph, shapes)
    for call in (whole, found):
        write(call, example(graph, 1))
        call.run()
    assert list(found.outputs) == [tensor.name for tensor in fakes.SPECS[graph].outputs]
    for name, value in found.outputs.items():
        assert torch.allclose(value, whole.outputs[name], atol=1e-6), name


def test_all_calls_of_a_graph_share_one_row_and_no_buffer() -> None:
    fake, by_rows = backends()
    spec = fakes.SPECS["unet"]
    sampler = by_rows.prepare("unet", spec.input_shapes(SIZES), ["model_output"])
    labels = by_rows.prepare("unet", spec.input_shapes(SIZES | {"B": 2}), ["div1", "div2"])
    assert fake.prepared == [("unet", spec.input_shapes(SIZES | {"B": 1}))]
    assert (list(sampler.outputs), list(labels.outputs)) == (["model_output"], ["div1", "div2"])
    write(sampler, example("unet", 1))
    sampler.run()
    kept = sampler.outputs["model_output"].clone()
    write(labels, {name: value[:2] for name, value in example("unet", 2).items()})
    labels.run()
    assert torch.equal(sampler.outputs["model_output"], kept)
    assert torch.equal(sampler.inputs["sample"], example("unet", 1)["sample"])
    by_rows.prepare("unet", spec.input_shapes(SIZES | {"h": 4}))
    assert len(fake.prepared) == 2


def test_a_row_that_repeats_another_is_computed_once() -> None:
    fake, by_rows = backends()
    call = by_rows.prepare("vae_decoder", fakes.SPECS["vae_decoder"].input_shapes(SIZES))
    latents = example("vae_decoder", 1)["latents"]
    call.inputs["latents"].copy_(latents[[0, 1, 0]])
    call.run()
    assert fake.calls["vae_decoder"] == 2
    assert torch.equal(call.outputs["pixels"][2], call.outputs["pixels"][0])
    assert not torch.equal(call.outputs["pixels"][1], call.outputs["pixels"][0])
    call.inputs["latents"].copy_(latents)
    call.run()
    assert fake.calls["vae_decoder"] == 5
    assert not torch.equal(call.outputs["pixels"][2], call.outputs["pixels"][0])


def test_in_int8_the_sampler_runs_pair_by_pair_and_a_repeated_pair_once() -> None:
    fake, by_rows = backends()
    fake.precision = by_rows.precision = "int8"
    sizes, spec = SIZES | {"B": 6}, fakes.SPECS["unet"]
    call = by_rows.prepare("unet", spec.input_shapes(sizes), ["model_output"], "encoder_hidden_states", "sampler")
    odd = spec.input_shapes(SIZES)
    by_rows.prepare("unet", odd, ["model_output"], "encoder_hidden_states", "sampler")
    assert [shapes["sample"][0] for _, shapes in fake.prepared] == [2, 1]
    given = {name: torch.from_numpy(array)[[0, 1, 2, 3, 0, 1]] for name, array in spec.example(sizes, 1).items()}
    write(call, given)
    call.run()
    assert fake.calls["unet"] == 2
    whole = fake.prepare("unet", spec.input_shapes(sizes), ["model_output"])
    write(whole, given)
    whole.run()
    torch.testing.assert_close(call.outputs["model_output"], whole.outputs["model_output"])


def test_in_int8_the_sampler_and_the_labels_have_rows_of_their_own_and_the_rest_shares() -> None:
    fake, by_rows = backends()
    fake.precision = by_rows.precision = "int8"
    shapes = fakes.SPECS["unet"].input_shapes(SIZES)
    by_rows.prepare("unet", shapes, ["model_output"], role="sampler")
    by_rows.prepare("unet", shapes, ["div1", "div2"], role="labels")
    assert fake.roles == ["sampler", "labels"]
    for outputs in (["model_output"], ["div1"], None):
        by_rows.prepare("unet", shapes, outputs)
    assert fake.roles == ["sampler", "labels", None]


@pytest.mark.parametrize(
    ("parameters", "dtype", "width", "full"),
    [
        (FULL_SIZE, "float16", 2, True),
        (FULL_SIZE - 1, "float16", 2, False),
        (FULL_SIZE, "float32", 4, True),
        (FULL_SIZE // 2, "float32", 4, False),
    ],
)
def test_full_size_is_told_by_the_parameters_of_the_unet(
    tmp_path: Path, parameters: int, dtype: str, width: int, full: bool
) -> None:
    (tmp_path / "unet").mkdir()
    with (tmp_path / "unet" / "diffusion_pytorch_model.safetensors").open("wb") as file:
        file.truncate(parameters * width)  # a sparse file: no byte is written
    bundle = SimpleNamespace(folder=tmp_path, manifest=SimpleNamespace(weights_dtype=dtype))
    assert is_full_size(cast(Bundle, bundle)) is full


@pytest.mark.parametrize("engine", ["torch", "onnxruntime", "openvino"])
def test_a_full_size_bundle_runs_by_rows_on_a_cpu_and_keeps_no_compiled_model(
    toy_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, engine: str
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    bundle = open_bundle(toy_bundle)
    plain = open_backend(bundle, engine, precision="f32", threads=1, device="cpu", keep_compiled=False)
    assert not isinstance(plain, RowBackend)

    def always(bundle: Bundle) -> bool:
        return True

    monkeypatch.setattr(rows_module, "is_full_size", always)
    monkeypatch.setattr("engines.backends.onnxruntime.is_full_size", always)
    by_rows = open_backend(bundle, engine, precision="f32", threads=1, device="cpu")
    assert by_rows.description == f"{plain.description}, row by row"
    spec = bundle.specs["vae_decoder"]
    sizes = {"B": 2, "h": 4, "w": 6}
    calls = [backend.prepare("vae_decoder", spec.input_shapes(sizes)) for backend in (plain, by_rows)]
    for call in calls:
        call.inputs["latents"].copy_(torch.from_numpy(spec.example(sizes, 3)["latents"]))
        call.run()
    assert torch.allclose(calls[0].outputs["pixels"], calls[1].outputs["pixels"], atol=1e-4)
    assert not (tmp_path / "dengine").exists()  # ONNX Runtime keeps a file of its own in the folder of caches
    whole = open_backend(bundle, engine, precision="f32", threads=1, device="cpu", whole=True)
    assert not isinstance(whole, RowBackend)
