"""What a painted image is to a run: kept or not, and its line of the journal.

Knows: that decision. Knows nothing about files, or who paints.
"""

from engines.labels.rules import Drop, DropReason, drop
from engines.painting.finisher import Outcome
from engines.painting.jobs import JobSource
from engines.painting.run_settings import RunSettings
from engines.runs.journal import Entry


def entry_of(outcome: Outcome, prompt: str, run: RunSettings, source: JobSource) -> Entry:
    """The line of an outcome, dropped where the run's rules say so; of a kept one its file's name and hash are open.

    prompt: what the network read of the job's.
    """
    job = outcome.job
    known = outcome.given.instances if outcome.given else None
    unreadable = Drop(DropReason.UNREADABLE, outcome.problem) if outcome.problem else None
    return Entry(
        index=job.index,
        prompt=prompt,
        reference=None if job.reference is None else source.references[job.reference].name,
        strength=job.strength,
        drop=unreadable or drop(outcome.instances, run.rules, known),
        file=None,
        sha256=None,
        instances=outcome.instances,
        given=outcome.given,
    )
