"""Which validation images what painted a run knows already: as references, or as images that its models learned from.

Knows: where a run names its references, and where a bundle keeps what its base and adapter learned from. What makes an
image known is `engines.datasets.copies`' matter.
"""

from collections.abc import Iterator, Sequence, Set
from pathlib import Path

from engines.common.events import Report, silent
from engines.datasets.copies import known_from, known_to
from engines.datasets.duplicates import Fingerprints, fingerprints
from engines.datasets.learned import LEARNED, read_learned, short_hash
from engines.datasets.records import Record
from engines.errors import DatasetError
from engines.painting.references import open_references
from engines.painting.run_settings import RunSettings
from engines.runs.journal import JOURNAL, read_entries
from engines.runs.run_folder import RUN, bundle_of, require_run


def known_images(
    val: Sequence[Record],
    prints: Fingerprints,
    synthetic: Sequence[Path],
    apart: Set[str] = frozenset(),
    report: Report = silent,
) -> tuple[str, ...]:
    """A line for every image of `val` that a run of `synthetic` repainted, or whose bundle learned from it.

    apart: hashes of images that are known to have nothing in common with `val`, and are not compared again. Raises
    RunError for a run that cannot be read, DatasetError for an image, ModelError for a bundle's fingerprints.
    """
    lines: dict[str, None] = {}  # a set that keeps its order
    bundles: set[str] = set()
    for folder in synthetic:
        if not (folder / RUN).exists():
            continue
        run = require_run(folder)
        lines |= dict.fromkeys(_references(val, prints, folder, run, apart, report))
        if run.bundle_hash not in bundles:
            bundles.add(run.bundle_hash)
            lines |= dict.fromkeys(_learned(val, prints, run, apart, report))
    return tuple(lines)


def _references(
    val: Sequence[Record], prints: Fingerprints, folder: Path, run: RunSettings, apart: Set[str], report: Report
) -> Iterator[str]:
    """Those that the run's journal says were repainted."""
    names = {entry.reference for entry in read_entries(folder / JOURNAL) if entry.reference is not None}
    if not names:
        return
    try:
        records = [record for record in open_references(run.options, skip_bad=True).records if record.name in names]
        known = fingerprints(records)
        rows = [row for row, own in enumerate(known.hashes) if own not in apart]
        records, known = [records[row] for row in rows], known.take(rows)
    except DatasetError as cause:
        yield f"whether images are references of {folder} cannot be said: {cause}"
        return
    for row, words in known_from(val, prints, records, known, crops=True, report=report).items():
        yield f"{val[row].name} {words}, a reference of {folder}"


def _learned(
    val: Sequence[Record], prints: Fingerprints, run: RunSettings, apart: Set[str], report: Report
) -> Iterator[str]:
    """Those that the models of the run's bundle learned from, where the bundle is still there and says so."""
    if (bundle := bundle_of(run)) is None:
        return
    compared = {short_hash(one) for one in apart}
    for part, model in (("adapter", "the adapter"), (".", "the base model")):
        learned = read_learned(bundle / part / LEARNED)
        if learned is None:
            continue
        for row, words in known_to(val, prints, learned.without(compared), crops=True, report=report).items():
            yield f"{val[row].name} {words}, by {model} of {bundle}"
