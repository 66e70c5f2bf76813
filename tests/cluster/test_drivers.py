"""One driver a run, workers that come by themselves, and what is said of those who are not like the others."""

import json
import os
import socket
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from fakes import FakeBackend, make_bundle, tree
from many_machines import SOURCE, PurePainter, cluster_settings, on_other_device

from engines.cluster import generate as driving
from engines.cluster import lease as lease_module
from engines.cluster import work as working
from engines.cluster.commits import committed_from, write_chunk
from engines.cluster.coordinate import TRIES, Coordinator, Lost, Opened, Painted
from engines.cluster.gather import GatherSettings, gather
from engines.cluster.generate import chunk_for, generate_on_cluster
from engines.cluster.lease import take_lease
from engines.cluster.ledger import Ledger
from engines.cluster.paint import paint_chunk
from engines.cluster.records import read_asked, write_asked, write_run
from engines.cluster.settings import ClusterSettings
from engines.cluster.status import StatusSettings, status
from engines.cluster.store import Store, open_store
from engines.cluster.work import Claims, WorkSettings, work
from engines.errors import RunError, UsageError
from engines.painting.settings import GenerateSettings
from engines.runs import preview as preview_module
from engines.runs.generate import generate

pytestmark = pytest.mark.cluster
OpenFresh = Callable[[str], Store]


@pytest.fixture
def settings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> GenerateSettings:
    """What is asked of a run on the fake backend, in threads of this process."""
    bundle = make_bundle(tmp_path / "bundle")
    bundle.folder.mkdir()
    monkeypatch.setattr("engines.bundle.bundle.open_bundle", lambda folder: bundle)
    monkeypatch.setattr("engines.backends.registry.open_backend", lambda *_, **__: FakeBackend())
    monkeypatch.setattr(preview_module, "_CELL", 16)
    monkeypatch.setattr(driving, "_TELL", 0.05)
    monkeypatch.setattr(working, "_REST", 0.05)
    return GenerateSettings(out=tmp_path / "many", bundle=tmp_path / "bundle", count=12, chunk=4, slots=2, seed=3)


def without_chunks(folder: Path) -> dict[str, bytes]:
    return {name: data for name, data in tree(folder).items() if not name.startswith(".dengine/cluster/")}


def paint_with(settings: GenerateSettings, cluster: ClusterSettings, place: str, workers: int = 2) -> Any:
    """A driver that paints nothing, and workers that come when it has said what is to be done."""
    failed = threading.Event()
    with ThreadPoolExecutor(workers + 1) as pool:
        try:
            driver = pool.submit(generate_on_cluster, settings, cluster, stop=failed.is_set)
            while not driver.done() and not _is_asked(place, settings):
                time.sleep(0.02)
            painters = [pool.submit(work, WorkSettings(place), stop=failed.is_set) for _ in range(workers)]
            for one in painters:
                assert one.result(30).over
            return driver.result(30)
        except BaseException:
            failed.set()
            raise


def _is_asked(place: str, settings: GenerateSettings) -> bool:
    try:
        return read_asked(open_store(place)).count == settings.count
    except RunError:
        return False


def test_workers_that_come_by_themselves_leave_the_files_of_one_process(
    settings: GenerateSettings, tmp_path: Path
) -> None:
    generate(replace(settings, out=tmp_path / "one"))
    summary = paint_with(settings, ClusterSettings(cluster="workers"), str(settings.out))
    assert without_chunks(settings.out) == tree(tmp_path / "one")
    assert not summary.interrupted
    found = status(StatusSettings(str(settings.out)))
    assert found.over
    assert (found.images_per_second or 0) > 0, "by others"
    larger = replace(settings, count=20)
    generate(replace(larger, out=tmp_path / "one"))
    paint_with(larger, ClusterSettings(cluster="workers"), str(settings.out))
    assert without_chunks(settings.out) == tree(tmp_path / "one")
    left = [path.name for path in (settings.out / ".dengine" / "cluster" / "chunks").rglob("data-*")]
    used = status(StatusSettings(str(settings.out)))
    assert len(left) == used.chunks - used.whole  # what is in the dataset is not there twice


