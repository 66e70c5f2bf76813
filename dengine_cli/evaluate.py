"""`dengine evaluate`: what generated data is worth to a detector."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from dengine_cli import console
from dengine_cli.options import Boxes, FollowLinks
from dengine_cli.reporting import NoReport, draw_report
from dengine_cli.settings import settings_of
from engines.common.files import OWN

if TYPE_CHECKING:
    from engines.worth.evaluate import EvaluateSummary

EXAMPLE = "dengine evaluate --real train-set --synthetic runs/first --val val-set --out worth"
_SHOWN = 5  # lines on images that are known
NO_KEYS = ("changes",)  # made of --steps, --batch and so on
SETTINGS = "engines.worth.settings:EvaluateSettings"
WRITES = "out"  # the parameter with its folder
PLANS = True  # --dry-run
AFTER_INTERRUPT = "the same command with --resume goes on from there"


def command(
    real: Annotated[Path, typer.Option(metavar="DATA", help="Labelled dataset to train on: COCO, Pascal VOC or YOLO.")],
    val: Annotated[
        list[Path],
        typer.Option(metavar="DATA", help="Labelled dataset to measure on; may be repeated: no training is."),
    ],
    out: Annotated[Path, typer.Option(help="Folder for detectors and figures.")],
    synthetic: Annotated[
        list[Path] | None,
        typer.Option(
            metavar="RUN",
            help="Folder of a run, or any labelled dataset; may be repeated.  [default: the real images alone]",
        ),
    ] = None,
    split: Annotated[str | None, typer.Option(help="Part of the real dataset, such as train.")] = None,
    val_split: Annotated[
        list[str] | None,
        typer.Option(help="Part of the validation datasets, such as val; once for all, or once for each."),
    ] = None,
    images: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Text file of image names: train on these real images only.")
    ] = None,
    detector: Annotated[str, typer.Option(help="rt_detr, retinanet or faster_rcnn.")] = "rt_detr",
    preset: Annotated[str, typer.Option(help="Size of detector and training: quick, small or paper.")] = "small",
    seeds: Annotated[int | None, typer.Option(help="Trainings of each arm.  [default: the preset's]")] = None,
    seed: Annotated[int, typer.Option(help="The first of them.")] = 0,
    mix: Annotated[
        str | None,
        typer.Option(
            metavar="FIRST:LAST", help="Probability of drawing a generated image; 0.6:0 falls to 0.  [default: 0.5]"
        ),
    ] = None,
    amounts: Annotated[
        str | None,
        typer.Option(
            metavar="LIST",
            help="Generated images, the first run's first: numbers, or multiples of DATA such as 0,1x,2x.  "
            "[default: all]",
        ),
    ] = None,
    weights: Annotated[
        Path | None, typer.Option(metavar="FOLDER", help="Checkpoint to begin with.  [default: random weights]")
    ] = None,
    short_side: Annotated[
        int | None,
        typer.Option(
            help="Pixels of the short side that the detector sees.  [default: the runs', at most the preset's]"
        ),
    ] = None,
    steps: Annotated[int | None, typer.Option(help="Optimiser steps of a training.  [default: the preset's]")] = None,
    batch: Annotated[int | None, typer.Option(help="Images a step.  [default: the preset's]")] = None,
    lr: Annotated[float | None, typer.Option(help="Peak learning rate.  [default: the preset's]")] = None,
    rotate: Annotated[bool, typer.Option("--rotate", help="Turned images are as likely as upright ones.")] = False,
    device: Annotated[str | None, typer.Option(help="cpu, cuda, cuda:N, or auto.  [default: auto]")] = None,
    precision: Annotated[str | None, typer.Option(help="f32, bf16 or auto.  [default: auto]")] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on with what OUT holds.")] = False,
    skip_bad: Annotated[bool, typer.Option("--skip-bad", help="Leave bad images and boxes out; list them.")] = False,
    follow_links: FollowLinks = False,
    boxes: Boxes = "auto",
    no_report: NoReport = False,
) -> None:
    """Measure what generated data is worth.

    Trains the same detector from the same start on the real images, and on real and generated ones, with the same
    number of steps, and compares them on validation images that neither has seen. Without --synthetic, the real images
    alone are measured; the same command with it and --resume goes on from there.
    """
    parameters = locals()
    from engines.worth.evaluate import evaluate
    from engines.worth.settings import EvaluateSettings

    changes = {"steps": steps, "batch": batch, "lr": lr, "rotate": rotate or None, "device": device}
    changes["precision"] = precision
    given = {name: value for name, value in changes.items() if value is not None}
    settings = settings_of(EvaluateSettings, parameters, synthetic=tuple(synthetic or ()), changes=given)
    with console.ProgressBars() as bars:
        summary = evaluate(settings, report=console.reporter(bars))
    show_worth(summary)
    draw_report(settings.out, no_report, "report   ")
    if synthetic:
        console.next_step("review", synthetic[0])
    else:
        file, short = out / OWN / "evaluate.yaml", ("--short-side", summary.data.short_side)
        console.next_step("evaluate", "--config", file, *short, "--synthetic", "RUN", "--resume")


def show_worth(summary: "EvaluateSummary") -> None:
    """Print a table of figures for each validation set, what was left out, and where everything is."""
    from engines.worth.figures import gains, table

    for one in summary.sets:
        for line in one.left_out:
            console.note(f"left out of the validation images: {line}")
        if one.known:
            lines = "; ".join(one.known[:_SHOWN]) + (
                f"; and {len(one.known) - _SHOWN} more" * (len(one.known) > _SHOWN)
            )
            console.note(f"what painted the runs knew validation images of {one.name}, so they say too much: {lines}")
        header, rows = table(one.arms, summary.data.split_images)
        if len(summary.sets) > 1:
            console.echo(f"on {one.images} images of {one.name}")
        console.echo(console.table(rows, header))
    images = " and ".join(str(one.images) for one in summary.sets)
    if len(summary.seeds) > 1:
        trained = f"Means and standard deviations over {len(summary.seeds)} trainings of each arm"
    else:
        trained = "One training of each arm: its own luck is not measured (--seeds)"
    if len(summary.sets[0].arms) > 1:
        interval = f"95% interval of the difference over draws of the {images} validation images"
        console.echo(f"{trained}; in brackets, the {interval}.")
    else:
        console.echo(f"{trained}; {images} validation images.")
    for one in summary.sets:
        where = f" on {one.name}" if len(summary.sets) > 1 else ""
        for line in gains(one.arms, summary.data.split_images):
            console.echo(f"{line}{where}")
    console.echo(f"figures  {summary.comparison}")
    if summary.picture is None:
        console.note("no picture was drawn, since matplotlib is not installed: pip install matplotlib")
    else:
        console.echo(f"picture  {summary.picture}")
