"""Which validation images what painted a run knows already: as references, or as images that its models learned from.

Knows: where a run names its references, and where a bundle keeps what its base and adapter learned from. What makes an
image known is `engines.datasets.copies`' matter.
"""

from collections.abc import Iterator, Sequence
from pathlib import Path

from engines.bundle.bundle import default_bundle
from engines.bundle.files import MANIFEST
from engines.common.files import sha256_file
from engines.datasets.copies import known_from, known_to
from engines.datasets.duplicates import Fingerprints, fingerprints
from engines.datasets.learned import LEARNED, read_learned
from engines.datasets.records import Record
from engines.errors import BundleError, DatasetError
from engines.painting.references import open_references
from engines.painting.run_settings import RunSettings
from engines.runs.journal import JOURNAL, read_entries
from engines.runs.run_folder import RUN, require_run


def known_images(val: Sequence[Record], prints: Fingerprints, synthetic: Sequence[Path]) -> tuple[str, ...]:
    """A line for every image of `val` that a run of `synthetic` repainted, or whose bundle learned from it.

    Raises RunError for a run that cannot be read, DatasetError for an image, ModelError for a bundle's fingerprints.
    """
    lines: dict[str, None] = {}  # a set that keeps its order
    bundles: set[str] = set()
    for folder in synthetic:
        if not (folder / RUN).exists():
            continue
        run = require_run(folder)
        lines |= dict.fromkeys(_references(val, prints, folder, run))
        if run.bundle_hash not in bundles:
            bundles.add(run.bundle_hash)
            lines |= dict.fromkeys(_learned(val, prints, run))
    return tuple(lines)


def _references(val: Sequence[Record], prints: Fingerprints, folder: Path, run: RunSettings) -> Iterator[str]:
    """Those that the run's journal says were repainted."""
    names = {entry.reference for entry in read_entries(folder / JOURNAL) if entry.reference is not None}
    if not names:
        return
    try:
        records = [record for record in open_references(run.options, skip_bad=True).records if record.name in names]
        known = fingerprints(records)
    except DatasetError as cause:
        yield f"whether images are references of {folder} cannot be said: {cause}"
        return
    for row, words in known_from(val, prints, records, known, crops=True).items():
        yield f"{val[row].name} {words}, a reference of {folder}"


def _learned(val: Sequence[Record], prints: Fingerprints, run: RunSettings) -> Iterator[str]:
    """Those that the models of the run's bundle learned from, where the bundle is still there and says so."""
    try:
        bundle = run.options.bundle or default_bundle()
    except BundleError:
        return
    if not (bundle / MANIFEST).is_file() or sha256_file(bundle / MANIFEST) != run.bundle_hash:
        return
    for part, model in (("adapter", "the adapter"), (".", "the base model")):
        learned = read_learned(bundle / part / LEARNED)
        found = {} if learned is None else known_to(val, prints, learned, crops=True)
        for row, words in found.items():
            yield f"{val[row].name} {words}, by {model} of {bundle}"
