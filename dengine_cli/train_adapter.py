"""`dengine train-adapter`: train the Detection-Adapter on a labelled dataset."""

import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from dengine_cli import console
from dengine_cli.config_file import given_in
from dengine_cli.options import Boxes, FollowLinks, Loras, PredictionType, Vae
from dengine_cli.reporting import NoReport, draw_report
from dengine_cli.settings import values_of
from engines.common.files import read_json
from engines.common.plurals import counted
from engines.errors import UsageError

if TYPE_CHECKING:
    from engines.adapter.info import AdapterInfo

EXAMPLE = "dengine train-adapter my-dataset --split train --model bases/mine --out adapters/mine"
SETTINGS = "engines.training.train_adapter:TrainAdapterSettings"
WRITES = "out"  # the parameter with its folder
PLANS = True  # --dry-run
FIELDS = {"base": "model", "loras": "lora"}
NETWORK = ("head", "width", "queries", "encoder_layers", "decoder_layers", "extra_levels")  # of the adapter's own
AFTER_INTERRUPT = "the same command with --resume goes on from there"


def command(
    context: typer.Context,
    data: Annotated[Path, typer.Argument(metavar="DATA", help="Labelled dataset: COCO, Pascal VOC or YOLO.")],
    model: Annotated[str, typer.Option(help="Base model: a diffusers folder, a .safetensors file, or a hub name.")],
    out: Annotated[Path, typer.Option(help="Folder for the adapter.")],
    split: Annotated[str | None, typer.Option(help="Part of the dataset, such as train.")] = None,
    lora: Loras = None,
    prediction_type: PredictionType = None,
    vae: Vae = None,
    head: Annotated[str | None, typer.Option(help="rt_detr or deformable_detr.  [default: rt_detr]")] = None,
    width: Annotated[int | None, typer.Option(help="Channels of the head.  [default: 128]")] = None,
    queries: Annotated[int | None, typer.Option(help="Most objects in an image.  [default: 100]")] = None,
    encoder_layers: Annotated[int | None, typer.Option(help="Layers before the boxes.  [default: 1]")] = None,
    decoder_layers: Annotated[int | None, typer.Option(help="Layers that refine boxes.  [default: 3]")] = None,
    extra_levels: Annotated[int | None, typer.Option(help="Levels below the pyramid's.  [default: 0]")] = None,
    steps: Annotated[int | None, typer.Option(help="Optimiser steps.  [default: 3000]")] = None,
    minutes: Annotated[
        float | None, typer.Option(help="About how long it takes on this machine, in place of --steps.")
    ] = None,
    batch: Annotated[int | None, typer.Option(help="Images a step.  [default: 4]")] = None,
    lr: Annotated[float | None, typer.Option(help="Peak learning rate.  [default: 0.001]")] = None,
    short_side: Annotated[
        int | None, typer.Option(help="Pixels of the short side that images are scaled to.  [default: the base's]")
    ] = None,
    frame: Annotated[
        str | None, typer.Option(metavar="WxH", help="Size of training frames.  [default: a whole image]")
    ] = None,
    style: Annotated[str | None, typer.Option(help="Style words of prompts.  [default: the base's]")] = None,
    rotate: Annotated[bool, typer.Option("--rotate", help="Turned images are as likely as upright ones.")] = False,
    dev_fraction: Annotated[
        float | None, typer.Option(help="Share of the images that picks the best checkpoint.  [default: 0.1]")
    ] = None,
    folds: Annotated[
        int,
        typer.Option(
            help="For few images: measure on all of them, by so many trainings more, each on those that it did not "
            "see, in place of a dev split."
        ),
    ] = 0,
    fold_steps: Annotated[
        int | None, typer.Option(help="Steps of each of these.  [default: as many as --steps]")
    ] = None,
    precision_goal: Annotated[
        float | None,
        typer.Option(help="Precision of labels that each class's score threshold is chosen for.  [default: 0.9]"),
    ] = None,
    eval_every: Annotated[int | None, typer.Option(help="Steps between evaluations.  [default: 500]")] = None,
    pseudo: Annotated[
        Path | None,
        typer.Option(
            help="Folder with more images and the boxes that dengine label --score found. None is held out.",
            show_default=False,
        ),
    ] = None,
    pseudo_share: Annotated[
        float | None, typer.Option(help="About what share of the frames is of them.  [default: 0.5]")
    ] = None,
    settings: Annotated[
        Path | None, typer.Option(help="JSON file with any of the training's settings; options go first.")
    ] = None,
    seed: Annotated[int | None, typer.Option(help="Decides every random draw.  [default: 0]")] = None,
    device: Annotated[str | None, typer.Option(help="cpu, cuda, cuda:N, or auto.  [default: auto]")] = None,
    devices: Annotated[
        int | None, typer.Option(help="GPUs of this machine that share every batch.  [default: 1]")
    ] = None,
    precision: Annotated[str | None, typer.Option(help="f32, bf16 or auto.  [default: auto]")] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on from the last checkpoint in OUT.")] = False,
    skip_bad: Annotated[bool, typer.Option("--skip-bad", help="Leave bad images and boxes out; list them.")] = False,
    follow_links: FollowLinks = False,
    boxes: Boxes = "auto",
    no_report: NoReport = False,
) -> None:
    """Train the adapter, which reads boxes off the base model.

    The base model is frozen. A tenth of the images, chosen by their names, is held out to pick the best checkpoint;
    with --folds none is, and all are learned from.
    With --pseudo an adapter learns once more, from images that one has labelled already (self-training).
    """
    parameters = locals()
    from engines.training.train_adapter import TrainAdapterSettings, train_adapter

    if pseudo is None and pseudo_share is not None:
        raise UsageError("--pseudo-share is the share of images that an adapter labelled: give them with --pseudo.")
    if minutes is not None and steps is not None:
        raise UsageError("--minutes and --steps both say how long it trains: give one of them.", field="minutes")
    given = values_of(TrainAdapterSettings, {name: parameters[name] for name in given_in(context)}, FIELDS)
    network = {name: parameters[name] for name in NETWORK if parameters[name] is not None}
    asked = TrainAdapterSettings.from_json(_together(settings, given, network), str(settings or "options"))
    with console.ProgressBars() as bars:
        info = train_adapter(asked, report=console.reporter(bars)).info
    tune = info.figures.get("tune", {})
    if tune:
        names = [name for name in next(iter(tune.values())) if isinstance(name, str)]
        rows = [(kind, *(f"{figures[name]:.3f}" for name in names)) for kind, figures in tune.items()]
        console.echo(console.table(rows, ("prompt", *names)))
        show_interval(info)
    if "thresholds" in info.figures:
        show_thresholds(info)
    console.echo(f"adapter  {out}")
    draw_report(out, no_report, "report   ")
    kind = (*console.option("--prediction-type", prediction_type), *console.option("--vae", vae))
    added = [word for one in lora or () for word in ("--lora", one)]
    words = ("--model", asked.base, *added, *kind, "--adapter", out, "--out", Path("bundles") / out.absolute().name)
    console.next_step("export", *words)


