"""`dengine bench`: how fast a bundle is here, on every engine, beside diffusers and the machine's own limit."""

import sys
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from dengine_cli import console
from dengine_cli.options import Compiled, Device, Precision, Slots, Threads
from dengine_cli.settings import settings_of
from engines.errors import UsageError

if TYPE_CHECKING:
    from engines.measure.compare import Comparison

EXAMPLE = "dengine bench bundles/mine --references my-images --out bench.json"
SETTINGS = "engines.measure.settings:BenchSettings"
FIELDS = {"bundle": "model", "engines": "engine"}
AFTER_INTERRUPT = "nothing was kept, and the same command begins anew"


def command(
    model: Annotated[
        Path | None, typer.Argument(metavar="MODEL", help="Bundle to measure.  [default: the bundled model]")
    ] = None,
    references: Annotated[
        Path | None, typer.Option(help="Folder whose images are repainted; without it, text decides alone.")
    ] = None,
    engine: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME", help="tensorrt, torch, openvino or onnxruntime; may be repeated.  [default: all installed]"
        ),
    ] = None,
    count: Annotated[int, typer.Option(help="How many images to paint.")] = 32,
    size: Annotated[
        str | None, typer.Option(metavar="WxH", help="Pixels of an image, such as 320x256.  [default: the bundle's]")
    ] = None,
    steps: Annotated[int, typer.Option(help="Steps of the schedule.")] = 25,
    seed: Annotated[int, typer.Option(help="Decides every random draw.")] = 0,
    slots: Slots = None,
    precision: Precision = "auto",
    compiled: Compiled = False,
    threads: Threads = None,
    device: Device = None,
    baseline: Annotated[
        bool, typer.Option("--baseline/--no-baseline", help="Measure the plain diffusers pipeline too.")
    ] = True,
    out: Annotated[Path | None, typer.Option(metavar="FILE", help="JSON file for the report.")] = None,
    compare: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Report of an earlier run: print what changed.")
    ] = None,
) -> None:
    """Measure a bundle on every engine that is here.

    Real runs of generate, beside the plain diffusers pipeline doing the same jobs, and the machine's own matmul rate.
    Prints tables, and, where they do not go to a terminal, one JSON line last. Each measurement has a process of its
    own; leave the machine alone meanwhile.
    """
    parameters = locals()
    from engines.common.files import write_json
    from engines.measure.bench import bench
    from engines.measure.compare import compare as compare_reports
    from engines.measure.compare import read_report
    from engines.measure.settings import BenchSettings

    if out is not None and not out.absolute().parent.is_dir():
        raise UsageError(f"--out is {out}; its folder does not exist.")
    before = None if compare is None else read_report(compare)
    settings = settings_of(BenchSettings, parameters, FIELDS)
    with console.ProgressBars() as bars:
        found = bench(settings, report=console.reporter(bars)).to_json()
    console.echo(describe(found))
    if before is not None:
        console.echo(describe_changes(compare_reports(found, before)))
    if out is not None:
        write_json(out, found)
    if not sys.stdout.isatty():
        console.echo_json(found)
    if all("error" in row for row in found["engines"]):
        raise typer.Exit(1)


def describe(report: Mapping[str, Any]) -> str:
    """A report as tables."""
    machine, workload = report["machine"], report["settings"]["workload"]
    gpus = "".join(f", {gpu}" for gpu in machine["gpus"])
    width, height = workload["frame"]
    kind = "text to image" if report["settings"]["references"] is None else "img2img"
    lines = [
        f"{machine['processor']}, {machine['cores']} cores, {machine['memory_gib']:.0f} GiB{gpus}",
        f"{workload['jobs']} images, {kind}, {width}x{height}, {workload['steps']} DDIM steps, "
        f"guidance {workload['guidance']:g}",
        "",
        _speeds(report),
    ]
    for row in report["engines"]:
        if "error" not in row:
            lines += ["", row["backend"], _graphs(row)]
    if rates := _rates(report["roofline"]):
        lines += ["", rates]
    errors = [
        (row.get("engine") or f"baseline, {row['role']}", row["error"]) for row in _rows(report) if "error" in row
    ]
    errors += [
        (f"matmul rate on {device}", found["error"]) for device, found in report["roofline"].items() if "error" in found
    ]
    lines += ["", *(f"{name} was not measured: {error}" for name, error in errors)] if errors else []
    return "\n".join(lines)


