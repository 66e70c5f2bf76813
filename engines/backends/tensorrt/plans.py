"""TensorRT plans in the user's cache folder: what names one, and what makes it safe to load.

Knows: everything that a plan is bound to (graph and weights, precision, TensorRT, GPU, driver), which shapes it serves,
and that its bytes are those that were built here. Does not import TensorRT: it neither builds nor runs a plan.

A plan is code for a GPU, so it is loaded only from this folder, where `export.tensorrt.build` put it, never from a
bundle or a download. A plan file is one line of JSON (key, profiles, SHA-256 of both and of the plan), then the plan.
"""

import contextlib
import dataclasses
import hashlib
import json
import math
import mmap
import os
import tempfile
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from engines.bundle.bundle import Bundle
from engines.common.cache import cache_folder, cache_key
from engines.common.files import sync_folder
from engines.common.quote import shorten

FORMAT = 1  # version of the plan files; part of every key
LIMIT_BYTES = 64 << 30  # the least recently used plans go when the folder outgrows this
SUFFIX = ".plan"
_LONGEST_HEADER = 1 << 20
_SHOWN = 3  # other machines that a message names

Bounds = Mapping[str, tuple[int, int, int]]  # a profile: size -> (smallest, usual, largest)
Sizes = Mapping[str, int]


@dataclass(frozen=True)
class Machine:
    """What a plan is bound to, besides its graph. One of TensorRT for RTX is bound to no GPU's name and no driver."""

    flavour: str  # TensorRT, or TensorRT for RTX
    tensorrt: str  # version
    capability: str  # compute capability, such as 9.0
    gpu: str = ""  # name
    driver: str = ""  # version

    def __str__(self) -> str:
        place = f"{self.gpu}, driver {self.driver}" if self.gpu else f"compute capability {self.capability}"
        return f"{self.flavour} {self.tensorrt}, {place}"


@dataclass(frozen=True)
class Needs:
    """What a run is going to prepare, for the engine whose plans are built beforehand."""

    graphs: tuple[tuple[str, Sizes], ...]  # graph, and the sizes it will be prepared at
    build: Mapping[str, Any] = field(default_factory=dict)  # arguments of `build_plans` that make it build for them


@dataclass(frozen=True)
class Plan:
    """A plan file whose SHA-256 was right when it was found."""

    path: Path
    graph: str
    profiles: tuple[Bounds, ...]  # in the plan's own order
    bytes: int  # of the plan itself
    start: int  # where it begins in the file

    @contextlib.contextmanager
    def data(self) -> Iterator[memoryview]:
        """The plan's bytes, without a copy of them in memory."""
        with self.path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as mapped:
            whole = memoryview(mapped)
            part = whole[self.start :]
            try:
                yield part
            finally:
                part.release()
                whole.release()

    def profile_of(self, sizes: Sizes) -> int | None:
        """The tightest profile that serves these sizes; None where none does."""
        serving = [(spread(profile), i) for i, profile in enumerate(self.profiles) if covers(profile, sizes)]
        return min(serving)[1] if serving else None


def plans_folder() -> Path:
    """Where plans are kept."""
    return cache_folder() / "plans"


def plan_key(bundle: Bundle, graph: str, machine: Machine) -> dict[str, Any]:
    """Everything but the shapes that decides whether a plan may be used: JSON values."""
    return {
        "format": FORMAT,
        "graph": graph,
        "files": _graph_files(bundle, graph),
        "precision": bundle.manifest.graph_dtype,
        **dataclasses.asdict(machine),
    }


def _graph_files(bundle: Bundle, graph: str) -> dict[str, str]:
    """SHA-256 of a graph's file and of every file it reads weights from.

    A graph names those as they are, so that any name which occurs in it counts: one too many only makes a plan
    stale too soon.
    """
    content = bundle.graph_path(graph).read_bytes()
    own = bundle.graph_path(graph).name
    files = bundle.manifest.files
    return {name: digest for name, digest in sorted(files.items()) if name == own or name.encode() in content}


def covers(profile: Bounds, sizes: Sizes) -> bool:
    """Whether a profile serves these sizes."""
    return set(profile) == set(sizes) and all(low <= sizes[size] <= high for size, (low, _, high) in profile.items())


