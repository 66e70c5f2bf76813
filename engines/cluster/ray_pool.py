"""Workers on a Ray cluster: one actor for each GPU, or for so many cores.

Knows: how Ray is reached, how many workers there is room for, and what its errors mean for a run. Knows nothing about
chunks: which one is next is the `coordinate` module's matter.

Ray Core, and not Ray Data: a chunk is painted whole by one worker, since its bytes depend on what stands in it
together.
"""

import contextlib
import os
import signal
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from engines.cluster.commits import Commit
from engines.cluster.coordinate import Lost, News, Opened, Painted
from engines.cluster.settings import HERE, ClusterSettings
from engines.common.quote import shorten
from engines.errors import BackendError, DengineError, UsageError
from engines.painting.run_settings import RunSettings
from engines.painting.settings import GenerateSettings

_LOOK = 2.0  # seconds between two looks at how large the cluster is


class PaintingActor:
    """What lives in a worker's process."""

    def __init__(self, run: str, asked: GenerateSettings, name: str) -> None:
        """`run`: the address of the store. Nothing is opened yet: what goes wrong then is told to the driver."""
        os.environ["OMP_NUM_THREADS"] = str(asked.threads or 1)  # before anything imports torch
        self._run, self._asked, self._name = run, asked, name
        self._worker: Any = None

    def open(self) -> tuple[str, dict[str, Any]]:
        """Open everything; who and where this is, and how it would paint the run."""
        from engines.cluster.store import open_store
        from engines.cluster.worker import Worker, worker_name

        name = f"{self._name} on {worker_name()}"
        if self._worker is None:
            self._worker = Worker(open_store(self._run), self._asked, name)
            self._worker.__enter__()
        return name, self._worker.run.to_json()

    def paint(self, number: int, attempt: int) -> tuple[Commit, bool]:
        """Paint and commit a chunk."""
        found: tuple[Commit, bool] = self._worker.paint(number, attempt)
        return found


@dataclass
class _Actor:
    handle: Any
    shown: str  # who and where, for people
    opened: bool = False