def describe_changes(comparison: "Comparison") -> str:
    """A comparison as a table, and what else differs."""
    rows = [
        (
            change.name,
            f"{change.before:.5g}",
            f"{change.after:.5g}",
            "-" if change.percent is None else f"{change.percent:+.1f}%",
        )
        for change in comparison.changes
    ]
    return "\n".join(["", console.table(rows, ("figure", "before", "now", "change")), *comparison.remarks])


def _rows(report: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    return [*report["engines"], *report["baseline"]]


def _batch(row: Mapping[str, Any]) -> str:
    """The largest batch of a baseline, and the mean where batches of as many steps were smaller."""
    mean = row.get("mean_batch", row["batch"])
    return f"{row['batch']} (mean {mean:.1f})" if mean < row["batch"] else str(row["batch"])


def _speeds(report: Mapping[str, Any]) -> str:
    """Whole runs: engines, then the baseline."""
    rows = []
    for row in _rows(report):
        if "error" in row:
            continue
        name = row["engine"] if "engine" in row else f"diffusers, {row['role']}"
        speedups = row.get("speedup", {})
        rows.append(
            (
                name,
                row["precision"],
                str(row["slots"]) if "engine" in row else _batch(row),
                _number(row["load_seconds"], 1),
                _number(row["first_image_seconds"], 1),
                _number(row["images_per_second"], 3),
                _number(speedups.get("batch 1"), 2),
                _number(min(speedups.values(), default=None), 2),
                _gigabytes(row["memory"]["rss_peak"]),
                _vram(row["memory"]),
                _percent(row.get("outside_share")),
                _share(row, row["precision"]),
            )
        )
    header = (
        "engine", "precision", "at once", "load s", "first image s", "images/s", "x batch 1", "x best", "RAM GB",
        "VRAM GB", "outside graphs", "of matmul rate",
    )  # fmt: skip
    return console.table(rows, header)


def _graphs(row: Mapping[str, Any]) -> str:
    """Seconds of an engine's graphs and of a tick."""
    entries = [
        (name, entry["batch"], entry["calls"], entry, entry["precision"]) for name, entry in row["graphs"].items()
    ]
    entries.append(("tick", row["tick"]["rows"], None, row["tick"], row["precision"]))
    rows = [
        (
            name,
            str(batch),
            "-" if calls is None else str(calls),
            *(f"{1000 * entry['seconds'][key]:.2f}" for key in ("median", "p10", "p90")),
            _share(entry, precision),
        )
        for name, batch, calls, entry, precision in entries
    ]
    return console.table(rows, ("graph", "batch", "calls", "ms", "p10", "p90", "of matmul rate"))


def _rates(rooflines: Mapping[str, Any]) -> str:
    """The best matmul rates of each device."""
    rows = [
        (device, precision, f"{best['flops_per_second'] / 1e9:.0f}", f"{best['size']} with {best['runtime']}")
        for device, roofline in rooflines.items()
        for precision, best in roofline["best"].items()
    ]
    return console.table(rows, ("matmul on", "precision", "GFLOP/s", "best at")) if rows else ""


def _number(value: float | None, digits: int) -> str:
    return "-" if value is None else f"{value:.{digits}f}"


def _vram(memory: Mapping[str, Any]) -> str:
    """PyTorch's peak, or what is taken of the whole GPU, which says so."""
    taken = memory.get("vram_taken")
    return _gigabytes(memory["vram_peak"]) if taken is None else f"{_gigabytes(taken)} (whole GPU)"


def _gigabytes(value: int | None) -> str:
    return _number(None if value is None else value / 1e9, 2)


def _share(entry: Mapping[str, Any], precision: str) -> str:
    """A share of the matmul rate; with the rate's precision where it is not that of what has the share."""
    text, of = _percent(entry.get("roofline_share")), entry.get("roofline_precision")
    return text if of in (None, precision) else f"{text} (of {of})"


def _percent(value: float | None) -> str:
    return "-" if value is None else f"{100 * value:.1f}%"
