"""`dengine generate`: paint annotated images."""

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from dengine_cli import console
from dengine_cli.options import Boxes, Device, FollowLinks, Looks, Precision, Slots, Threads
from dengine_cli.reporting import NoReport, draw_report
from dengine_cli.settings import settings_of
from engines.common.events import duration
from engines.common.interrupts import held
from engines.common.plurals import counted, plural
from engines.common.quote import shorten
from engines.errors import Interrupted, UsageError

if TYPE_CHECKING:
    from engines.painting.settings import GenerateSettings
    from engines.runs.summaries import DatasetSummary, GenerateSummary

EXAMPLE = "dengine generate --count 1000 --bundle bundles/mine --reference my-dataset --out runs/first"
SETTINGS = "engines.painting.settings:GenerateSettings"
WRITES = "out"  # the parameter with its folder
PLANS = True  # --dry-run
_MANY = 1.5  # times as many labels as expected are worth a remark
AFTER_INTERRUPT = "the same command goes on"
_FINISHING = "Finishing the images in work. Ctrl-C again stops at once; what is on the disk stays."


def command(
    out: Annotated[
        str,
        typer.Option(
            metavar="FOLDER",
            help="Folder of the run: new, or one to go on with. With --cluster also an address, such as s3://bucket/run.",
        ),
    ],
    count: Annotated[int | None, typer.Option(help="How many images to keep.")] = None,
    jobs: Annotated[int | None, typer.Option(help="Images to paint, kept or not; in place of --count.")] = None,
    shard: Annotated[
        str | None, typer.Option(metavar="K/N", help="Paint part k of n of the --jobs only, such as 2/4.")
    ] = None,
    bundle: Annotated[Path | None, typer.Option(help="Bundle to paint with.  [default: the bundled model]")] = None,
    reference: Annotated[
        Path | None, typer.Option(help="Dataset whose images are repainted; without it, text decides alone.")
    ] = None,
    reference_split: Annotated[str | None, typer.Option(help="Part of the reference dataset, such as train.")] = None,
    strength: Annotated[
        str | None,
        typer.Option(
            metavar="LOW:HIGH",
            help="Noise level t/T that references are repainted from, low:high; 0 paints nothing.  [default: 0.4:0.8]",
        ),
    ] = None,
    labels: Annotated[
        str | None,
        typer.Option(
            metavar="WHOSE",
            help="Whose boxes are labels: the adapter's, those of the reference (moved with it), or both.  "
            "[default: adapter; with --compose both]",
        ),
    ] = None,
    compose: Annotated[
        bool, typer.Option("--compose", help="Cut objects out of annotated references, and paste them into others.")
    ] = False,
    rotate: Annotated[
        bool, typer.Option("--rotate", help="Turn pasted objects by a random right angle, as for images without an up.")
    ] = False,
    repaint: Annotated[
        str,
        typer.Option(
            metavar="WHAT",
            help="What of a composed image is painted: all, or only what was pasted and the seams round it; the rest "
            "keeps its own pixels.",
        ),
    ] = "all",
    keep_detail: Annotated[
        bool | None,
        typer.Option(
            "--keep-detail/--no-keep-detail",
            help="Give back what the VAE loses of references, as far as they are kept.  [default: with --compose]",
        ),
    ] = None,
    flip: Annotated[bool, typer.Option("--flip/--no-flip", help="Mirror half of the references.")] = True,
    size: Annotated[
        str | None, typer.Option(metavar="WxH", help="Pixels of an image, such as 320x256.  [default: the bundle's]")
    ] = None,
    steps: Annotated[
        int | None,
        typer.Option(
            help="Evaluations from the noise level to a clean image.  [default: 8, from text alone 12; ddim 15 and 25]"
        ),
    ] = None,
    sampler: Annotated[str | None, typer.Option(help="dpmpp or ddim.  [default: dpmpp]")] = None,
    eta: Annotated[float | None, typer.Option(help="Noise that ddim adds on the way, 0 to 1.  [default: 0]")] = None,
    guidance: Annotated[
        float | None, typer.Option(help="How strongly the prompt leads; 1 is off.  [default: 4]")
    ] = None,
    guidance_interval: Annotated[
        str | None,
        typer.Option(metavar="LOW:HIGH", help="Part of the schedule where guidance acts, in t/T.  [default: 0:1]"),
    ] = None,
    prompt_template: Annotated[
        str | None, typer.Option(metavar="TEXT", help="Wording of prompts, with {style}, {classes}, {caption}.")
    ] = None,
    negative_prompt: Annotated[str | None, typer.Option(metavar="TEXT", help="What guidance leads away from.")] = None,
    score: Annotated[
        str | None,
        typer.Option(
            metavar="SCORE",
            help="Boxes below are left out: a number, or CLASS=NUMBER,...  [default: the adapter's own, else 0.3]",
        ),
    ] = None,
    ignore_score: Annotated[
        float | None,
        typer.Option(help="Boxes from here up to --score become COCO crowds, which detectors ignore.  [default: off]"),
    ] = None,
    min_quality: Annotated[
        float | None, typer.Option(help="Drop images whose boxes are less sure as a whole, 0 to 1.  [default: 0]")
    ] = None,
    max_overlap: Annotated[
        float | None,
        typer.Option(help="Of two boxes of a class with a larger IoU, the surer stays.  [default: 1, both]"),
    ] = None,
    tta: Looks = 1,
    keep_empty: Annotated[bool, typer.Option("--keep-empty", help="Keep images without a box.")] = False,
    near_duplicates: Annotated[
        str,
        typer.Option(
            metavar="WHAT", help="Images that nearly repeat another or a reference: keep, drop, or a correlation."
        ),
    ] = "keep",
    balance: Annotated[
        bool, typer.Option("--balance", help="Draw references and prompts so that rare classes appear more often.")
    ] = False,
    seed: Annotated[int, typer.Option(help="Decides every random draw.")] = 0,
    chunk: Annotated[
        int | None,
        typer.Option(help="Images painted between two points of safety.  [default: by count]"),
    ] = None,
    slots: Slots = None,
    rows: Annotated[int | None, typer.Option(help="Rows of a network call.  [default: what the slots need]")] = None,
    engine: Annotated[str, typer.Option(help="auto, tensorrt, torch, openvino or onnxruntime.")] = "auto",
    precision: Precision = "auto",
    compiled: Annotated[
        bool | None,
        typer.Option(
            "--compile/--no-compile",
            help="Compile the networks first (torch on CUDA): a minute at the first start, kept for the next.  "
            "[default: for 1000 images or more]",
        ),
    ] = None,
    threads: Threads = None,
    device: Device = None,
    formats: Annotated[
        str,
        typer.Option(
            "--format", metavar="LIST", help="Of coco (always written), yolo, imagefolder, parquet, webdataset."
        ),
    ] = "coco",
    val_fraction: Annotated[
        float,
        typer.Option(help="About what share of the images YOLO's files call validation, by reference."),
    ] = 0.1,
    image_format: Annotated[str, typer.Option(help="jpeg or png.")] = "jpeg",
    jpeg_quality: Annotated[int | None, typer.Option(help="1 to 100.  [default: 95]")] = None,
    skip_bad: Annotated[bool, typer.Option("--skip-bad", help="Leave broken references out and list them.")] = False,
    follow_links: FollowLinks = False,
    boxes: Boxes = "auto",
    cluster: Annotated[
        str | None,
        typer.Option(
            metavar="WHERE",
            help="Paint on many machines: auto, HOST:PORT or ray://HOST:PORT (a Ray cluster), local (this machine's "
            "cores or GPUs, a worker each), workers (whoever comes with dengine work).",
        ),
    ] = None,
    store: Annotated[
        str | None,
        typer.Option(metavar="URL", help="With --cluster: where chunks are kept.  [default: inside the run's folder]"),
    ] = None,
    workers: Annotated[
        int | None, typer.Option(help="With --cluster: how many.  [default: as many as there is room for]")
    ] = None,
    worker_cpus: Annotated[
        int | None, typer.Option(help="With --cluster: cores, and threads, of a worker.  [default: --threads, or 1]")
    ] = None,
    worker_gpus: Annotated[
        float | None, typer.Option(help="With --cluster: GPUs of a worker.  [default: 1 where there are some]")
    ] = None,
    allow_mixed: Annotated[
        bool, typer.Option("--allow-mixed", help="With --cluster: use unlike machines; bytes then do not repeat.")
    ] = False,
    no_report: NoReport = False,
) -> None:
    """Paint labelled images.

    What comes out is a folder of pictures and a COCO file with their boxes.
    The same command gives the same files, byte for byte. A run that was stopped goes on when the command is given
    again. Defaults in brackets are those of dengine; a bundle may bring its own.
    """
    parameters = locals()
    from engines.cluster.store import is_url
    from engines.painting.settings import GenerateSettings
    from engines.runs.generate import generate

    settings = settings_of(GenerateSettings, parameters)
    if cluster is not None or is_url(out):
        on_cluster(settings, parameters, no_report)
        return
    with console.ProgressBars() as bars, held(lambda: bars.line(_FINISHING)) as stop:
        summary = generate(settings, report=console.reporter(bars), stop=stop)
    show_run(summary)
    if not summary.interrupted:
        draw_report(summary.dataset.folder, no_report)
        console.next_step("review", out)
    else:
        raise Interrupted(f"stopped at {summary.done} of {summary.target}", kept=True)


