"""`dengine report`: a run in one HTML file that needs no network.

Knows: where the run is and where the file goes. What is in it is `figures`' matter, how it looks `page`'s.
"""

from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from engines.common.events import Report, note, silent
from engines.common.files import write_atomic
from engines.common.schema import AnyPath, settle
from engines.common.spell import command
from engines.painting.run_settings import RunSettings
from engines.painting.settings import PaintOptions
from engines.report.figures import gather
from engines.report.page import page
from engines.runs.rules_in_force import rules_in_force
from engines.runs.run_folder import require_run, run_errors

REPORT = "report.html"
_NOT_ASKED = ("chunk", "slots", "rows", "threads", "short_side", "frequencies")  # what follows from the rest


@dataclass(frozen=True)
class ReportSettings:
    """What is reported on. Paths may be text.

    >>> ReportSettings("runs/first").out is None
    True
    """

    run: AnyPath  # the folder of a run
    out: AnyPath | None = None  # the file; None: report.html in the run's folder

    def __post_init__(self) -> None:
        settle(self)


@dataclass(frozen=True)
class ReportSummary:
    """What was written.

    >>> from pathlib import Path
    >>> ReportSummary(Path("run/report.html"), images=2, bytes=90_000).file.name
    'report.html'
    """

    file: Path
    images: int  # in the dataset
    bytes: int  # of the file


def report(settings: ReportSettings, *, report: Report | None = None) -> ReportSummary:
    """Write a run's report. The same run gives the same file.

    Raises RunError for a folder that is no run, or whose images are gone, DatasetError for one that cannot be read.

    >>> report(ReportSettings("run")).images
    2
    """
    say, folder = report or silent, settings.run
    run = require_run(folder)
    rules = rules_in_force(folder, run)
    say(note("reading the journal, and a sample of the images"))
    found = gather(folder, run, rules)
    text = page(folder.resolve().name, run, rules, found, _again(run))
    file = settings.out or folder / REPORT
    with run_errors(file.parent):
        file.parent.mkdir(parents=True, exist_ok=True)
        write_atomic(file, text.encode())
    return ReportSummary(file, found.labels.images, len(text.encode()))


def _again(run: RunSettings) -> str:
    """The command that repeats the run: what differs from the defaults."""
    plain = {item.name: item.default for item in fields(PaintOptions)}
    asked: dict[str, Any] = {}
    for name, value in vars(run.options).items():
        if value is None or value == plain[name] or name in _NOT_ASKED or value is False:
            continue
        asked[name] = value
    return command("generate", asked | {"out": "again"})
