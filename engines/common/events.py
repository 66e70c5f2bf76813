"""What a verb tells the one who called it, while it works.

Knows: the one event that every verb reports, and how it reads as a line, so that `report=print` shows what goes on.
Knows nothing about what is done, or about bars and terminals: `dengine_cli.console` draws them from events.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any


class EventKind(StrEnum):
    """What an event says.

    >>> EventKind("image")
    <EventKind.IMAGE: 'image'>
    """

    NOTE = "note"  # a line to read: something begins, or is worth knowing
    PLANNED = "planned"  # all is settled and tried out, and nothing is written yet: `text` says what will be done
    STARTED = "started"  # all is ready and the images begin; `text` says on what, `done` and `figures` what is there
    STEP = "step"  # the next of a few long steps begins: `done` of `total` are over, `text` says which it is
    PROGRESS = "progress"  # `done` of `total`
    IMAGE = "image"  # the same, by one image more: `image` says what became of it


@dataclass(frozen=True)
class ImageNews:
    """An image that was painted and labelled, and kept or dropped.

    >>> ImageNews(index=4, labels=0, dropped="no box scores 0.3").kept
    False
    """

    index: int  # of its job
    labels: int  # boxes that are labels
    dropped: str | None = None  # why it is not kept; None for a kept image

    @property
    def kept(self) -> bool:
        """Whether the run keeps it."""
        return self.dropped is None


@dataclass(frozen=True)
class Event:
    """Something that happened in a verb; `str` gives it as a line.

    >>> print(Event(EventKind.PROGRESS, "labelling", done=8, total=20, seconds_left=45.0))
    labelling: 8/20, 45 s left
    """

    kind: EventKind
    stage: str = ""  # what is at work, such as "painting": a bar's name
    text: str = ""  # for people: what begins, or what was found
    done: float | None = None  # of `total`, at most all of it
    total: float | None = None
    seconds_left: float | None = None  # of the verb, where it knows; else of the stage, better than its speed so far
    figures: Mapping[str, float] = field(
        default_factory=dict
    )  # of a training: loss and its parts, AP of an evaluation; of a run that goes on: boxes and dropped, of what
    # earlier starts painted
    image: ImageNews | None = None  # of kind IMAGE
    reached: float | None = None  # of `total`, where that is known more finely: what is in work counts in part
    speed: float | None = None  # of `done` a second, where the verb says so itself
    settled: Mapping[str, Any] = field(
        default_factory=dict
    )  # settings that repeat what was chosen on the way; None: one that is not given then
    needs: Mapping[str, float] = field(default_factory=dict)  # of kind PLANNED: bytes of "memory", "disk", where known

    def __str__(self) -> str:
        if self.kind in (EventKind.NOTE, EventKind.PLANNED):
            return self.text
        of = "" if self.total is None else f"/{self.total:g}"
        parts = [] if self.done is None else [f"{self.done:g}{of}"]
        parts += [self.text] if self.text else []
        parts += [f"{name} {value:.4g}" for name, value in self.figures.items()]
        if self.image is not None:
            parts.append(f"{self.image.labels} labels" if self.image.kept else f"dropped: {self.image.dropped}")
        if self.seconds_left:
            parts.append(f"{duration(self.seconds_left)} left")
        return ": ".join(part for part in (self.stage, ", ".join(parts)) if part)


Report = Callable[[Event], None]


def silent(event: Event) -> None:
    """The report of a verb that was given none."""


def note(text: str) -> Event:
    """A line to read.

    >>> str(note("opening the bundle"))
    'opening the bundle'
    """
    return Event(EventKind.NOTE, text=text)


def left_out(dropped: Sequence[str], skipped: Sequence[str], shown: int = 5) -> Iterator[str]:
    """What a dataset's reader left out, in a few lines; none where it left out nothing.

    >>> list(left_out(["a.jpg: width 0"], []))
    ['degenerate boxes dropped: 1', '  a.jpg: width 0']
    """
    for kind, items in (("degenerate boxes dropped", dropped), ("bad items left out", skipped)):
        if items:
            yield f"{kind}: {len(items)}"
            yield from (f"  {item}" for item in items[:shown])
            if len(items) > shown:
                yield f"  and {len(items) - shown} more"


def duration(seconds: float) -> str:
    """Seconds in words.

    >>> duration(0.44), duration(45), duration(700), duration(12000)
    ('0.4 s', '45 s', '12 min', '3 h 20 min')
    """
    if seconds < 9.95:
        return f"{seconds:.1f} s"
    if seconds < 119.5:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    if minutes < 120:
        return f"{minutes} min"
    return f"{minutes // 60} h {minutes % 60} min"
