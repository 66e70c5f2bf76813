"""One engine's figures, of a real run."""

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import fakes
import pytest
import torch

from engines.backends.base import Role
from engines.bundle.bundle import open_bundle
from engines.common.devices import cpu_has_bf16
from engines.measure import run
from engines.measure.run import engine_task, memory_of, precision_of
from engines.measure.timing import WARM_UP, Use, spread
from engines.measure.workload import Workload
from engines.painting.networks import prepare
from engines.painting.settings import PaintOptions

WORKLOAD = Workload(frame=(64, 48), steps=4, jobs=5)


def arguments(bundle: Path, **changes: Any) -> dict[str, Any]:
    """Of a run on PyTorch with two slots."""
    options = {"precision": "f32", "threads": 1, "slots": 2}
    return {
        "workload": WORKLOAD.to_json(),
        "bundle": str(bundle),
        "references": None,
        "engine": "torch",
        "options": options,
    } | changes


def test_figures_of_a_run_add_up(toy_bundle: Path) -> None:
    told: list[str] = []
    found = engine_task(arguments(toy_bundle), told.append)
    assert (found["engine"], found["precision"], found["slots"], found["rows"]) == ("torch", "f32", 2, 4)
    assert found["images"] == 5
    assert found["images_per_second"] == pytest.approx(5 / found["seconds"])
    assert 0 < found["load_seconds"] < found["first_image_seconds"]
    assert 0 < found["outside_share"] < 1
    graphs = found["graphs"]
    assert set(graphs) == {"text_encoder", "unet", "label pass", "adapter", "vae_decoder"}
    assert graphs["unet"]["calls"] >= 5 * 4 / 2  # images x steps over slots, and what the draining of slots adds
    assert graphs["label pass"]["calls"] == graphs["vae_decoder"]["calls"] == graphs["adapter"]["calls"] == 3
    assert (graphs["unet"]["batch"], graphs["label pass"]["batch"]) == (4, 2)
    inside = sum(graph["run_seconds"] for graph in graphs.values())
    assert inside >= (1 - found["outside_share"]) * found["seconds"] * 0.999  # calls of threads may overlap
    for entry in (*graphs.values(), found["tick"]):
        assert 0 < entry["seconds"]["p10"] <= entry["seconds"]["median"] <= entry["seconds"]["p90"]
    assert found["tick"]["seconds"]["calls"] >= 3
    assert "painting 5/5" in told


@pytest.mark.parametrize(("device", "together"), [("cpu", 1), ("cuda", 5)])
def test_on_a_gpu_the_host_looks_at_every_fifth_tick_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, device: str, together: int
) -> None:
    bundle, backend, looks = fakes.make_bundle(tmp_path), fakes.FakeBackend(), list[torch.device]()
    call = prepare(bundle, fakes.as_backend(backend), "unet", {"B": 4, "h": 4, "w": 4}, role="sampler")
    options = PaintOptions(slots=2, rows=4, sampler="ddim", eta=0.0, guidance=4.0)
    watched: Any = SimpleNamespace(
        settings=SimpleNamespace(options=options),
        backend=SimpleNamespace(device=torch.device(device), calls={Use("unet", 4, "sampler"): call}),
    )
    monkeypatch.setattr(run, "time_calls", lambda run, device, **_: spread([0.1]))
    monkeypatch.setattr(run, "synchronise", looks.append)
    found = run._tick(bundle, watched, lambda text: None)
    ticks = backend.calls["unet"]
    assert len(looks) == ticks // together
    assert ticks % together == 0
    assert found["seconds"]["calls"] == ticks // together - WARM_UP


def test_the_first_image_alone_ends_the_run(toy_bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(run, "_graphs", None)  # nothing else is measured
    many = Workload(frame=(64, 48), steps=2, jobs=1000).to_json()
    told: list[str] = []
    found = engine_task(arguments(toy_bundle, workload=many, first_image=True), told.append)
    assert 0 < found["load_seconds"] < found["first_image_seconds"]
    assert "images_per_second" not in found
    assert len(told) < 100


def test_a_graph_goes_by_its_name_but_for_the_label_pass() -> None:
    assert [Use("unet", 4, "sampler").name, Use("unet", 4).name] == ["unet", "unet"]
    assert [Use("unet", 4, "labels").name, Use("adapter", 4).name] == ["label pass", "adapter"]


def test_only_what_paints_and_was_measured_is_in_int8(toy_bundle: Path) -> None:
    wide = "bf16" if cpu_has_bf16() else "f32"
    plain = open_bundle(toy_bundle, verify=False)

    def found(graph: str, precision: str, *measured: str, role: Role | None = None) -> str:
        manifest = replace(plain.manifest, activations=dict.fromkeys(measured, (0.0, 1.0)))
        return precision_of(replace(plain, manifest=manifest), Use(graph, 4, role), precision)

    assert found("unet", "int8", "mid_block.weight") == "int8"
    assert found("unet", "int8", "mid_block.weight", role="labels") == wide  # the label pass
    assert found("vae_decoder", "int8", "mid_block.weight", "decoder.mid_block.weight") == "int8"
    assert found("vae_decoder", "int8", "mid_block.weight") == wide  # a bundle of before
    assert found("vae_encoder", "int8", "mid_block.weight", "encoder.mid_block.weight") == "int8"
    assert found("vae_encoder", "int8", "mid_block.weight", "decoder.mid_block.weight") == wide
    assert found("adapter", "int8") == found("text_encoder", "bf16") == "f32"
    assert found("unet", "bf16") == "bf16"


@pytest.mark.parametrize(
    ("engine", "device", "peak", "taken"),
    [
        ("torch", "cuda:1", 0, None),
        ("onnxruntime", "cuda:1", None, 5),
        ("tensorrt", "cuda:1", None, 5),
        ("onnxruntime", "cpu", 0, None),
    ],
)
def test_gpu_memory_that_pytorch_does_not_hold_is_what_is_taken_of_the_gpu(
    engine: str, device: str, peak: int | None, taken: int | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    known = {torch.device("cuda:0"): (1, 3), torch.device("cuda:1"): (4, 9)}  # (free, in all)
    monkeypatch.setattr(torch.cuda, "mem_get_info", known.__getitem__)
    found = memory_of(engine, torch.device(device))
    assert (found.vram_peak, found.vram_taken) == (peak, taken)
