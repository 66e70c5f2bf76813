"""`dengine review`: opens a run or a dataset, and serves its page to this machine alone.

Knows: what is opened in which order, the socket, and how a review ends. Knows nothing about what the page shows.
"""

import contextlib
import secrets
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from engines.common.events import Report, note, silent
from engines.common.schema import AnyPath, settle
from engines.common.verbs import verb
from engines.datasets.dataset import open_dataset
from engines.errors import DatasetError, RunError, refuse
from engines.review.answers import Pages
from engines.review.exchange import FORMATS, export, read_corrections
from engines.review.findings import AUDIT, Audit, Finding, names_in, read_audit
from engines.review.guard import Guard
from engines.review.index import Index
from engines.review.log import ReviewLog
from engines.review.session import Session
from engines.review.sources import DatasetSource, RunSource, Source
from engines.runs.run_folder import RUN, require_run

if TYPE_CHECKING:
    import uvicorn
    from starlette.types import ASGIApp


@dataclass(frozen=True)
class ReviewSettings:
    """What is reviewed. Paths may be text. Raises UsageError that lists every mistake at once.

    >>> ReviewSettings("runs/first", open=False).port
    0
    """

    what: AnyPath  # a run, a labelled dataset, or the folder of an audit
    split: str | None = None  # part of the dataset
    audit: AnyPath | None = None  # the audit's file; None: audit.json in the folder, where there is one
    port: int = 0  # 0: any that is free
    open: bool = True  # show the page in this machine's browser
    skip_bad: bool = False  # leave bad images and annotations of a dataset out
    follow_links: bool = False  # follow links that lead outside the dataset
    boxes: str = "auto"  # what the numbers of its boxes mean, see `open_dataset`
    format: str | None = None  # one of exchange.FORMATS: write the dataset as decided to `out`, and show no page
    out: AnyPath | None = None  # the file of `format`
    corrections: AnyPath | None = None  # a file of another tool: take its boxes as decisions, and show no page

    def __post_init__(self) -> None:
        settle(self)
        checks = (
            ("port", 0 <= self.port <= 65535, f"`port` is {self.port}; 0 (any), or a number up to 65535, was expected"),
            ("format", self.format in (None, *FORMATS), f"`format` is {self.format!r:.60}; one of {', '.join(FORMATS)} "
             "was expected"),
            ("out", (self.format is None) == (self.out is None), "`format` and `out` belong together: give both"),
        )  # fmt: skip
        refuse((name, text) for name, fits, text in checks if not fits)


@dataclass(frozen=True)
class ReviewSummary:
    """What a review left.

    >>> from pathlib import Path
    >>> ReviewSummary(Path("run"), "run", 3).decisions
    3
    """

    folder: Path  # where the decisions are
    kind: str  # "run" or "dataset"
    decisions: int  # that stand, those of earlier reviews among them
    taken: int = 0  # decisions that corrections came to, where some were read
    file: Path | None = None  # what `format` wrote
    images: int = 0  # in it


def open_source(settings: ReviewSettings) -> tuple[Source, Audit | None]:
    """What is reviewed, and the audit of it. Raises DatasetError, RunError."""
    folder = settings.what
    file = settings.audit or (folder / AUDIT if (folder / AUDIT).is_file() else None)
    if file is not None and file.is_dir():
        file = file / AUDIT
    audit = None if file is None else read_audit(file)
    if (folder / RUN).exists():
        return RunSource(folder, require_run(folder)), audit
    options = {"split": settings.split, "skip_bad": settings.skip_bad, "boxes": settings.boxes}
    try:
        dataset = open_dataset(folder, require_boxes=False, follow_links=settings.follow_links, **options)  # type: ignore[arg-type]
    except DatasetError:
        if audit is None or file != folder / AUDIT or not Path(audit.dataset).is_dir():
            raise
        dataset = open_dataset(audit.dataset, require_boxes=False, follow_links=settings.follow_links, **options)  # type: ignore[arg-type]
    if not dataset.class_names:
        raise DatasetError(f"{folder} has images and no classes: a labelled dataset is reviewed, or a run.")
    return DatasetSource(dataset, folder), audit


class OpenReview:
    """A review whose page can be asked for."""

    def __init__(self, session: Session, pages: Pages, port: int) -> None:
        self.session, self._token = session, secrets.token_urlsafe(24)
        from engines.review.app import make_app

        self.app: ASGIApp = Guard(make_app(pages), self._token)
        self._socket = _bound(port)
        self.url = f"http://127.0.0.1:{self._socket.getsockname()[1]}/{self._token}/"
        self._server = _server(self.app)

    def serve(self) -> None:
        """Answer until `stop`, Ctrl-C or SIGTERM."""
        with contextlib.suppress(KeyboardInterrupt):  # raised again by uvicorn after it has closed
            self._server.run(sockets=[self._socket])

    def stop(self) -> None:
        """End `serve` soon."""
        self._server.should_exit = True

    def close(self) -> None:
        """Let go of the port."""
        self._socket.close()

    @property
    def ready(self) -> bool:
        """Whether it answers."""
        return bool(self._server.started)


