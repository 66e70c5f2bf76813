"""How long a start needs to know what is there, on a run of very many chunks, and how much memory.

    python tests/helpers/ledger_speed.py --chunks 100000,1000000

The store is a folder with an index object for each thousand chunks, as drivers and workers leave them, and `--tail`
chunks behind the last of these, of which each has its own commit. Each is read in a process of its own.

Knows: what is measured, and how. Knows nothing about painting: no chunk has data.
"""

import argparse
import json
import resource
import subprocess
import sys
import tempfile
import time
from dataclasses import replace
from itertools import islice
from pathlib import Path

from many_machines import cluster_settings

from engines.cluster.commits import BLOCK, Commit, commit_name, write_block
from engines.cluster.ledger import Ledger
from engines.cluster.store import open_store
from engines.painting.run_settings import RunSettings

JOBS = 4  # of a chunk


def settings(chunks: int) -> RunSettings:
    """A run that ends a thousand chunks after those that are there."""
    run = cluster_settings(chunk=JOBS)
    return replace(run, options=replace(run.options, count=None, jobs=(chunks + BLOCK) * JOBS))


def make(folder: Path, chunks: int, tail: int) -> None:
    """A store with so many chunks."""
    store = open_store(f"file://{folder}", make=True)
    indexed = (chunks - tail) // BLOCK
    for block in range(indexed):
        write_block(store, block, [[JOBS, JOBS, 0]] * BLOCK)
    for number in range(indexed * BLOCK, chunks):
        data = f"chunks/{number:08d}/data-{'0' * 16}.tar"
        commit = Commit(number, JOBS, JOBS, 0, data, "0" * 64, "0" * 64, 1, "cpu", "worker", 1)
        store.create(commit_name(number), commit.to_json())


def measure(folder: Path, chunks: int) -> dict[str, float]:
    """Read what is there, and find the next chunks."""
    store, ledger = open_store(f"file://{folder}"), Ledger(settings(chunks))
    began, cpu = time.monotonic(), time.process_time()
    ledger.read(store)
    first = list(islice(ledger.wanted(), 8))
    wall, used = time.monotonic() - began, time.process_time() - cpu
    assert (ledger.whole, ledger.found, first) == (chunks, chunks, list(range(chunks, chunks + 8)))
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    return {"chunks": chunks, "wall_s": round(wall, 1), "cpu_s": round(used, 1), "peak_mb": round(peak)}


def main() -> None:
    """Make each store, read it, and print a line of JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--chunks", default="100000,1000000")
    parser.add_argument("--tail", type=int, default=999)
    parser.add_argument("--store", type=Path, help="measure a store that is there, in this process")
    asked = parser.parse_args()
    for chunks in map(int, asked.chunks.split(",")):
        if asked.store is not None:
            print(json.dumps(measure(asked.store, chunks)))  # noqa: T201
            continue
        with tempfile.TemporaryDirectory() as scratch:
            make(Path(scratch) / "store", chunks, asked.tail)
            command = [sys.executable, __file__, "--chunks", str(chunks), "--store", str(Path(scratch) / "store")]
            subprocess.run(command, check=True)


if __name__ == "__main__":
    main()
