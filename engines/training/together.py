"""Several processes that train as one, each on a device of its own: `devices` of the trainings.

Knows: how the others are started beside the process that was asked and end with it, whose share of a batch is whose,
and how gradients, statistics of a batch and what the first process settles become everybody's. The first is the one
that was asked: it alone reports, measures and writes; the others take its steps with it, on the same global batch. With
one device all of this does nothing. Knows nothing about what is trained.

It is torch.distributed, which accelerate and torchrun start, too: gloo on CPUs and for what is said, NCCL on GPUs.
Losses call parts of their networks, which DistributedDataParallel would not see: gradients are averaged here.
"""

import contextlib
import json
import os
import pkgutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import timedelta
from pathlib import Path
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn

from engines.common.devices import find_device
from engines.common.events import Report, silent
from engines.common.interrupts import SIGNALS
from engines.common.quote import shorten
from engines.common.schema import from_object, to_object
from engines.errors import BackendError, TrainingError, UsageError

MOST = 64  # devices
_BEGIN = "from engines.training.together import follow; follow()"
_INTERFACE = "GLOO_SOCKET_IFNAME"  # of the network, by which gloo's processes meet
_LONGEST = timedelta(days=7)  # that the others wait for what the first does alone
_ENDING = 3.0  # seconds in which a process that failed ends


T = TypeVar("T")
Train = Callable[[Any, Report, float], object]  # a training by its settings; the last: when it was asked for


@dataclass
class _Team:
    """The processes that train together, as one of them sees them."""

    rank: int  # its number; the first is 0
    devices: Sequence[str]  # of each process
    folder: Path  # where they find each other
    others: Sequence["subprocess.Popen[bytes]"] = ()  # that the first one has started
    talk: Any = None  # the group by which they talk, on CPUs, once they have met


_team: _Team | None = None  # one process is in one training