def spread(profile: Bounds) -> int:
    """How many shapes a profile serves: 1 for a static one, which is the fastest."""
    return math.prod(high - low + 1 for low, _, high in profile.values())


class PlanStore:
    """Plans in folders: written to the first, looked for in all."""

    def __init__(self, *folders: Path, only: Collection[Path] | None = None) -> None:
        """Without `folders`, the user's own (`plans_folder`); with `only`, nothing but these files is found."""
        self._folders = folders or (plans_folder(),)
        self._only = only
        self._checked: dict[tuple[Path, int, int], Plan] = {}  # path, size, inode: hashed once
        self.damaged: list[Path] = []  # found, but no plan file, or with a wrong SHA-256: not used

    def find(self, key: Mapping[str, Any], sizes: Sizes) -> tuple[Plan, int] | None:
        """The plan with this key that fits these sizes best, and the number of the profile that serves them."""
        found = []
        for path, header, start in self._headers(str(key["graph"])):
            profiles = _profiles(header)
            serving = [spread(profile) for profile in profiles if covers(profile, sizes)]
            if header["key"] == key and serving:
                found.append((min(serving), path, start, header))
        for _, path, start, header in sorted(found, key=lambda entry: entry[:2]):
            plan = self._whole(path, header, start)
            if plan is not None and (profile := plan.profile_of(sizes)) is not None:
                return plan, profile
        return None

    def holding(self, key: Mapping[str, Any], profile: Bounds) -> Plan | None:
        """The plan with this key that was built for this very profile."""
        for path, header, start in self._headers(str(key["graph"])):
            if header["key"] == key and profile in _profiles(header) and (plan := self._whole(path, header, start)):
                return plan
        return None

    def elsewhere(self, key: Mapping[str, Any]) -> list[Machine]:
        """The other machines, flavours and versions that there are plans of the same graph and weights for."""
        names = {field.name for field in dataclasses.fields(Machine)}
        same = {name: value for name, value in key.items() if name not in names}
        found = []
        for _, header, _ in self._headers(str(key["graph"])):
            other = header["key"]
            if other != key and same == {name: value for name, value in other.items() if name not in names}:
                with contextlib.suppress(TypeError):
                    found.append(Machine(**{name: shorten(value) for name, value in other.items() if name in names}))
        return sorted(set(found), key=str)

    def write(self, key: Mapping[str, Any], profiles: Sequence[Bounds], data: Any) -> Path:
        """Keep a plan (any bytes-like object): a temporary name, fsync, rename. Raises OSError."""
        folder, graph = self._folders[0], str(key["graph"])
        shapes = [{size: list(bounds) for size, bounds in sorted(profile.items())} for profile in profiles]
        body = memoryview(data)
        header = {"key": dict(key), "profiles": shapes, "sha256": _digest(key, shapes, body)}
        path = folder / f"{graph}-{cache_key({'key': dict(key), 'profiles': shapes})[:32]}{SUFFIX}"
        folder.mkdir(parents=True, exist_ok=True)
        descriptor, temporary = tempfile.mkstemp(prefix=f".{graph}.", suffix=".tmp", dir=folder)
        try:
            with os.fdopen(descriptor, "wb") as file:
                file.write(json.dumps(header).encode() + b"\n")
                file.write(body)
                file.flush()
                os.fsync(file.fileno())
            os.replace(temporary, path)
        except BaseException:
            with contextlib.suppress(OSError):
                os.unlink(temporary)
            raise
        sync_folder(folder)
        return path

    def _headers(self, graph: str) -> Iterator[tuple[Path, dict[str, Any], int]]:
        """Every plan file of a graph, its header and where the plan begins; files that are none count as damaged."""
        for folder in self._folders:
            for path in sorted(folder.glob(f"{graph}-*{SUFFIX}")):
                if self._only is not None and path not in self._only:
                    continue
                try:
                    with path.open("rb") as file:
                        line = file.readline(_LONGEST_HEADER)
                    header = json.loads(line)
                    _profiles(header)
                    if isinstance(header["key"], dict) and isinstance(header["sha256"], str):
                        yield path, header, len(line)
                        continue
                except (OSError, ValueError, KeyError, TypeError, AttributeError, OverflowError, RecursionError):
                    pass
                self._note_damaged(path)

    def _whole(self, path: Path, header: dict[str, Any], start: int) -> Plan | None:
        """The plan, if its bytes are those that were written."""
        try:
            status = path.stat()
            stamp = (path, status.st_size, status.st_ino)
            if stamp not in self._checked:
                plan = Plan(path, str(header["key"]["graph"]), _profiles(header), status.st_size - start, start)
                with plan.data() as body:
                    right = _digest(header["key"], header["profiles"], body) == header["sha256"]
                if not right:
                    self._note_damaged(path)
                    return None
                self._checked[stamp] = plan
            with contextlib.suppress(OSError):
                os.utime(path)  # so that `remove_unused` sees it as used
            return self._checked[stamp]
        except (OSError, ValueError):
            self._note_damaged(path)
            return None

    def _note_damaged(self, path: Path) -> None:
        if path not in self.damaged:
            self.damaged.append(path)


