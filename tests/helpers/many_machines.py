"""A run on many machines without machines: workers that a test moves on step by step, loses and kills as it likes.

Knows: a painter that is a pure function of a job, a pool whose every step is drawn from a seed, and a store that dies
between two writes. Knows nothing about Ray.
"""

import contextlib
import hashlib
import random
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from made_runs import run_settings

from engines.cluster.commits import write_chunk
from engines.cluster.coordinate import Lost, News, Opened, Painted
from engines.cluster.paint import paint_chunk
from engines.cluster.store import Store
from engines.labels.boxes import Instances
from engines.painting.finisher import Outcome
from engines.painting.jobs import Job, JobSource
from engines.painting.run_settings import RunSettings

FRAME = (16, 16)
SOURCE = JobSource(frame=FRAME, short_side=16, style="photo")


def cluster_settings(**changes: Any) -> RunSettings:
    """A run that the painter below paints: about three of four images are kept."""
    values: dict[str, Any] = {
        "frame": FRAME, "count": 20, "chunk": 4, "seed": 7, "reference": None, "reference_hash": None, "strength": None,
        "score": 0.3,
    }  # fmt: skip
    return run_settings(**values | changes)


class PurePainter:
    """Pixels and boxes out of a hash of (seed, index): no networks."""

    on_gpu = False

    def prompt_read(self, job: Job) -> str:
        return job.prompt

    def paint(self, jobs: Iterable[Job], stop: Callable[[], bool]) -> Iterator[Outcome]:
        for job in reversed(list(jobs)):  # in another order than theirs, as slots give them
            digest = hashlib.sha256(f"{job.seed}:{job.index}".encode()).digest()
            pixels = np.frombuffer(digest * 24, np.uint8).reshape(16, 16, 3)
            score = 0.9 if digest[0] % 4 else 0.1
            yield Outcome(job, pixels, Instances.from_rows([[1.0, 2.0, 9.5, 12.0, score, digest[1] % 2]]))


class KilledError(BaseException):
    """What a process that is killed would have done next does not happen."""


class FragileStore(Store):
    """A store whose user dies after so many writes: some of them between a chunk's data and its commit."""

    def __init__(self, store: Store, writes: int) -> None:
        super().__init__(store._inner, store.where, store.folder)
        self.left = writes

    def create(self, name: str, data: bytes) -> bool:
        if self.left == 0:
            raise KilledError
        self.left -= 1
        return super().create(name, data)


@dataclass
class _Node:
    """A machine with its workers."""

    name: str
    at_work: dict[str, tuple[int, int]] = field(default_factory=dict)  # worker -> chunk and attempt
    ready: list[str] = field(default_factory=list)
    opening: list[str] = field(default_factory=list)


class SimulatedPool:
    """Two machines of two workers. At each step a seed decides who goes on, who dies halfway, and who comes."""

    def __init__(self, store: Store, run: RunSettings, seed: int, losses: int = 3) -> None:
        self._store, self._run, self._random, self._losses = store, run, random.Random(seed), losses
        self._nodes = [self._node(number) for number in range(2)]
        self._count = 2
        self.painted: list[int] = []  # chunks, as they were painted

    def _node(self, number: int) -> _Node:
        return _Node(f"node{number}", opening=[f"node{number}-{k}" for k in range(2)])

    def poll(self, seconds: float) -> Sequence[News]:
        news: list[News] = []
        draw = self._random.random()
        if draw < 0.12 and self._losses:
            self._losses -= 1
            news += self._lose(self._random.choice(self._nodes))
        for node in self._nodes:
            news += [Opened(worker, self._run) for worker in node.opening]
            node.ready += node.opening
            node.opening = []
        if at_work := [(node, worker) for node in self._nodes for worker in node.at_work]:
            node, worker = self._random.choice(at_work)
            number, attempt = node.at_work.pop(worker)
            node.ready.append(worker)
            self.painted.append(number)
            painted = paint_chunk(PurePainter(), SOURCE, self._run, number)
            news.append(Painted(worker, *write_chunk(self._store, painted, "cpu", worker, attempt)))
        return news

    def _lose(self, node: _Node) -> list[News]:
        """A machine goes, in mid-chunk or between data and commit, and another one comes."""
        gone: list[News] = []
        for worker, (number, attempt) in node.at_work.items():
            if self._random.random() < 0.5:
                painted = paint_chunk(PurePainter(), SOURCE, self._run, number)
                with contextlib.suppress(KilledError):
                    write_chunk(FragileStore(self._store, 1), painted, "cpu", worker, attempt)
            gone.append(Lost(worker, "its machine is gone."))
        gone += [Lost(worker, "its machine is gone.") for worker in node.ready]
        self._nodes.remove(node)
        self._nodes.append(self._node(self._count))
        self._count += 1
        return gone

    def paint(self, worker: str, number: int, attempt: int) -> None:
        node = next(node for node in self._nodes if worker in node.ready)
        node.ready.remove(worker)
        node.at_work[worker] = number, attempt

    def dismiss(self, worker: str) -> None:
        for node in self._nodes:
            node.ready = [name for name in node.ready if name != worker]

    def more(self) -> bool:
        return True


def on_other_device(run: RunSettings) -> RunSettings:
    """The same run as a worker on another processor would paint it."""
    return replace(run, backend="torch, another cpu")


def one_machine(folder: Path, run: RunSettings) -> Path:
    """The images and the journal that one process leaves."""
    from engines.painting.jobs import make_job
    from engines.runs.chunks import OpenChunks
    from engines.runs.journal import IMAGES, PARTIAL, Journal, Progress, image_name
    from engines.runs.outcomes import entry_of
    from engines.runs.run_folder import start_run
    from engines.runs.state import chunks_of, state_of
    from engines.runs.writer import ImageWriter

    folder.mkdir()
    start_run(folder, run, None)
    painter, state = PurePainter(), state_of(run, Progress())
    work = OpenChunks(state)
    with Journal(folder, 0) as journal, ImageWriter(folder / IMAGES, partial=folder / PARTIAL) as writer:
        for chunk in chunks_of(run):
            if state.over:
                break
            journal.begin(chunk)
            work.begin(chunk)
            for outcome in painter.paint((make_job(SOURCE, run.options.seed, i) for i in chunk), lambda: False):
                entry = entry_of(outcome, outcome.job.prompt, run, SOURCE)
                if entry.drop is None and outcome.pixels is not None:
                    writer.submit(name := image_name(entry.index, "jpg"), outcome.pixels)
                    entry = replace(entry, file=name, sha256=next(iter(writer.drain())).sha256)
                journal.add(entry)
                state.jobs += 1
                state.kept += entry.drop is None
                work.took(entry.index, entry.drop is None)
    return folder
