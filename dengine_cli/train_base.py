"""`dengine train-base`: fit a base model to a folder of images."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from dengine_cli import console
from dengine_cli.options import Boxes, FollowLinks, PredictionType, Vae
from dengine_cli.reporting import NoReport, draw_report
from dengine_cli.settings import settings_of

if TYPE_CHECKING:
    from engines.training.train_base import TrainBaseSummary

EXAMPLE = "dengine train-base my-dataset --split train --labels all --style 'aerial photo' --out bases/mine"
SETTINGS = "engines.training.train_base:TrainBaseSettings"
WRITES = "out"  # the parameter with its folder
PLANS = True  # --dry-run
FIELDS = {"base": "continue_from"}
AFTER_INTERRUPT = "the same command with --resume goes on from there"


def command(
    data: Annotated[
        Path, typer.Argument(metavar="DATA", help="Folder of images: COCO, Pascal VOC, YOLO, or images alone.")
    ],
    out: Annotated[Path, typer.Option(help="Folder for the base model, in the diffusers layout.")],
    preset: Annotated[str, typer.Option(help="Size of a new base model: small, large.")] = "small",
    style: Annotated[str, typer.Option(help="What kind of pictures these are; prompts begin with it.")] = "photo",
    labels: Annotated[
        str,
        typer.Option(help="Whose labels may be read, to name classes in prompts: none, all, or a file of image names."),
    ] = "none",
    split: Annotated[str | None, typer.Option(help="Part of the dataset, such as train.")] = None,
    continue_from: Annotated[
        str | None,
        typer.Option(help="Go on from this base model: a diffusers folder, a .safetensors file, or a hub name."),
    ] = None,
    prediction_type: PredictionType = None,
    vae: Vae = None,
    stages: Annotated[str, typer.Option(help="Trained: vae, unet (with text encoder); or decoder.")] = "vae,unet",
    rotate: Annotated[bool, typer.Option("--rotate", help="Turned images are as likely as upright ones.")] = False,
    steps_scale: Annotated[float, typer.Option(help="Factor on the preset's training length.")] = 1.0,
    minutes: Annotated[
        float | None, typer.Option(help="About how long it takes on this machine, in place of --steps-scale.")
    ] = None,
    seed: Annotated[int, typer.Option(help="Decides every random draw.")] = 0,
    device: Annotated[str, typer.Option(help="cpu, cuda or cuda:N; auto: a GPU where there is one.")] = "auto",
    devices: Annotated[int, typer.Option(help="GPUs of this machine that share every batch.")] = 1,
    precision: Annotated[str, typer.Option(help="f32, bf16, or auto: bf16 where the machine has it.")] = "auto",
    checkpoint_minutes: Annotated[float, typer.Option(help="Minutes between checkpoints.")] = 3.0,
    resume: Annotated[bool, typer.Option("--resume", help="Go on from the last checkpoint in OUT.")] = False,
    skip_bad: Annotated[bool, typer.Option("--skip-bad", help="Leave broken images out and list them.")] = False,
    follow_links: FollowLinks = False,
    boxes: Boxes = "auto",
    no_report: NoReport = False,
) -> None:
    """Fit a base model to a folder of images; labels are not needed.

    For pictures that Stable Diffusion has never seen. The folder that comes out works with diffusers' own pipelines,
    and as --model of train-adapter and export.
    """
    parameters = locals()
    from engines.training.train_base import TrainBaseSettings, train_base

    settings = settings_of(TrainBaseSettings, parameters)
    with console.ProgressBars() as bars:
        summary = train_base(settings, report=console.reporter(bars))
    show_base(summary)
    draw_report(out, no_report, "report      ")
    of = (data, *console.option("--split", split)) if summary.objects else ("LABELLED-DATASET",)
    console.next_step("train-adapter", *of, "--model", out, "--out", Path("adapters") / out.absolute().name)


def show_base(summary: "TrainBaseSummary") -> None:
    """Print where a base model is, and how good it is."""
    console.echo(f"base model  {summary.folder}")
    console.echo(f"samples     {summary.samples}")
    if summary.quality is not None:
        console.note(summary.quality.verdict)
