"""The committed chunks of a run become the run's folder, as one machine would have left it.

Knows: images and lines of the chunks that a run uses, in their order, each verified. Knows nothing about how chunks are
painted, or the dataset's files (`engines.runs.dataset_files`).
"""

import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from itertools import islice
from pathlib import Path

from engines.cluster.commits import Commit, read_chunk, read_commit
from engines.cluster.store import Store
from engines.common.files import sync_folder
from engines.errors import RunError
from engines.painting.run_settings import RunSettings
from engines.runs.journal import IMAGES, JOURNAL, PARTIAL, Progress, read_progress, remove_images_from
from engines.runs.state import chunks_of

_THREADS = 4  # that see images on the disk


def assemble(
    store: Store, folder: Path, run: RunSettings, used: int, told: Callable[[int], None] = lambda chunks: None
) -> None:
    """Bring the first `used` chunks into a run's locked folder, behind those that its journal has already.

    told: how many chunks are in place by now.
    A kill leaves whole chunks, and the rest of one, which the next call writes again. Where the store is the folder's
    own, the data of what is in place is removed.
    Raises RunError for a chunk that is missing or not what was committed.
    """
    progress = read_progress(folder / JOURNAL, islice(chunks_of(run), used), run)
    remove_images_from(folder, _first_index(progress, run, used))
    with (folder / JOURNAL).open("ab") as journal, ThreadPoolExecutor(_THREADS) as pool:
        journal.truncate(progress.size)
        journal.seek(progress.size)
        for number in range(progress.chunks, used):
            commit = read_commit(store, number)
            found = None if commit is None else read_chunk(store, commit)
            if commit is None or found is None:
                raise _gone(store, number)
            segment, images = found
            list(pool.map(lambda image: _write_image(folder, *image), images))
            sync_folder(folder / IMAGES)
            journal.write(segment)
            journal.flush()
            os.fsync(journal.fileno())
            if store.folder is not None and store.folder.is_relative_to(folder.absolute()):
                store.delete(commit.data)
            told(number + 1)
    sync_folder(folder)


def gone_chunks(store: Store, folder: Path, run: RunSettings, used: int) -> list[Commit]:
    """Commits of the chunks that are still to be brought into the folder, and whose data is gone."""
    progress = read_progress(folder / JOURNAL, islice(chunks_of(run), used), run)
    commits = (read_commit(store, number) for number in range(progress.chunks, used))
    return [one for one in commits if one is not None and store.get(one.data, first=1) is None]


def _first_index(progress: Progress, run: RunSettings, used: int) -> int:
    """The first index that no line of the journal stands for."""
    return used * run.options.chunk if progress.next_index is None else progress.next_index


def _gone(store: Store, number: int) -> RunError:
    return RunError(f"{store.where}: chunk {number} is gone: give the same command again, which paints it again.")


def _write_image(folder: Path, name: str, data: bytes) -> None:
    """Write an image and see it on the disk; whoever calls sees the folder there."""
    temporary = folder / PARTIAL / f".{name}.tmp"
    with temporary.open("wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(folder / IMAGES / name)
