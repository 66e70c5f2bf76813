"""Which stages are done, and which are to do.

Knows: records and the files that stages leave. Knows nothing about what stages do.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks.proof.stages import Stage
from benchmarks.proof.workplace import ProofError, Workplace


def is_done(place: Workplace, stage: Stage) -> bool:
    """Whether a stage's record is there; ProofError where it was made with another plan."""
    record = place.record(stage.name)
    if record is None:
        return False
    if record["settings"] != as_json(stage.settings):
        raise ProofError(
            f"{place.results / stage.name}.json was made with {record['settings']}, the plan has "
            f"{as_json(stage.settings)}: remove it and {place.folder(stage.name)} to do it again."
        )
    return True


def as_json(value: Any) -> Any:
    """A value as JSON gives it back."""
    if isinstance(value, Mapping):
        return {str(key): as_json(one) for key, one in value.items()}
    return [as_json(one) for one in value] if isinstance(value, list | tuple) else value


def is_whole(work: Path, stage: Stage) -> bool:
    """Whether the files that a stage leaves are there."""
    return all((work / file).exists() for file in stage.leaves)


def to_do(place: Workplace, stages: Sequence[Stage], wanted: set[str]) -> list[Stage]:
    """The stages to run, in order: those `wanted` without a record, and what these need and lacks record or files.

    wanted: names of stages or groups; empty: all stages.
    """
    by_name = {stage.name: stage for stage in stages}
    if unknown := sorted(wanted - by_name.keys() - {stage.group for stage in stages}):
        raise ProofError(f"--only names {', '.join(unknown)}, which are no stages; --plan shows them.")
    chosen: set[str] = set()

    def add(stage: Stage, needed: bool) -> None:
        if stage.name in chosen or (is_done(place, stage) and not (needed and not is_whole(place.work, stage))):
            return
        chosen.add(stage.name)
        for name in stage.needs:
            add(by_name[name], False)
        for name in stage.reads:
            add(by_name[name], True)

    for stage in stages:
        if not wanted or {stage.name, stage.group} & wanted:
            add(stage, False)
    return [stage for stage in stages if stage.name in chosen]
