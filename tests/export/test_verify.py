"""The parity gates: what they let pass, what they refuse, and that they hold one set of networks at a time."""

import weakref
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import fakes
import pytest
import torch

from engines.bundle.bundle import Bundle, open_bundle
from engines.bundle.graphs import GRAPH_NAMES
from export import verify
from export.matching import MATCHINGS, match_boxes
from export.verify import Chain, ValuesError, check_precision, check_sizes, reference_backend, verify_bundle

Spoil = Callable[[str, fakes.FakeCall], None]


def fake_bundle(folder: Path, graph_dtype: str = "float32") -> Bundle:
    specs = {name: spec.as_dtype(graph_dtype) for name, spec in fakes.SPECS.items()}
    bundle: Any = fakes.make_bundle(folder, specs=specs)
    bundle.manifest = SimpleNamespace(graph_dtype=graph_dtype, latent_multiple=2, weights_dtype="float16")
    return cast(Bundle, bundle)


@pytest.fixture
def opened(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, str]]:
    """(engine, precision) of every backend that was opened; an earlier one that is still alive fails the test."""
    found: list[tuple[str, str]] = []
    alive: list[weakref.ref[fakes.FakeBackend]] = []

    def open_one(bundle: Bundle, engine: str, *, precision: str, **_: Any) -> fakes.FakeBackend:
        assert all(earlier() is None for earlier in alive)
        backend = fakes.FakeBackend(name=engine)
        alive.append(weakref.ref(backend))
        found.append((engine, precision))
        return backend

    monkeypatch.setattr(verify, "open_backend", open_one)
    monkeypatch.setattr(verify, "check_names", lambda spec, bundle: None)
    return found


def spoiling(monkeypatch: pytest.MonkeyPatch, spoil: Spoil) -> None:
    """Every engine but PyTorch has its outputs changed."""

    def open_one(bundle: Bundle, engine: str, **_: Any) -> fakes.FakeBackend:
        return fakes.FakeBackend(name=engine) if engine == "torch" else fakes.FakeBackend(spoil, name=engine)

    monkeypatch.setattr(verify, "open_backend", open_one)
    monkeypatch.setattr(verify, "check_names", lambda spec, bundle: None)


def test_one_backend_is_alive_at_a_time_and_holds_one_graph(tmp_path: Path, opened: list[tuple[str, str]]) -> None:
    said: list[str] = []
    checks = verify_bundle(fake_bundle(tmp_path), ["onnxruntime", "openvino"], said.append)
    engines = ("onnxruntime", "openvino")
    assert opened == [("torch", "f32"), *((engine, "f32") for engine in engines for _ in GRAPH_NAMES)]
    assert len(said) == verify.count_steps(engines)
    assert said[0] == "loading the networks in PyTorch"
    assert said[-1] == "checking adapter on openvino"
    assert [(check.engine, check.graph) for check in checks] == [(e, graph) for e in engines for graph in GRAPH_NAMES]
    assert all(error == 0 for check in checks for error in check.errors.values())


def test_float16_graphs_are_compared_with_float32_and_onnxruntime_takes_their_own_precision(
    tmp_path: Path, opened: list[tuple[str, str]]
) -> None:
    verify_bundle(fake_bundle(tmp_path, "float16"), ["onnxruntime", "openvino"], lambda text: None)
    assert set(opened) == {("torch", "f32"), ("onnxruntime", "f16"), ("openvino", "f32")}
    assert check_precision("onnxruntime", "float32") == "f32"


@pytest.mark.parametrize(("graph_dtype", "advised"), [("float32", False), ("float16", True)])
def test_what_is_refused_in_float32_passes_in_float16_until_it_is_too_much(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, graph_dtype: str, advised: bool
) -> None:
    def by(share: float) -> Spoil:
        def spoil(graph: str, call: fakes.FakeCall) -> None:
            if graph == "unet":
                call.outputs["div1"] *= 1 + share

        return spoil

    bundle = fake_bundle(tmp_path, graph_dtype)
    spoiling(monkeypatch, by(1e-3))
    if advised:
        checks = verify_bundle(bundle, ["openvino"], lambda text: None)
        assert next(check for check in checks if check.graph == "unet").errors["div1"] == pytest.approx(1e-3, rel=0.01)
        spoiling(monkeypatch, by(1e-2))
    with pytest.raises(ValuesError, match=r"unet on openvino: div1 differs from PyTorch by 1\.0e") as failure:
        verify_bundle(bundle, ["openvino"], lambda text: None)
    assert ("`graph_dtype=float32`" in str(failure.value)) is advised


