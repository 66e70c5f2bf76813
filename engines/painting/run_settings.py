"""What a run keeps of its settings: the content of `run.json`.

Knows: that file, both ways, and which settings may change between two starts of a run. Knows nothing about how they
came to be what they are (`resolve`).
"""

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from engines.common.schema import FLAT, from_object, key_of, to_object
from engines.errors import Mistake, RunError
from engines.labels.scores import StoredScore, Thresholds, unstored
from engines.painting.settings import IMAGE_SUFFIXES, UNSAID, PaintOptions, shown_value

FORMAT = 2  # version of run.json, and of the order in which a chunk's jobs are painted
OLDER_FORMATS = (1,)  # of runs that can be read, but not gone on with
# Facts stand behind the option that they belong to, as in every run.json there is; those not named here, at the end.
_BEHIND = {"bundle": ("bundle_hash", "class_names"), "reference": ("reference_hash",), "threads": ("backend",)}


@dataclass(frozen=True)
class RunSettings:
    """Everything that decides a run's bytes, as resolved."""

    options: PaintOptions = field(metadata=FLAT)  # with every choice made
    bundle_hash: str  # SHA-256 of the bundle's manifest, which holds those of all its files
    class_names: tuple[str, ...]  # the bundle's
    reference_hash: str | None  # SHA-256 over the records of the references
    backend: str  # a description of it: runtime, device, precision, threads
    short_side: int | None = None  # the bundle's; with the references, it gives each job's crop back
    frequencies: dict[str, float] | None = None  # `AdapterInfo.frequencies`; None in runs of an earlier dengine
    format: int = FORMAT

    def to_json(self) -> dict[str, Any]:
        """The JSON object written to `run.json`."""
        facts = to_object(self)
        options = {name: facts.pop(name) for name in to_object(self.options)}
        options = {name: value for name, value in options.items() if name not in UNSAID or value != UNSAID[name]}
        found = {"format": facts.pop("format")}
        for name, value in options.items():
            found[name] = value
            found |= {fact: facts.pop(fact) for fact in _BEHIND.get(name, ())}
        return found | facts

    @classmethod
    def from_json(cls, value: Mapping[str, Any], where: str) -> "RunSettings":
        """Read what `to_json` wrote. Raises RunError that lists every mistake at once, prefixed with `where`."""
        if value.get("format") not in (FORMAT, *OLDER_FORMATS):
            raise RunError(
                f"{where}: run format {value.get('format')!r} was found; this version reads formats up to {FORMAT}."
            )
        settings = from_object(cls, value, RunError, where)
        score = settings.options.score
        if isinstance(score, str) or (isinstance(score, Mapping) and tuple(score) != settings.class_names):
            named = score if isinstance(score, str) else ", ".join(score)
            raise RunError(f"{where}: score names {named:.60}; the run's own classes were expected.", field="score")
        return settings

    @property
    def frame(self) -> tuple[int, int]:
        """(width, height) of the images."""
        return self.options.size

    @property
    def suffix(self) -> str:
        """File name ending of the images, without a dot."""
        return IMAGE_SUFFIXES[self.options.image_format]

    @property
    def score(self) -> StoredScore:
        """The lowest score of a label: a number, or a number for every class."""
        score: Any = self.options.score  # resolved, so of no other kind
        return score  # type: ignore[no-any-return]

    @property
    def thresholds(self) -> Thresholds:
        """The lowest score of a label of each class."""
        return unstored(self.score, self.class_names)


# What may change between two starts of a run: no byte of an image depends on it.
_FREE = ("bundle", "reference", "skip_bad", "reference_split", "follow_links", "boxes", "short_side", "frequencies")


def differences(stored: RunSettings, wanted: RunSettings) -> list[Mistake]:
    """What keeps `wanted` from going on with the run `stored`, setting by setting; empty when nothing does.

    A larger count (or number of jobs) is no difference; neither is where the bundle and the references lie, as long
    as their contents are the same.
    """
    earlier, after = {**UNSAID, **stored.to_json()}, {**UNSAID, **wanted.to_json()}
    settings = {key_of(item): item.name for item in dataclasses.fields(PaintOptions)}
    found = []
    for name, before in earlier.items():
        now = after[name]
        grows = name in ("count", "jobs") and before is not None and now is not None and now >= before
        if before != now and not grows and name not in _FREE:
            asked = settings.get(name, name)
            found.append((asked, f"`{asked}` is {shown_value(before)} in the run, {shown_value(now)} was asked for"))
    return found
