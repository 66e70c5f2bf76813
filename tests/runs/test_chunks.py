"""Chunks in work: what is counted of them, and when another one is sure."""

import pytest
from made_runs import run_settings

from engines.runs.chunks import OpenChunks
from engines.runs.state import RunState


def make_state(target: int, *, counts_kept: bool = True, unkept: int = 0) -> RunState:
    rules = run_settings().rules
    return RunState(target, counts_kept, hopeless=8, rules=rules, jobs=0, kept=0, unkept=unkept)


def take(work: OpenChunks, state: RunState, index: int, kept: bool) -> None:
    """As `generate` does it."""
    state.jobs += 1
    state.kept += kept
    work.took(index, kept)


def test_what_was_not_kept_is_counted_over_whole_chunks_in_their_order() -> None:
    state = make_state(100, unkept=2)
    work = OpenChunks(state)
    work.begin(range(4))
    for index in (2, 0, 3):
        take(work, state, index, kept=False)
    work.begin(range(12, 16))  # of a shard
    take(work, state, 13, kept=True)
    assert state.unkept == 2, "no chunk is whole"
    take(work, state, 1, kept=False)
    assert state.unkept == 6
    for index in (12, 15, 14):
        take(work, state, index, kept=False)
    assert state.unkept == 2
    assert not work.unfinished


@pytest.mark.parametrize(
    ("target", "kept", "missing", "sure"),
    [
        (8, 1, 2, True),  # 1 + 2 < 8
        (3, 1, 2, False),  # both may be kept
        (4, 1, 2, True),
        (8, 0, 2, False),  # if neither is kept, it may be hopeless
        (8, 1, 0, True),
    ],
)
def test_another_chunk_is_sure_where_a_count_is_out_of_reach_and_not_hopeless(
    target: int, kept: int, missing: int, sure: bool
) -> None:
    state = make_state(target)
    work = OpenChunks(state)
    work.begin(range(4))
    for index in range(4 - missing):
        take(work, state, index, kept=index < kept)
    assert work.another_is_sure() is sure


def test_where_jobs_are_counted_another_chunk_is_always_sure_until_all_are_done() -> None:
    state = make_state(4, counts_kept=False)
    work = OpenChunks(state)
    work.begin(range(4))
    assert work.another_is_sure()
    for index in range(4):
        take(work, state, index, kept=False)
    assert not work.another_is_sure()
