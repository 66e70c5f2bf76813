"""Statistics of calls, unions of intervals, and the backend that notes when its calls ran."""

import threading
from dataclasses import dataclass, field
from pathlib import Path

import fakes
import pytest
import torch

from engines.backends.base import Role
from engines.diffusion.capture import Step
from engines.measure import timing
from engines.measure.timing import Interval, TimedBackend, Use, covered, outside_share, profiled, spread, time_calls
from engines.painting.networks import prepare

CPU = torch.device("cpu")
USE = Use("unet", 8)


@dataclass
class Clock:
    """A clock that moves only when told."""

    now: float = 0.0
    calls: list[float] = field(default_factory=list)  # how long each coming call takes

    def run(self) -> None:
        """A call."""
        self.now += self.calls.pop(0)


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    found = Clock()
    monkeypatch.setattr("engines.measure.timing.time.perf_counter", lambda: found.now)
    return found


def test_the_spread_of_eleven_even_numbers() -> None:
    found = spread([float(number) for number in (10, 0, 9, 1, 8, 2, 7, 3, 6, 4, 5)])
    assert (found.median, found.p10, found.p90, found.calls) == (5.0, 1.0, 9.0, 11)


def test_warm_up_is_not_counted(clock: Clock) -> None:
    clock.calls = [9.0, 1.0, 2.0, 3.0]
    found = time_calls(clock.run, CPU, warm_up=1, calls=3, limit=100.0)
    assert (found.median, found.calls) == (2.0, 3)
    assert clock.calls == []


def test_slow_calls_are_made_fewer_times(clock: Clock) -> None:
    clock.calls = [4.0] * 30
    found = time_calls(clock.run, CPU, warm_up=3, calls=20, limit=5.0)
    assert found.calls == timing.LEAST
    assert len(clock.calls) == 30 - 2 - timing.LEAST  # the warm-up stopped after its own 5 seconds


def test_a_profile_names_what_took_longest_first() -> None:
    a = torch.ones(64, 64)
    found = profiled(lambda: (a @ a).relu().relu(), CPU)
    seconds = [spent for _, _, spent in found]
    assert seconds == sorted(seconds, reverse=True)
    assert {"aten::mm": 1, "aten::relu": 2}.items() <= {name: count for name, count, _ in found}.items()


def test_intervals_that_overlap_count_once_and_end_with_the_window() -> None:
    assert covered([(5.0, 6.0), (1.0, 3.0), (2.0, 4.0), (2.5, 2.6)], 0.0, 10.0) == pytest.approx(4.0)
    assert covered([(-5.0, 1.0), (9.0, 20.0)], 0.0, 10.0) == pytest.approx(2.0)
    assert covered([], 0.0, 10.0) == 0.0


def test_the_share_outside_the_graphs() -> None:
    two_threads = [Interval(USE, 0.0, 6.0), Interval(USE, 4.0, 8.0)]
    assert outside_share(two_threads, 0.0, 10.0) == pytest.approx(0.2)


def test_a_timed_backend_computes_the_same_and_notes_every_call(tmp_path: Path) -> None:
    backend = fakes.FakeBackend()
    timed = TimedBackend(fakes.as_backend(backend))
    bundle = fakes.make_bundle(tmp_path)
    call = prepare(bundle, timed, "vae_decoder", {"B": 2, "h": 8, "w": 12}, ["pixels"])
    call.inputs["latents"].fill_(0.5)
    call.run()
    assert torch.equal(call.outputs["pixels"], torch.full((2, 3, 32, 48), 0.5).tanh())
    worker = threading.Thread(target=call.run)
    worker.start()
    worker.join()
    first, second = timed.intervals
    assert first.use == second.use == Use("vae_decoder", 2)
    assert first.start <= first.end <= second.start <= second.end
    assert backend.calls["vae_decoder"] == 2
    timed.calls[first.use].run()
    assert len(timed.intervals) == 2  # what it keeps for later is not timed


