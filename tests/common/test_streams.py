"""Lanes and copies: nothing at all on a CPU, and on a GPU the right waits, with stand-ins for CUDA's streams."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, cast

import pytest
import torch

from engines.common.streams import Lane, begin_fetch, fetch, hand_over, send

CPU, CUDA = torch.device("cpu"), torch.device("cuda", 0)


class FakeStream:
    """Notes what it waits for."""

    def __init__(self, name: str, log: list[Any]) -> None:
        self.name, self.log = name, log

    def wait_stream(self, other: "FakeStream") -> None:
        self.log.append((self.name, "waits for", other.name))

    def wait_event(self, event: "FakeEvent") -> None:
        self.log.append((self.name, "waits for", event.name))

    def record_event(self) -> "FakeEvent":
        self.log.append((self.name, "marks"))
        return FakeEvent(f"mark on {self.name}", self.log)


class FakeEvent:
    """What a stream held when it was marked."""

    def __init__(self, name: str, log: list[Any]) -> None:
        self.name, self.log = name, log

    def synchronize(self) -> None:
        self.log.append(("host", "waits for", self.name))


class FakeCuda:
    """PyTorch's streams, of one thread."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.log: list[Any] = []
        self.current = self.default = FakeStream("default", self.log)
        monkeypatch.setattr(torch.cuda, "Stream", lambda device: FakeStream("lane", self.log))
        monkeypatch.setattr(torch.cuda, "current_stream", lambda device: self.current)
        monkeypatch.setattr(torch.cuda, "default_stream", lambda device: self.default)
        monkeypatch.setattr(torch.cuda, "stream", self._on)

    @contextmanager
    def _on(self, stream: FakeStream) -> Iterator[None]:
        before, self.current = self.current, stream
        try:
            yield
        finally:
            self.current = before


class FakeTensor:
    """A tensor on a GPU, as far as copies and streams go."""

    is_cuda, device, shape, dtype = True, CUDA, (2,), torch.float32

    def __init__(self) -> None:
        self.used_on: list[str] = []

    def record_stream(self, stream: FakeStream) -> None:
        self.used_on.append(stream.name)


@pytest.fixture
def cuda(monkeypatch: pytest.MonkeyPatch) -> FakeCuda:
    return FakeCuda(monkeypatch)


def test_on_a_cpu_a_lane_is_nothing_and_copies_are_the_tensors_themselves() -> None:
    lane, tensor = Lane(CPU), torch.ones(2)
    assert lane.mark() is None
    with lane.after(lane.mark()):
        found = fetch(tensor, tensor * 2)
    assert found[0] is tensor
    assert send(tensor, CPU) is tensor
    hand_over(tensor)


def begun_lane(cuda: FakeCuda) -> Lane:
    """A lane that was used before."""
    lane = Lane(CUDA)
    with lane.after():
        pass
    cuda.log.clear()
    return lane


def test_a_lane_begins_after_what_was_enqueued_before_its_first_use(cuda: FakeCuda) -> None:
    lane = Lane(CUDA)
    assert cuda.log == []
    with lane.after():
        pass
    assert cuda.log == [("lane", "waits for", "default")]


def test_work_on_a_lane_waits_for_the_mark_and_the_host_waits_for_nothing(cuda: FakeCuda) -> None:
    lane = begun_lane(cuda)
    mark = lane.mark()
    with lane.after(mark):
        assert cuda.current.name == "lane"
    assert cuda.current.name == "default"
    assert cuda.log == [("default", "marks"), ("lane", "waits for", "mark on default")]


def test_without_a_mark_a_lane_does_not_wait_for_the_work_beside_it(cuda: FakeCuda) -> None:
    lane = begun_lane(cuda)
    with lane.after():
        pass
    assert cuda.log == []


def test_the_current_stream_comes_back_after_an_error(cuda: FakeCuda) -> None:
    lane = Lane(CUDA)

    def fail() -> None:
        with lane.after():
            raise ValueError("x")

    with pytest.raises(ValueError, match="x"):
        fail()
    assert cuda.current.name == "default"


@pytest.fixture
def pinned(cuda: FakeCuda, monkeypatch: pytest.MonkeyPatch) -> None:
    """Memory that a GPU copies to by itself."""

    class Pinned:
        def copy_(self, source: Any, non_blocking: bool) -> None:
            cuda.log.append(("copy", source, non_blocking))

    def empty(shape: Any, dtype: torch.dtype, pin_memory: bool) -> Pinned:
        assert pin_memory
        return Pinned()

    monkeypatch.setattr(torch, "empty", empty)


@pytest.mark.usefixtures("pinned")
def test_fetch_copies_all_to_pinned_memory_and_waits_once_for_its_own_stream(cuda: FakeCuda) -> None:
    lane, on_cpu = begun_lane(cuda), torch.ones(1)
    first, second = FakeTensor(), FakeTensor()
    with lane.after():
        found = fetch(cast(Any, first), on_cpu, cast(Any, second))
    copies = [("copy", first, True), ("copy", second, True)]
    assert cuda.log == [*copies, ("lane", "marks"), ("host", "waits for", "mark on lane")]
    assert found[1] is on_cpu


@pytest.mark.usefixtures("pinned")
def test_a_fetch_that_was_begun_waits_for_its_copies_when_it_is_asked_and_for_nothing_behind_them(
    cuda: FakeCuda,
) -> None:
    lane = begun_lane(cuda)
    with lane.after():
        take = begin_fetch(cast(Any, FakeTensor()))
    begun = len(cuda.log)
    assert ("host", "waits for", "mark on lane") not in cuda.log
    take()
    assert cuda.log[begun:] == [("host", "waits for", "mark on lane")]


def test_send_goes_through_pinned_memory_and_does_not_wait(cuda: FakeCuda) -> None:
    class Host:
        is_cuda = False

        def pin_memory(self) -> "Host":
            cuda.log.append("pinned")
            return self

        def to(self, device: torch.device, non_blocking: bool = False) -> str:
            cuda.log.append((device, non_blocking))
            return "there"

    assert cast(Any, send(cast(Any, Host()), CUDA)) == "there"
    assert cuda.log == ["pinned", (CUDA, True)]


def test_what_is_handed_over_is_kept_for_the_default_stream(cuda: FakeCuda) -> None:
    lane, tensor = Lane(CUDA), FakeTensor()
    with lane.after():
        hand_over(cast(Any, tensor))
    assert tensor.used_on == ["default"]
