"""Whatever dies whenever: the chunks of many machines come to the files of one, none lost and none twice.

The schedules are drawn from seeds. `make test` plays a few; DENGINE_SCHEDULES=50 plays that many.
"""

import os
import random
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from itertools import count
from pathlib import Path

import pytest
from fakes import tree
from many_machines import FragileStore, KilledError, SimulatedPool, cluster_settings, one_machine

from engines.cluster.assemble import assemble
from engines.cluster.commits import committed_from, read_commit
from engines.cluster.coordinate import Coordinator
from engines.cluster.ledger import Ledger, beyond
from engines.cluster.store import Store
from engines.errors import RunError
from engines.painting.run_settings import RunSettings
from engines.runs.run_folder import start_run

pytestmark = pytest.mark.cluster
SCHEDULES = int(os.environ.get("DENGINE_SCHEDULES", "3"))


def drive(store: Store, run: RunSettings, seed: int, dies_after: int | None = None) -> SimulatedPool:
    """One start of a driver, which dies after so many writes of its workers, at a data object or a commit."""
    ledger = Ledger(run)
    ledger.read(store)
    fragile = store if dies_after is None else FragileStore(store, dies_after)
    pool = SimulatedPool(fragile, run, seed)
    clock = count()
    Coordinator(run, ledger, pool, say=lambda text: None, clock=lambda: float(next(clock))).work(poll=0.0)
    return pool


def drive_on(store: Store, run: RunSettings, seed: int) -> None:
    """Start a driver, and once more where a chunk was lost so often that it ended: as its message says."""
    try:
        drive(store, run, seed)
    except RunError:
        drive(store, run, seed + 500)


def collect(store: Store, run: RunSettings, folder: Path) -> dict[str, bytes]:
    ledger = Ledger(run)
    ledger.read(store)
    assert ledger.over
    start_run(folder, run, None)
    assemble(store, folder, run, ledger.whole)
    return tree(folder)


@pytest.fixture(scope="module")
def truth(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    return tree(one_machine(tmp_path_factory.mktemp("one") / "run", cluster_settings()))


@pytest.mark.parametrize("seed", range(SCHEDULES))
def test_a_schedule_of_losses_and_two_drivers_gives_the_files_of_one_machine(
    open_fresh: Callable[[str], Store], truth: dict[str, bytes], tmp_path: Path, seed: int
) -> None:
    """A machine of two goes and another comes, up to three times a driver; the driver dies between two writes; then two
    drivers work on one run at the same time, as two that do not know of each other would."""
    store, run, rng = open_fresh(f"schedule{seed}"), cluster_settings(), random.Random(seed)
    for start in range(rng.randrange(3)):
        with pytest.raises((KilledError, RunError)):
            drive(store, run, 100 * seed + start, dies_after=rng.randrange(1, 6))
    with ThreadPoolExecutor(2) as drivers:
        list(drivers.map(lambda number: drive_on(store, run, number), (seed, seed + 1000)))
    assert collect(store, run, tmp_path / "run") == truth
    numbers = sorted(committed_from(store, 0))
    assert numbers == list(range(len(numbers)))
    commits = [read_commit(store, number) for number in numbers]
    assert all(one is not None and store.get(one.data, first=1) for one in commits)


def test_a_larger_count_goes_on_with_what_lay_beyond(open_fresh: Callable[[str], Store], tmp_path: Path) -> None:
    store, run = open_fresh("larger"), cluster_settings()
    larger = replace(run, options=replace(run.options, count=40))
    drive(store, run, seed=11)
    first = collect(store, run, tmp_path / "run")
    before = set(committed_from(store, 0))
    pool = drive(store, larger, seed=12)
    assert not before & set(pool.painted)
    ledger = Ledger(larger)
    ledger.read(store)
    assert beyond(ledger) == len(set(committed_from(store, 0))) - ledger.whole
    start_run(tmp_path / "run", larger, run)
    assemble(store, tmp_path / "run", larger, ledger.whole)
    assert tree(tmp_path / "run") == tree(one_machine(tmp_path / "one", larger)) != first


def test_a_number_of_jobs_ends_with_a_chunk_that_is_cut(open_fresh: Callable[[str], Store], tmp_path: Path) -> None:
    run = cluster_settings(count=None, jobs=13)
    store = open_fresh("jobs")
    drive(store, run, seed=5)
    assert collect(store, run, tmp_path / "run") == tree(one_machine(tmp_path / "one", run))
    assert sorted(committed_from(store, 0)) == [0, 1, 2, 3]
