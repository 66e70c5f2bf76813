"""What `push` is asked for, and what came of it.

Knows: how the address of a place is spelt. Knows nothing about how one is reached.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from engines.cluster.store import SCHEMES
from engines.common.quote import quote
from engines.common.schema import AnyPath, settle
from engines.errors import Mistake, refuse

HUB = "hub:"
_REPOSITORY = re.compile(r"hub:[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")
_SCHEME = re.compile(r"([a-z][a-z0-9+.-]+):")
_LICENCE = re.compile(r"[A-Za-z0-9][A-Za-z0-9.+-]*")
_KNOWN = "hub:OWNER/NAME, s3://BUCKET/PREFIX, gs://..., az://... or a folder"


@dataclass(frozen=True)
class PushSettings:
    """Which run goes where. Raises UsageError that lists every mistake at once.

    >>> PushSettings("runs/first", to="s3://bucket/cells", licence="CC-BY-4.0").licence
    'cc-by-4.0'
    >>> PushSettings("runs/first", to="ftp://server/cells")
    Traceback (most recent call last):
    UsageError: `to` is "ftp://server/cells"; ...
    """

    run: AnyPath  # the folder of a run that is finished
    to: str  # hub:OWNER/NAME, the address of a bucket with a prefix, or a folder
    licence: str | None = None  # for the card: an identifier such as cc-by-4.0; None: the card says that none is known
    private: bool = True  # whether a repository that is made on the hub is seen by its owner alone
    include_report: bool = True  # report.html goes along: it shows a reference, and paths of this machine
    dry_run: bool = False  # say what would be sent, and send nothing

    def __post_init__(self) -> None:
        settle(self)
        refuse(self._mistakes())
        if self.licence is not None:
            object.__setattr__(self, "licence", self.licence.lower())

    def _mistakes(self) -> Iterator[Mistake]:
        if self.kind is None:
            yield "to", f"`to` is {quote(self.to)}; {_KNOWN} was expected"
        if self.licence is not None and not _LICENCE.fullmatch(self.licence):
            yield "licence", f"`licence` is {quote(self.licence)}; an identifier such as cc-by-4.0 was expected"
        if not self.private and self.kind != "hub":
            yield "private", "`private=False` is for the hub: elsewhere the place itself says who may read"

    @property
    def kind(self) -> Literal["hub", "bucket", "folder"] | None:
        """What `to` is an address of; None of nothing that is known."""
        if _REPOSITORY.fullmatch(self.to):
            return "hub"
        scheme = _SCHEME.match(self.to)
        if scheme is None:
            return "folder" if self.to.strip() else None
        if scheme[1] == "file":
            return "folder" if self.to.startswith("file:///") else None
        known = scheme[1] in SCHEMES and len(self.to) > len(start := f"{scheme[1]}://") and self.to.startswith(start)
        return "bucket" if known else None


@dataclass(frozen=True)
class PushSummary:
    """What lies where it was pushed to.

    >>> from pathlib import Path
    >>> PushSummary(Path("run"), "s3://bucket/cells", images=8, files=12, bytes=90_000, sent=0, sent_bytes=0).sent
    0
    """

    run: Path
    to: str
    images: int  # in the dataset
    files: int  # of the dataset, as it lies there
    bytes: int  # of these
    sent: int  # files that were not there, or were others; of a dry push, that would be sent
    sent_bytes: int
    removed: int = 0  # files of an earlier push that are not in the dataset any more
