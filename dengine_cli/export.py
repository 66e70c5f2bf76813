"""`dengine export`: make a bundle, and TensorRT plans of one."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from dengine_cli import console
from dengine_cli.options import Loras, PredictionType, Vae
from dengine_cli.settings import settings_of
from engines.common.events import duration
from engines.errors import UsageError

if TYPE_CHECKING:
    from export.assemble import ExportSummary
    from export.tensorrt.build import BuildPlansSummary, PlanError
    from export.tensorrt.settings import BuildPlansSettings

EXAMPLE = "dengine export --model bases/mine --adapter adapters/mine --out bundles/mine"
SETTINGS = "export.settings:ExportSettings"
AFTER_INTERRUPT = "the same command begins anew: a bundle or a plan appears whole or not at all"
FIELDS = {"base": "model", "loras": "lora", "engines": "check_on", "generate": "defaults"}
PLAN_FIELDS = {"batches": "batch", "sizes": "size"}
FIELDS |= PLAN_FIELDS
_BUILDING = {"context", "engine", "bundle", "targets", "batch", "size", "workspace"}  # all others shape a new bundle
_FEW = 32  # images to look at first
_SHOWN_RANGES = 2  # blocks of each graph
_SHOWN_ISLANDS = 4  # of each graph


def command(
    context: typer.Context,
    model: Annotated[
        str | None, typer.Option(help="Base model: a diffusers folder, a .safetensors file, a bundle, or a hub name.")
    ] = None,
    adapter: Annotated[Path | None, typer.Option(help="Adapter that was trained on this base model.")] = None,
    out: Annotated[Path | None, typer.Option(help="Folder for the bundle; it must not exist yet.")] = None,
    lora: Loras = None,
    prediction_type: PredictionType = None,
    vae: Vae = None,
    frame: Annotated[
        str | None, typer.Option(metavar="WxH", help="Usual size of painted images.  [default: the adapter's]")
    ] = None,
    weights_dtype: Annotated[
        str, typer.Option(help="How weights are stored: float16, bfloat16 or float32.")
    ] = "float16",
    graph_dtype: Annotated[
        str, typer.Option(help="What the graphs compute in: float32, or float16 for GPUs (TensorRT needs it).")
    ] = "float32",
    ranges: Annotated[
        Path | None,
        typer.Option(metavar="FOLDER", help="Images like yours, to measure on where float16 would overflow."),
    ] = None,
    int8: Annotated[
        bool, typer.Option("--int8", help="Measure what generate --precision int8 needs (OpenVINO on a CPU).")
    ] = False,
    opset: Annotated[int, typer.Option(help="ONNX opset of the graphs: 23, or 18 for TensorRT before 10.14.")] = 23,
    defaults: Annotated[
        Path | None, typer.Option(help="JSON file with this bundle's defaults of generate, such as steps.")
    ] = None,
    check_on: Annotated[
        str | None, typer.Option(metavar="LIST", help="Engines to check on.  [default: all that are installed]")
    ] = None,
    threads: Annotated[int | None, typer.Option(help="CPU threads of the checks.  [default: all]")] = None,
    engine: Annotated[
        str | None, typer.Option(help="tensorrt: build plans for this machine's GPU from the bundle's float16 graphs.")
    ] = None,
    bundle: Annotated[
        Path | None, typer.Option(help="With --engine, in place of --model: the bundle to build plans for.")
    ] = None,
    targets: Annotated[
        str | None,
        typer.Option(
            "--for",
            metavar="LIST",
            help="Build plans ahead for GPUs that need not be here, such as sm89,sm120 (TensorRT for RTX).",
        ),
    ] = None,
    batch: Annotated[
        str | None,
        typer.Option(metavar="N", help="Plans for N images in work at once, or for least:usual:most.  [default: 8]"),
    ] = None,
    size: Annotated[
        str | None,
        typer.Option(metavar="WxH", help="Plans for this size, or for least:usual:largest.  [default: the bundle's]"),
    ] = None,
    workspace: Annotated[
        float | None, typer.Option(metavar="GB", help="GPU memory for a plan's intermediates.  [default: no limit]")
    ] = None,
) -> None:
    """Make a bundle of a base model and its adapter.

    A bundle is one folder with all that generate and label need. Every graph in it was checked against PyTorch with
    the same stored weights, on every engine that is installed; then a few images are painted on each, and compared.
    A bundle that fails a check is not written.

    Plans are built for this machine, checked against PyTorch on its GPU, and kept in the cache folder, where generate
    and label find them. With --for they are built without a GPU, for other machines, and not checked.
    """
    parameters = locals()
    debug = bool(context.find_root().params.get("debug"))
    if engine is None and any(option is not None for option in (bundle, targets, batch, size, workspace)):
        raise UsageError("--bundle, --for, --batch, --size and --workspace are for --engine tensorrt.")
    if engine not in (None, "tensorrt"):
        raise UsageError(f'Unknown engine "{engine}"; only tensorrt needs anything built beforehand.')
    if bundle is not None:
        usual = {one.name: one.default for one in context.command.params}
        if any(parameters[name] != usual[name] for name in parameters.keys() - _BUILDING):
            raise UsageError(
                "--bundle takes a bundle as it is: leave out --model, --adapter, --out and all that shapes a new one."
            )
        build(parameters, bundle, debug=debug)
        if targets is None:
            _then_generate(bundle)
        return
    if model is None or adapter is None or out is None:
        raise UsageError("--model, --adapter and --out are needed to make a bundle (--bundle for the plans of one).")
    if engine is not None:
        if graph_dtype != "float16":
            raise UsageError("--engine tensorrt needs graphs in half precision: add --graph-dtype float16.")
        from export.tensorrt.build import check_ready
        from export.tensorrt.settings import BuildPlansSettings

        ahead = settings_of(BuildPlansSettings, parameters, PLAN_FIELDS, bundle=out)
        check_ready(opset, ahead.workspace, ahead.targets)  # now, and not when all else is done
    from export.assemble import export
    from export.settings import ExportSettings

    settings = settings_of(ExportSettings, parameters, FIELDS)
    with console.ProgressBars() as bars:
        summary = export(settings, report=console.reporter(bars))
    show_export(summary)
    if engine is not None:
        build(parameters, summary.folder, debug=debug)
    _then_generate(summary.folder)


def _then_generate(bundle: Path) -> None:
    console.next_step("generate", "--count", _FEW, "--bundle", bundle, "--out", Path("runs") / bundle.absolute().name)


def build(parameters: Mapping[str, Any], bundle: Path, *, debug: bool) -> None:
    """Build a bundle's plans, with a bar for each; with --debug, a plan that differs is looked at layer by layer."""
    from export.tensorrt.build import PlanError, build_plans
    from export.tensorrt.settings import BuildPlansSettings

    settings = settings_of(BuildPlansSettings, parameters, PLAN_FIELDS, bundle=bundle)
    with console.ProgressBars() as bars, _explained(PlanError, settings, debug):
        summary = build_plans(settings, report=console.reporter(bars))
    show_plans(summary)