def test_what_a_call_is_for_is_noted_and_passed_on(tmp_path: Path) -> None:
    backend = fakes.FakeBackend()
    timed = TimedBackend(fakes.as_backend(backend))
    bundle, sizes = fakes.make_bundle(tmp_path), {"B": 2, "h": 8, "w": 12}
    roles: tuple[Role | None, ...] = ("sampler", "labels", None)
    for role in roles:
        prepare(bundle, timed, "unet", sizes, role=role)
    assert [(use.name, use.role) for use in timed.calls] == [
        ("unet", "sampler"), ("label pass", "labels"), ("unet", None)
    ]  # fmt: skip
    assert backend.roles == ["sampler", "labels", None]


@pytest.mark.parametrize("capturable", [True, False])
def test_whether_a_call_may_be_captured_is_passed_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capturable: bool
) -> None:
    monkeypatch.setattr(fakes.FakeCall, "capturable", capturable)
    backend = fakes.FakeBackend()
    timed = TimedBackend(fakes.as_backend(backend))
    call = prepare(fakes.make_bundle(tmp_path), timed, "unet", {"B": 2, "h": 8, "w": 12})
    assert call.capturable is capturable
    assert (timed.name, timed.precision, timed.threads, timed.device.type) == (backend.name, "f32", 1, "cpu")


class FakeEvent:
    """A CUDA event, on a GPU that is at a time of its own."""

    gpu = 0.0  # milliseconds

    def __init__(self, enable_timing: bool) -> None:
        assert enable_timing
        self.at: float | None = None

    def record(self, stream: str) -> None:
        assert stream == "a stream"
        self.at = FakeEvent.gpu

    def synchronize(self) -> None:
        assert self.at is not None

    def elapsed_time(self, other: "FakeEvent") -> float:
        assert self.at is not None
        assert other.at is not None
        return other.at - self.at


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> type[FakeEvent]:
    monkeypatch.setattr(torch.cuda, "Event", FakeEvent)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device: "a stream")
    monkeypatch.setattr(FakeEvent, "gpu", 0.0)
    return FakeEvent


def test_on_a_gpu_the_times_are_the_gpus_own_and_a_replay_is_noted_for_the_calls_that_it_holds(
    tmp_path: Path, gpu: type[FakeEvent], clock: Clock
) -> None:
    clock.now, gpu.gpu = 100.0, 5000.0
    taken = {"unet": 2000.0, "adapter": 500.0, "vae_decoder": 1000.0}

    def work(graph: str, call: fakes.FakeCall) -> None:
        if not capturing:
            gpu.gpu += taken[graph]

    capturing: list[bool] = []
    timed = TimedBackend(fakes.as_backend(fakes.FakeBackend(after=work, device=torch.device("cuda", 0))))
    bundle, sizes = fakes.make_bundle(tmp_path), {"B": 2, "h": 8, "w": 12}
    unet = prepare(bundle, timed, "unet", sizes, role="labels")
    adapter = prepare(bundle, timed, "adapter", sizes)
    decoder = prepare(bundle, timed, "vae_decoder", sizes)

    def capture(step: Step, device: torch.device) -> Step:
        capturing.append(True)
        step()  # recording computes nothing
        capturing.clear()
        return step

    def both() -> None:
        unet.run()
        adapter.run()

    replay = timed.record(both, torch.device("cuda", 0), capture)
    assert timed.intervals == []
    decoder.run()
    gpu.gpu += 250.0  # nothing runs
    replay()
    labels, read, decode = Use("unet", 2, "labels"), Use("adapter", 2), Use("vae_decoder", 2)
    assert timed.intervals[0] == Interval(decode, 100.0, 101.0)
    assert outside_share(timed.intervals, 100.0, 103.75) == pytest.approx(0.25 / 3.75)
    assert [one.use for one in timed.intervals[-2:]] == [labels, read]
    assert {(one.start, one.end) for one in timed.intervals[-2:]} == {(101.25, 103.75)}
