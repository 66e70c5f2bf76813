"""Where the chunks of a run on many machines are kept: a folder, or a bucket of S3, Google or Azure.

Knows: the few calls that everything here is built of, and that one of them, `create`, is refused where the object is
there: that is what makes a commit. Knows nothing about what the objects mean.

Names are POSIX paths. obstore does the work, for folders too: what holds on a bucket holds on a shared disk.
"""

import contextlib
import os
import re
import uuid
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

from engines.common.quote import shorten
from engines.errors import RunError
from engines.runs.journal import OWN

INSIDE = f"{OWN}/cluster"  # of a run's own folder, where that is the store
_URL = re.compile(r"^([a-z][a-z0-9+.-]*)://")
_PATIENT: Any = {"max_retries": 6, "retry_timeout": timedelta(seconds=30)}  # with a service that does not answer
SCHEMES = ("file", "s3", "s3a", "gs", "az", "abfs", "abfss", "azure", "adl")


def is_url(text: object) -> bool:
    """Whether this names a store by its address, such as s3://bucket/run.

    >>> is_url("s3://bucket/run"), is_url("runs/first")
    (True, False)
    """
    return _URL.match(str(text)) is not None


@dataclass(frozen=True)
class Stored:
    """An object that is there."""

    name: str
    size: int  # bytes
    tag: str | None  # the service's own word for its content (ETag)


class Store:
    """Objects by name. Whatever the service says of its own is raised as a RunError in one line."""

    def __init__(self, inner: Any, where: str, folder: Path | None = None) -> None:
        """`inner`: a store of obstore; `folder`: where its objects lie as files, on a disk."""
        self._inner, self.where, self.folder = inner, where, folder

    @property
    def address(self) -> str:
        """What `open_store` is given for the same store, from wherever on this machine."""
        return self.where if self.folder is None else f"file://{self.folder}"

    def get(self, name: str, first: int | None = None) -> bytes | None:
        """An object's bytes, or the `first` of them; None where there is no such object."""
        import obstore

        with self._errors(name):
            with contextlib.suppress(FileNotFoundError):
                if first is not None:
                    return bytes(obstore.get_range(self._inner, name, start=0, end=first))
                return bytes(obstore.get(self._inner, name).bytes())
            return None

    def create(self, name: str, data: bytes) -> bool:
        """Write an object that must not be there: whole, or not at all. False where it is there already."""
        import obstore

        with self._errors(name):
            try:
                obstore.put(self._inner, name, data, mode="create", use_multipart=False)
            except obstore.exceptions.AlreadyExistsError:
                return False
            return True

    def put(self, name: str, data: bytes) -> None:
        """Write an object, in place of one that is there."""
        import obstore

        with self._errors(name):
            obstore.put(self._inner, name, data)

    def send(self, name: str, source: Path | bytes, part: int) -> None:
        """Write an object of a file or bytes, in parts of `part` bytes where it has more than one."""
        import obstore

        with self._errors(name):
            obstore.put(self._inner, name, source, chunk_size=part, max_concurrency=4)

    def delete(self, name: str) -> None:
        """Remove an object; nothing where it is gone."""
        import obstore

        with self._errors(name), contextlib.suppress(FileNotFoundError):
            obstore.delete(self._inner, name)

    def names(self, prefix: str, after: str | None = None) -> Iterator[str]:
        """The names below the folder `prefix`, those behind `after` where that is given; a thousand at a time."""
        yield from (found.name for found in self.objects(prefix, after))

    def objects(self, prefix: str = "", after: str | None = None) -> Iterator[Stored]:
        """The same with what the store says of each."""
        import obstore

        if self.folder is not None and not (self.folder / prefix).is_dir():
            return
        pages = iter(obstore.list(self._inner, prefix=prefix or None, offset=after, chunk_size=1000))
        while True:
            with self._errors(prefix):
                page = next(pages, None)
            if page is None:
                return
            yield from (Stored(str(item["path"]), item["size"], item["e_tag"]) for item in page)

    def folders(self, prefix: str) -> Iterator[str]:
        """The names of the folders in `prefix`, of a store that lies on a disk; whatever is in them."""
        assert self.folder is not None
        with contextlib.suppress(FileNotFoundError), os.scandir(self.folder / prefix) as found:
            yield from (item.name for item in found if item.is_dir())

    def check(self) -> None:
        """Raise RunError unless objects can be written here, and a second `create` is refused."""
        name = f"probe/{uuid.uuid4().hex}"
        try:
            first, second = self.create(name, b""), self.create(name, b"")
        finally:
            with contextlib.suppress(RunError):
                self.delete(name)
        if not first or second:
            raise RunError(
                f"{self.where} lets a second writer replace an object (no conditional put): take a store that refuses "
                "it, such as a folder on a shared disk, or S3 of 2024 or later.",
                field="out",
            )

    @contextlib.contextmanager
    def _errors(self, name: str) -> Iterator[None]:
        import obstore

        try:
            yield
        except (obstore.exceptions.BaseError, OSError, ValueError) as cause:
            refused = isinstance(
                cause, obstore.exceptions.PermissionDeniedError | obstore.exceptions.UnauthenticatedError
            )
            hint = " Give the rights to read, write and list there." if refused else ""
            raise RunError(f"{self.where}, {name}: {_in_short(cause)}.{hint}", field="out") from cause


def _in_short(cause: Exception) -> str:
    """What a service says, without the particulars of its protocol."""
    text = str(cause).partition("Debug source:")[0]
    told = re.search(r"<Message>(.*?)</Message>", str(cause))
    return shorten(" ".join(f"{type(cause).__name__}: {told[1] if told else text}".split()).rstrip("."), 200)


def open_store(run: str | os.PathLike[str], *, make: bool = False) -> Store:
    """The store of a run: the bucket or folder of a URL, or, of a run's folder, what lies in it.

    Keys and regions come from the environment, as each service's own tools read them. Raises RunError where obstore is
    not installed, for a scheme that is not known, and, unless it is to be made, for a folder that is no such run.
    """
    try:
        import obstore.store
    except ModuleNotFoundError as cause:
        raise RunError('obstore is not installed. Install it with "pip install dengine[cluster]".') from cause
    text = os.fspath(run)
    found = _URL.match(text)
    if found is not None and found[1] not in SCHEMES:
        raise RunError(f"{shorten(text, 60)}: {found[1]}:// is unknown; {', '.join(SCHEMES)} are known.", field="out")
    if found is not None and found[1] != "file":
        try:
            inner = obstore.store.from_url(text, client_options=_client(text), retry_config=_PATIENT)
            return Store(inner, text.rstrip("/"))
        except (obstore.exceptions.BaseError, ValueError) as cause:
            raise RunError(f"{shorten(text, 60)} cannot be opened: {_in_short(cause)}.", field="out") from cause
    folder = Path(text.removeprefix("file://")) if found else Path(text) / INSIDE
    if make:
        with contextlib.suppress(FileExistsError):
            folder.mkdir(parents=True)
    if not folder.is_dir():
        raise RunError(
            f"{shorten(text, 80)} is not a run on many machines: give the folder or address that `dengine generate` "
            "was given with a cluster.",
            field="run",
        )
    return Store(obstore.store.LocalStore(prefix=folder.absolute()), text, folder.absolute())


def _client(url: str) -> Any:
    """What of the client has to be allowed: a service on this machine has no certificate."""
    endpoint = os.environ.get("AWS_ENDPOINT_URL") or os.environ.get("AWS_ENDPOINT") or ""
    plain = url.startswith("s3") and endpoint.startswith("http://")
    return {"allow_http": True} if plain else None
