"""What a run's dataset makes of each line of its journal.

Knows: in which order rules, near duplicates, the count and a person's decisions are applied, and what is counted of it.
Knows nothing about the dataset's files (`dataset_files`).
"""

from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from engines.datasets.writers import AnnotatedImage
from engines.labels.boxes import Instances
from engines.labels.rules import Drop, DropReason, Rules, drop
from engines.painting.run_settings import RunSettings
from engines.runs.dataset_rules import was_painted
from engines.runs.decisions import Decisions
from engines.runs.journal import Entry, read_entries

_BEYOND = Drop(DropReason.BEYOND, "beyond the count")


@dataclass(frozen=True)
class Choice:
    """A journal line, and what the dataset makes of it."""

    entry: Entry
    instances: Instances  # its labels, and as crowds the regions to ignore
    drop: Drop | None  # why the image is not in the dataset; None when it is


@dataclass
class Tally:
    images: int = 0
    jobs: int = 0
    next_index: int = 0  # after the last line
    boxes: Counter[int] = field(default_factory=Counter)
    ignored: int = 0
    dropped: Counter[str] = field(default_factory=Counter)
    used: bytearray = field(default_factory=bytearray)  # of each line, whether its image is in the dataset

    def add(self, choice: Choice) -> None:
        """Count a line."""
        self.jobs += 1
        self.used.append(choice.drop is None)
        self.next_index = choice.entry.index + 1
        if choice.drop is not None:
            self.dropped[choice.drop.text] += 1
            return
        self.images += 1
        self.boxes.update(choice.instances.single.labels.tolist())
        self.ignored += int(choice.instances.crowd.sum())


def choices_of(
    journal: Path, run: RunSettings, rules: Rules, repeats: Mapping[int, str], decisions: Decisions
) -> Iterator[Choice]:
    """What the dataset makes of every line: images with a label, and no more of them than were asked for; last of all,
    what was decided in review, which frees no place for other images.
    """
    images = 0
    for entry in read_entries(journal, run):
        by_rule = drop(entry.instances, rules, entry.known) if was_painted(entry) else None
        dropped = by_rule or entry.drop
        if dropped is None and entry.index in repeats:
            dropped = Drop(DropReason.REPEAT, repeats[entry.index])
        if dropped is None and run.options.count is not None and images == run.options.count:
            dropped = _BEYOND
        images += dropped is None
        yield Choice(entry, *decisions.choose(entry, rules, entry.labels(rules), dropped))


def annotated(choice: Choice, run: RunSettings) -> AnnotatedImage:
    """What writers are told of an image."""
    width, height = run.frame
    return AnnotatedImage(
        file_name=str(choice.entry.file),
        width=width,
        height=height,
        instances=choice.instances,
        prompt=choice.entry.prompt,
        group=choice.entry.reference,
    )