@contextmanager
def opened(settings: ReviewSettings) -> Iterator[OpenReview]:
    """Open a review and the socket of its page. Raises DengineError of several kinds."""
    with _begun(settings) as (session, findings, notes):
        review = OpenReview(session, Pages(session, findings, notes), settings.port)
        try:
            yield review
        finally:
            review.close()


@contextmanager
def _begun(settings: ReviewSettings) -> Iterator[tuple[Session, tuple[Finding, ...], tuple[str, ...]]]:
    """Open what is reviewed: decisions are read, the index fills in a thread."""
    source, audit = open_source(settings)
    with contextlib.closing(source), ReviewLog(source.folder) as log:
        rules = source.rules()
        index = Index(max_overlap=rules.max_overlap)
        session = Session(source, index, log, rules)
        threading.Thread(target=source.fill, args=(index,), daemon=True).start()
        findings, notes = _found(source, audit)
        yield session, findings, notes


@verb
def review(settings: ReviewSettings, *, report: Report | None = None) -> ReviewSummary:
    """Serve the page of a run or a dataset until Ctrl-C, and give what was decided by then.

    Decisions go to `review.jsonl` in the folder, each on the disk before the page goes on; nothing else of the folder
    is changed but for `.dengine/`. Raises RunError for a folder that is in review already or whose decisions cannot be
    read, DatasetError for what is neither a run nor a dataset.

    >>> review(ReviewSettings("run", format="coco", out="decided.json")).images
    2
    """
    report = report or silent
    if not settings.what.is_dir():
        what = "is a file" if settings.what.exists() else "does not exist"
        raise RunError(f"{settings.what} {what}; give the folder of a run or a dataset.", field="what")
    if settings.corrections is not None or settings.format is not None:
        with _begun(settings) as (session, *_):
            return _exchanged(session, settings, report)
    with opened(settings) as one:
        report(note(f"{one.session.source.title}: {one.url}"))
        report(note("only this machine can open it; Ctrl-C ends it, and every decision is on the disk by then"))
        if settings.open:
            _show(one.url)
        one.serve()
        session = one.session
        return ReviewSummary(session.source.folder, session.source.kind, len(session.log.decisions))


def _exchanged(session: Session, settings: ReviewSettings, report: Report) -> ReviewSummary:
    """Take corrections, then write the dataset as decided; no page is shown."""
    while not session.index.complete:
        time.sleep(0.01)
    if session.index.trouble is not None:
        raise RunError(session.index.trouble)
    taken, images = 0, 0
    if settings.corrections is not None:
        found = read_corrections(session, settings.corrections)
        if found.unknown:
            report(note(f"{found.unknown} images of {settings.corrections} are not here"))
        session.decide(found.decisions)
        taken = len(found.decisions)
    if settings.format is not None and settings.out is not None:
        images = export(session, settings.format, settings.out)
    folder, count = session.source.folder, len(session.log.decisions)
    return ReviewSummary(folder, session.source.kind, count, taken, settings.out, images)


def _found(source: Source, audit: Audit | None) -> tuple[tuple[Finding, ...], tuple[str, ...]]:
    """The audit's findings by this dataset's own names, and what to say of those about other images."""
    if audit is None:
        return (), ()
    if isinstance(source, DatasetSource):
        names = {record.name for record in source.dataset.records}
        called = names_in(sorted({one.image for one in audit.findings}), names)
    else:
        called = {one.image: Path(one.image).name for one in audit.findings}
    mine = tuple(replace(one, image=called[one.image]) for one in audit.findings if one.image in called)
    lost = len(audit.findings) - len(mine)
    return mine, (f"{lost} findings of the audit are about images that are not here.",) if lost else ()


def _bound(port: int) -> socket.socket:
    """A socket that only this machine reaches. Raises RunError for a port that is taken."""
    found = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
    found.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        found.bind(("127.0.0.1", port))
        found.listen(128)  # from here on who asks is answered, if a moment later
    except OSError as cause:
        found.close()
        raise RunError(f"`port={port}` cannot be had ({cause.strerror}): give another, or 0.", field="port") from cause
    return found


def _server(app: "ASGIApp") -> "uvicorn.Server":
    import uvicorn

    config = uvicorn.Config(
        app, log_config=None, access_log=False, server_header=False, date_header=False, lifespan="off",
        ws="none", timeout_graceful_shutdown=1, http="h11",
    )  # fmt: skip
    return uvicorn.Server(config)


def _show(url: str) -> None:
    import webbrowser

    threading.Thread(target=webbrowser.open, args=(url,), daemon=True).start()