def missing_plans(store: PlanStore, bundle: Bundle, machine: Machine, needs: Needs) -> str | None:
    """What is missing of the plans a run needs, and the call that builds it, in one line; None if nothing is."""
    graphs = [(graph, n) for graph, n in needs.graphs if store.find(plan_key(bundle, graph, machine), n) is None]
    return missing_line(store, bundle, machine, graphs, needs.build) if graphs else None


def missing_line(
    store: PlanStore, bundle: Bundle, machine: Machine, graphs: Sequence[tuple[str, Sizes]], build: Mapping[str, Any]
) -> str:
    """The one line for plans of `graphs` that are not there, with the arguments of `build_plans` that make them."""
    shown = ", ".join(f"{graph} ({shown_sizes(bundle, sizes)})" for graph, sizes in graphs)
    more = f", and {len(store.damaged) - 1} more beside," if len(store.damaged) > 1 else ""
    damaged = f" {store.damaged[0]}{more} is damaged and was not used." if store.damaged else ""
    others = store.elsewhere(plan_key(bundle, graphs[0][0], machine))
    other = f" Those that are there are for {'; '.join(map(str, others[:_SHOWN]))}." if others else ""
    return (
        f"There is no TensorRT plan of {shown} for this machine ({machine}).{other}{damaged} "
        f"Build what is missing with {build_call(bundle.folder, build)}."
    )


def build_call(folder: Path, build: Mapping[str, Any]) -> str:
    """The call of `export.tensorrt.build` that builds plans for a bundle, as messages mark it (`engines.errors`)."""
    words = [repr(str(folder)), *(f"{name}={value!r}" for name, value in build.items())]
    return f"`build_plans(BuildPlansSettings({', '.join(words)}))`"


def shown_sizes(bundle: Bundle, sizes: Sizes) -> str:
    """Sizes in words: `batch 8, 512x512`."""
    stride = bundle.vae_stride
    frame = f", {sizes['w'] * stride}x{sizes['h'] * stride}" if "w" in sizes else ""
    return f"batch {sizes['B']}{frame}"


def remove_unused(folder: Path, keep: Sequence[Path]) -> None:
    """Remove the plans that were not used for longest, until the rest fit LIMIT_BYTES; `keep` stay."""
    total = 0
    entries = [(path.stat(), path) for path in folder.glob(f"*{SUFFIX}") if path.is_file()]
    for status, path in sorted(entries, key=lambda entry: (entry[1] in keep, entry[0].st_mtime), reverse=True):
        total += status.st_size
        if total > LIMIT_BYTES and path not in keep:
            path.unlink(missing_ok=True)


def _profiles(header: Mapping[str, Any]) -> tuple[Bounds, ...]:
    """The profiles of a header. Raises KeyError, TypeError, ValueError, AttributeError or OverflowError where it has
    none.
    """
    found = []
    for profile in header["profiles"]:
        bounds = {}
        for size, (low, usual, high) in profile.items():
            bounds[str(size)] = (int(low), int(usual), int(high))
        found.append(bounds)
    return tuple(found)


def _digest(key: Mapping[str, Any], profiles: Sequence[Any], data: memoryview) -> str:
    """SHA-256 of key, profiles and plan."""
    digest = hashlib.sha256(json.dumps([dict(key), list(profiles)], sort_keys=True).encode())
    digest.update(data)
    return digest.hexdigest()
