"""Seeded mutations of files that are read, and a judge of what reading them does.

Knows: how a JSON value or a file's bytes are spoilt (types, huge and negative numbers, NaN and infinity, long strings,
deep nesting, missing and extra keys; cut, repeated and flipped bytes), and what reading a spoilt file may do: give a
result, or raise an error of the kind that users meet, soon, in a short message, without asking for memory, and
without touching a file of another place. Knows nothing about what the files mean.

Every mutation is a function of the seed, the file's name and its number: what a report names can be made again.
"""

import copy
import json
import os
import random
import resource
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType
from typing import Any

from engines.errors import DengineError

LONGEST_MESSAGE, MOST_LINES = 500, 3
HANG = 10.0  # seconds of processor time; of any time, so many times as much, since others may be at work here
_PATIENCE = 6
BALLOON = 1 << 30  # bytes that one reading may add to the most that the process ever took
_LIMIT = 6 << 30  # bytes of addresses beyond those in use: what asks for more gets a MemoryError and not the machine

_NUMBERS: tuple[Any, ...] = (
    0, -1, 1, 2, 3, 7, 64, 255, 1000, 4096, 65_536, 10**6, 2**31 - 1, 2**31, 2**32, 2**63 - 1, 2**63, 2**64, 10**12,
    10**30, 10**400, -(2**31), -(2**63), -(10**30), 0.0, -0.0, 0.5, -0.5, 1e-300, 1e300, -1e300, 1e30,
    float("nan"), float("inf"), float("-inf"),
)  # fmt: skip
_STRINGS = (
    "", " ", "x", "0", "-1", "1e999", "NaN", "null", "true", "\n", "a\nb\r\nc", "\t", "\x00", "\ud800", "\u202e",
    "é" * 50, "x" * 100_000, "../../../etc/passwd", "/etc/passwd", "C:\\x", "{x}", "%s%n", "<script>", "漢" * 300,
    "a.b.c", "__class__",
)  # fmt: skip
_INSERTED = (b"\n", b"\x00", b"\xff", b"\xef\xbb\xbf", b'"', b"}", b"[" * 5000, b"9" * 6000)
_WHOLE = (b"", b"null", b"[]", b"{}", b"0", b'""', b"[" * 100_000, b"\xff\xfe")
_LIBRARIES = (  # where Python and the system read at any time
    *{sys.prefix, sys.base_prefix, str(Path(__file__).parents[2])}, "/proc", "/sys", "/dev", "/usr", "/lib", "/etc/ssl",
)  # fmt: skip
_READS, _WRITES = ("os.listdir", "os.scandir"), ("os.remove", "os.rename", "os.mkdir", "os.rmdir", "os.link")


@dataclass
class Report:
    """What a number of mutations came to."""

    read: int = 0  # files that were read all the same
    refused: int = 0  # with an error of the kind that users meet
    problems: list[str] = field(default_factory=list)  # everything else, each with its file and number
    slowest: float = 0.0  # seconds
    seconds: float = 0.0  # of processor time, all in all

    @property
    def total(self) -> int:
        """How many mutations were tried."""
        return self.read + self.refused + len(self.problems)

    def __str__(self) -> str:
        return "\n".join((
            f"{self.total} mutations: {self.read} read, {self.refused} refused, {len(self.problems)} problems",
            f"slowest {self.slowest:.2f} s, {self.seconds:.0f} s in all",
            *self.problems[:40],
        ))  # fmt: skip


class _HangError(BaseException):
    """Raised into a reading that takes too long; no `except Exception` holds it up."""


def fuzz_file(path: Path, read: Callable[[], object], count: int, seed: int = 0) -> Report:
    """Spoil `path` in `count` ways, one after the other, and judge what `read` does each time. The file comes back."""
    before = path.read_bytes()
    report = Report()
    try:
        for number in range(count):
            path.write_bytes(mutated_file(before, random.Random(f"{seed}/{path.name}/{number}")))
            judge(read, f"{path.name} number {number} of seed {seed}", report)
    finally:
        path.write_bytes(before)
    return report


