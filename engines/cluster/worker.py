"""One who paints chunks: everything of a run held open, on one device.

Knows: how bundle, references, backend and painter are opened, once, as the run says, and how a chunk is painted and
committed. Knows nothing about who hands out chunks.
"""

import os
import socket
from contextlib import ExitStack
from typing import TYPE_CHECKING

from engines.cluster.assets import find_bundle, find_references
from engines.cluster.commits import Commit, write_chunk
from engines.cluster.paint import Paints, paint_chunk
from engines.cluster.records import read_run_of, require_run_of
from engines.cluster.store import Store
from engines.common.malloc import keep_few_heaps
from engines.painting.jobs import JobSource
from engines.painting.needs import generate_needs
from engines.painting.networks import cores_for_graphs
from engines.painting.references import job_source
from engines.painting.resolve import resolve, wants_compiled
from engines.painting.settings import GenerateSettings
from engines.painting.unpainted import open_painter

if TYPE_CHECKING:
    from engines.backends.base import Backend


def worker_name() -> str:
    """Machine and process, for people.

    >>> ":" in worker_name()
    True
    """
    return f"{socket.gethostname()}:{os.getpid()}"


class Worker:
    """A painter of one run; a context manager."""

    def __init__(self, store: Store, asked: GenerateSettings, name: str | None = None) -> None:
        """Open what `asked` names, as the run says where that has begun. Raises what `generate` raises."""
        from engines.backends.registry import open_backend

        keep_few_heaps()
        self._store, self.name = store, name or worker_name()
        stored = read_run_of(store)
        self._bundle = find_bundle(store, asked)
        self._references = find_references(store, asked)
        options = asked if stored is None else stored.options
        engine = options.engine if asked.engine == "auto" else asked.engine
        precision = options.precision if asked.precision == "auto" else asked.precision
        self._backend: Backend = open_backend(
            self._bundle, engine, precision=precision,
            threads=options.threads if asked.threads is None else asked.threads, device=asked.device,
            compiled=wants_compiled(asked, stored), needs=generate_needs(asked, self._bundle, stored),
        )  # fmt: skip
        self.run = resolve(asked, self._bundle, self._backend, self._references, stored)
        self._painting: tuple[Paints, JobSource] | None = None
        self._stack = ExitStack()

    def __enter__(self) -> "Worker":
        self._stack.enter_context(cores_for_graphs(self._backend))
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def paint(self, number: int, attempt: int) -> tuple[Commit, bool]:
        """Paint a chunk and commit it; the commit that counts, and whether it is this one."""
        if self._painting is None:
            self.run = require_run_of(self._store)
            source = job_source(self.run.options, self._bundle, self._references)
            painter = open_painter(
                self._bundle, self._backend, self.run.options, source,
                stage=lambda text: None, tick=lambda: None, floored=self.run.floored,
            )  # fmt: skip
            self._painting = painter, source
        painted = paint_chunk(*self._painting, self.run, number)
        return write_chunk(self._store, painted, self._backend.description, self.name, attempt)