def on_cluster(settings: "GenerateSettings", parameters: Mapping[str, Any], no_report: bool) -> None:
    """Paint on many machines, and print what came of it."""
    from engines.cluster.generate import generate_on_cluster
    from engines.cluster.settings import ClusterSettings
    from engines.cluster.store import is_url

    out = str(parameters["out"])
    if console.is_dry():
        raise UsageError("--dry-run is for a run on this machine: give it without --cluster and addresses.")
    if parameters["cluster"] is None:
        raise UsageError(f"`out` is the address {shorten(out, 60)}: say with `cluster` who paints there.", field="out")
    own = {"store": out, "dataset": False} if is_url(out) else {}
    cluster = settings_of(ClusterSettings, {**parameters, **own})
    with console.ProgressBars() as bars, held(lambda: bars.line(_FINISHING)) as stop:
        summary = generate_on_cluster(settings, cluster, report=console.reporter(bars), stop=stop)
    if summary.painted:
        speed = f"{summary.images_per_second:.2f} images/s"
        lost = f", {counted(summary.lost, 'worker')} lost" if summary.lost else ""
        console.echo(f"painted {counted(summary.painted, 'image')} in {duration(summary.seconds)} ({speed}{lost})")
    if summary.dataset is not None:
        show_dataset(summary.dataset)
    elif not summary.interrupted:
        console.echo(f"chunks       {out}")
        console.next_step("merge", out, "--out", "FOLDER")
    if summary.interrupted:
        raise Interrupted(f"stopped at {summary.done} of {summary.target}", kept=True)
    if summary.dataset is not None:
        draw_report(summary.dataset.folder, no_report)
        console.next_step("review", out)


