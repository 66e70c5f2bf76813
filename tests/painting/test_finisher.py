"""The finisher: every batch's outcomes once, in the order they were handed over, whatever takes longest."""

import threading
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from fakes import FRAME, LENGTH, STRIDE, WIDTH, FakeBackend, FakeCall, Z, as_backend, make_bundle
from refusals import refused

from engines.common.streams import Lane
from engines.diffusion.capture import Step
from engines.diffusion.latents import quantise, to_pixels
from engines.diffusion.sampler import Task
from engines.diffusion.schedule import schedule_from
from engines.errors import NumericalError
from engines.labels.boxes import Instances
from engines.painting.finisher import Finished, Finisher, Outcome
from engines.painting.jobs import Job
from engines.painting.networks import Preparing, cores_for_graphs

BATCH = 2


def make_finisher(folder: Path, backend: FakeBackend | None = None) -> Finisher:
    return Finisher(make_bundle(folder), as_backend(backend or FakeBackend()), BATCH, FRAME)


def batch(*indices: int, value: float | None = None) -> list[Finished]:
    shape = (Z, FRAME[1] // STRIDE, FRAME[0] // STRIDE)
    found = []
    for index in indices:
        noise = np.random.default_rng(index).standard_normal(shape, dtype=np.float32)
        latents = torch.from_numpy(noise) if value is None else torch.full(shape, value)
        text = torch.zeros(LENGTH, WIDTH)
        found.append(Finished(Job(index, 3, "a photo"), Task(index, 3, None, 0, text, text), latents))
    return found


def indices_of(outcomes: list[Outcome]) -> list[int]:
    return [outcome.job.index for outcome in outcomes]


def test_with_two_looks_an_object_on_one_side_of_both_is_two_halves(tmp_path: Path) -> None:
    """An adapter that always points to the left means the right of the image when it sees it mirrored."""

    def point(graph: str, call: FakeCall) -> None:
        if graph == "adapter":
            call.outputs["logits"][:] = -20.0
            call.outputs["logits"][:, 0, 1] = 2.0
            call.outputs["boxes"][:, 0] = torch.tensor([0.25, 0.5, 0.25, 0.5])

    backend = FakeBackend(after=point)
    with Finisher(make_bundle(tmp_path), as_backend(backend), BATCH, FRAME, looks=2) as finisher:
        (outcome,) = [*finisher.submit(batch(0)), *finisher.drain()]
    width, height = FRAME
    sure = 1 / (1 + np.exp(-2))
    assert outcome.instances.boxes.tolist() == [
        [0.125 * width, 0.25 * height, 0.375 * width, 0.75 * height],
        [0.625 * width, 0.25 * height, 0.875 * width, 0.75 * height],
    ]
    assert outcome.instances.scores.tolist() == pytest.approx([sure] * 2, abs=1e-3)
    assert backend.calls["adapter"] == backend.calls["unet"] == 2
    assert backend.calls["vae_decoder"] == 1


@pytest.mark.parametrize("strength", [0.001, 0.2, 0.7])
def test_a_painting_gets_back_what_the_vae_loses_of_its_reference_as_far_as_that_is_kept(
    tmp_path: Path, strength: float
) -> None:
    picture = np.random.default_rng(5).integers(60, 190, (FRAME[1], FRAME[0], 3)).astype(np.uint8)
    schedule = schedule_from({"num_train_timesteps": 1000}, "dpmpp", 2, 0.0, strength)
    (plain,) = batch(0)
    begun = replace(plain.task, latents=plain.latents, schedule=schedule)
    repainted = replace(plain, task=begun, latents=0.5 * plain.latents, reference=picture)
    with make_finisher(tmp_path) as finisher:
        together = [plain, replace(repainted, reference=None), repainted]
        decoded, lossy, shown = (
            to_pixels(one.pixels).double()  # type: ignore[arg-type]
            for finished in together
            for one in (*finisher.submit([finished]), *finisher.drain())
        )
    wanted = lossy + float(schedule.start[0, 0]) * (to_pixels(picture).double() - decoded)
    assert (shown - wanted.clamp(-1, 1)).abs().max() < 4 / 255, "but for rounding to bytes, three times"
    assert (lossy - decoded).abs().max() > 0.1, "it is another picture"
    if strength == 0.001:
        again = replace(repainted, latents=plain.latents)
        with make_finisher(tmp_path / "same") as finisher:
            (same,) = [*finisher.submit([again]), *finisher.drain()]
        assert np.abs(same.pixels.astype(int) - picture).max() <= 1  # type: ignore[union-attr]


def test_a_decoder_that_paints_black_is_told_whatever_detail_comes_back(tmp_path: Path) -> None:
    def black(graph: str, call: FakeCall) -> None:
        if graph == "vae_decoder":
            call.outputs["pixels"].fill_(-1.0)

    (plain,) = batch(0)
    schedule = schedule_from({"num_train_timesteps": 1000}, "dpmpp", 2, 0.0, 0.2)
    picture = np.full((FRAME[1], FRAME[0], 3), 200, dtype=np.uint8)
    task = replace(plain.task, latents=plain.latents, schedule=schedule)
    for finished in (plain, replace(plain, task=task, reference=picture)):
        with (
            make_finisher(tmp_path / "bundle", FakeBackend(after=black)) as finisher,
            refused(NumericalError, "precision", "black"),
        ):
            list(finisher.submit([finished]))
            list(finisher.drain())


def test_outcomes_come_once_and_in_order_though_earlier_ones_take_longer(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seconds = iter((0.15, 0.05, 0.0, 0.0))

    def slow(pixels: torch.Tensor) -> torch.Tensor:
        time.sleep(next(seconds))
        return quantise(pixels)

    monkeypatch.setattr("engines.painting.finisher.quantise", slow)
    found: list[Outcome] = []
    with make_finisher(tmp_path) as finisher:
        for indices in ((4, 1), (0, 7), (3, 2), (6,)):
            found += [*finisher.submit(batch(*indices)), *finisher.ready()]
        found += finisher.drain()
        assert list(finisher.drain()) == []
    assert indices_of(found) == [4, 1, 0, 7, 3, 2, 6]


def test_an_outcome_is_that_of_the_image_alone_and_stays_as_it_was(tmp_path: Path) -> None:
    with make_finisher(tmp_path) as finisher:
        together = [
            outcome for indices in ((0, 1), (2, 3), (4,)) for outcome in finisher.submit(batch(*indices))
        ] + list(finisher.drain())
        for outcome in together:
            assert list(finisher.submit(batch(outcome.job.index))) == []
            (alone,) = finisher.drain()
            assert np.array_equal(alone.pixels, outcome.pixels)  # type: ignore[arg-type]
            assert alone.instances == outcome.instances
    assert len({outcome.pixels.tobytes() for outcome in together if outcome.pixels is not None}) == 5


def test_only_two_batches_are_in_work_and_the_rest_waits(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    go = threading.Event()

    def held(pixels: torch.Tensor) -> torch.Tensor:
        go.wait(10)
        return quantise(pixels)

    monkeypatch.setattr("engines.painting.finisher.quantise", held)
    handed: list[int] = []
    with make_finisher(tmp_path) as finisher:

        def submit() -> None:
            for index in range(4):
                list(finisher.submit(batch(index)))
                handed.append(index)

        thread = threading.Thread(target=submit)
        thread.start()
        thread.join(0.3)
        assert handed == [0, 1]
        assert list(finisher.ready()) == []
        go.set()
        thread.join(10)
        assert handed == [0, 1, 2, 3]


def test_an_error_beside_the_ticks_comes_where_its_outcomes_would(tmp_path: Path) -> None:
    before = threading.active_count()

    def paint() -> None:
        with make_finisher(tmp_path) as finisher:
            found.extend(finisher.submit(batch(0, 1)))
            found.extend(finisher.submit(batch(2, 3, value=-50.0)))
            found.extend(finisher.submit(batch(4, 5)))
            found.extend(finisher.drain())

    found: list[Outcome] = []
    with refused(NumericalError, "precision", "vae_decoder", "image 2"):
        paint()
    assert indices_of(found) == [0, 1]
    assert threading.active_count() == before


def test_latents_that_are_not_finite_are_refused_before_anything_is_decoded(tmp_path: Path) -> None:
    backend = FakeBackend()
    with make_finisher(tmp_path, backend) as finisher, refused(NumericalError, "precision", "unet", "image 5"):
        list(finisher.submit(batch(5, value=float("nan"))))
    assert backend.calls["vae_decoder"] == 0


def test_networks_run_in_the_thread_that_hands_over_where_they_share_its_cores(tmp_path: Path) -> None:
    threads: list[threading.Thread] = []

    def note(graph: str, call: FakeCall) -> None:
        threads.append(threading.current_thread())

    with make_finisher(tmp_path, FakeBackend(after=note)) as finisher:
        list(finisher.submit(batch(0)))
    assert set(threads) == {threading.current_thread()}


@pytest.fixture
def on_gpu(monkeypatch: pytest.MonkeyPatch) -> FakeBackend:
    """A backend of which everybody believes that it is on a GPU; its lanes and tensors are the CPU's."""
    monkeypatch.setattr("engines.painting.finisher.Lane", lambda device: Lane(torch.device("cpu")))
    monkeypatch.setattr(FakeCall, "capturable", True)
    return FakeBackend(device=torch.device("cuda", 0))


def test_on_a_gpu_one_thread_enqueues_the_networks_and_another_makes_boxes(
    tmp_path: Path, on_gpu: FakeBackend, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The networks of later batches are begun while boxes of the first are still being made."""
    where: dict[str, set[str]] = {"networks": set(), "boxes": set()}
    go, begun = threading.Event(), threading.Event()

    def note(graph: str, call: FakeCall) -> None:
        where["networks"].add(threading.current_thread().name.split("_")[0])
        if on_gpu.calls["adapter"] == 3:
            begun.set()

    def held(logits: object, boxes: object, frame: object) -> Instances:
        where["boxes"].add(threading.current_thread().name.split("_")[0])
        assert go.wait(20)
        return Instances.none()

    on_gpu.after = note
    monkeypatch.setattr("engines.painting.finisher.rounded_boxes", held)
    finisher = Finisher(make_bundle(tmp_path), as_backend(on_gpu), BATCH, FRAME, record=lambda step, device: step)
    with finisher:
        for index in range(3):
            assert list(finisher.submit(batch(index))) == []
        assert begun.wait(20)
        assert list(finisher.ready()) == []
        go.set()
        assert indices_of(list(finisher.drain())) == [0, 1, 2]
    assert where == {"networks": {"networks"}, "boxes": {"finisher"}}


def test_on_a_gpu_decoder_and_label_pass_are_recorded_once_and_give_the_same(
    tmp_path: Path, on_gpu: FakeBackend
) -> None:
    recorded: list[int] = []
    replays: list[int] = []

    def record(step: Step, device: torch.device) -> Step:
        place = len(recorded)
        recorded.append(sum(on_gpu.calls.values()))

        def replay() -> None:
            replays.append(place)
            step()

        return replay

    bundle, batches = make_bundle(tmp_path), [(0, 1), (2, 3), (4,)]
    plain = Finisher(bundle, as_backend(FakeBackend()), BATCH, FRAME, record=lambda step, device: step)
    with plain as finisher:
        expected = [*(one for some in batches for one in finisher.submit(batch(*some))), *finisher.drain()]
    with Finisher(bundle, as_backend(on_gpu), BATCH, FRAME, record=record) as finisher:
        found = [*(one for some in batches for one in finisher.submit(batch(*some))), *finisher.drain()]
    assert recorded == [3, 4]  # at the second batch the decoder, then UNet and adapter together
    assert replays == [0, 1, 0, 1]
    for one, other in zip(found, expected, strict=True):
        assert np.array_equal(one.pixels, other.pixels)  # type: ignore[arg-type]
        assert one.instances == other.instances


@pytest.mark.parametrize("graph", ["latents", "vae_decoder", "unet", "adapter"])
def test_on_a_gpu_what_is_not_finite_is_named_where_its_outcomes_would_come(
    tmp_path: Path, on_gpu: FakeBackend, graph: str
) -> None:
    def spoil(name: str, call: FakeCall) -> None:
        outputs = {"vae_decoder": "pixels", "unet": "div1", "adapter": "boxes"}
        if name == graph and on_gpu.calls[name] == 2:
            call.outputs[outputs[name]][0].fill_(float("nan"))

    on_gpu.after = spoil
    found: list[Outcome] = []
    value = float("nan") if graph == "latents" else None
    finisher = Finisher(make_bundle(tmp_path), as_backend(on_gpu), BATCH, FRAME, record=lambda step, device: step)
    named = "unet" if graph == "latents" else graph
    with finisher, refused(NumericalError, "precision", f"graph {named}", "image 5"):
        for indices, values in (((0, 1), None), ((5, 6), value)):
            found += finisher.submit(batch(*indices, value=values))
        found += finisher.drain()
    assert indices_of(found) == [0, 1]


@pytest.mark.parametrize(("engine", "inside"), [("openvino", 1), ("torch", 2)])
def test_only_pytorch_itself_keeps_its_threads_while_graphs_run(engine: str, inside: int) -> None:
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        with cores_for_graphs(as_backend(FakeBackend(name=engine))):
            assert torch.get_num_threads() == inside
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)


@pytest.mark.parametrize(("engine", "beside"), [("openvino", True), ("onnxruntime", False)])
def test_graphs_are_made_ready_side_by_side_where_the_engine_gains_by_that(engine: str, beside: bool) -> None:
    told: list[str] = []
    other = threading.Event()

    def first() -> bool:
        return other.wait(5.0 if beside else 0.0)

    with Preparing(as_backend(FakeBackend(name=engine)), told.append) as preparing:
        results = preparing("one", first), preparing("two", other.set)
        assert [result() for result in results] == [beside, None]
    assert told == ["preparing one", "preparing two"]


def test_a_graph_that_cannot_be_made_ready_is_the_error_that_is_seen() -> None:
    def fail() -> None:
        raise NumericalError("no plan")

    before = threading.active_count()
    with (
        pytest.raises(NumericalError, match="no plan"),
        Preparing(as_backend(FakeBackend(name="openvino")), lambda text: None) as preparing,
    ):
        preparing("one", fail)()
    assert threading.active_count() == before
