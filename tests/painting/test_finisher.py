"""The finisher: every batch's outcomes once, in the order they were handed over, whatever takes longest."""

import threading
import time
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
import torch
from fakes import FRAME, LENGTH, STRIDE, WIDTH, FakeBackend, FakeCall, Z, as_backend, make_bundle
from refusals import refused

from engines.diffusion.latents import to_uint8
from engines.diffusion.sampler import Task
from engines.errors import NumericalError
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


def test_with_two_views_an_object_on_one_side_of_both_is_two_halves(tmp_path: Path) -> None:
    """An adapter that always points to the left means the right of the image when it sees it mirrored."""

    def point(graph: str, call: FakeCall) -> None:
        if graph == "adapter":
            call.outputs["logits"][:] = -20.0
            call.outputs["logits"][:, 0, 1] = 2.0
            call.outputs["boxes"][:, 0] = torch.tensor([0.25, 0.5, 0.25, 0.5])

    backend = FakeBackend(after=point)
    with Finisher(make_bundle(tmp_path), as_backend(backend), BATCH, FRAME, views=2) as finisher:
        (outcome,) = [*finisher.submit(batch(0)), *finisher.drain()]
    width, height = FRAME
    sure = 1 / (1 + np.exp(-2))
    assert outcome.instances.boxes.tolist() == [
        [0.125 * width, 0.25 * height, 0.375 * width, 0.75 * height],
        [0.625 * width, 0.25 * height, 0.875 * width, 0.75 * height],
    ]
    assert outcome.instances.scores.tolist() == pytest.approx([sure / 2] * 2, abs=1e-3)
    assert backend.calls["adapter"] == backend.calls["unet"] == 2
    assert backend.calls["vae_decoder"] == 1


def test_the_second_view_sees_the_latents_mirrored(tmp_path: Path) -> None:
    seen: list[torch.Tensor] = []

    def note(graph: str, call: FakeCall) -> None:
        if graph == "unet":
            seen.append(call.inputs["sample"].clone())

    with Finisher(make_bundle(tmp_path), as_backend(FakeBackend(after=note)), BATCH, FRAME, views=2) as finisher:
        assert len([*finisher.submit(batch(0, 1)), *finisher.drain()]) == 2
    assert torch.equal(seen[1], seen[0].flip(-1))


def test_outcomes_come_once_and_in_order_though_earlier_ones_take_longer(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seconds = iter((0.15, 0.05, 0.0, 0.0))

    def slow(pixels: torch.Tensor) -> npt.NDArray[np.uint8]:
        time.sleep(next(seconds))
        return to_uint8(pixels)

    monkeypatch.setattr("engines.painting.finisher.to_uint8", slow)
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

    def held(pixels: torch.Tensor) -> npt.NDArray[np.uint8]:
        go.wait(10)
        return to_uint8(pixels)

    monkeypatch.setattr("engines.painting.finisher.to_uint8", held)
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
