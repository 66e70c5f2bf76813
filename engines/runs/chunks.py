"""The chunks of a run that are in work: one, and at its end the next.

Knows: which of their jobs have come to something, and whether it is sure by then that another chunk will be painted,
whatever comes of the rest. Knows nothing about images or the journal.
"""

from collections import deque
from dataclasses import dataclass

from engines.runs.state import RunState


@dataclass
class _Open:
    """A chunk that has begun."""

    chunk: range
    missing: int  # jobs without an outcome
    last_kept: int | None = None  # index of the last kept image


class OpenChunks:
    """Chunks in the order in which they began; `state.unkept` is counted when one is whole."""

    def __init__(self, state: RunState) -> None:
        self._state = state
        self._open: deque[_Open] = deque()

    def begin(self, chunk: range) -> None:
        """A chunk begins."""
        self._open.append(_Open(chunk, len(chunk)))

    def took(self, index: int, kept: bool) -> None:
        """A job of an open chunk came to something."""
        one = next(one for one in self._open if index in one.chunk)
        one.missing -= 1
        if kept:
            one.last_kept = max(index, -1 if one.last_kept is None else one.last_kept)
        while self._open and not self._open[0].missing:
            whole = self._open.popleft()
            if whole.last_kept is None:
                self._state.unkept += len(whole.chunk)
            else:
                self._state.unkept = whole.chunk.stop - 1 - whole.last_kept

    @property
    def unfinished(self) -> bool:
        """Whether jobs of a chunk that has begun are missing."""
        return bool(self._open)

    def another_is_sure(self) -> bool:
        """Whether the run goes on behind the open chunks, whatever their missing jobs come to: a count is then out of
        their reach, and not hopeless."""
        if not self._state.counts_kept or not self._open:
            return not self._state.over
        missing = sum(one.missing for one in self._open)
        return self._open[-1].last_kept is not None and self._state.kept + missing < self._state.target