def test_values_that_are_not_finite_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def spoil(graph: str, call: fakes.FakeCall) -> None:
        if graph == "vae_decoder":
            call.outputs["pixels"][0, 0, 0, 0] = float("nan")

    spoiling(monkeypatch, spoil)
    with pytest.raises(ValuesError, match="vae_decoder on openvino: pixels"):
        verify_bundle(fake_bundle(tmp_path, "float16"), ["openvino"], lambda text: None)


def test_boxes_are_matched_as_a_set() -> None:
    logits = torch.tensor([[[2.0, -5.0], [-5.0, 1.0], [-9.0, -9.0]]])
    boxes = torch.tensor([[[0.3, 0.3, 0.2, 0.2], [0.7, 0.6, 0.3, 0.2], [0.5, 0.5, 0.9, 0.9]]])
    order = [2, 1, 0]
    same = {"logits": logits[:, order], "boxes": boxes[:, order]}
    expected = {"logits": logits, "boxes": boxes}
    assert match_boxes(same, expected) == (4, 0)
    moved = boxes + torch.tensor([0.05, 0, 0, 0])
    assert match_boxes({"logits": logits, "boxes": moved}, expected) == (4, 4)
    assert match_boxes({"logits": logits.flip(2), "boxes": boxes}, expected) == (4, 4)
    assert match_boxes({"logits": logits + 0.3, "boxes": boxes}, expected) == (4, 4)


def test_boxes_of_half_precision_may_differ_by_its_rounding() -> None:
    logits = torch.tensor([[[2.0, -5.0], [-5.0, 1.0]]])
    boxes = torch.tensor([[[0.3, 0.3, 0.2, 0.2], [0.7, 0.6, 0.3, 0.2]]])
    near = {"logits": logits + 0.1, "boxes": boxes + torch.tensor([0.01, 0, 0, 0])}
    expected = {"logits": logits, "boxes": boxes}
    assert match_boxes(near, expected, MATCHINGS["float16"]) == (4, 0)
    assert match_boxes(near, expected, MATCHINGS["float32"]) == (4, 4)


def test_a_few_boxes_may_be_missing_in_half_precision_and_none_in_float32() -> None:
    """Of 40 boxes one moves: 2 of the 80 compared have no counterpart."""
    rows = torch.arange(40)
    logits = torch.full((1, 40, 1), 2.0)
    boxes = torch.stack([(rows % 8 + 0.5) / 8, (rows // 8 + 0.5) / 5, rows * 0 + 0.05, rows * 0 + 0.05], dim=1)[None]
    expected = {"logits": logits, "boxes": boxes.float(), "encoder_logits": logits, "encoder_boxes": boxes.float()}
    moved = boxes.clone()
    moved[0, 0, 0] += 0.04
    found = expected | {"boxes": moved.float()}

    def check(graph_dtype: str) -> verify.GraphCheck:
        backend = fakes.FakeBackend(lambda graph, call: call.outputs.update(found), name="openvino")
        spec = fakes.SPECS["adapter"].as_dtype(graph_dtype)
        inputs = {name: torch.zeros(shape) for name, shape in spec.input_shapes({"B": 1, "h": 8, "w": 8}).items()}
        return verify.check_graph(fakes.as_backend(backend), spec, inputs, expected)

    assert check("float16").boxes == 80
    with pytest.raises(ValuesError, match="2 of 80 boxes have no counterpart"):
        check("float32")


def test_a_full_size_bundle_is_checked_on_half_the_frame_where_the_queries_fit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bundle = fake_bundle(tmp_path)
    assert check_sizes(bundle)[0] == {"B": 1, "h": 8, "w": 12}
    monkeypatch.setattr(verify, "is_full_size", lambda bundle: True)
    first, second = check_sizes(bundle)
    assert first == {"B": 1, "h": 4, "w": 6}
    assert (second["B"], second["h"] == first["h"], second["w"] == first["w"]) == (3, False, False)
    config = SimpleNamespace(levels=2, queries=31)  # 4 x 6 latents have 30 cells
    crowded: Any = fakes.make_bundle(tmp_path, adapter_info=SimpleNamespace(config=config))
    crowded.manifest = bundle.manifest
    assert check_sizes(crowded)[0] == {"B": 1, "h": 8, "w": 12}


def test_a_chain_has_prompts_for_any_batch_and_float32_whatever_the_graphs(toy_bundle: Path) -> None:
    bundle = open_bundle(toy_bundle)
    chain = Chain(bundle, {"B": 5, "h": 4, "w": 6}, 0)
    chain.run("text_encoder", reference_backend(bundle, 1))
    ids = chain.inputs["text_encoder"]["input_ids"]
    assert ids.shape[0] == 5
    assert torch.equal(ids[0], ids[3])
    assert not torch.equal(ids[0], ids[1])
    assert chain.outputs["text_encoder"]["encoder_hidden_states"].dtype == torch.float32
