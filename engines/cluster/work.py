"""`dengine work`: a worker that nobody starts: it takes chunks of a run by itself until none is left.

Knows: how a chunk is claimed, and when a claim of somebody else is void. For SLURM arrays, Kubernetes jobs, and any
machine that sees the store. Knows nothing about Ray.

    claims/00000012/0001      the beat of who paints chunk 12, first try
    beats/<worker>            what it counts up while it lives
"""

import re
import time
import uuid
from collections.abc import Callable
from dataclasses import dataclass
from itertools import islice

from engines.cluster.commits import read_commit
from engines.cluster.coordinate import unlike
from engines.cluster.generate import probe
from engines.cluster.lease import BEAT, PATIENCE, Beat, Watch
from engines.cluster.ledger import Ledger
from engines.cluster.records import read_asked, read_run_of, write_run
from engines.cluster.store import Store, open_store
from engines.cluster.worker import Worker, worker_name
from engines.common.events import Event, EventKind, Report, note, silent
from engines.common.schema import settle
from engines.common.verbs import verb
from engines.errors import RunError
from engines.runs.pace import STAGE

_LOOKED_AT = 256  # chunks that are looked at for one that nobody has
_REST = 1.0  # seconds between two looks, while others have all


@dataclass(frozen=True)
class WorkSettings:
    """What `work` is asked for.

    >>> WorkSettings("s3://bucket/run").allow_mixed
    False
    """

    run: str  # a run's folder, or the address of its store
    allow_mixed: bool = False  # paint although device, engine or precision are not the run's

    def __post_init__(self) -> None:
        settle(self)


@dataclass(frozen=True)
class WorkSummary:
    """What one worker did.

    >>> WorkSummary("machine:7", chunks=2, painted=8, seconds=2.0, over=True).painted
    8
    """

    worker: str
    chunks: int  # that it committed
    painted: int  # images
    seconds: float
    over: bool  # whether the run has all it was to have


@verb
def work(
    settings: WorkSettings, *, report: Report | None = None, stop: Callable[[], bool] = lambda: False
) -> WorkSummary:
    """Paint chunks of a run until it has all it needs, or `stop` returns True: the chunk in work is then finished.

    The run was begun with `cluster=workers`. Raises RunError for a place where no run was begun, and for a machine that
    would paint it otherwise; and what `generate` raises.

    >>> work(WorkSettings("nowhere"))
    Traceback (most recent call last):
    RunError: nowhere is not a run on many machines: ...
    """
    started, report = time.monotonic(), report or silent
    store = open_store(settings.run)
    asked = read_asked(store)
    report(note("opening bundle and backend"))
    with Worker(store, asked) as worker:
        run = read_run_of(store) or write_run(store, worker.run, new=True)
        if found := unlike(run, worker.run, settings.allow_mixed):
            raise RunError(f"{worker_name()} would paint this run otherwise: {'; '.join(found)}.")
        ledger = Ledger(run)
        ledger.read(store)
        report(Event(EventKind.STARTED, STAGE, run.backend, ledger.done, ledger.state.target))
        beat = f"beats/{worker_name()}-{uuid.uuid4().hex[:8]}"
        claims, pulse = Claims(store, beat), Beat(store, beat, BEAT)
        chunks = painted = 0
        try:
            while not ledger.over and not stop():
                number, attempt = claims.take(ledger)
                if not attempt:
                    time.sleep(_REST)
                    probe(store, ledger)
                    continue
                commit, mine = worker.paint(number, attempt)
                chunks, painted = chunks + mine, painted + commit.jobs * mine
                ledger.add(number, commit.jobs, commit.kept, commit.unkept)
                report(Event(EventKind.PROGRESS, STAGE, done=ledger.done, total=ledger.state.target))
        finally:
            pulse.close()
            store.delete(beat)
    return WorkSummary(worker.name, chunks, painted, time.monotonic() - started, ledger.over)


class Claims:
    """Which chunk is whose, as far as one worker has to know."""

    def __init__(self, store: Store, beat: str, patience: float = PATIENCE) -> None:
        """`beat`: the object that says that this worker lives."""
        self._store, self._beat, self._watch = store, beat, Watch(store, patience)

    def take(self, ledger: Ledger) -> tuple[int, int]:
        """Claim the lowest chunk that is wanted and nobody paints: its number, and the try that it is; (0, 0) where
        others have all."""
        for number in list(islice(ledger.wanted(), _LOOKED_AT)):
            if attempt := self._claim(number):
                if (commit := read_commit(self._store, number)) is None:
                    return number, attempt
                ledger.add(number, commit.jobs, commit.kept, commit.unkept)
        return 0, 0

    def _claim(self, number: int) -> int:
        """The try for which this worker has the chunk; 0 where another one has it."""
        attempt = 1
        while not self._store.create(_claim_name(number, attempt), self._beat.encode()):
            holder = (self._store.get(_claim_name(number, attempt)) or b"").decode(errors="replace")
            if re.fullmatch(r"beats/[\w.:\-]+", holder) and not self._is_gone(holder):
                return 0
            attempt += 1
        return attempt

    def _is_gone(self, holder: str) -> bool:
        return self._store.get(holder) is None or self._watch.is_gone(holder)


def _claim_name(number: int, attempt: int) -> str:
    return f"claims/{number:08d}/{attempt:04d}"