def judge(read: Callable[[], object], name: str, report: Report, inside: Path | None = None) -> None:
    """Call `read` once, and note in `report` what came of it; `inside`: where it may read, and write."""
    started, began, peak = time.monotonic(), time.process_time(), _peak()
    touched: set[tuple[str, bool]] = set()
    in_threads: list[str] = []
    hook, threading.excepthook = threading.excepthook, lambda told: in_threads.append(repr(told.exc_value))
    try:
        with _limits(), _watched(touched):
            read()
        report.read += 1
    except DengineError as error:
        message = str(error)
        lines = message.count("\n") + 1
        if len(message) > LONGEST_MESSAGE or lines > MOST_LINES or not message:
            report.problems.append(f"{name}: a message of {len(message)} characters, {lines} lines: {message[:300]!r}")
        else:
            report.refused += 1
    except _HangError:
        report.problems.append(f"{name}: more than {HANG:g} s")
    except Exception as error:
        report.problems.append(f"{name}: {type(error).__name__}: {str(error)[:200]!r}")
    threading.excepthook = hook
    report.problems += [f"{name}: in a thread, {error[:200]}" for error in in_threads]
    if inside is not None and (out := sorted(_outside(touched, inside))):
        report.problems.append(f"{name}: {'; '.join(out)[:200]}")
    if (grown := _peak() - peak) > BALLOON:
        report.problems.append(f"{name}: {grown >> 20} MiB more memory")
    report.slowest = max(report.slowest, time.monotonic() - started)
    report.seconds += time.process_time() - began


def mutated_file(data: bytes, rng: random.Random) -> bytes:
    """A spoilt copy of a file: mostly of what its JSON says, where it is JSON, or has a header as safetensors have it,
    else of its bytes."""
    end = 8 + int.from_bytes(data[:8], "little")
    if data[8:9] == b"{" and end <= len(data) and rng.random() < 0.7:
        header = mutated_file(data[8:end], rng)
        return len(header).to_bytes(8, "little") + header + data[end:]
    try:
        value = json.loads(data)
    except ValueError:
        return mutated_bytes(data, rng)
    if rng.random() < 0.1:
        return mutated_bytes(data, rng)
    try:
        return json.dumps(mutated_json(value, rng)).encode()
    except RecursionError:  # deep nesting inside deep nesting
        return b'{"x":' * 5000 + b"0" + b"}" * 5000


def mutated_json(value: Any, rng: random.Random) -> Any:
    """A copy of a JSON value with one to three places spoilt."""
    changed = [copy.deepcopy(value)]
    for _ in range(rng.choice((1, 1, 1, 2, 3))):
        holder, key = rng.choice(list(_places(changed)))
        _spoil(holder, key, rng)
    return changed[0]


def mutated_bytes(data: bytes, rng: random.Random) -> bytes:
    """A copy of some bytes, cut, repeated, flipped or with others in between."""
    start, length = rng.randrange(len(data) + 1), rng.choice((1, 2, 8, 100, 5000))
    kind = rng.randrange(7)
    if kind == 0:
        return data[:start]
    if kind == 1:
        return data[:start] + data[start + length :]
    if kind == 2:
        return data[:start] + data[start : start + length] * rng.choice((2, 3, 50)) + data[start:]
    if kind == 3:
        return data[:start] + rng.randbytes(length) + data[start:]
    if kind == 4:
        return data[:start] + rng.choice(_INSERTED) + data[start:]
    if kind == 5:
        return rng.choice((*_WHOLE, data.decode("latin-1").encode("utf-16")))
    flipped = bytearray(data)
    for _ in range(rng.choice((1, 2, 10))):
        if flipped:
            flipped[rng.randrange(len(flipped))] ^= 1 << rng.randrange(8)
    return bytes(flipped)


def _places(value: Any) -> Iterator[tuple[Any, Any]]:
    """Every place in a value as (what holds it, the key or index there); the whole value's own is the first."""
    waiting = [value]
    while waiting:
        holder = waiting.pop()
        keys = list(holder) if isinstance(holder, dict) else range(len(holder))
        for key in keys:
            yield holder, key
            if isinstance(holder[key], dict | list) and holder[key]:
                waiting.append(holder[key])


