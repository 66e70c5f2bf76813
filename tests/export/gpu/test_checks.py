"""The checks of `dengine doctor --gpu`, run on the CPU: what they accept and what they catch."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import fakes
import pytest
import torch

from engines.backends.base import Role
from engines.bundle.bundle import Bundle
from engines.bundle.graphs import GRAPH_NAMES
from engines.errors import BackendError
from export.agreement import Agreement
from export.gpu import checks as gpu_checks
from export.gpu.checks import (
    FAILED,
    OK,
    SKIPPED,
    Check,
    check_graphs,
    check_labels,
    check_ticks,
    compare_latents,
    compare_outputs,
)
from export.verify import Chain

SIZES = {"B": 2, "h": 8, "w": 12}


def silent(text: str) -> None:
    pass


@pytest.fixture
def bundle(tmp_path: Path) -> Bundle:
    return fakes.make_bundle(tmp_path)


@pytest.fixture
def chain(bundle: Bundle) -> Chain:
    """The fake networks' own inputs and outputs, in place of PyTorch's on the CPU."""
    made = Chain(bundle, SIZES, 0)
    for graph in GRAPH_NAMES:
        made.run(graph, fakes.as_backend(fakes.FakeBackend()))
    return made


def spoiled(graph: str, output: str, value: float) -> fakes.FakeBackend:
    """A backend whose one output has a wrong first value."""

    def after(ran: str, call: fakes.FakeCall) -> None:
        if ran == graph:
            call.outputs[output] = call.outputs[output].clone()
            call.outputs[output].view(-1)[0] = value

    return fakes.FakeBackend(after=after, precision="f16")


def test_an_engine_that_computes_the_same_passes_on_every_graph(bundle: Bundle, chain: Chain) -> None:
    found = check_graphs(bundle, fakes.as_backend(fakes.FakeBackend()), chain, silent)
    assert [check.name for check in found] == [f"onnxruntime f32: {graph}" for graph in GRAPH_NAMES]
    assert {check.outcome for check in found} == {OK}
    assert all("relative error 0.0e+00" in check.text for check in found)


def test_an_overflow_is_named_with_graph_output_and_precision(bundle: Bundle, chain: Chain) -> None:
    backend = fakes.as_backend(spoiled("unet", "div2", float("inf")))
    found = {check.name: check for check in check_graphs(bundle, backend, chain, silent)}
    unet = found.pop("onnxruntime f16: unet")
    assert unet.outcome == FAILED
    assert "1 of " in unet.text
    assert "values of div2 are NaN or infinite: f16 overflows" in unet.text
    assert {check.outcome for check in found.values()} == {OK}  # each graph reads the reference's numbers


def test_a_difference_beyond_the_precision_fails_and_one_within_it_passes(bundle: Bundle, chain: Chain) -> None:
    def check(factor: float, precision: str) -> Check:
        expected = chain.outputs["vae_encoder"]
        return compare_outputs("x", {n: value * factor for n, value in expected.items()}, expected, precision)

    assert check(1.002, "f16").outcome == OK
    assert check(1.002, "f32").outcome == FAILED
    assert check(1.01, "f16").outcome == FAILED
    assert check(1.01, "f16").figures["latents"] == pytest.approx(0.01, rel=0.01)


def test_float16_buffers_are_judged_as_float16_whatever_the_arithmetic(chain: Chain) -> None:
    expected = chain.outputs["vae_encoder"]
    rounded = {name: value.half() for name, value in expected.items()}
    found = compare_outputs("x", rounded, expected, "f32")
    assert found.outcome == OK
    assert found.figures["latents"] > 1e-5  # the rounding is there


def test_a_black_image_fails_unless_it_should_be_black(chain: Chain) -> None:
    expected = chain.outputs["vae_decoder"]
    black = {"pixels": torch.full_like(expected["pixels"], -1.0)}
    assert "black" in compare_outputs("x", black, expected, "f16").text
    assert compare_outputs("x", black, expected, "f16").outcome == FAILED
    assert compare_outputs("x", black, black, "f16").outcome == OK


def test_one_black_image_of_a_batch_is_enough(chain: Chain) -> None:
    expected = chain.outputs["vae_decoder"]
    pixels = expected["pixels"].clone()
    pixels[1] = -1.0
    assert "black" in compare_outputs("x", {"pixels": pixels}, expected, "f16").text


def test_boxes_are_compared_as_sets(chain: Chain) -> None:
    expected = dict(chain.outputs["adapter"])
    expected["logits"] = expected["logits"] + 4.0  # well above the score from which boxes count
    turned = {name: value.flip(1) if name in ("logits", "boxes") else value for name, value in expected.items()}
    assert compare_outputs("x", turned, expected, "f32").outcome == OK
    moved = {**expected, "boxes": expected["boxes"] * 0.5}
    found = compare_outputs("x", moved, expected, "f16")
    assert found.outcome == FAILED
    assert "0 of 12 boxes agree" in found.text


def test_a_graph_that_cannot_be_prepared_fails_alone(bundle: Bundle, chain: Chain) -> None:
    backend = fakes.FakeBackend()
    prepare = backend.prepare

    def refuse(
        graph: str,
        shapes: Mapping[str, tuple[int, ...]],
        outputs: Any = None,
        varies: str | None = None,
        role: Role | None = None,
    ) -> fakes.FakeCall:
        if graph == "adapter":
            raise BackendError("GridSample is not there.")
        return prepare(graph, shapes, outputs, varies, role)

    backend.prepare = refuse  # type: ignore[method-assign]
    outcomes = [check.outcome for check in check_graphs(bundle, fakes.as_backend(backend), chain, silent)]
    assert outcomes == [OK, OK, OK, OK, FAILED]


def test_ticks_are_timed_and_an_engine_that_cannot_be_captured_is_passed_over(
    bundle: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(gpu_checks, "RUNS", 2)
    backend = fakes.FakeBackend()
    checks, speeds = check_ticks(bundle, fakes.as_backend(backend), silent, steps=3)
    assert [(check.name, check.outcome) for check in checks] == [("onnxruntime f32: captured tick", SKIPPED)]
    assert [speed.what for speed in speeds] == ["onnxruntime f32: UNet call", "onnxruntime f32: tick"]
    assert all(speed.seconds > 0 and speed.rows >= 4 for speed in speeds)
    assert backend.roles == ["sampler", None], "the UNet as the sampler has it, and the prompts"


def test_a_capturable_engine_is_run_both_ways_and_compared(bundle: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gpu_checks, "RUNS", 2)
    monkeypatch.setattr(fakes.FakeCall, "capturable", True)
    replayed = 0

    def record(step: Callable[[], None], device: torch.device) -> Callable[[], None]:
        def replay() -> None:
            nonlocal replayed
            replayed += 1
            step()

        return replay

    checks, speeds = check_ticks(bundle, fakes.as_backend(fakes.FakeBackend()), silent, steps=3, record=record)
    assert checks[0].outcome == OK
    assert "bit for bit, in 4 images" in checks[0].text
    assert [speed.what for speed in speeds][-1] == "onnxruntime f32: tick in a CUDA graph"
    assert replayed > 3


def test_a_recording_that_repeats_old_numbers_is_caught(bundle: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    """What a capture of memory that moved would do: nothing at all."""
    monkeypatch.setattr(gpu_checks, "RUNS", 2)
    monkeypatch.setattr(fakes.FakeCall, "capturable", True)
    backend = fakes.as_backend(fakes.FakeBackend())
    checks, _ = check_ticks(bundle, backend, silent, steps=3, record=lambda step, device: lambda: None)
    assert checks[0].outcome == FAILED


def test_captured_latents_that_differ_fail_by_more_than_rounding() -> None:
    eager = {0: torch.ones(4, 2, 2), 1: torch.ones(4, 2, 2)}
    close = {0: torch.ones(4, 2, 2), 1: torch.ones(4, 2, 2) * 1.0001}
    wrong = {0: torch.ones(4, 2, 2), 1: torch.ones(4, 2, 2) * 1.1}
    broken = {0: torch.ones(4, 2, 2), 1: torch.full((4, 2, 2), float("nan"))}
    assert compare_latents("x", close, eager).outcome == OK
    assert "bit for bit" not in compare_latents("x", close, eager).text
    assert compare_latents("x", wrong, eager).outcome == FAILED
    assert compare_latents("x", broken, eager).outcome == FAILED


def test_labels_are_judged_by_precision(bundle: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: dict[str, Any] = {}

    def compare(bundle: Bundle, engines: Any, report: Any, **more: Any) -> list[Agreement]:
        asked.update(more)
        return [
            Agreement("torch", "f16", 8, 31.0, 0.9),
            Agreement("torch", "f16", 8, 15.0, 0.9),
            Agreement("tensorrt", "f16", 8, 31.0, 0.5),
            Agreement("onnxruntime", "f32", 8, 31.0, None),
        ]

    monkeypatch.setattr(gpu_checks, "compare_engines", compare)
    found = check_labels(bundle, [("torch", "f16")], "cuda", silent)
    assert asked == {"jobs": 8, "steps": None, "device": "cuda"}
    assert [check.outcome for check in found] == [OK, FAILED, FAILED, FAILED]
    assert "PyTorch found no boxes" in found[-1].text