def show_run(summary: "GenerateSummary") -> None:
    """Print what a run did, and where it is."""
    if summary.painted:
        first = summary.first_image_seconds
        first_text = f", the first after {duration(first)}" if first is not None else ""
        speed = f"{summary.images_per_second:.2f} images/s"
        console.echo(
            f"painted {counted(summary.painted, 'image')} in {duration(summary.seconds)} ({speed}{first_text})"
        )
    show_dataset(summary.dataset)
    if (found := summary.likeness) is not None:
        if found.remark is None:
            console.echo(f"likeness     {found.figures}")
        else:
            console.note(found.remark)
    if (known := summary.memory) is not None:
        console.echo(f"nearest      {known.words}")
        if known.remark is not None:
            console.note(known.remark)


def _more_than_expected(summary: "DatasetSummary") -> list[str]:
    """Classes with labels that are too frequent to be right, all in all."""
    expected = {name: _MANY * summary.images * wanted for name, wanted in summary.frequencies.items()}
    return [name for name, number in summary.boxes_by_class.items() if number > expected.get(name, number)]


def show_dataset(summary: "DatasetSummary") -> None:
    """Print what a dataset holds, and where its files are."""
    console.echo(f"{counted(summary.images, 'image')} with {counted(summary.boxes, 'box')}")
    if summary.boxes_by_class:
        console.echo(console.table([(name, str(n)) for name, n in summary.boxes_by_class.items()], ("class", "boxes")))
    if many := _more_than_expected(summary):
        console.note(
            f"{', '.join(many)}: many more labels an image than annotations that the adapter learned from. Either "
            "those left objects out (dengine audit finds them), or these are too many (dengine review shows them)"
        )
    if summary.ignored:
        more = f"{counted(summary.ignored, 'more region')} {plural(summary.ignored, 'is')}"
        console.echo(f"{more} to be ignored (iscrowd)")
    for reason, number in summary.dropped.items():
        console.echo(f"{number} not in the dataset: {reason}")
    console.echo(f"images       {summary.folder / 'images'}")
    console.echo(f"annotations  {summary.annotations}")
    if summary.preview is not None:
        console.echo(f"preview      {summary.preview}")
