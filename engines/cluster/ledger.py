"""Which chunks of a run are there, how far that is, and which are painted next.

Knows: that a run uses its chunks from the first one on, and ends at the first at which one machine would end it,
whichever came earlier. Knows nothing about machines or objects' bytes. Memory: twelve bytes a chunk.
"""

from array import array
from collections.abc import Collection, Iterator

from engines.cluster.commits import BLOCK, committed_from, read_block, read_commit, write_block
from engines.cluster.store import Store
from engines.painting.run_settings import RunSettings
from engines.runs.journal import Progress
from engines.runs.state import RunState, state_of

_MISSING = -1
_UNSURE = 0.05  # share of jobs that are kept, at least, where it is guessed how many chunks are needed


class Ledger:
    """The chunks of one run: `add` each that has a commit."""

    def __init__(self, run: RunSettings) -> None:
        self._state: RunState = state_of(run, Progress())  # of the first `whole` chunks
        self._chunk = run.options.chunk
        self._last = None if run.options.jobs is None else -(-run.options.jobs // self._chunk)  # chunks there can be
        self._rows = {name: array("i") for name in ("jobs", "kept", "unkept")}
        self.whole = 0  # chunks from the first on without a gap, no more than the run uses
        self.found = 0  # chunks that are there
        self._indexed = 0  # blocks that are known to be in the index
        self._sum_kept = self._sum_jobs = 0

    def add(self, number: int, jobs: int, kept: int, unkept: int) -> None:
        """A chunk is there; a second time it changes nothing."""
        if self._last is not None and number >= self._last:
            return
        for row in self._rows.values():
            if number >= len(row):
                row.extend([_MISSING] * (number + 1 - len(row)))
        if self.has(number):
            return
        for name, value in (("jobs", jobs), ("kept", kept), ("unkept", unkept)):
            self._rows[name][number] = value
        self.found += 1
        self._sum_kept += kept
        self._sum_jobs += jobs
        while not self._state.over and self.has(self.whole):
            jobs, kept, unkept = self.row(self.whole)
            self._state.jobs += jobs
            self._state.kept += kept
            self._state.unkept = unkept if kept else self._state.unkept + jobs
            self.whole += 1

    def has(self, number: int) -> bool:
        """Whether a chunk is there."""
        return number < len(self._rows["jobs"]) and self._rows["jobs"][number] != _MISSING

    def row(self, number: int) -> tuple[int, int, int]:
        """Jobs, kept images, and jobs behind the last of these, of a chunk that is there."""
        return self._rows["jobs"][number], self._rows["kept"][number], self._rows["unkept"][number]

    @property
    def state(self) -> RunState:
        """How far the run is, counted from its first chunk on without a gap."""
        return self._state

    @property
    def over(self) -> bool:
        """Whether all that the run uses is there: its first `whole` chunks."""
        return self._state.over

    @property
    def done(self) -> int:
        """Kept images, or jobs, of the target that are there, in whichever chunk."""
        return min(self._sum_kept if self._state.counts_kept else self._sum_jobs, self._state.target)

    def wanted(self, busy: Collection[int] = ()) -> Iterator[int]:
        """The chunks to paint next, the lowest first, without those that somebody is `busy` with.

        With a count: no more than it will take, as far as the share of kept images says by now.
        """
        if self.over:
            return
        share = max(self._sum_kept / self._sum_jobs, _UNSURE) if self._sum_jobs else 1.0
        number, kept = self.whole, float(self._state.kept)
        while self._last is None or number < self._last:
            if self._state.counts_kept and kept >= self._state.target:
                return
            if self.has(number):
                kept += self._rows["kept"][number]
            else:
                kept += share * self._chunk
                if number not in busy:
                    yield number
            number += 1

    def read(self, store: Store) -> None:
        """Add all that is committed: by the index as far as it goes, then chunk by chunk."""
        while (rows := read_block(store, self._indexed)) is not None:
            for place, (jobs, kept, unkept) in enumerate(rows):
                self.add(self._indexed * BLOCK + place, jobs, kept, unkept)
            self._indexed += 1
        for number in committed_from(store, self._indexed * BLOCK):
            if not self.has(number) and (commit := read_commit(store, number)) is not None:
                self.add(number, commit.jobs, commit.kept, commit.unkept)
        self.write_index(store)

    def write_index(self, store: Store) -> None:
        """Write an index object of each thousand chunks that are there and have none yet."""
        while (self._indexed + 1) * BLOCK <= self.whole:
            numbers = range(self._indexed * BLOCK, (self._indexed + 1) * BLOCK)
            write_block(store, self._indexed, [self.row(number) for number in numbers])
            self._indexed += 1


def beyond(ledger: Ledger) -> int:
    """Chunks that are there and not used: they wait for a larger count."""
    return ledger.found - ledger.whole