class RayPool:
    """Actors that open the same run; a context manager."""

    def __init__(self, run: str, asked: GenerateSettings, cluster: ClusterSettings) -> None:
        """Reach the cluster. Raises BackendError where that fails, UsageError where it has no such workers."""
        try:
            import ray
        except ModuleNotFoundError as cause:
            raise BackendError(
                'ray is not installed. Install it with "pip install dengine[cluster]".', field="cluster"
            ) from cause
        self._ray, self._run, self._asked, self._cluster = ray, run, asked, cluster
        self._mine = not ray.is_initialized()
        if self._mine:
            _reach(ray, cluster.cluster)
        self._actors: dict[str, _Actor] = {}
        self._calls: dict[Any, tuple[str, str]] = {}  # reference -> (worker, open or paint)
        self._count, self._looked, self._ever_opened = 0, 0.0, False
        try:
            self._cpus = cluster.worker_cpus or asked.threads or 1
            self._gpus = self._gpus_of_a_worker()
            if not self.room():
                gpus = f" and {self._gpus:g} GPUs" if self._gpus else ""
                raise UsageError(
                    f"The cluster has no room for a worker of {self._cpus} cores{gpus}: give `worker_cpus`, or "
                    "`workers`, to wait until there is some.",
                    field="worker_cpus",
                )
        except BaseException:
            self._close()
            raise

    def __enter__(self) -> "RayPool":
        return self

    def __exit__(self, *_: object) -> None:
        self._close()

    def room(self) -> int:
        """How many workers there are to be."""
        if self._cluster.workers is not None:
            return self._cluster.workers
        found = self._ray.cluster_resources()
        room = int(found.get("CPU", 0) // self._cpus)
        return min(room, int(found.get("GPU", 0) / self._gpus)) if self._gpus else room

    def poll(self, seconds: float) -> Sequence[News]:
        """What happened; see `coordinate.Pool`."""
        self._grow()
        if not self._calls:
            time.sleep(min(seconds, 0.1))
            return []
        ready, _ = self._ray.wait(list(self._calls), num_returns=1, timeout=seconds)
        more, _ = self._ray.wait(list(self._calls), num_returns=len(self._calls), timeout=0)
        return [news for call in {*ready, *more} if (news := self._news(call)) is not None]

    def paint(self, worker: str, number: int, attempt: int) -> None:
        """Give a worker a chunk."""
        self._calls[self._actors[worker].handle.paint.remote(number, attempt)] = worker, "paint"

    def dismiss(self, worker: str) -> None:
        """End a worker. Another one is not begun in its place: it would be there again."""
        self._ray.kill(self._actors[worker].handle, no_restart=True)

    def more(self) -> bool:
        """Whether some are being opened, or are still to be."""
        return bool(self._calls) or len(self._actors) < self.room()

    def _news(self, call: Any) -> News | None:
        worker, kind = self._calls.pop(call)
        actor = self._actors[worker]
        try:
            found = self._ray.get(call)
        except self._ray.exceptions.RayTaskError as error:
            cause = error.cause if isinstance(error.cause, DengineError) else None
            if cause is not None and (kind == "paint" or not self._ever_opened):
                raise cause from None
            self.dismiss(worker)
            return Lost(worker, f"{shorten(cause or _last_line(error), 200)}")
        except self._ray.exceptions.RayError as error:
            if kind == "paint" or actor.opened:
                actor.opened = False
                self._open(worker)
                return Lost(worker, _last_line(error))
            self._open(worker)
            return None
        if kind == "paint":
            return Painted(worker, *found)
        actor.shown, run = found
        actor.opened = self._ever_opened = True
        return Opened(worker, RunSettings.from_json(run, actor.shown))

    def _grow(self) -> None:
        """Begin actors until there are as many as there is room for. Those of a machine that is gone come back by
        themselves, as soon as there is room."""
        if time.monotonic() - self._looked < _LOOK:
            return
        self._looked = time.monotonic()
        kind = self._ray.remote(PaintingActor)
        while len(self._actors) < self.room():
            self._count += 1
            worker = f"worker {self._count}"
            handle = kind.options(
                num_cpus=self._cpus, num_gpus=self._gpus, max_restarts=-1, max_task_retries=0,
                scheduling_strategy="SPREAD",
            ).remote(self._run, self._asked, worker)  # fmt: skip
            self._actors[worker] = _Actor(handle, worker)
            self._open(worker)

    def _open(self, worker: str) -> None:
        self._calls[self._actors[worker].handle.open.remote()] = worker, "open"

    def _gpus_of_a_worker(self) -> float:
        there = self._ray.cluster_resources().get("GPU", 0)
        asked = self._cluster.worker_gpus
        device = self._asked.device
        if asked and not there and self._cluster.workers is None:
            raise UsageError("The cluster has no GPU: take `worker_gpus=0`, or one that has some.", field="worker_gpus")
        if device is not None and device.startswith("cuda") and not there and asked is None:
            raise UsageError(f"The cluster has no GPU for `device={device}`.", field="device")
        return float((1 if there and device != "cpu" else 0) if asked is None else asked)

    def _close(self) -> None:
        with contextlib.suppress(Exception):  # the cluster may be gone
            for actor in self._actors.values():
                self._ray.kill(actor.handle, no_restart=True)
        if self._mine:
            self._ray.shutdown()


def _reach(ray: Any, address: str) -> None:
    """Connect to a cluster, or begin one on this machine."""
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    more = {"include_dashboard": False} if address == HERE else {}
    try:
        with _our_signals():
            ray.init(address=address, log_to_driver=False, logging_level="error", **more)
    except (ConnectionError, RuntimeError, ValueError, TimeoutError) as cause:
        raise BackendError(
            f"The Ray cluster `cluster={address}` can't be reached: {_last_line(cause)} Begin one with "
            f'"ray start", or take `cluster={HERE}`.',
            field="cluster",
        ) from cause


@contextlib.contextmanager
def _our_signals() -> Iterator[None]:
    """Keep the handlers of signals as they are: Ray puts its own in their place."""
    numbers = (signal.SIGINT, signal.SIGTERM)
    before = {number: signal.getsignal(number) for number in numbers}
    try:
        yield
    finally:
        for number, handler in before.items():
            with contextlib.suppress(ValueError):  # not in the main thread
                signal.signal(number, handler)


def _last_line(error: Exception) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return shorten((lines[-1] if lines else type(error).__name__).rstrip("."), 160) + "."
