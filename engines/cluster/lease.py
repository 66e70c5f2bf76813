"""Who drives a run, and who is alive: leases without a clock that anybody shares.

Knows: an epoch that only one can begin, a beat that its holder keeps changing, and that who sees no change for long
enough, by his own clock, may begin the next epoch. Clocks of different machines are never compared. Knows nothing
about chunks: two drivers at once could waste work, and harm nothing, since a commit is written once.

    driver/00000003.json    who began epoch 3
    driver/00000003.beat    a number that its holder counts up
    driver/00000003.end     that he is done
"""

import contextlib
import json
import os
import socket
import threading
import time
from collections.abc import Callable, Iterator

from engines.cluster.store import Store
from engines.common.quote import quote
from engines.errors import RunError

BEAT = 2.0  # seconds between two beats
PATIENCE = 15.0  # seconds without a beat after which a holder is gone
DRIVER = "driver"


class Beat:
    """An object that a thread counts up while this lives, so that others see so."""

    def __init__(self, store: Store, name: str, every: float, each: Callable[[], None] = lambda: None) -> None:
        """`each` is called at every beat."""
        self._store, self._name, self._every, self._each = store, name, every, each
        self._stop = threading.Event()
        self._count = 0
        self._beat()
        self._thread = threading.Thread(target=self._work, daemon=True)
        self._thread.start()

    def close(self) -> None:
        """End it."""
        self._stop.set()
        self._thread.join()

    def _beat(self) -> None:
        self._count += 1
        self._store.put(self._name, str(self._count).encode())

    def _work(self) -> None:
        while not self._stop.wait(self._every):
            with contextlib.suppress(RunError):  # the next one may pass; who reads sees none, and waits
                self._beat()
                self._each()


class Watch:
    """Which beats have stopped, by this process's own clock."""

    def __init__(self, store: Store, patience: float = PATIENCE) -> None:
        self._store, self._patience = store, patience
        self._seen: dict[str, tuple[bytes | None, float]] = {}  # beat -> (its last value, when that was new)

    def is_gone(self, name: str) -> bool:
        """Whether a beat has not changed for long enough, since it was first asked for."""
        value, now = self._store.get(name), time.monotonic()
        before = self._seen.get(name)
        if before is None or before[0] != value:
            self._seen[name] = (value, now)
            return False
        return now - before[1] >= self._patience


class Lease:
    """That this process drives a run; a context manager."""

    def __init__(self, store: Store, epoch: int, beat: float) -> None:
        self._store, self.epoch = store, epoch
        self._lost = False
        self._beat = Beat(store, f"{DRIVER}/{epoch:08d}.beat", beat, self._look)

    def __enter__(self) -> "Lease":
        return self

    def __exit__(self, *_: object) -> None:
        self._beat.close()
        with contextlib.suppress(RunError):
            self._store.create(f"{DRIVER}/{self.epoch:08d}.end", b"")

    def check(self) -> None:
        """Raise RunError where another one began the next epoch, since this one seemed to be gone."""
        if self._lost:
            raise RunError(f"{self._store.where}: another dengine took over this run, and goes on with it.")

    def _look(self) -> None:
        self._lost = self._lost or self._store.get(f"{DRIVER}/{self.epoch + 1:08d}.json") is not None


def take_lease(
    store: Store, *, beat: float = BEAT, patience: float = PATIENCE, say: Callable[[str], None] = lambda text: None
) -> Lease:
    """Become the driver of a run. Raises RunError, naming the other one, where one is at work.

    Where there was one that did not say that it is done, it takes `patience` seconds to be sure that it is gone; at
    once on its own machine, where its process can be looked for.
    """
    epoch = max(_epochs(store), default=0)
    if epoch and store.get(f"{DRIVER}/{epoch:08d}.end") is None:
        holder = _holder(store, epoch)
        if not _has_died(holder):
            say(f"waiting for {patience:.0f} s to see whether the driver on {_place(holder)} is alive")
            watch, name = Watch(store, patience), f"{DRIVER}/{epoch:08d}.beat"
            first = store.get(name)
            while not watch.is_gone(name):
                if store.get(name) != first:
                    raise _in_use(store, holder)
                time.sleep(min(beat / 2, patience / 4))
    mine = {"host": socket.gethostname(), "pid": os.getpid(), "boot": _boot()}
    if not store.create(f"{DRIVER}/{epoch + 1:08d}.json", json.dumps(mine).encode()):
        raise _in_use(store, _holder(store, epoch + 1))
    return Lease(store, epoch + 1, beat)


def _in_use(store: Store, holder: dict[str, object]) -> RunError:
    return RunError(f"{store.where} is driven by another dengine, on {_place(holder)}: wait for it, or stop it.")


def _place(holder: dict[str, object]) -> str:
    return f"{quote(holder.get('host'))}, process {quote(holder.get('pid'))}"


def _holder(store: Store, epoch: int) -> dict[str, object]:
    with contextlib.suppress(ValueError, RecursionError):
        found = json.loads(store.get(f"{DRIVER}/{epoch:08d}.json") or b"{}")
        if isinstance(found, dict):
            return found
    return {}


def _has_died(holder: dict[str, object]) -> bool:
    """Whether the holder was a process of this machine, since it was started, and is none any more."""
    pid = holder.get("pid")
    if holder.get("host") != socket.gethostname() or holder.get("boot") != _boot() or type(pid) is not int:
        return False
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return pid > 0
    except (OSError, OverflowError):
        return False
    return False


def _boot() -> str:
    """What is this machine's own since it was started; "" where the system does not say."""
    with contextlib.suppress(OSError), open("/proc/sys/kernel/random/boot_id", encoding="ascii") as file:
        return file.read().strip()
    return ""


def _epochs(store: Store) -> Iterator[int]:
    for name in store.names(DRIVER):
        number, _, kind = name.rpartition("/")[2].partition(".")
        if kind == "json" and number.isdecimal():
            yield int(number)