@contextlib.contextmanager
def beside(train: Train, settings: T, batches: Iterable[int]) -> Iterator[T]:
    """While this lasts, `settings.devices` processes train: this one by the settings that are yielded, and others,
    which call `train` with theirs.

    `batches`: sizes of the batches that are shared. Raises UsageError where these have no equal shares, BackendError
    for GPUs that are not there, and TrainingError that says what ended one of the others.
    """
    global _team
    asked: Any = settings
    devices = _devices(asked.device, asked.devices, batches)
    if len(devices) == 1:
        yield settings
        return
    threads, others = torch.get_num_threads(), list[subprocess.Popen[bytes]]()
    with tempfile.TemporaryDirectory(prefix="dengine-") as folder:
        team = _Team(0, devices, Path(folder), others)
        try:
            torch.set_num_threads(max(1, threads // len(devices)))
            for rank in range(1, len(devices)):
                others.append(_start(rank, team, train, asked))
            _team = team
            yield replace(asked, device=devices[0])
        except RuntimeError as cause:
            if failure := _failure(team):
                raise failure from cause
            raise
        finally:
            _team = None
            for one in others:
                one.kill()
                one.communicate()
            if dist.is_initialized():
                dist.destroy_process_group()
            torch.set_num_threads(threads)


def _devices(name: str, number: int, batches: Iterable[int]) -> list[str]:
    """The device of each process. Raises what `beside` does, before anything is begun."""
    first = find_device(name)
    if uneven := sorted({size for size in batches if size % number}):
        raise UsageError(
            f"`devices` is {number}, and a batch of {uneven[0]} has no {number} equal shares: take a number of devices "
            "that divides it.", field="devices",
        )  # fmt: skip
    if first.type == "cpu":
        return ["cpu"] * number
    beginning, found = first.index or 0, torch.cuda.device_count()
    if beginning + number > found:
        raise BackendError(
            f"`devices` is {number} from cuda:{beginning} on, and PyTorch can use {found} here: take fewer.",
            field="devices",
        )
    return [f"cuda:{index}" for index in range(beginning, beginning + number)]


def _start(rank: int, team: _Team, train: Train, settings: Any) -> "subprocess.Popen[bytes]":
    """Start one of the others, in a session of its own, where a terminal's Ctrl-C does not reach it."""
    given = {
        "rank": rank, "devices": team.devices, "folder": str(team.folder), "settings": to_object(settings),
        "train": f"{train.__module__}:{train.__qualname__}",
        "kind": f"{type(settings).__module__}:{type(settings).__qualname__}",
    }  # fmt: skip
    paths, threads = os.pathsep.join(sys.path), str(torch.get_num_threads())
    with (team.folder / f"{rank}.txt").open("wb") as said:
        process = subprocess.Popen(
            [sys.executable, "-c", _BEGIN], stdin=subprocess.PIPE, stdout=subprocess.DEVNULL, stderr=said,
            env={**os.environ, "PYTHONPATH": paths, "OMP_NUM_THREADS": threads}, start_new_session=True,
        )  # fmt: skip
    assert process.stdin is not None
    process.stdin.write(json.dumps(given, default=str).encode() + b"\n")
    process.stdin.flush()
    return process


def follow() -> None:
    """What each of the others does: what it is told by the first, until its part is done or the first has ended.

    A signal that a whole group of processes gets (`timeout`, a job that is cancelled) is for the first alone, which
    still writes a checkpoint.
    """
    global _team
    signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)
    given = json.loads(sys.stdin.readline())
    threading.Thread(target=_end_with_the_first, daemon=True).start()
    _team = _Team(given["rank"], given["devices"], Path(given["folder"]))
    device = _team.devices[_team.rank]
    if device != "cpu":
        torch.cuda.set_device(device)
    settings = from_object(pkgutil.resolve_name(given["kind"]), given["settings"], UsageError, "settings")
    pkgutil.resolve_name(given["train"])(replace(settings, device=device), silent, time.monotonic())


def _end_with_the_first() -> None:
    while os.read(0, 1):  # nothing more comes, until its end of the pipe closes
        pass
    os._exit(1)


def _failure(team: _Team) -> TrainingError | None:
    """What ended the one of the others that failed first; None where none has."""
    ends, failed = time.monotonic() + _ENDING, list[tuple[int, int, int]]()
    for rank, process in enumerate(team.others, start=1):
        with contextlib.suppress(subprocess.TimeoutExpired):
            if code := process.wait(max(0.0, ends - time.monotonic())):
                failed.append(((team.folder / f"{rank}.txt").stat().st_mtime_ns, rank, code))
    if not failed:
        return None
    _, rank, code = min(failed)  # what the rest say is that this one is missing
    said = (team.folder / f"{rank}.txt").read_text("utf-8", errors="replace").strip().splitlines()
    why = shorten(said[-1], 300) if said and code > 0 else f"exit code {code}"
    return TrainingError(f"Process {rank} of the training, on {team.devices[rank]}, ended: {why}")


@contextlib.contextmanager
def first_alone() -> Iterator[None]:
    """Here all processes meet: the first does what is inside, then the others do, and find it done."""
    if _team and _team.rank:
        _meet(_team)
    yield
    if _team and not _team.rank:
        _meet(_team)


def _meet(team: _Team) -> None:
    (team.folder / f"{team.rank}.here").touch()
    while len(list(team.folder.glob("*.here"))) < len(team.devices):
        if any(process.poll() for process in team.others):
            raise RuntimeError("One of the processes ended before they met.")
        time.sleep(0.02)
    before = os.environ.get(_INTERFACE)
    os.environ[_INTERFACE] = before or ("lo0" if sys.platform == "darwin" else "lo")
    try:
        dist.init_process_group(
            "gloo" if team.devices[0] == "cpu" else "nccl", rank=team.rank, world_size=len(team.devices),
            init_method=(team.folder / "meeting").absolute().as_uri(),
        )  # fmt: skip
        team.talk = dist.new_group(backend="gloo", timeout=_LONGEST)
    finally:
        if before is None:
            del os.environ[_INTERFACE]


def dismiss() -> None:
    """The others end here: what follows is done by the first one alone."""
    global _team
    if _team:
        dist.barrier(group=_team.talk)
        if _team.rank:
            os._exit(0)
    _team = None


def count() -> int:
    """How many processes train together."""
    return len(_team.devices) if _team else 1


def is_first() -> bool:
    """Whether this process reports and writes."""
    return not _team or not _team.rank


def share(size: int) -> slice:
    """Which of `size` things are this process's: the whole with one device, else an equal share, where there is one."""
    rank = _team.rank if _team else 0
    return slice(rank * size // count(), (rank + 1) * size // count())


def gathered(items: Sequence[T]) -> list[T]:
    """The items of all processes, those of the first one first."""
    if not _team:
        return list(items)
    found: list[Any] = [None] * count()
    dist.all_gather_object(found, list(items), group=_team.talk)
    return [item for own in found for item in own]


def averaged(
    loss: Tensor, parts: Mapping[str, float | Tensor], parameters: Iterable[nn.Parameter]
) -> tuple[float, dict[str, float | Tensor]]:
    """The mean over all processes of a loss, of its parts, and, in their place, of the parameters' gradients.

    Every process has gradients of the same parameters.
    """
    if not _team:
        return float(loss.detach()), dict(parts)
    said = torch.tensor([float(loss.detach()), *map(float, parts.values())], dtype=torch.float64) / count()
    dist.all_reduce(said, group=_team.talk)  # where a process is missing, this says so
    for gradient in (one.grad for one in parameters if one.grad is not None):
        gradient /= count()
        dist.all_reduce(gradient)
    value, *means = said.tolist()
    return value, dict(zip(parts, means, strict=True))


@torch.no_grad()
def copy_first(module: nn.Module) -> None:
    """Give all processes the weights and buffers of the first, once that one is here."""
    if _team:
        dist.barrier(group=_team.talk)
        for tensor in (*module.parameters(), *module.buffers()):
            dist.broadcast(tensor, 0)
        if torch.device(_team.devices[0]).type == "cuda":
            torch.cuda.synchronize(_team.devices[_team.rank])


def mean_of_all(tensor: Tensor) -> Tensor:
    """The mean of a tensor over all processes; no gradient passes."""
    mean = tensor / count()
    dist.all_reduce(mean)
    return mean
