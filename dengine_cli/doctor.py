"""`dengine doctor`: what this machine can run."""

import json
from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated

import typer

from dengine_cli import console

if TYPE_CHECKING:
    from engines.doctor import Diagnosis

EXAMPLE = "dengine doctor"
AFTER_INTERRUPT = "Nothing was changed."


def command(
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """Say what this machine can run.

    For every engine: its version, where it computes and how, and what to install for the rest.
    """
    from engines import doctor

    diagnosis = doctor.examine()
    console.echo(json.dumps(asdict(diagnosis), indent=2, default=str) if as_json else describe(diagnosis))


def describe(found: "Diagnosis") -> str:
    """A diagnosis as text."""
    memory = f"{found.memory / 2**30:.0f} GiB" if found.memory else "unknown"
    machine = [
        ("system", f"{found.system}, Python {found.python}"),
        ("processor", f"{found.processor}, {found.cores} cores, {', '.join(found.features) or 'no vector extensions'}"),
        ("memory", memory),
        ("bundled model", str(found.bundle or "none in this copy")),
        ("compiled models", f"{found.cache} ({found.cache_bytes / 1e6:.0f} MB)"),
        ("--engine auto", f"{found.engine}, {found.precision}, {found.threads} threads"),
    ]
    engines = [
        (
            runtime.name,
            runtime.version or "-",
            "yes" if runtime.ready else "no",
            ", ".join(runtime.devices) or "-",
            ", ".join(runtime.precisions) or "-",
        )
        for runtime in found.runtimes
    ]
    advice = [f"{runtime.name}: {runtime.advice}" for runtime in found.runtimes if runtime.advice]
    header = ("engine", "version", "ready", "devices", "precisions")
    return "\n".join([console.table(machine), "", console.table(engines, header), *([""] if advice else []), *advice])
