"""`dengine push`: the dataset of a finished run, with a card, to where others find it.

Knows: the order of it. What is pushed is `dataset`'s matter, what is said of it `card`'s, and each kind of place has a
file of its own.
"""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from engines.common.events import Event, EventKind, Report, note, silent
from engines.common.plurals import counted
from engines.common.verbs import setting, verb
from engines.datasets.imagefolder_writer import CARD
from engines.datasets.shard_writers import PARQUET
from engines.datasets.yolo_writer import LABELS
from engines.errors import RunError
from engines.push.bucket import Bucket
from engines.push.card import card_of
from engines.push.dataset import Dataset, manifest_of, more_items, read_dataset
from engines.push.folder import Folder
from engines.push.hub import Hub
from engines.push.items import Item, item_of
from engines.push.place import Changes, Place, changes_for
from engines.push.settings import PushSettings, PushSummary
from engines.runs.journal import IMAGES
from engines.runs.run_folder import locked, require_run, run_errors


@verb
def push(settings: PushSettings, *, report: Report | None = None) -> PushSummary:
    """Send the dataset of a finished run to a bucket, the hub or a folder, with a card that says what it is.

    Nothing in the run changes. What is there already is not sent again: an interrupted push goes on, and a second one
    sends nothing. After a `finalize`, or with more images, what differs is sent, and what is in the dataset no more is
    removed. The labels come last, after all that they speak of.
    Raises RunError for a run that is not finished, in use, or whose files disagree with its journal, and, about `to`,
    for a place that cannot be reached or written, or holds something else; UsageError for a licence beside a card of
    the user's own.

    >>> push(PushSettings("run", to="published")).images
    2
    >>> push(PushSettings("run", to="published")).sent
    0
    """
    say, folder = report or silent, settings.run
    run = require_run(folder)
    place = _open(settings)
    with locked(folder):
        say(note("comparing the run's files with its journal"))
        with run_errors(folder), setting("run"):
            found = read_dataset(folder, run, say)
            items = _items(found, settings, place)
        say(note(f"looking at what is in {place.where}"))
        changes = changes_for(place, {item.name: item for item in items}, run)
        if not settings.dry_run and (changes.send or changes.remove):
            _send(place, changes, say)
    return PushSummary(
        run=folder,
        to=settings.to,
        images=len(found.images),
        files=len(items),
        bytes=sum(item.size for item in items),
        sent=len(changes.send),
        sent_bytes=sum(item.size for item in changes.send),
        removed=len(changes.remove),
    )


def _open(settings: PushSettings) -> Place:
    if settings.kind == "hub":
        return Hub(settings.to, settings.private)
    if settings.kind == "bucket":
        return Bucket(settings.to)
    return Folder(Path(settings.to.removeprefix("file://")), settings.run)


def _items(found: Dataset, settings: PushSettings, place: Place) -> Sequence[Item]:
    """Everything that is to lie there.

    Of more images than the place takes in a folder those in the Parquet files go alone. Raises RunError without these.
    """
    apart = place.most_in_folder is not None and len(found.images) >= place.most_in_folder
    if apart and PARQUET not in found.formats:
        raise RunError(
            f"{place.where} takes {place.most_in_folder} files in a folder at most, and there are "
            f"{len(found.images)} images: write them as Parquet, too, `dengine finalize {found.folder}` with "
            "`formats=parquet`.",
            field="to",
        )
    more = list(more_items(found, settings.include_report))
    title = Path(settings.to.rstrip("/")).name
    if apart:
        more = [item for item in more if not item.name.startswith((f"{IMAGES}/", f"{LABELS}/"))]
        found = replace(found, formats=tuple(name for name in found.formats if name not in ("yolo", "imagefolder")))
    items = [*([] if apart else found.images), *more]
    items.append(item_of(CARD, card_of(found, title, settings.licence, apart)))
    return [*items, manifest_of(items)]


def _send(place: Place, changes: Changes, say: Report) -> None:
    total, done = sum(item.size for item in changes.send), 0
    say(note(f"sending {counted(len(changes.send), 'file')} to {place.where}"))

    def told(size: int) -> None:
        nonlocal done
        done += size
        say(Event(EventKind.PROGRESS, "sending MB", done=round(done / 1e6, 2), total=round(total / 1e6, 2)))

    place.change(changes, told)
