"""`benchmarks/tried.py`: what is undone is really undone and changes no picture, and the tables are plain."""

import contextlib
import importlib
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from fakes import FakeBackend, FakeCall, tree
from painting import make_paint, make_references

from engines.backends.base import Call
from engines.backends.openvino.backend import OpenVinoBackend
from engines.bundle.bundle import Bundle, open_bundle
from engines.diffusion.sampler import SlotSampler
from engines.measure.workload import Workload
from engines.painting import finisher, painter
from engines.runs import writer
from engines.runs.events import Event, Painted

OURS = {  # what is done outside OpenVINO, and what is seen where it is undone
    "an image's prompt is encoded once": "texts",
    "a free slot takes the next image at once": "ticks",
    "images with the most steps begin first": "order",
    "both of these": "ticks",
    "the label pass has no unconditional row": "looks",
    "images are encoded and written in threads of their own": "writing",
    "pixels to bytes, checks and boxes in a thread of their own": "finishing",
    "references are read in a thread, a batch ahead, and kept": "reading",
    "PyTorch leaves the cores to the graphs": "threads",
}
OPENVINO = {
    "a stream for each thread",
    "no copies between PyTorch and OpenVINO",
    "what the two rows of an image share is computed once",
    "products that are split are cut",
    "convolutions of doubled images are folded",
}


@pytest.fixture(scope="module")
def tried() -> Iterator[ModuleType]:
    before = list(sys.path)
    sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks"))
    yield importlib.import_module("tried")
    sys.path[:] = before


