"""`dengine push`: a finished dataset to a bucket, the hub or another folder."""

from pathlib import Path
from typing import Annotated

import typer

from dengine_cli import console
from dengine_cli.settings import settings_of
from engines.common.plurals import counted

EXAMPLE = "dengine push runs/first --to hub:OWNER/NAME --licence cc-by-4.0"
SETTINGS = "engines.push.settings:PushSettings"
AFTER_INTERRUPT = "the same command goes on: what is there is not sent again"


def command(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="Folder of a run of dengine generate that is finished.")],
    to: Annotated[
        str,
        typer.Option(metavar="WHERE", help="hub:OWNER/NAME, s3://BUCKET/PREFIX, gs://..., az://... or a folder."),
    ],
    licence: Annotated[
        str | None, typer.Option(metavar="NAME", help="The card's licence, such as cc-by-4.0.  [default: unknown]")
    ] = None,
    private: Annotated[
        bool, typer.Option("--private/--no-private", help="Of the hub: whether a new repository is its owner's alone.")
    ] = True,
    include_report: Annotated[
        bool,
        typer.Option(
            "--include-report/--no-report",
            help="Send report.html, too, where there is one: it shows a reference, and paths of this machine.",
        ),
    ] = True,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Say what would be sent, and send nothing.")] = False,
) -> None:
    """Send a finished dataset to a bucket, the Hugging Face hub or a folder, with a card.

    The dataset goes in all formats that the run has, with journal.jsonl and run.json, which make it repeatable. What is
    there already is not sent again; the labels come last.
    """
    parameters = locals()
    from engines.push.push import push
    from engines.push.settings import PushSettings

    with console.ProgressBars() as bars:
        found = push(settings_of(PushSettings, parameters), report=console.reporter(bars))
    sent = (
        f"{found.sent} of {counted(found.files, 'file')} ({found.sent_bytes / 1e6:.1f} of {found.bytes / 1e6:.1f} MB)"
    )
    removed = f", {found.removed} removed" if found.removed else ""
    console.echo(f"{'would send' if dry_run else 'sent'} {sent}{removed}: {counted(found.images, 'image')}")
    console.echo(f"dataset      {found.to}")
    if dry_run:
        console.next_step("push", run, "--to", to, *console.option("--licence", licence))
