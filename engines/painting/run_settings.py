"""What a run keeps of its settings: the content of `run.json`.

Knows: that file, both ways, and which settings may change between two starts of a run. Knows nothing about how they
came to be what they are (`resolve`).
"""

import dataclasses
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from engines.adapter.info import are_names
from engines.common.quote import quote, shorten
from engines.common.schema import FLAT, from_object, key_of, to_object
from engines.errors import Mistake, RunError, refuse
from engines.labels.rules import Rules
from engines.labels.scores import StoredScore, Thresholds, unstored
from engines.painting.settings import (
    IMAGE_SUFFIXES,
    LARGEST_SIDE,
    LIMIT,
    UNSAID,
    PaintOptions,
    range_mistakes,
    shown_value,
)

# Version of run.json. 2: another order in which a chunk's jobs are painted. 3: `strength` is a noise level, and `steps`
# lie between it and none; before, the last floor(steps x strength) of the steps from noise were run. 4: where nobody
# says, DPM++ paints in fewer steps; before, it was DDIM.
FORMAT = 4
GOES_ON = (2, 3, 4)  # formats of runs that can be gone on with, each as it was begun
FORMATS = (1, *GOES_ON)  # of runs that can be read
# Facts stand behind the option that they belong to, as in every run.json there is; those not named here, at the end.
_BEHIND = {"bundle": ("bundle_hash", "class_names"), "reference": ("reference_hash",), "threads": ("backend",)}

# Options that are open in what is asked for, and never in a run.
_SETTLED = (
    "size", "steps", "sampler", "eta", "guidance", "negative_prompt", "score", "chunk", "slots", "rows", "threads",
    "ignore_score", "min_quality", "max_overlap", "labels", "keep_detail",
)  # fmt: skip


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
        if value.get("format") not in FORMATS:
            found = quote(value.get("format"))
            raise RunError(f"{where}: run format {found} was found; this version reads formats up to {FORMAT}.")
        settings = from_object(cls, value, RunError, where)
        refuse(settings._mistakes(), RunError, f"{where}: ")
        score = settings.options.score
        if isinstance(score, str) or (isinstance(score, Mapping) and tuple(score) != settings.class_names):
            named = score if isinstance(score, str) else ", ".join(score)
            raise RunError(
                f"{where}: score names {shorten(named)}; the run's own classes were expected.", field="score"
            )
        return settings

    def _mistakes(self) -> Iterator[Mistake]:
        """What is wrong with values, beyond their types."""
        if left := [name for name in _SETTLED if getattr(self.options, name) is None]:
            yield left[0], f"`{left[0]}` is missing"
            return
        if not are_names(self.class_names):
            yield "class_names", "`class_names` must be different names without line breaks"
        if any("\ud800" <= letter <= "\udfff" for letter in json.dumps(self.to_json(), ensure_ascii=False)):
            yield "backend", "it holds halves of letters, which no file can hold"
        if self.short_side is not None and not 1 <= self.short_side <= LARGEST_SIDE:
            yield "short_side", f"`short_side` is {quote(self.short_side)}; 1 to {LARGEST_SIDE} was expected"
        if not all(0.0 <= number <= LIMIT for number in (self.frequencies or {}).values()):
            yield "frequencies", "`frequencies` holds a number that no class has an image"
        if (self.options.count is None) == (self.options.jobs is None):
            yield "count", "one of `count` and `jobs` was expected"
        elif self.options.shard is not None and self.options.jobs is None:
            yield "shard", "`shard` needs `jobs`"
        yield from range_mistakes(self.options)

    @property
    def floored(self) -> bool:
        """Whether a strength means what it did before format 3."""
        return self.format < 3

    @property
    def gives(self) -> bool:
        """Whether the journal holds labels that were known before the adapter looked."""
        return self.options.compose or self.options.labels != "adapter"

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
    def rules(self) -> Rules:
        """What the run's own dataset takes from its journal."""
        options = self.options
        return Rules(
            self.thresholds, options.ignore_score, options.min_quality, options.keep_empty, options.max_overlap,
            options.labels,
        )  # fmt: skip

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