def test_a_run_in_a_bucket_is_gathered_into_the_files_of_one_process(
    settings: GenerateSettings, tmp_path: Path, open_fresh: OpenFresh
) -> None:
    store = open_fresh("gathered")
    cluster = ClusterSettings(cluster="workers", store=store.address, dataset=False)
    with pytest.raises(RunError):
        gather(GatherSettings(store.address, tmp_path / "early"))
    assert paint_with(settings, cluster, store.address, workers=1).dataset is None
    generate(replace(settings, out=tmp_path / "one"))
    gather(GatherSettings(store.address, tmp_path / "gathered"))
    assert without_chunks(tmp_path / "gathered") == tree(tmp_path / "one")
    assert not settings.out.exists()


def test_a_second_driver_is_refused_while_the_first_one_lives(open_fresh: OpenFresh) -> None:
    store = open_fresh("drivers")
    with take_lease(store, beat=0.02, patience=2.0) as first:
        with pytest.raises(RunError, match=socket.gethostname()):
            take_lease(store, beat=0.02, patience=2.0)
        first.check()
    with take_lease(store, beat=0.02, patience=2.0) as second:
        assert second.epoch == first.epoch + 1


def test_a_driver_that_seemed_to_be_gone_stops_when_another_took_over(open_fresh: OpenFresh) -> None:
    store = open_fresh("gone")
    said: list[str] = []
    sleepy = take_lease(store, beat=3600.0)
    with take_lease(store, beat=0.02, patience=0.2, say=said.append):
        sleepy._look()
        with pytest.raises(RunError):
            sleepy.check()
    assert len(said) == 1


