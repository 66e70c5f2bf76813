"""`dengine doctor`: what this machine can run."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from dengine_cli import console
from engines.common.events import duration
from engines.common.plurals import counted
from engines.errors import UsageError

if TYPE_CHECKING:
    from engines.doctor import Diagnosis
    from export.gpu.report import GpuReport

EXAMPLE = "dengine doctor"
AFTER_INTERRUPT = "TensorRT plans that were built stay in the cache, and nothing else was changed"


def command(
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
    gpu: Annotated[bool, typer.Option("--gpu", help="Run every check that needs a GPU; takes minutes.")] = False,
    bundle: Annotated[
        Path | None, typer.Option(help="With --gpu: what to check.  [default: the bundled model]")
    ] = None,
) -> None:
    """Say what this machine can run.

    For every engine: its version, the devices on which it computed a tiny graph rightly (TensorRT: started), and what
    to install or do for the rest.

    With --gpu it checks a bundle on the GPU: half precision against the CPU's f32, captured ticks, TensorRT plans,
    labels, and speed. The report is for pasting into an issue. Exit code 1 if a check fails.
    """
    if bundle is not None and not gpu:
        raise UsageError("--bundle goes with --gpu: dengine doctor --gpu --bundle FOLDER.")
    if gpu:
        _check_gpu(bundle, as_json)
        return
    from engines import doctor

    diagnosis = doctor.examine()
    if as_json:
        console.echo_json(diagnosis.to_json(), indent=2)
    else:
        console.echo(describe(diagnosis))


def _check_gpu(bundle: Path | None, as_json: bool) -> None:
    from engines.bundle.bundle import default_bundle
    from export.gpu.report import gpu_report, need_gpu

    need_gpu()
    with console.ProgressBars() as bars:
        found = gpu_report(
            bundle or default_bundle(),
            report=console.reporter(bars),
        )
    if as_json:
        console.echo_json(found.to_json(), indent=2)
    else:
        console.echo(describe_gpu(found))
    if found.failed:
        raise typer.Exit(1)


def describe(found: "Diagnosis") -> str:
    """A diagnosis as text."""
    engines = []
    for runtime in found.runtimes:
        names = [(runtime.name, runtime.version or "-")] + [("", "")] * (len(runtime.devices) - 1)
        rows = [
            (device.name, "yes" if device.works else "no", ", ".join(device.precisions) or "-")
            for device in runtime.devices
        ]
        engines += [(*name, *row) for name, row in zip(names, rows or [("-", "no", "-")], strict=True)]
    problems = [
        f"{runtime.name} on {device.name}: {device.problem}"
        for runtime in found.runtimes
        for device in runtime.devices
        if device.problem
    ]
    advice = [f"{runtime.name}: {runtime.advice}" for runtime in found.runtimes if runtime.advice]
    details = [f"{runtime.name}: {key} {value}" for runtime in found.runtimes for key, value in runtime.details.items()]
    header = ("engine", "version", "device", "works", "precisions")
    remarks = [*details, *problems, *advice]
    return "\n".join([console.table(_machine(found)), "", console.table(engines, header), "", *remarks]).rstrip()


def _machine(found: "Diagnosis") -> list[tuple[str, str]]:
    gpus = [
        (
            "GPU",
            f"{gpu.name}, {_gibibytes(gpu.memory)}, compute capability {gpu.capability or 'unknown'}, "
            f"driver {found.driver or 'unknown'}",
        )
        for gpu in found.gpus
    ]
    return [
        ("dengine", found.dengine),
        ("system", f"{found.system}, Python {found.python}"),
        ("processor", f"{found.processor}, {found.cores} cores, {', '.join(found.features) or 'no vector extensions'}"),
        ("memory", _gibibytes(found.memory)),
        *(gpus or [("GPU", "no NVIDIA GPU")]),
        ("CUDA", f"PyTorch is built for {found.cuda}" if found.cuda else "PyTorch is a CPU build"),
        ("packages", ", ".join(f"{name} {version}" for name, version in found.packages.items())),
        ("bundled model", str(found.bundle or "none in this copy")),
        ("cache", f"{found.cache} ({found.cache_bytes / 1e6:.0f} MB)"),
        ("--engine auto", f"{found.engine}, {found.precision}, {counted(found.threads, 'thread')}"),
    ]


def _gibibytes(size: int) -> str:
    return f"{size / 2**30:.0f} GiB" if size else "unknown"


def describe_gpu(found: "GpuReport") -> str:
    """A GPU report as text."""
    checks = [(check.name, check.outcome, check.text) for check in found.checks]
    speeds = [(speed.what, str(speed.rows), f"{1000 * speed.seconds:.2f}") for speed in found.speeds]
    total = f"{len(checks)} checks, {found.failed} failed, in {duration(found.seconds)}"
    return "\n".join(
        [
            describe(found.diagnosis),
            "",
            f"bundle {found.bundle}, graphs in {found.graph_dtype}",
            "",
            console.table(checks, ("check", "outcome", "found")),
            "",
            console.table(speeds, ("speed", "rows", "ms")),
            "",
            total,
        ]
    )
