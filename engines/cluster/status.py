"""How far a run on many machines is, from anywhere that sees its store.

Knows: that the commits say what is there, and `progress.json` what the driver last said of its workers.
"""

from dataclasses import dataclass
from typing import Any

from engines.cluster.ledger import Ledger
from engines.cluster.records import read_progress_of, require_run_of
from engines.cluster.store import open_store
from engines.common.events import Report, note
from engines.common.schema import in_range, settle
from engines.common.verbs import verb
from engines.painting.settings import LIMIT

_TOLD = {"workers": int, "images_per_second": float, "lost": int, "second_tries": int}  # of the driver's numbers


@dataclass(frozen=True)
class StatusSettings:
    """Which run `status` is asked of.

    >>> StatusSettings("runs/big").run
    'runs/big'
    """

    run: str  # a run's folder, or the address of its store

    def __post_init__(self) -> None:
        settle(self)


@dataclass(frozen=True)
class Status:
    """What is there of a run.

    >>> Status("s3://bucket/run", done=10, target=20, chunks=3, whole=2, over=False).over
    False
    """

    run: str
    done: int  # kept images, or jobs, of the target that are committed
    target: int
    chunks: int  # committed
    whole: int  # of them, from the first on without a gap: what the run uses so far
    over: bool
    workers: int | None = None  # as the driver last said; None where there never was one
    images_per_second: float | None = None
    lost: int | None = None
    second_tries: int | None = None


@verb
def status(settings: StatusSettings, *, report: Report | None = None) -> Status:
    """How far a run is. Raises RunError where there is none.

    >>> status(StatusSettings("nowhere"))
    Traceback (most recent call last):
    RunError: nowhere is not a run on many machines: ...
    """
    store = open_store(settings.run)
    if report is not None:
        report(note("reading what is committed"))
    ledger = Ledger(require_run_of(store))
    ledger.read(store)
    told = read_progress_of(store) or {}
    numbers: dict[str, Any] = {
        name: kind(value)
        for name, kind in _TOLD.items()
        if isinstance(value := told.get(name), int | float) and in_range(value, 0, LIMIT)
    }
    return Status(
        run=store.where,
        done=ledger.done,
        target=ledger.state.target,
        chunks=ledger.found,
        whole=ledger.whole,
        over=ledger.over,
        **numbers,
    )
