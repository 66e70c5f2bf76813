"""`dengine report`: what a verb left in a folder, in one HTML file that needs no network.

Knows: whose folder it is, and where the file goes. What is in it is the matter of each kind's own file: `figures` and
`page` of a run, `labels`, `training`, `comparison`. An audit has a page already.
"""

from dataclasses import dataclass
from pathlib import Path

from engines.adapter.info import INFO_FILE
from engines.common.events import Report, note, silent
from engines.common.files import write_atomic
from engines.common.schema import AnyPath, settle, walked
from engines.common.verbs import verb
from engines.errors import DatasetError, RunError
from engines.report.comparison import COMPARISON, comparison_page
from engines.report.figures import gather
from engines.report.labels import labelled_info, labels_page
from engines.report.page import page
from engines.report.training import adapter_page, base_page
from engines.runs.again import generate_command
from engines.runs.rules_in_force import rules_in_force
from engines.runs.run_folder import RUN, require_run, run_errors

REPORT, AUDITED = "report.html", "audit.html"
_PAGES = {INFO_FILE: adapter_page, COMPARISON: comparison_page, "model_index.json": base_page}  # by a file of theirs


@dataclass(frozen=True)
class ReportSettings:
    """What is reported on. Paths may be text.

    >>> ReportSettings("runs/first").out is None
    True
    """

    folder: AnyPath  # of a run, of labels, an adapter, a base model, a comparison or an audit
    out: AnyPath | None = None  # the file; None: report.html in the folder

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
    images: int  # in the dataset; that were labelled, learned from, or measured on; 0: not known
    bytes: int  # of the file


@verb
def report(settings: ReportSettings, *, report: Report | None = None) -> ReportSummary:
    """Write the report of a folder: of a run, of labels, of what was trained, or of a comparison.

    The same folder gives the same file. The page of an audit is written by `audit` alone, with what it found: that one
    is named, or copied to `out`. Raises RunError for a folder that is none of these, or whose images are gone, and
    other DengineErrors for one that cannot be read.

    >>> report(ReportSettings("run")).images
    2
    """
    say, folder = report or silent, settings.folder
    say(note("reading the folder, and a sample of its images"))
    with run_errors(folder):
        if (folder / AUDITED).is_file() and not (folder / RUN).exists():
            file = settings.out or folder / AUDITED
            text, images = (folder / AUDITED).read_text("utf-8"), 0
        else:
            file = settings.out or folder / REPORT
            text, images = _drawn(folder)
        data = text.encode("utf-8", "replace")  # halves of letters, which files hold as they like
        if file != folder / AUDITED:
            file.parent.mkdir(parents=True, exist_ok=True)
            write_atomic(file, data)
    return ReportSummary(file, images, len(data))


def _drawn(folder: Path) -> tuple[str, int]:
    """The page of a folder, and how many images it is about."""
    if not (folder / RUN).exists():
        for file, draw in _PAGES.items():
            if (folder / file).is_file():
                with walked(
                    RunError, f"{folder / file}, or a file beside it, is not as dengine wrote it: make it anew."
                ):
                    return draw(folder)
        if (info := labelled_info(folder)) is not None:
            with walked(DatasetError, f"{folder} is not as label left it: label the images again."):
                return labels_page(folder, info)
    run = require_run(folder)
    rules = rules_in_force(folder, run)
    found = gather(folder, run, rules)
    return page(folder.resolve().name, run, rules, found, generate_command(run)), found.labels.images
