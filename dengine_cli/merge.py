"""`dengine merge`: join the shards of a run, or the chunks of one on many machines."""

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
    runs: Annotated[
        list[str], typer.Argument(metavar="RUN", help="Folders of the shards; or where one run's chunks are kept.")
    ],
    out: Annotated[Path, typer.Option(help="Folder for the whole dataset.")],
    no_report: NoReport = False,
) -> None:
    """Join the shards of a run into one dataset, or the chunks of one that many machines painted.

    The result is, byte for byte, what the same run would have made without --shard, or without --cluster."""
    from engines.cluster.gather import GatherSettings, gather
    from engines.cluster.store import is_url
    from engines.runs.merge import MergeSettings, merge

    with console.ProgressBars() as bars:
        report = console.reporter(bars)
        if len(runs) == 1 and is_url(runs[0]):
            summary = gather(GatherSettings(runs[0], out), report=report)
        else:
            summary = merge(MergeSettings(tuple(runs), out), report=report)
    show_dataset(summary)
    draw_report(out, no_report)
    console.next_step("review", out)
