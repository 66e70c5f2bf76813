"""A bucket of S3, Google or Azure as a place to push to.

Knows: by what a service tells that a file is the same, and that many small files are sent at once. Knows nothing about
what they are.
"""

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from functools import cached_property
from typing import TypeVar

from engines.cluster.store import open_store
from engines.push.dataset import MANIFEST
from engines.push.items import PART, Item
from engines.push.place import FIRST, LAST, Changes, There, Told, about_to, manifest_hashes

_AT_ONCE = 16  # files
T = TypeVar("T")


class Bucket:
    """A bucket, from a prefix on. Keys and regions come from the environment, as for runs on many machines."""

    most_in_folder = None

    def __init__(self, address: str) -> None:
        with about_to():
            self._store = open_store(address)
        self.where = self._store.where

    def listed(self) -> Iterator[There]:
        """Every object below the prefix, with its ETag."""
        with about_to():
            for one in self._store.objects():
                yield There(one.name, one.size, one.tag)

    def read(self, name: str) -> bytes | None:
        """An object's bytes."""
        with about_to():
            return self._store.get(name)

    @cached_property
    def _manifest(self) -> tuple[bytes | None, dict[str, str]]:
        data = self.read(MANIFEST)
        return data, manifest_hashes(data)

    def same(self, item: Item, there: There) -> bool:
        """By ETag where that is an MD5, as of S3 and Google; else as the last whole push left word of it."""
        if (there.tag or "").strip('"') == item.md5:
            return True
        data, hashes = self._manifest
        return data == item.source if item.name == MANIFEST else hashes.get(item.name) == item.sha256

    def change(self, changes: Changes, told: Told) -> None:
        """Send what is missing: what is small at once, then what is large, then what has its place in the order."""
        with about_to():
            for name in changes.clear:
                self._store.delete(name)
            ordered = (*FIRST, *LAST)
            first = [item for item in changes.send if item.name in FIRST]
            small = [item for item in changes.send if item.name not in ordered and item.size <= PART]
            large = [item for item in changes.send if item.name not in ordered and item.size > PART]

            def send(item: Item) -> int:
                self._store.send(item.name, item.source, PART)
                return item.size

            for item in first:
                told(send(item))
            _at_once(send, small, told)
            for item in large:
                told(send(item))
            _at_once(self._store.delete, changes.remove, lambda _: None)
            for item in changes.send:
                if item.name in LAST:
                    told(send(item))


def _at_once(do: Callable[[T], int | None], these: Sequence[T], told: Told) -> None:
    """Do it for each, some at a time, however many there are; the first error ends it."""
    waiting: set[Future[int | None]] = set()

    def gather(most: int) -> None:
        nonlocal waiting
        while len(waiting) > most:
            done, waiting = wait(waiting, return_when=FIRST_COMPLETED)
            for one in done:
                told(one.result() or 0)

    with ThreadPoolExecutor(_AT_ONCE) as pool:
        try:
            for one in these:
                waiting.add(pool.submit(do, one))
                gather(2 * _AT_ONCE)
            gather(0)
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise
