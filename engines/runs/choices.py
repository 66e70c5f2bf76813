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
from engines.runs.decisions import Decisions, read_decisions
from engines.runs.journal import IMAGES, JOURNAL, Entry, read_entries

ANNOTATIONS = "annotations.json"  # of a run, while its dataset is whole
BEYOND = Drop(DropReason.BEYOND, "beyond the count")
_REPEAT = Drop(DropReason.REPEAT, "nearly repeats another image")


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
        dropped = _by_rule(entry, rules)
        if dropped is None and run.options.count is not None and images == run.options.count:
            dropped = BEYOND  # whether it repeats something, few were looked at for
        if dropped is None and entry.index in repeats:
            dropped = Drop(DropReason.REPEAT, repeats[entry.index])
        images += dropped is None
        yield Choice(entry, *decisions.choose(entry, rules, entry.labels(rules), dropped))


def choices_on_disk(folder: Path, run: RunSettings, rules: Rules) -> Iterator[Choice]:
    """The same of a run whose dataset is written, or to be, without a search for what repeats something: an image that
    should be in the dataset and is not there repeats one, or is beyond the count.
    """
    decisions, written = read_decisions(folder), (folder / ANNOTATIONS).exists()
    images = 0
    for entry in read_entries(folder / JOURNAL):
        by_rule, labels = _by_rule(entry, rules), entry.labels(rules)
        full = run.options.count is not None and images == run.options.count
        instances, dropped = decisions.choose(entry, rules, labels, by_rule)
        if written and dropped is None and not (folder / IMAGES / str(entry.file)).exists():
            dropped = BEYOND if full else _REPEAT
        elif not written and by_rule is None and full:
            instances, dropped = decisions.choose(entry, rules, labels, BEYOND)
        images += by_rule is None and not full and dropped is not _REPEAT
        yield Choice(entry, instances, dropped)


def _by_rule(entry: Entry, rules: Rules) -> Drop | None:
    """Why an image is not in a dataset of such rules, whatever else is there."""
    return (drop(entry.instances, rules, entry.known) if was_painted(entry) else None) or entry.drop


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
