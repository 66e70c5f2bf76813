"""`dengine label`: the adapter's boxes on real images."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from dengine_cli import console
from dengine_cli.options import Boxes, Device, FollowLinks, Looks, Threads
from dengine_cli.reporting import NoReport, draw_report
from dengine_cli.settings import settings_of
from engines.common.events import duration, left_out
from engines.common.plurals import counted, plural

if TYPE_CHECKING:
    from engines.labelling import LabelSummary

EXAMPLE = "dengine label my-images --bundle bundles/mine --out labels"
SETTINGS = "engines.labelling:LabelSettings"
WRITES = "out"  # the parameter with its folder
AFTER_INTERRUPT = "the same command begins anew"


def command(
    images: Annotated[
        Path, typer.Argument(metavar="IMAGES", help="Folder of images, or a dataset to measure the adapter on.")
    ],
    out: Annotated[Path, typer.Option(help="Folder for the labels.")],
    bundle: Annotated[Path | None, typer.Option(help="Bundle to label with.  [default: the bundled model]")] = None,
    split: Annotated[str | None, typer.Option(help="Part of the dataset, such as val.")] = None,
    prompt: Annotated[
        str, typer.Option(help="generic, empty, or listing, which names the annotated classes.")
    ] = "generic",
    engine: Annotated[str, typer.Option(help="auto, tensorrt, torch, openvino or onnxruntime.")] = "auto",
    precision: Annotated[str, typer.Option(help="f32, bf16, f16, or auto: the fastest here.")] = "auto",
    threads: Threads = None,
    device: Device = None,
    score: Annotated[
        str | None,
        typer.Option(
            metavar="SCORE",
            help="Write labels to learn from: no box below a number, CLASS=NUMBER,... or, with adapter, its own "
            "thresholds, or, with matched, what makes labels as frequent as the annotations that the adapter learned "
            "from, 0.3 at least: what those left out, matched leaves out, too.  [default: all boxes]",
        ),
    ] = None,
    ignore_score: Annotated[
        float, typer.Option(help="Boxes from here up to --score become COCO crowds; 0: none.")
    ] = 0.0,
    max_overlap: Annotated[
        float, typer.Option(help="With --score: of two boxes of a class with a larger IoU, the surer stays; 1: both.")
    ] = 1.0,
    tta: Looks = 1,
    skip_bad: Annotated[bool, typer.Option("--skip-bad", help="Leave broken images out and list them.")] = False,
    follow_links: FollowLinks = False,
    boxes: Boxes = "auto",
    no_report: NoReport = False,
) -> None:
    """Put the adapter's boxes on real images.

    Boxes are in the images' own pixels, all that score 0.05 or more, in a COCO file. Where the images have
    annotations, all boxes are measured against them, as average precision, and labels as precision and recall.
    """
    parameters = locals()
    from engines.labelling import LabelSettings, label

    settings = settings_of(LabelSettings, parameters)
    with console.ProgressBars() as bars:
        summary = label(settings, report=console.reporter(bars))
    show_labels(summary)
    draw_report(settings.out, no_report)
    if summary.score is not None:
        console.next_step("review", out)
    else:
        more = (*console.option("--split", split), *console.option("--bundle", bundle))
        console.next_step("label", images, *more, "--score", "adapter", "--out", f"{out}-chosen")


def show_labels(summary: "LabelSummary") -> None:
    """Print what was found, how good it is where that is known, and where it is."""
    from engines.labels.scores import shown

    for line in left_out((), summary.unreadable):
        console.note(line)
    console.echo(
        f"{counted(summary.images, 'image')} with {counted(summary.boxes, 'box')} in {duration(summary.seconds)}"
    )
    names = list(summary.boxes_by_class)
    header, rows = ["class", "boxes"], [[name, str(summary.boxes_by_class[name])] for name in names]
    if summary.annotated:
        figures = {**summary.figures, **summary.own_figures}
        labels = summary.score is not None or summary.own_figures
        shown_figures = ["AP", "AP50"] + (["precision", "recall"] if labels else [])
        header += shown_figures
        for row, name in zip(rows, names, strict=True):
            row += [_figure(figures, f"{figure}/{name}") for figure in shown_figures]
        rows.append(["all", str(summary.boxes), *(_figure(summary.figures, figure) for figure in shown_figures)])
    console.echo(console.table(rows, header))
    if summary.own_score is not None:
        console.echo(
            f"precision and recall: of boxes that generate would take for labels, at least {shown(summary.own_score)}"
        )
    if summary.score is None:
        console.echo(f"{counted(summary.boxes, 'box')} are all that were found, however unsure; with --score, labels")
    if summary.score is not None:
        console.echo(f"labels score at least {shown(summary.score)}")
    if summary.ignored:
        more = f"{counted(summary.ignored, 'more region')} {plural(summary.ignored, 'is')}"
        console.echo(f"{more} to be ignored (iscrowd)")
    if summary.unknown_classes:
        console.note(f"annotated, but unknown to the adapter, and not counted: {', '.join(summary.unknown_classes)}")
    if summary.seen:
        console.note(
            f"seen in training: {len(summary.seen)} of {counted(summary.images, 'image')}, {summary.seen[0]} first. "
            "What is found on them says little about others"
        )
    console.echo(f"annotations  {summary.annotations}")


def _figure(figures: Any, name: str) -> str:
    return f"{figures[name]:.3f}" if name in figures else "-"
