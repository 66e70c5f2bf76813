"""`dengine audit`: what a dataset's own labels miss or have wrong."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from dengine_cli import console
from dengine_cli.options import Boxes, Device, FollowLinks, Looks, Threads
from dengine_cli.settings import settings_of
from engines.common.events import duration

if TYPE_CHECKING:
    from engines.audit.settings import AuditSummary

EXAMPLE = "dengine audit my-dataset --model bases/mine --folds 3 --complete labels --out audited"
SETTINGS = "engines.audit.settings:AuditSettings"
WRITES = "out"  # the parameter with its folder
FIELDS = {"base": "model", "training": "settings"}
AFTER_INTERRUPT = "the same command goes on from there"


def command(
    data: Annotated[Path, typer.Argument(metavar="DATA", help="Labelled dataset, in any format that dengine reads.")],
    out: Annotated[Path, typer.Option(help="Folder for what is found.")],
    bundle: Annotated[
        Path | None, typer.Option(help="Bundle that judges; with --folds, its base.  [default: the bundled model]")
    ] = None,
    folds: Annotated[
        int,
        typer.Option(
            help="Train so many adapters, each of which judges the images that it did not see; 0: the bundle's own "
            "judges all. For labels that the bundle's adapter learned from."
        ),
    ] = 0,
    model: Annotated[str | None, typer.Option(help="Base model of the folds.  [default: the bundle's]")] = None,
    rounds: Annotated[
        int, typer.Option(help="With --folds: so often they learn, each time with the labels found missing before.")
    ] = 2,
    steps_scale: Annotated[
        float, typer.Option(help="Length of a fold's training, as a multiple of the usual one.")
    ] = 1.0,
    settings: Annotated[
        Path | None, typer.Option(help="JSON file with any of the settings of train-adapter, for the folds.")
    ] = None,
    complete: Annotated[
        str | None,
        typer.Option(
            metavar="labels|crowds",
            help="Write a copy of the dataset with the missing labels added, as labels or as COCO crowds.",
        ),
    ] = None,
    refine: Annotated[
        bool,
        typer.Option(
            "--refine",
            help="With --complete: put each box in the middle between the label's and what was found there.",
        ),
    ] = False,
    confidence: Annotated[
        float, typer.Option(help="From here on a finding counts, and a missing label is added.")
    ] = 0.5,
    worst: Annotated[int, typer.Option(help="Images on the page, at most.")] = 30,
    split: Annotated[str | None, typer.Option(help="Part of the dataset, such as train.")] = None,
    tta: Looks = 1,
    engine: Annotated[str, typer.Option(help="auto, tensorrt, torch, openvino or onnxruntime.")] = "auto",
    precision: Annotated[str, typer.Option(help="f32, bf16, f16, or auto: the fastest here.")] = "auto",
    threads: Threads = None,
    device: Device = None,
    skip_bad: Annotated[bool, typer.Option("--skip-bad", help="Leave bad images and boxes out; list them.")] = False,
    follow_links: FollowLinks = False,
    boxes: Boxes = "auto",
) -> None:
    """Find what a dataset's own labels miss or have wrong.

    Says which objects have no label, which labels no object, which are of another class, loose, doubled or leave the
    picture, each with a confidence. OUT/audit.html shows the worst images, OUT/audit.json lists everything. The dataset
    is never changed.
    """
    parameters = locals()
    from engines.audit.audit import audit
    from engines.audit.settings import AuditSettings

    asked = settings_of(AuditSettings, parameters, FIELDS)
    with console.ProgressBars() as bars:
        summary = audit(asked, report=console.reporter(bars))
    show_audit(summary)
    console.next_step("review", out)


def show_audit(summary: "AuditSummary") -> None:
    """Print how many findings there are of each kind, and where they are shown."""
    from engines.common.events import left_out

    for line in left_out((), summary.skipped):
        console.note(line)
    console.echo(f"{summary.images} images with {summary.labels} labels, judged in {duration(summary.seconds)}")
    names = summary.class_names
    rows = [[kind, *(str(of[name]) for name in names)] for kind, of in summary.counts.items()]
    console.echo(console.table(rows, ["finding", *names]))
    shares = zip(names, summary.judgement.completeness, strict=True)
    known = [f"{name} {share:.0%}" for name, share in shares if share is not None]
    if known:
        console.echo(f"labelled, about: {', '.join(known)}")
    if summary.unknown_classes:
        console.note(f"unknown to the adapter, and not judged: {', '.join(summary.unknown_classes)}")
    if summary.completed is not None:
        moved = f", {summary.moved} boxes moved" if summary.moved else ""
        console.echo(f"completed  {summary.completed} ({summary.added} labels added{moved})")
    console.echo(f"findings   {summary.report}")
    console.echo(f"page       {summary.page}")
