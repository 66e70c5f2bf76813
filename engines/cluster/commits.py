"""A chunk of a run as committed objects.

Knows: what is written of a chunk, and in which order: its data, named by content, so that a second try writes the same
object; then `commit.json`, which only the first who comes can write. Only what has a commit exists. Knows nothing about
how images are painted, or which chunks a run needs (`ledger`).

    chunks/00000012/data-1f3a5b7c9d2e4f60.tar    journal.jsonl (the chunk's lines), then its images
    chunks/00000012/commit.json                  what it holds, and who painted it
    index/00000000.json                          of a thousand chunks that are there, what the ledger reads of each
"""

import hashlib
import io
import json
import tarfile
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from engines.cluster.store import Store
from engines.common.quote import shorten
from engines.common.schema import from_object, hold
from engines.errors import RunError
from engines.painting.settings import LIMIT
from engines.runs.journal import JOURNAL
from engines.runs.lines import IMAGE_NAME

CHUNKS, COMMIT, INDEX = "chunks", "commit.json", "index"
BLOCK = 1000  # chunks of an index object
HEX = frozenset("0123456789abcdef")
_AGAIN = "Remove its folder, and the chunk is painted again"
_TAR_BLOCK = 512


@dataclass(frozen=True)
class PaintedChunk:
    """What came of a chunk, before anything of it is written."""

    number: int
    jobs: int
    kept: int
    unkept: int  # jobs behind the last kept one; all of them where none is kept
    segment: bytes  # its lines of the journal
    images: Sequence[tuple[str, bytes]]  # name and file of each kept image, by index


@dataclass(frozen=True)
class Commit:
    """That a chunk is there, and what it holds: the content of `commit.json`."""

    chunk: int
    jobs: int
    kept: int
    unkept: int
    data: str  # name of its object
    sha256: str  # of the data
    journal_sha256: str  # of its lines of the journal
    journal_bytes: int
    device: str  # what it was painted on
    worker: str  # by whom
    attempt: int  # from 1 on

    def to_json(self) -> bytes:
        """The file."""
        return (json.dumps(asdict(self), indent=2, ensure_ascii=False) + "\n").encode()

    @classmethod
    def from_json(cls, data: bytes, where: str, number: int) -> "Commit":
        """Read what `to_json` wrote; RunError that says what is wrong with anything else."""
        try:
            value = json.loads(data)
            if not isinstance(value, dict):
                raise ValueError("it is no object")
        except (ValueError, RecursionError) as cause:
            raise RunError(f"{where} is not readable as JSON: {shorten(cause)}. {_AGAIN}.") from None
        one = from_object(cls, value, RunError, where)
        hashes = all(len(text) == 64 and set(text) <= HEX for text in (one.sha256, one.journal_sha256))
        checks = (
            ("chunk", f"{number}, as its folder says", one.chunk == number),
            ("jobs", f"1 to {LIMIT}", 1 <= one.jobs <= LIMIT),
            ("kept", "at most its jobs", 0 <= one.kept <= one.jobs),
            ("unkept", "the jobs behind the last kept one", 0 <= one.unkept <= one.jobs - one.kept),
            ("sha256", "64 hex digits, as the others are", hashes),
            ("data", "named by its content", one.data == _data_name(number, one.sha256)),
            ("journal_bytes", "a number from 1 on", 1 <= one.journal_bytes < 2**63),
        )
        hold(one, checks, RunError, where, f"{_AGAIN}.")
        return one


def commit_name(number: int) -> str:
    """The name of a chunk's commit.

    >>> commit_name(12)
    'chunks/00000012/commit.json'
    """
    return f"{CHUNKS}/{number:08d}/{COMMIT}"


def _data_name(number: int, sha256: str) -> str:
    return f"{CHUNKS}/{number:08d}/data-{sha256[:16]}.tar"


def write_chunk(store: Store, painted: PaintedChunk, device: str, worker: str, attempt: int) -> tuple[Commit, bool]:
    """Write a chunk, data first; its commit, and whether it is this one's.

    Raises RunError where the chunk is there already with other bytes: then the run is not deterministic.
    """
    data = pack(painted.segment, painted.images)
    sha256 = hashlib.sha256(data).hexdigest()
    commit = Commit(
        chunk=painted.number,
        jobs=painted.jobs,
        kept=painted.kept,
        unkept=painted.unkept,
        data=_data_name(painted.number, sha256),
        sha256=sha256,
        journal_sha256=hashlib.sha256(painted.segment).hexdigest(),
        journal_bytes=len(painted.segment),
        device=device,
        worker=worker,
        attempt=attempt,
    )
    store.create(commit.data, data)
    if store.create(commit_name(painted.number), commit.to_json()):
        return commit, True
    first = read_commit(store, painted.number)
    if first is None:
        raise RunError(f"{store.where}: the commit of chunk {painted.number} comes and goes: who else writes there?")
    if first.sha256 != sha256:
        raise RunError(
            f"{store.where}: chunk {painted.number} came out otherwise on {device} ({worker}) than on {first.device} "
            f"({first.worker}): this run is not deterministic. Take machines of one kind, or a new run with "
            "`allow_mixed=True`."
        )
    return first, False


