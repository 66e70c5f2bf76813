"""`generate` on many machines: the driver.

Knows: the order of it: settings, workers, chunks, the run's folder, its dataset. Paints nothing, and needs no GPU.
Knows nothing about how workers are reached (`ray_pool`) or who gets which chunk (`coordinate`).
"""

import math
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from itertools import islice

from engines.cluster.assemble import gone_chunks
from engines.cluster.assets import find_bundle, find_references, leave_assets
from engines.cluster.commits import forget_chunk, read_commit
from engines.cluster.coordinate import Coordinator, Figures, News, Opened
from engines.cluster.gather import collect
from engines.cluster.lease import take_lease
from engines.cluster.ledger import Ledger
from engines.cluster.ray_pool import RayPool
from engines.cluster.records import for_workers, read_run_of, write_asked, write_progress, write_run
from engines.cluster.settings import OTHERS, ClusterSettings
from engines.cluster.store import Store, open_store
from engines.common.events import Event, EventKind, Report, note, silent
from engines.common.plurals import counted
from engines.common.verbs import verb
from engines.errors import RunError
from engines.painting.resolve import FormerEngine, resolve
from engines.painting.run_settings import RunSettings
from engines.painting.settings import GenerateSettings
from engines.runs.pace import STAGE
from engines.runs.run_folder import check_folder, check_format, check_same, locked, read_run, run_errors
from engines.runs.summaries import DatasetSummary

_TELL = 1.0  # seconds between two looks at how far the run is
_PROBED = 64  # chunks that others may have committed, looked for at once
_CHUNKS_A_WORKER = 4  # at least, so that all end nearly together


@dataclass(frozen=True)
class ClusterSummary:
    """What one start of a run on many machines did.

    >>> ClusterSummary(None, painted=8, seconds=2.0, images_per_second=4.0, lost=0, second=0, interrupted=False).lost
    0
    """

    dataset: DatasetSummary | None  # None where the run's chunks stay in a store
    painted: int  # images, by this start
    seconds: float
    images_per_second: float
    lost: int  # workers
    second: int  # tries of chunks that took long elsewhere
    interrupted: bool  # stopped before its target; the same command goes on
    done: int = 0  # kept images, or jobs, that are committed, of the target
    target: int = 0


@verb
def generate_on_cluster(
    settings: GenerateSettings,
    cluster: ClusterSettings,
    *,
    report: Report | None = None,
    stop: Callable[[], bool] = lambda: False,
) -> ClusterSummary:
    """Paint a run on many machines, or go on with one, and write its folder as one machine would.

    Chunks are committed to `cluster.store`, or inside `settings.out`; with `cluster.dataset` off that is all. Once
    `stop` returns True no new chunk is begun: those in work are finished. Whatever ends it, the same settings go on
    from what is committed. Raises what `generate` raises, and RunError where another driver is at work.

    >>> generate_on_cluster(GenerateSettings(out="many", jobs=2), ClusterSettings(store="ftp://host/run"))
    Traceback (most recent call last):
    RunError: ftp://host/run: ftp:// is unknown; ...
    """
    started, report = time.monotonic(), report or silent
    with ExitStack() as stack:
        if cluster.dataset:
            check_folder(settings.out)
            stack.enter_context(locked(settings.out))
            stack.enter_context(run_errors(settings.out))
        store = open_store(cluster.store or settings.out, make=True)
        store.check()
        asked = for_workers(settings, cluster)
        bundle, references = find_bundle(store, asked), find_references(store, asked)
        stack.enter_context(lease := take_lease(store, say=lambda text: report(note(text))))
        run = read_run_of(store)
        if run is None and cluster.dataset and read_run(settings.out) is not None:
            raise RunError(f"{settings.out} is a run of one machine: give a new folder.", field="out")
        figures, over = Figures(), False
        if run is not None:
            check_format(settings.out, run)
            wanted = _as_given(resolve(asked, bundle, FormerEngine.of(asked, run), references, run), settings)
            check_same(settings.out, wanted, run)
            run = run if wanted == run else write_run(store, wanted, new=False)
            over = _ledger(store, run, settings, cluster).over
        if not over:
            write_asked(store, asked)
            leave_assets(store, asked, bundle, lambda text: report(note(text)))
            painter = _Painting(store, asked, settings, cluster, report, lease.check, stop)
            run, figures, over = painter.work(run)
        painting = time.monotonic() - started
        ledger = None if run is None else _ledger(store, run, settings, cluster)
        dataset = None
        if run is not None and ledger is not None and cluster.dataset:
            dataset = collect(store, run, ledger, settings.out, report)
    return ClusterSummary(
        dataset=dataset,
        painted=figures.painted,
        seconds=time.monotonic() - started,
        images_per_second=figures.painted / painting,
        lost=figures.lost,
        second=figures.second,
        interrupted=not over,
        done=ledger.done if ledger else 0,
        target=ledger.state.target if ledger else settings.count or settings.jobs or 0,
    )