def test_what_is_undone_outside_openvino_is_seen_and_changes_no_byte(
    tried: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    paint = make_paint(tmp_path, monkeypatch)
    seen: dict[str, Any] = {}

    def spy(module: Any, name: str, key: str) -> None:
        real = getattr(module, name)

        def spied(*given: Any) -> Any:
            seen[key].add(threading.current_thread() is threading.main_thread())
            return real(*given)

        monkeypatch.setattr(module, name, spied)

    for module, name, key in (
        (writer, "encode_image", "writing"), (finisher, "to_uint8", "finishing"), (painter, "crop_of", "reading"),
    ):  # fmt: skip
        spy(module, name, key)

    def looked(graph: str, call: FakeCall) -> None:
        seen["threads"].add(torch.get_num_threads())

    def painted(out: Path) -> dict[str, Any]:
        seen.update(writing=set(), finishing=set(), reading=set(), threads=set())
        backend, events = FakeBackend(after=looked), list[Event]()
        paint(
            out, backend=backend, events=events, reference=references, jobs=11, steps=6, strength=(0.2, 0.9), chunk=11
        )
        order = [event.index for event in events if isinstance(event, Painted)]
        looks = backend.calls["unet"] - ticks(events)
        texts = backend.calls["text_encoder"]
        return dict(seen) | {"texts": texts, "ticks": ticks(events), "looks": looks, "order": order}

    def ticks(events: list[Event]) -> int:
        return sum(type(event).__name__ == "Tick" for event in events)

    references = make_references(tmp_path / "references", 3)
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        plain = painted(tmp_path / "as it is")
        for number, (name, sign) in enumerate(OURS.items()):
            with contextlib.ExitStack() as stack:
                tried.undone(stack, [name])
                without = painted(tmp_path / str(number))
            assert tree(tmp_path / str(number)) == tree(tmp_path / "as it is"), name
            assert without[sign] != plain[sign], name
            if sign in ("texts", "ticks", "looks"):
                assert without[sign] > plain[sign], name
    finally:
        torch.set_num_threads(before)
    assert set(tried.THINGS) == {*OURS, *OPENVINO}
    assert SlotSampler.run is tried._RUN


@pytest.fixture(scope="module")
def backend(toy_bundle: Path) -> tuple[Bundle, OpenVinoBackend]:
    bundle = open_bundle(toy_bundle, verify=False)
    return bundle, OpenVinoBackend(bundle, precision="f32", threads=2, keep=False)


def prepared(made: tuple[Bundle, OpenVinoBackend]) -> tuple[Call, Any]:
    """The sampler's call of four rows in pairs, and its output for pairs of noise."""
    bundle, backend = made
    shapes = bundle.specs["unet"].input_shapes({"B": 4, "h": 8, "w": 8})
    call = backend.prepare("unet", shapes, ["model_output"], "encoder_hidden_states")
    random = torch.Generator().manual_seed(1)
    for name, tensor in call.inputs.items():
        if name == "timesteps":
            tensor.fill_(500)
        else:
            alike = 2 if name == "sample" else 1  # rows of a pair differ in their text alone
            noise = torch.randn((len(tensor) // alike, *tensor.shape[1:]), generator=random)
            tensor.copy_(noise.repeat_interleave(alike, dim=0))
    call.run()
    return call, call.outputs["model_output"].clone()


def test_what_is_undone_of_openvino_is_seen_and_changes_no_output(
    tried: ModuleType, backend: tuple[Bundle, OpenVinoBackend]
) -> None:
    def seen(call: Any) -> dict[str, Any]:
        inner = getattr(call, "_inner", call)
        model = inner.requests[0].get_compiled_model().get_runtime_model()
        return {"streams": len(inner.requests), "copies": call is not inner, "nodes": len(model.get_ops())}

    plain, wanted = prepared(backend)
    for name in OPENVINO:
        with contextlib.ExitStack() as stack:
            tried.undone(stack, [name])
            call, found = prepared(backend)
        torch.testing.assert_close(found, wanted, rtol=1e-3, atol=1e-4)
        assert seen(call) != seen(plain), name


def test_every_thing_is_undone_in_every_round_beside_runs_as_it_is(
    tried: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[dict[str, Any]] = []
    compared: list[dict[str, Any]] = []

    def alone(task: str, arguments: dict[str, Any]) -> dict[str, Any]:
        if task == "speed_tasks:same_labels_task":
            compared.append(arguments)
            return {"ap50": 1.0, "psnr": 99.0}
        asked.append(arguments)
        return {"images_per_second": float(len(asked))}

    monkeypatch.setattr(tried, "run_alone", alone)
    monkeypatch.setattr(tried, "_settings_of", lambda folder: {})
    given = {"workload": Workload(jobs=40).to_json(), "options": {"slots": 8}, "bundle": None}
    found = tried.measure(given, 2, tmp_path, lambda line: None)
    names = {tried.AS_IT_IS, tried.ALL, *tried.THINGS}
    assert set(found["rates"]) == names == set(found["same"])
    assert all(len(found["rates"][name]) == 2 for name in (tried.ALL, *tried.THINGS))
    assert len(found["rates"][tried.AS_IT_IS]) == 2 * -(-(len(tried.THINGS) + 1) // 3)
    assert [one["undone"] for one in asked if one["inside"]] == [[], list(tried.THINGS)]
    few = [one["undone"] for one in asked if one["workload"]["jobs"] == 8]  # where only compiled models are wanted
    assert few == [[], *([name] for name in tried.THINGS), list(tried.THINGS)]
    assert {(one["run"], one["reference"]) for one in compared} == {(str(tmp_path / "run"), str(tmp_path / "plain"))}


def test_the_table_says_what_each_thing_is_worth_and_how_sure_that_is(tried: ModuleType) -> None:
    graphs = {
        name: {"calls": 2, "batch": 4, "run_seconds": seconds}
        for name, seconds in (("unet", 6.0), ("vae_encoder", 1.0))
    }
    inside = {"graphs": graphs, "seconds": 10.0, "images": 40, "images_per_second": 4.0, "outside_share": 0.25}
    rates = {tried.AS_IT_IS: [3.9, 4.2, 4.0, 4.1], "a thing": [3.0, 3.5, 3.2], tried.ALL: [2.0, 2.1]}
    value = {
        "machine": {"processor": "a CPU", "cores": 2},
        "versions": {"python": "3.11"},
        "command": "python benchmarks/tried.py",
        "workload": Workload(jobs=40).to_json(),
        "run": {"precision": "int8", "slots": 16, "chunk": 64},
        "crops": 39,
        "rates": rates,
        "same": {name: {"ap50": 0.987, "psnr": 51.23} for name in rates},
        "inside": {tried.AS_IT_IS: inside, tried.ALL: inside},
    }
    text = tried.report(value)
    assert "in int8, 16 slots, chunks of 64" in text
    assert "4.05 images/s, the median of 4 runs, 3.90 to 4.20" in text
    assert "| as it is | 4.05 | - | 3.90, 4.20, 4.00, 4.10 | 98.7 | 51.2 |" in text
    assert "| a thing | 3.20 | -21.0% | 3.00, 3.50, 3.20 | 98.7 | 51.2 |" in text
    assert "| everything undone | 2.05 | -49.4% | 2.00, 2.10 | 98.7 | 51.2 |" in text
    assert "the 40 jobs have 39 different crops. Encoding them takes 10.0% of the run." in text
    assert "| unet | 2 | 4 | 6.00 | 60.0% |" in text
    assert "| outside the graphs | - | - | 2.50 | 25.0% |" in text
