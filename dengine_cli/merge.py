"""`dengine merge`: join the shards of a run."""

from pathlib import Path
from typing import Annotated

import typer

from dengine_cli import console
from dengine_cli.generate import show_dataset
from dengine_cli.reporting import NoReport, draw_report

EXAMPLE = "dengine merge runs/part1 runs/part2 --out runs/whole"
SETTINGS = "engines.runs.merge:MergeSettings"
WRITES = "out"  # the parameter with its folder
AFTER_INTERRUPT = "the same command begins anew: the new folder appears whole or not at all"


def command(
    runs: Annotated[list[Path], typer.Argument(metavar="RUN", help="Folders of the shards.")],
    out: Annotated[Path, typer.Option(help="Folder for the whole dataset.")],
    no_report: NoReport = False,
) -> None:
    """Join the shards of a run into one dataset.

    The result is, byte for byte, what the same run would have made without --shard."""
    from engines.runs.merge import MergeSettings, merge

    with console.ProgressBars() as bars:
        summary = merge(MergeSettings(tuple(runs), out), report=console.reporter(bars))
    show_dataset(summary)
    draw_report(out, no_report)
    console.next_step("review", out)