class _Painting:
    """The part of a start in which there are workers."""

    def __init__(
        self,
        store: Store,
        asked: GenerateSettings,
        settings: GenerateSettings,
        cluster: ClusterSettings,
        report: Report,
        check: Callable[[], None],
        stop: Callable[[], bool],
    ) -> None:
        self._store, self._asked, self._settings, self._cluster = store, asked, settings, cluster
        self._report, self._check, self._stop = report, check, stop
        self._begun, self._told = time.monotonic(), 0.0
        self._before = 0  # images that were there already

    def work(self, run: RunSettings | None) -> tuple[RunSettings | None, Figures, bool]:
        """Paint until all is there. The run, None where nothing began; the figures; and whether it is over."""
        with self._pool() as pool:
            early: list[News] = []
            while run is None:
                self._check()
                if self._stop():
                    return None, Figures(), False
                early += pool.poll(_TELL)
                run = self._first_run(early, pool)
            ledger = _ledger(self._store, run, self._settings, self._cluster)
            self._before = ledger.done
            self._report(Event(EventKind.STARTED, STAGE, self._place(run), ledger.done, ledger.state.target))
            coordinator = Coordinator(
                run, ledger, pool, check=self._check, allow_mixed=self._cluster.allow_mixed,
                say=lambda text: self._report(note(text)), tell=lambda figures: self._tell(ledger, figures),
                refresh=(lambda: probe(self._store, ledger)) if isinstance(pool, NoPool) else (lambda: None),
            )  # fmt: skip
            for news in early:
                coordinator.take(news)
            over = coordinator.work(self._stop)
            ledger.write_index(self._store)
            self._told = 0.0
            self._tell(ledger, coordinator.figures)
            return run, coordinator.figures, over

    @contextmanager
    def _pool(self) -> Iterator["RayPool | NoPool"]:
        if self._cluster.cluster == OTHERS:
            yield NoPool()
            return
        self._report(note("reaching the cluster"))
        with RayPool(self._store.address, self._asked, self._cluster) as pool:
            self._report(note("opening workers"))
            yield pool

    def _first_run(self, early: list[News], pool: "RayPool | NoPool") -> RunSettings | None:
        """What the first worker makes of what was asked for, with chunks for all of them; None while there is none."""
        first = next((news.run for news in early if isinstance(news, Opened)), None)
        if first is None or isinstance(pool, NoPool):
            return read_run_of(self._store)
        chunk = chunk_for(first, pool.room()) if self._asked.chunk is None else first.options.chunk
        run = _as_given(replace(first, options=replace(first.options, chunk=chunk)), self._settings)
        return write_run(self._store, run, new=True)

    def _place(self, run: RunSettings) -> str:
        who = "whoever comes" if self._cluster.cluster == OTHERS else f"the cluster {self._cluster.cluster}"
        return f"{run.backend}, on {who}, {counted(run.options.chunk, 'image')} a chunk"

    def _tell(self, ledger: Ledger, figures: Figures) -> None:
        now = time.monotonic()
        if now - self._told < _TELL:
            return
        self._told = now
        others = self._cluster.cluster == OTHERS
        speed = (ledger.done - self._before if others else figures.painted) / (now - self._begun)
        who = "by others" if others else f"{counted(figures.workers, 'worker')}, {figures.lost} lost"
        text = f"{speed:.2f} images/s, {who}"
        text += f", {figures.second} tried twice" if figures.second else ""
        done, target = ledger.done, ledger.state.target
        self._report(Event(EventKind.PROGRESS, STAGE, text, done, target))
        write_progress(self._store, {
            "done": done, "target": target, "chunks": ledger.found, "images_per_second": round(speed, 4),
            "workers": figures.workers, "lost": figures.lost, "second_tries": figures.second,
            "refused": figures.refused, "over": ledger.over,
        })  # fmt: skip


class NoPool:
    """Nobody of this driver's own: the run is painted by those who come by themselves."""

    def poll(self, seconds: float) -> list[News]:
        """Nothing, after a while."""
        time.sleep(seconds)
        return []

    def paint(self, worker: str, number: int, attempt: int) -> None:
        """Not called: there is no worker."""

    def dismiss(self, worker: str) -> None:
        """Not called: there is no worker."""

    def more(self) -> bool:
        """Nobody knows who comes."""
        return True

    def room(self) -> int:
        """None."""
        return 0


def probe(store: Store, ledger: Ledger) -> None:
    """Add chunks that others committed, of those that are painted next."""
    for number in list(islice(ledger.wanted(), _PROBED)):
        if (commit := read_commit(store, number)) is not None:
            ledger.add(number, commit.jobs, commit.kept, commit.unkept)
    ledger.write_index(store)


def chunk_for(run: RunSettings, workers: int) -> int:
    """Jobs in a chunk for so many workers: at most what one machine takes, and as many chunks for each; in whole slots.

    Decided once: it is in `run.json`, and one machine that is to paint the same bytes is given it.
    """
    slots, asked = run.options.slots, run.options.count or run.options.jobs or 1
    rounds = max(_CHUNKS_A_WORKER, math.ceil(asked / (max(workers, 1) * run.options.chunk)))
    share = asked / (max(workers, 1) * rounds)
    return min(run.options.chunk, max(slots, math.ceil(share / slots) * slots))


def _as_given(run: RunSettings, settings: GenerateSettings) -> RunSettings:
    """The run with its places as they were named: workers were told of absolute ones."""
    return replace(run, options=replace(run.options, bundle=settings.bundle, reference=settings.reference))


def _ledger(store: Store, run: RunSettings, settings: GenerateSettings, cluster: ClusterSettings) -> Ledger:
    """What is committed; a commit whose data is gone before it reached the folder does not count."""
    ledger = Ledger(run)
    ledger.read(store)
    if cluster.dataset and store.folder is not None:
        gone = gone_chunks(store, settings.out, run, ledger.whole)
        for commit in gone:
            forget_chunk(store, commit)
        if gone:
            ledger = Ledger(run)
            ledger.read(store)
    return ledger