def _spoil(holder: Any, key: Any, rng: random.Random) -> None:
    """Spoil one place."""
    old, kind = holder[key], rng.randrange(12)
    if kind <= 3 or (isinstance(old, int | float) and not isinstance(old, bool) and kind <= 7):
        holder[key] = rng.choice(_NUMBERS)
    elif kind == 4:
        holder[key] = rng.choice(_STRINGS)
    elif kind == 5:
        holder[key] = rng.choice((None, True, False, [], {}, [old], {"x": old}, [[]], [None]))
    elif kind == 6:
        holder[key] = _nested(rng.choice((5, 40, 200, 900)), rng)
    elif kind == 7 and isinstance(old, int | float) and not isinstance(old, bool):
        holder[key] = old * rng.choice((-1, 2, 10, 1000)) + rng.choice((0, 1, -1, 0.5))
    elif kind == 8 and isinstance(holder, dict):
        del holder[key]
    elif kind == 9 and isinstance(holder, dict):
        holder[rng.choice(_STRINGS)] = holder.pop(key) if rng.random() < 0.5 else old
    elif kind == 10 and isinstance(old, list):
        holder[key] = old * rng.choice((0, 2, 500)) + [rng.choice(_NUMBERS)]
    elif isinstance(old, str):
        holder[key] = rng.choice((old * 3, old + rng.choice(_STRINGS), old[: len(old) // 2], old.upper()))
    else:
        holder[key] = rng.choice(_STRINGS)


def _nested(depth: int, rng: random.Random) -> Any:
    value: Any = rng.choice(_NUMBERS)
    for _ in range(depth):
        value = [value] if rng.random() < 0.5 else {"x": value}
    return value


_watching: list[set[tuple[str, bool]]] = []


def _note(event: str, arguments: tuple[Any, ...]) -> None:
    """An audit hook, which stays: note the paths that are opened, listed or changed, and whether that is a change."""
    if not _watching or event not in ("open", *_READS, *_WRITES):
        return
    if event in _WRITES and arguments[-1] >= 0:
        return  # by its name in a folder that was opened, and noted, before
    paths = arguments[: 2 if event in ("os.rename", "os.link") else 1]
    flags = (arguments[2] or 0) if event == "open" else 0
    writes = event in _WRITES or bool(flags & (os.O_WRONLY | os.O_RDWR | os.O_CREAT))
    _watching[-1].update((os.fsdecode(one), writes) for one in paths if isinstance(one, str | bytes | os.PathLike))


sys.addaudithook(_note)


@contextmanager
def _watched(touched: set[tuple[str, bool]]) -> Iterator[None]:
    _watching.append(touched)
    try:
        yield
    finally:
        _watching.pop()


def _outside(touched: set[tuple[str, bool]], inside: Path) -> Iterator[str]:
    """What was changed, or is there and was read, neither below `inside` nor of a library."""
    for path, writes in touched:
        whole = Path(os.path.realpath(path))
        allowed = [inside.resolve()] if writes else [inside.resolve(), *map(Path, _LIBRARIES)]
        if not any(whole.is_relative_to(one) for one in allowed) and (writes or whole.exists()):
            yield f"{'changed' if writes else 'read'} {path!r:.80}"


def _peak() -> int:
    """The most memory that this process ever took, in bytes (Linux; macOS counts otherwise)."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


@contextmanager
def _limits() -> Iterator[None]:
    """While this lasts, time and memory run out early."""

    def ring(number: int, frame: FrameType | None) -> None:
        raise _HangError

    soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    timers = {signal.SIGALRM: (signal.ITIMER_REAL, HANG * _PATIENCE), signal.SIGPROF: (signal.ITIMER_PROF, HANG)}
    before = {number: signal.signal(number, ring) for number in timers}
    for timer, seconds in timers.values():
        signal.setitimer(timer, seconds)
    try:
        resource.setrlimit(resource.RLIMIT_AS, (_addresses() + _LIMIT, hard))
        yield
    finally:
        for timer, _ in timers.values():
            signal.setitimer(timer, 0)
        for number, handler in before.items():
            signal.signal(number, handler)
        resource.setrlimit(resource.RLIMIT_AS, (soft, hard))


def _addresses() -> int:
    """Bytes of address space in use; a lot where the system does not say."""
    try:
        pages = int(Path("/proc/self/statm").read_text("ascii").split()[0])
    except OSError:
        return 1 << 40
    return pages * resource.getpagesize()


def fuzz_files(
    targets: Mapping[Path, Callable[[], object]],
    count: int,
    seed: int = 0,
    told: Callable[[str], object] = lambda line: None,
) -> dict[str, Report]:
    """`fuzz_file` of every file, by its last two names; `told` of each when it is done."""
    reports = {}
    for path, read in targets.items():
        name = "/".join(path.parts[-2:])
        reports[name] = report = fuzz_file(path, read, count, seed)
        told(
            f"{name}: {report.total} mutations, {report.read} read, {report.refused} refused, "
            f"{len(report.problems)} problems, slowest {report.slowest:.2f} s, all in {report.seconds:.1f} s"
        )
    return reports