def read_commit(store: Store, number: int) -> Commit | None:
    """The commit of a chunk; None where it has none. Raises RunError for one that was changed."""
    name = commit_name(number)
    data = store.get(name)
    return None if data is None else Commit.from_json(data, f"{store.where}, {name}", number)


def forget_chunk(store: Store, commit: Commit) -> None:
    """Make a chunk one that was never painted: the commit goes first."""
    store.delete(commit_name(commit.chunk))
    store.delete(commit.data)


def committed_from(store: Store, first: int) -> Iterator[int]:
    """The numbers of the chunks with a commit from `first` on, in any order."""
    if store.folder is not None:  # to look into each of a million folders takes long
        for folder in store.folders(CHUNKS):
            if (
                folder.isdecimal()
                and int(folder) >= first
                and store.get(f"{CHUNKS}/{folder}/{COMMIT}", first=1) is not None
            ):
                yield int(folder)
        return
    for name in store.names(CHUNKS, f"{CHUNKS}/{first:08d}" if first else None):
        _, number, file = name.split("/", 2)
        if file == COMMIT and number.isdecimal() and int(number) >= first:
            yield int(number)


def read_segment(store: Store, commit: Commit) -> bytes:
    """A chunk's lines of the journal, without its images. Raises RunError where they are not what was committed."""
    data = store.get(commit.data, first=_TAR_BLOCK + commit.journal_bytes)
    segment = b"" if data is None else data[_TAR_BLOCK:]
    if hashlib.sha256(segment).hexdigest() != commit.journal_sha256:
        raise _changed(store, commit)
    return segment


def read_chunk(store: Store, commit: Commit) -> tuple[bytes, list[tuple[str, bytes]]] | None:
    """A chunk's lines and images; None where its data is gone. Raises RunError where it is not what was committed."""
    data = store.get(commit.data)
    if data is None:
        return None
    if hashlib.sha256(data).hexdigest() != commit.sha256:
        raise _changed(store, commit)
    return unpack(data)


def _changed(store: Store, commit: Commit) -> RunError:
    return RunError(f"{store.where}, {commit.data} is not what was committed: it was changed or cut. {_AGAIN}.")


def pack(segment: bytes, images: Sequence[tuple[str, bytes]]) -> bytes:
    """One tar of a chunk's lines and images: the same bytes from the same content, whenever and by whomever."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=tarfile.USTAR_FORMAT) as file:
        for name, data in [(JOURNAL, segment), *images]:
            info = tarfile.TarInfo(name)
            info.size = len(data)
            file.addfile(info, io.BytesIO(data))
    return buffer.getvalue()


def unpack(data: bytes) -> tuple[bytes, list[tuple[str, bytes]]]:
    """What `pack` was given. Raises RunError for anything else than files by the names of a run's."""
    found: list[tuple[str, bytes]] = []
    try:
        with tarfile.open(fileobj=io.BytesIO(data), mode="r:") as file:
            for member in file:
                content = file.extractfile(member) if member.isreg() else None
                if content is None or (member.name != JOURNAL and not IMAGE_NAME.fullmatch(member.name)):
                    raise RunError(f"{shorten(member.name)} is no file of a chunk: who else wrote there?")
                found.append((member.name, content.read()))
    except tarfile.TarError as cause:
        raise RunError(f"A chunk's data is no tar: {cause}.") from cause
    if not found or found[0][0] != JOURNAL:
        raise RunError(f"A chunk's data has no {JOURNAL}.")
    return found[0][1], found[1:]


def read_block(store: Store, block: int) -> list[list[int]] | None:
    """[jobs, kept, unkept] of each of a thousand chunks; None where nobody wrote that all of them are there."""
    name = f"{INDEX}/{block:08d}.json"
    data = store.get(name)
    if data is None:
        return None
    rows: Any
    try:
        rows = json.loads(data)
        good = isinstance(rows, list) and len(rows) == BLOCK and all(_is_row(row) for row in rows)
    except (ValueError, RecursionError):
        good = False
    if not good:
        raise RunError(f"{store.where}, {name} is not as it was written. Remove it: the commits say the same.")
    return list(rows)


def write_block(store: Store, block: int, rows: Sequence[Sequence[int]]) -> None:
    """Say of a thousand chunks, all of them committed, what they hold; whoever says it says the same."""
    store.create(f"{INDEX}/{block:08d}.json", json.dumps([list(row) for row in rows]).encode())


def _is_row(row: object) -> bool:
    numbers = row if isinstance(row, list) else ()
    return len(numbers) == 3 and all(type(number) is int and 0 <= number <= LIMIT for number in numbers)
