"""`dengine cache`: what lies in the cache folder, and how it is emptied."""

import shutil
from typing import Annotated

import typer

from dengine_cli import console
from engines.common.plurals import counted

EXAMPLE = "dengine cache"
AFTER_INTERRUPT = "the same command goes on"


def command(
    clear: Annotated[bool, typer.Option("--clear", help="Remove all of it.")] = False,
) -> None:
    """Show what dengine keeps in its cache folder: compiled models and plans.

    All of it can be made again, which takes the next start of generate and label seconds, and TensorRT plans minutes.
    """
    from engines.common.cache import cache_folder, cached

    folder, entries = cache_folder(), cached()
    rows = [(one.name, f"{one.bytes / 1e6:.1f}", counted(one.files, "file")) for one in entries]
    if rows:
        console.echo(console.table(rows, ("what", "MB", "files")))
    total = sum(one.bytes for one in entries)
    if clear:
        shutil.rmtree(folder, ignore_errors=True)
        console.echo(f"removed  {total / 1e6:.1f} MB from {folder}")
    else:
        console.echo(f"cache  {folder} ({total / 1e6:.1f} MB)")
        if total:
            console.next_step("cache", "--clear")
