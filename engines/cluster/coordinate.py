"""Hands the chunks of a run to workers until the run has all it needs.

Knows: which worker has which chunk, what becomes of a chunk whose worker is lost, and when a slow one is tried a second
time. Knows nothing about how workers are reached (`Pool`), how they paint, or what a dataset is.
"""

import statistics
import time
from collections import Counter, deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Protocol

from engines.cluster.commits import Commit
from engines.cluster.ledger import Ledger
from engines.common.plurals import counted
from engines.errors import RunError
from engines.painting.run_settings import RunSettings, differences

TRIES = 3  # of a chunk whose workers are lost
_SLOW = 2.0  # times as long as usual is slow enough for a second try
_AT_LEAST = 1.0  # seconds that a chunk is at work before a second try
_MIXED = {"engine", "precision", "threads", "backend", "slots", "rows"}  # what `allow_mixed` allows to differ


@dataclass(frozen=True)
class Opened:
    """A worker is ready, and would paint the run like this."""

    worker: str
    run: RunSettings


@dataclass(frozen=True)
class Painted:
    """A worker has painted what it was given: the chunk is committed, by it or by somebody before."""

    worker: str
    commit: Commit
    mine: bool


@dataclass(frozen=True)
class Lost:
    """A worker is gone, with what it was given; it may come back as one that is opened."""

    worker: str
    why: str


News = Opened | Painted | Lost


def unlike(run: RunSettings, other: RunSettings, allow_mixed: bool) -> list[str]:
    """What keeps one who would paint like `other` from painting the run; engines and devices may be mixed, or not.

    How many images a chunk has the run alone says: a worker that opened before it was written knows nothing of it.
    """
    other = replace(other, options=replace(other.options, chunk=run.options.chunk))
    return [text for field, text in differences(run, other) if not (allow_mixed and field in _MIXED)]


class Pool(Protocol):
    """Workers, wherever they are. It starts them by itself, and others where some are lost."""

    def poll(self, seconds: float) -> Sequence[News]:
        """What happened since, after so many seconds at most. Raises what ends a run, such as a bad reference."""

    def paint(self, worker: str, number: int, attempt: int) -> None:
        """Give a worker a chunk."""

    def dismiss(self, worker: str) -> None:
        """Use a worker no more."""

    def more(self) -> bool:
        """Whether other workers may come."""


@dataclass
class _Task:
    number: int
    begun: float


@dataclass
class Figures:
    """How it goes, for people."""

    workers: int = 0
    lost: int = 0
    second: int = 0  # second tries
    refused: int = 0  # workers that are not like the others
    painted: int = 0  # images, by this start


class Coordinator:
    """One start of a run, over many workers."""

    def __init__(
        self,
        run: RunSettings,
        ledger: Ledger,
        pool: Pool,
        *,
        say: Callable[[str], None],
        tell: Callable[[Figures], None] = lambda figures: None,
        check: Callable[[], None] = lambda: None,
        refresh: Callable[[], None] = lambda: None,
        allow_mixed: bool = False,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """`say` is given lines, `tell` the figures after each step. `check` raises where this must not go on; `refresh`
        adds to the ledger what others committed."""
        self._run, self._ledger, self._pool = run, ledger, pool
        self._say, self._tell, self._check, self._refresh = say, tell, check, refresh
        self._mixed, self._clock = allow_mixed, clock
        self._idle: deque[str] = deque()
        self._busy: dict[str, _Task] = {}
        self._attempts: Counter[int] = Counter()
        self._failed: Counter[int] = Counter()
        self._times: deque[float] = deque(maxlen=64)
        self._gone = ""  # why the last one that is no more is none
        self.figures = Figures()

    def work(self, stop: Callable[[], bool] = lambda: False, poll: float = 0.5) -> bool:
        """Go on until the run has all it needs; False where `stop` came first: what was begun is then finished.

        Raises RunError where a chunk's workers are lost again and again, or none is left, and what the pool raises.
        """
        while not self._ledger.over:
            self._check()
            stopping = stop()
            if stopping and not self._busy:
                return False
            if not stopping:
                self._hand_out()
            for news in self._pool.poll(poll):
                self._take(news)
            if self._gone and not self.figures.workers and not self._pool.more():
                raise RunError(f"No worker is left: {self._gone}")
            self._refresh()
            self._tell(self.figures)
        return True

    def take(self, news: News) -> None:
        """What the pool said before this was made."""
        self._take(news)

    def _hand_out(self) -> None:
        while self._idle:
            number = next(self._ledger.wanted({task.number for task in self._busy.values()}), None)
            if number is None and (number := self._slowest()) is None:
                return
            worker = self._idle.popleft()
            self._attempts[number] += 1
            self._busy[worker] = _Task(number, self._clock())
            self._pool.paint(worker, number, self._attempts[number])

    def _slowest(self) -> int | None:
        """At the tail: the chunk that takes longer than usual, for longest, and that one worker alone has."""
        usual = statistics.median(self._times) if self._times else 0.0
        least = self._clock() - max(_SLOW * usual, _AT_LEAST)
        at_work = Counter(task.number for task in self._busy.values())
        tasks = sorted(self._busy.values(), key=lambda task: task.begun)
        slow = (t.number for t in tasks if t.begun <= least and at_work[t.number] == 1 and not self._has(t.number))
        if (number := next(slow, None)) is not None:
            self.figures.second += 1
        return number

    def _has(self, number: int) -> bool:
        return self._ledger.has(number)

    def _take(self, news: News) -> None:
        if isinstance(news, Opened):
            self._admit(news)
        elif isinstance(news, Painted):
            task, commit = self._busy.pop(news.worker), news.commit
            self._times.append(self._clock() - task.begun)
            self._idle.append(news.worker)
            if not self._has(commit.chunk):
                self.figures.painted += commit.jobs
            self._ledger.add(commit.chunk, commit.jobs, commit.kept, commit.unkept)
        else:
            self._lose(news)
        self.figures.workers = len(self._idle) + len(self._busy)

    def _admit(self, news: Opened) -> None:
        """Use a worker, or say why not."""
        found = unlike(self._run, news.run, self._mixed)
        if not found:
            self._idle.append(news.worker)
            return
        self.figures.refused += 1
        self._gone = f"{news.worker} is not used, since it is not as the run: {'; '.join(found)}."
        self._say(self._gone.removesuffix("."))
        self._pool.dismiss(news.worker)

    def _lose(self, news: Lost) -> None:
        self.figures.lost += 1
        if news.worker in self._idle:
            self._idle.remove(news.worker)
        task = self._busy.pop(news.worker, None)
        number = None if task is None or self._has(task.number) else task.number
        chunk = "" if number is None else f", with chunk {number}"
        self._gone = f"{news.worker} is lost{chunk}: {news.why}"
        self._say(self._gone)
        if number is None:
            return
        self._failed[number] += 1
        if self._failed[number] >= TRIES:
            raise RunError(
                f"Chunk {number} was lost {counted(TRIES, 'time')}, at last with {news.worker}: {news.why} What is "
                "committed stays, and the same command goes on from there."
            )
