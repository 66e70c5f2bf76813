"""`dengine export`: make a bundle."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from dengine_cli import console
from dengine_cli.options import parse_list, parse_size
from engines.errors import UsageError
from engines.files import read_json

if TYPE_CHECKING:
    from export.assemble import ExportSummary

EXAMPLE = "dengine export --model bases/mine --adapter adapters/mine --out bundles/mine"
AFTER_INTERRUPT = "Run the same command again; the bundle appears whole or not at all."


def command(
    model: Annotated[str, typer.Option(help="Base model: a diffusers folder, a bundle, or a hub name.")],
    adapter: Annotated[Path, typer.Option(help="Adapter that was trained on this base model.")],
    out: Annotated[Path, typer.Option(help="Folder for the bundle; it must not exist yet.")],
    frame: Annotated[
        str | None, typer.Option(metavar="WxH", help="Usual size of painted images.  [default: the adapter's]")
    ] = None,
    weights_dtype: Annotated[
        str, typer.Option(help="How weights are stored: float16, bfloat16 or float32.")
    ] = "float16",
    defaults: Annotated[
        Path | None, typer.Option(help="JSON file with this bundle's defaults of generate, such as steps.")
    ] = None,
    check_on: Annotated[
        str | None, typer.Option(metavar="LIST", help="Engines to check on.  [default: all that are installed]")
    ] = None,
    threads: Annotated[int | None, typer.Option(help="CPU threads of the checks.  [default: all]")] = None,
) -> None:
    """Make a bundle of a base model and its adapter.

    A bundle is one folder with all that generate and label need. Every graph in it was checked against PyTorch with
    the same stored weights, on every engine that is installed; then a few images are painted on each, and compared.
    A bundle that fails a check is not written.
    """
    from export.assemble import export_bundle

    size = parse_size(frame, "--frame")
    with console.ProgressBars() as bars:
        summary = export_bundle(
            model,
            adapter,
            out,
            frame=size,
            weights_dtype=weights_dtype,
            generate=read_json(defaults, UsageError) if defaults else None,
            engines=parse_list(check_on) or None,
            threads=threads,
            report=lambda progress: bars.step("export", progress.done, progress.total, progress.text),
        )
    show_export(summary)


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
    console.echo(f"bundle  {summary.folder}  ({summary.bytes / 1e6:.1f} MB)")
