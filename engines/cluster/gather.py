"""The folder of a run, written from what many machines committed.

Knows: the order of it, and that a run in a store is gathered when it is over. Knows nothing about who painted.
"""

from dataclasses import dataclass
from pathlib import Path

from engines.cluster.assemble import assemble
from engines.cluster.ledger import Ledger
from engines.cluster.records import require_run_of
from engines.cluster.store import Store, open_store
from engines.common.events import Event, EventKind, Report, silent
from engines.common.schema import AnyPath, settle
from engines.common.verbs import verb
from engines.errors import RunError
from engines.painting.run_settings import RunSettings
from engines.runs.dataset_files import remove_dataset_files
from engines.runs.dataset_rules import read_rules
from engines.runs.generate import finish_run
from engines.runs.run_folder import check_folder, locked, read_run, run_errors, start_run
from engines.runs.summaries import DatasetSummary


@dataclass(frozen=True)
class GatherSettings:
    """What `gather` is asked for.

    >>> GatherSettings("s3://bucket/run", out="runs/big").out.name
    'big'
    """

    run: str  # address of a store, or a run's folder
    out: AnyPath  # folder for the dataset: new, or the one that an earlier call was given

    def __post_init__(self) -> None:
        settle(self)


@verb
def gather(settings: GatherSettings, *, report: Report | None = None) -> DatasetSummary:
    """Write the folder of a run whose chunks are in a store: what one machine would have left.

    Raises RunError for a run that is not finished, and for a folder that is another one's.

    >>> gather(GatherSettings("nowhere", out="big"))
    Traceback (most recent call last):
    RunError: nowhere is not a run on many machines: ...
    """
    report, folder = report or silent, settings.out
    store = open_store(settings.run)
    run = require_run_of(store)
    ledger = Ledger(run)
    ledger.read(store)
    if not ledger.over:
        raise RunError(
            f"{store.where} is not finished: {ledger.done} of {ledger.state.target} are there. Go on with it, then "
            "gather it.",
            field="runs",
        )
    check_folder(folder)
    with locked(folder), run_errors(folder):
        return collect(store, run, ledger, folder, report)


def collect(store: Store, run: RunSettings, ledger: Ledger, folder: Path, report: Report) -> DatasetSummary:
    """Write a run's locked folder from what is committed, and its dataset."""
    start_run(folder, run, read_run(folder))
    remove_dataset_files(folder)

    def told(chunks: int) -> None:
        report(Event(EventKind.PROGRESS, "collecting", done=chunks, total=ledger.whole))

    assemble(store, folder, run, ledger.whole, told)
    return finish_run(folder, run, read_rules(folder), ledger.state, report)
