"""How far a start of a run is.

Knows: what is counted, and when that is enough or hopeless. Knows nothing about how images come about.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field

from engines.labels.rules import Rules
from engines.painting.jobs import chunk_ranges
from engines.painting.run_settings import RunSettings
from engines.runs.journal import Entry, Progress

HOPELESS = 32  # so many jobs in a row without a kept image, or a whole chunk of more, end a run that counts images


@dataclass
class RunState:
    """How far this start of the run is."""

    target: int
    counts_kept: bool
    hopeless: int  # jobs without a kept image that say that a count is never reached
    rules: Rules  # by which images are kept
    jobs: int  # journal lines of whole chunks, and images of the chunk in work
    kept: int
    unkept: int  # journal lines since the last kept image
    painted: int = 0  # by this start
    cut_short: bool = False  # stopped inside a chunk
    first_image: float | None = None  # monotonic seconds
    ticks: int = 0  # network calls of the sampler
    entries: dict[str, Entry] = field(default_factory=dict)  # image name -> entry, while the image is being written

    def count_tick(self) -> None:
        self.ticks += 1

    @property
    def done(self) -> int:
        """Kept images, or jobs, of the target: what a whole chunk brings beyond it is not counted."""
        return min(self.kept if self.counts_kept else self.jobs, self.target)

    @property
    def gave_up(self) -> bool:
        """Whether so many jobs came to nothing that a count is out of reach."""
        return self.counts_kept and self.kept < self.target and self.unkept >= self.hopeless

    @property
    def over(self) -> bool:
        return self.done >= self.target or self.gave_up


def state_of(run: RunSettings, progress: Progress) -> RunState:
    """How far a run is whose journal got so far."""
    count = run.options.count
    return RunState(
        target=count if count is not None else sum(map(len, chunks_of(run))),
        counts_kept=count is not None,
        hopeless=max(HOPELESS, run.options.chunk),
        rules=run.rules,
        jobs=progress.jobs,
        kept=progress.kept,
        unkept=progress.unkept,
    )


def chunks_of(run: RunSettings) -> Iterator[range]:
    """The indices of each chunk of a run, or of its shard."""
    return chunk_ranges(run.options.chunk, run.options.jobs, run.options.shard)
