"""`dengine review`: look at a run or a dataset, and decide."""

from pathlib import Path
from typing import Annotated

import typer

from dengine_cli import console
from dengine_cli.options import Boxes, FollowLinks
from dengine_cli.settings import settings_of

EXAMPLE = "dengine review runs/first"
SETTINGS = "engines.review.server:ReviewSettings"
FIELDS = {"open": "show", "format": "kind"}  # settings whose parameters have another name here
AFTER_INTERRUPT = "every decision that the page showed as saved is on the disk"


def command(
    what: Annotated[
        Path, typer.Argument(metavar="RUN|DATASET", help="Folder of a run, of a labelled dataset, or of an audit.")
    ],
    split: Annotated[str | None, typer.Option(help="Part of the dataset, such as train.")] = None,
    audit: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Findings of dengine audit.  [default: audit.json in the folder]"),
    ] = None,
    port: Annotated[int, typer.Option(help="Of this machine, which alone can open the page; 0: any.")] = 0,
    show: Annotated[bool, typer.Option("--open/--no-open", help="Open the page in the browser.")] = True,
    skip_bad: Annotated[bool, typer.Option("--skip-bad", help="Leave bad images and annotations out.")] = False,
    follow_links: FollowLinks = False,
    boxes: Boxes = "auto",
    kind: Annotated[
        str | None,
        typer.Option(
            "--format", metavar="FORMAT", help="Write it as decided, without a page: coco, cvat, labelstudio."
        ),
    ] = None,
    out: Annotated[Path | None, typer.Option(metavar="FILE", help="With --format: the file to write.")] = None,
    corrections: Annotated[
        Path | None,
        typer.Option("--import", metavar="FILE", help="Take the boxes of a file from CVAT (COCO) or Label Studio."),
    ] = None,
) -> None:
    """Look at a run or a dataset in the browser, and keep, reject and correct.

    Decisions go to review.jsonl in the folder, and nothing is deleted: dengine finalize RUN writes the dataset as
    decided.
    """
    parameters = locals()
    from engines.review.server import ReviewSettings, review
    from engines.runs.run_folder import RUN

    with console.ProgressBars() as bars:
        summary = review(settings_of(ReviewSettings, parameters, FIELDS), report=console.reporter(bars))
    if corrections is not None:
        console.echo(f"{summary.taken} corrections taken from {corrections}")
    if summary.file is not None:
        console.echo(f"{summary.images} images in {summary.file}")
    console.echo(f"{summary.decisions} decisions in {summary.folder}")
    if (summary.folder / RUN).exists():
        console.next_step("finalize", summary.folder)
    elif kind is None and summary.decisions:
        reviewed = summary.folder.with_name(f"{summary.folder.name}-reviewed.json")
        console.next_step("review", what, *console.option("--split", split), "--format", "coco", "--out", reviewed)