def show_interval(info: "AdapterInfo") -> None:
    """Print on what AP was measured, and how far the choice of these images moves it."""
    from engines.training.adapter import WITH_FOLDS
    from engines.training.dev_split import FEW

    images, folds = info.figures.get("tune_images", 0), info.figures.get("folds")
    where = f"measured on {counted(images, 'image')} of the dev split"
    if folds:
        steps = info.figures["fold_steps"]
        where = f"measured on {counted(images, 'image')}, by {folds} adapters of {steps} steps that did not see them"
    if ends := info.figures.get("tune_interval", {}).get("AP"):
        where += f": 95% interval of AP {ends[0]:.3f} to {ends[1]:.3f}"
    console.echo(where)
    if images < FEW and not folds:
        console.note(
            f"AP on {counted(images, 'image')} is noise: --folds {WITH_FOLDS} measures on all images, and dengine "
            "label on labelled ones that it did not learn from"
        )


def show_thresholds(info: "AdapterInfo") -> None:
    """Print each class's score threshold, and why a class has none."""
    from engines.labels.scores import FALLBACK

    chosen, rows = info.figures["thresholds"], []
    where = "not seen" if "folds" in info.figures else "on the dev split"
    for name in info.class_names:
        boxes = f"{chosen[name]['tune_boxes']} {where}"
        if name in info.thresholds:
            figures = (f"{chosen[name]['precision']:.3f}", f"{chosen[name]['recall']:.3f}")
            rows.append((name, f"{info.thresholds[name]:.2f}", *figures, boxes))
        else:
            rows.append((name, f"{FALLBACK:.2f}", "-", "-", f"{boxes}: too few to choose"))
    header = ("class", "score", "precision", "recall", "boxes")
    console.echo(f"thresholds for a precision of {chosen['goal']:g}")
    console.echo(console.table(rows, header))


def _together(file: Path | None, given: dict[str, Any], network: dict[str, Any]) -> dict[str, Any]:
    """The settings of a file, and over them the options that were given."""
    from engines.common.schema import key_of
    from engines.training.train_adapter import TrainAdapterSettings

    settings = {} if file is None else read_json(file, UsageError)
    if network and isinstance(settings.setdefault("network", {}), dict):
        settings["network"] |= network
    if "steps" in given:  # in place of the file's length, whichever way it says that
        settings.pop("minutes", None)
    keys = {item.name: key_of(item) for item in dataclasses.fields(TrainAdapterSettings)}
    return {keys.get(name, name): value for name, value in (*settings.items(), *given.items())}