@contextmanager
def _explained(kind: "type[PlanError]", asked: "BuildPlansSettings", debug: bool) -> Iterator[None]:
    """With `debug`, say of plans that differ from PyTorch which of their layers is the first to."""
    try:
        yield
    except kind as cause:
        if debug:
            from engines.backends.tensorrt.gpu import find_gpu
            from engines.bundle.bundle import open_bundle
            from export.tensorrt.layers import explain_plan

            for graph in cause.graphs:
                found = explain_plan(open_bundle(asked.bundle), graph, find_gpu(), asked.batches, asked.sizes)
                console.note(f"{graph}: {found}")
        raise


def show_plans(summary: "BuildPlansSummary") -> None:
    """Print what plans there are, and how closely they follow PyTorch."""
    rows = [
        (
            f"{plan.graph} {plan.target}".rstrip(),
            duration(plan.seconds) if plan.seconds else "found",
            f"{plan.bytes / 1e6:.1f}",
            "not checked" if plan.error is None else f"{plan.error:.1e}",
        )
        for plan in summary.plans
    ]
    console.echo(console.table(rows, ("plan of", "built in", "MB", "relative error")))
    if any(plan.error is None for plan in summary.plans):
        console.note("To check them: the same without --for, where such a GPU and these plans in the cache are.")
    else:
        console.echo(f"labels  {summary.boxes - summary.boxes_missing} of {summary.boxes} boxes as PyTorch's")
    console.echo(f"plans   {summary.folder}  ({summary.tensorrt}, {summary.gpu})")


def show_export(summary: "ExportSummary") -> None:
    """Print how closely each engine followed PyTorch, graph by graph and in whole jobs, and where the bundle is."""
    rows = [(check.graph, check.engine, f"{max(check.errors.values()):.1e}") for check in summary.checks]
    console.echo(console.table(rows, ("graph", "engine", "relative error")))
    loops = [
        (found.engine, found.precision, f"{found.psnr:.1f} dB", "-" if found.ap50 is None else f"{found.ap50:.3f}")
        for found in summary.agreements
    ]
    console.echo()
    console.echo(console.table(loops, ("same jobs on", "precision", "PSNR", "AP50 of the labels")))
    if summary.measured is not None:
        show_ranges(summary)
    if summary.unseen_loras:
        console.note(
            "The adapter was trained without the LoRA: its labels may be worse. train-adapter --lora makes one for it."
        )
    for line in summary.operators.lines() if summary.operators else ():
        console.echo(line)
    console.echo(f"bundle  {summary.folder}  ({summary.bytes / 1e6:.1f} MB)")


def show_ranges(summary: "ExportSummary") -> None:
    """Print how large the numbers in float16 graphs get, and what stays in float32 for it."""
    from export.ranges import figures

    assert summary.measured is not None
    rows = [
        (graph, block or "(the whole graph)", f"{magnitude:.1f}")
        for graph, blocks in figures(summary.measured).items()
        for block, magnitude in list(blocks.items())[:_SHOWN_RANGES]
    ]
    console.echo()
    console.echo(console.table(rows, ("graph", "block", "largest magnitude")))
    console.echo(f"measured on {summary.measured.source}; float16 ends at 65504")
    for graph, islands in summary.islands.items():
        shown = ", ".join(name or "the whole graph" for name in islands[:_SHOWN_ISLANDS])
        more = f" and {len(islands) - _SHOWN_ISLANDS} more" if len(islands) > _SHOWN_ISLANDS else ""
        console.echo(f"in float32: {graph}: {shown}{more}")
    if not summary.islands:
        console.echo("in float32: nothing; no number comes near that")
    console.echo(
        "A CPU computes these graphs partly in float32: only dengine doctor --gpu shows that nothing overflows."
    )
    console.echo()
