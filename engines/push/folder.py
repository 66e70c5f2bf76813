"""Another folder as a place to push to.

Knows: that each file appears whole or not at all. Knows nothing about what it is part of.
"""

import contextlib
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

from engines.common.files import replacing, sha256_file
from engines.errors import RunError
from engines.push.items import Item
from engines.push.place import LEFTOVERS, Changes, There, Told, about_to
from engines.runs.run_folder import run_errors


class Folder:
    """A folder on a disk."""

    most_in_folder = None

    def __init__(self, folder: Path, run: Path) -> None:
        """Raises RunError for a file, and for a folder that lies in the run's, or holds it."""
        here, there = folder.resolve(), run.resolve()
        if here.exists() and not here.is_dir():
            raise RunError(f"{folder} is a file: give a folder.", field="to")
        if here.is_relative_to(there) or there.is_relative_to(here):
            raise RunError(f"{folder} is the run's own folder, in it, or holds it: give another one.", field="to")
        self.where, self._folder = str(folder), folder

    def listed(self) -> Iterator[There]:
        """Every file below the folder."""
        with about_to(), run_errors(self._folder):
            for parent, _, names in os.walk(self._folder):
                for name in names:
                    path = Path(parent) / name
                    yield There(path.relative_to(self._folder).as_posix(), path.stat().st_size)

    def read(self, name: str) -> bytes | None:
        """A file's bytes."""
        with about_to(), run_errors(self._folder), contextlib.suppress(FileNotFoundError):
            return (self._folder / name).read_bytes()
        return None

    def same(self, item: Item, there: There) -> bool:
        """Whether both have one SHA-256."""
        with about_to(), run_errors(self._folder):
            return sha256_file(self._folder / there.name) == item.sha256

    def change(self, changes: Changes, told: Told) -> None:
        """Copy what is missing, a file at a time."""
        with about_to(), run_errors(self._folder):
            partial = self._folder / LEFTOVERS
            partial.mkdir(parents=True, exist_ok=True)
            for name in (*changes.clear, *changes.remove):
                (self._folder / name).unlink(missing_ok=True)
            for item in changes.send:
                path = self._folder / item.name
                path.parent.mkdir(parents=True, exist_ok=True)
                with replacing(path, partial) as temporary:
                    if isinstance(item.source, bytes):
                        temporary.write_bytes(item.source)
                    else:
                        shutil.copyfile(item.source, temporary)
                told(item.size)
            shutil.rmtree(partial)