def test_a_driver_of_this_machine_that_died_is_followed_at_once(
    open_fresh: OpenFresh, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = open_fresh("died")
    child = os.fork()
    if child == 0:
        os._exit(0)
    os.waitpid(child, 0)
    dead = {"host": socket.gethostname(), "pid": child, "boot": lease_module._boot()}
    store.create("driver/00000001.json", json.dumps(dead).encode())
    said: list[str] = []
    with take_lease(store, say=said.append) as lease:
        assert lease.epoch == 2
    assert said == []


def test_the_chunk_of_a_worker_that_is_gone_is_claimed_again(open_fresh: OpenFresh) -> None:
    store, ledger = open_fresh("claims"), Ledger(cluster_settings())
    store.put("beats/one", b"1")
    store.put("beats/two", b"1")
    one, two = Claims(store, "beats/one", 0.1), Claims(store, "beats/two", 0.1)
    assert one.take(ledger) == (0, 1)
    assert two.take(ledger) == (1, 1)
    store.delete("beats/one")
    assert two.take(ledger) == (0, 2)


class ScriptedPool:
    """News as they are written down, and what was asked for."""

    def __init__(self, news: list[list[Opened | Painted | Lost]]) -> None:
        self.news, self.asked, self.dismissed = news, list[tuple[str, int, int]](), list[str]()

    def poll(self, seconds: float) -> list[Opened | Painted | Lost]:
        return self.news.pop(0)

    def paint(self, worker: str, number: int, attempt: int) -> None:
        self.asked.append((worker, number, attempt))

    def dismiss(self, worker: str) -> None:
        self.dismissed.append(worker)

    def more(self) -> bool:
        return bool(self.news)


@pytest.mark.parametrize("mixed", [False, True])
def test_a_worker_on_another_device_is_named_and_not_used(mixed: bool) -> None:
    run, said = cluster_settings(), list[str]()
    pool = ScriptedPool([[Opened("the odd one", on_other_device(run))], []])
    coordinator = Coordinator(run, Ledger(run), pool, say=said.append, allow_mixed=mixed)
    with pytest.raises(IndexError if mixed else RunError):  # the script is over
        coordinator.work(poll=0)
    assert pool.dismissed == ([] if mixed else ["the odd one"])
    assert [worker for worker, *_ in pool.asked] == (["the odd one"] if mixed else [])
    assert ["the odd one" in text for text in said] == ([] if mixed else [True])


def test_a_run_all_of_whose_workers_are_refused_ends_and_says_why() -> None:
    run = cluster_settings()
    pool = ScriptedPool([[Opened("one", on_other_device(run))], [Opened("two", on_other_device(run))]])
    with pytest.raises(RunError, match="two"):
        Coordinator(run, Ledger(run), pool, say=lambda text: None).work(poll=0)
    assert pool.dismissed == ["one", "two"]


def test_a_run_all_of_whose_workers_are_lost_for_good_ends_and_says_why() -> None:
    run = cluster_settings()
    pool = ScriptedPool([[Opened("one", run), Opened("two", run)], [Lost("one", "Full."), Lost("two", "Broken.")]])
    with pytest.raises(RunError, match=r"two .*Broken\."):
        Coordinator(run, Ledger(run), pool, say=lambda text: None).work(poll=0)


def test_a_worker_that_opened_before_the_run_had_its_chunks_is_used() -> None:
    run, early = cluster_settings(chunk=2), cluster_settings(chunk=16)
    pool = ScriptedPool([[Opened("early", early)], []])
    with pytest.raises(IndexError):  # the script is over
        Coordinator(run, Ledger(run), pool, say=lambda text: None).work(poll=0)
    assert [worker for worker, *_ in pool.asked] == ["early"]


def test_a_chunk_that_is_lost_again_and_again_ends_the_run_with_the_workers_name() -> None:
    run = cluster_settings()
    again: list[Opened | Painted | Lost] = [Lost("one", "Killed."), Opened("one", run)]
    pool = ScriptedPool([[Opened("one", run)], *[again] * TRIES])
    with pytest.raises(RunError, match=r"Chunk 0 .*one"):
        Coordinator(run, Ledger(run), pool, say=lambda text: None).work(poll=0)
    assert pool.asked == [("one", 0, attempt) for attempt in range(1, TRIES + 1)]


def test_a_slow_chunk_is_tried_a_second_time_at_the_tail(open_fresh: OpenFresh) -> None:
    run, store = cluster_settings(count=None, jobs=8), open_fresh("slow")
    done = [write_chunk(store, paint_chunk(PurePainter(), SOURCE, run, n), "cpu", "me", 1)[0] for n in (0, 1)]
    pool = ScriptedPool([
        [Opened("quick", run), Opened("slow", run)], [Painted("quick", done[0], True)], [], [],
        [Painted("quick", done[1], True)],
    ])  # fmt: skip
    clock = iter(range(0, 1000, 10))
    coordinator = Coordinator(run, Ledger(run), pool, say=lambda text: None, clock=lambda: float(next(clock)))
    assert coordinator.work(poll=0)
    assert pool.asked == [("quick", 0, 1), ("slow", 1, 1), ("quick", 1, 2)]
    assert coordinator.figures.second == 1
    assert sorted(committed_from(store, 0)) == [0, 1]


def test_a_machine_that_would_paint_otherwise_does_not_work(settings: GenerateSettings, tmp_path: Path) -> None:
    store = open_store(f"file://{tmp_path}/store", make=True)
    write_asked(store, settings)
    with pytest.raises(RunError, match=r"no run\.json"):
        status(StatusSettings(store.address))
    run = cluster_settings()
    write_run(store, run, new=True)
    with pytest.raises(RunError, match="otherwise"):
        work(WorkSettings(store.address))


def test_chunks_are_enough_for_all_workers() -> None:
    run = cluster_settings(count=1000, chunk=64, slots=4)
    assert [chunk_for(run, workers) for workers in (1, 4, 8, 1000)] == [64, 64, 32, 4]
    assert chunk_for(cluster_settings(count=512, chunk=48, slots=4), 2) == 44  # 12 chunks, not 11: nobody waits


@pytest.mark.parametrize(
    ("wrong", "field"),
    [({"cluster": "nowhere"}, "cluster"), ({"workers": 0}, "workers"), ({"worker_gpus": -1.0}, "worker_gpus")],
)
def test_what_is_out_of_range_is_said(wrong: dict[str, Any], field: str) -> None:
    with pytest.raises(UsageError) as refused:
        ClusterSettings(**wrong)
    assert refused.value.field == field
