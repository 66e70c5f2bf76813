"""`finalize`: the dataset of a run once more, by other rules or in other formats, which the run keeps.

Knows: the order of it. What may be asked for is `dataset_rules`' matter, how the files come to be `dataset_files`'.
"""

from dataclasses import dataclass

from engines.common.events import Report, note, silent
from engines.common.schema import AnyPath, part_of
from engines.common.verbs import verb
from engines.labels.scores import ScoreKind, ScorePolicy
from engines.runs.dataset_files import write_dataset
from engines.runs.dataset_rules import DatasetRules, apply_rules, keep_files, read_rules, without_own
from engines.runs.run_folder import bring_up_to_date, locked, require_run, run_errors
from engines.runs.saved_score import forget_score, saved_score
from engines.runs.summaries import DatasetSummary


@dataclass(frozen=True)
class FinalizeSettings(DatasetRules):
    """What `finalize` is asked for: which run, and the rules of its dataset.

    Formats, and YOLO's split, that are None stay as the last `finalize` had them; every other rule that is None is as
    the run itself has it, and so are classes without a score. Raises UsageError that lists every mistake at once.

    >>> FinalizeSettings("runs/first", score=0.5, formats=["coco", "yolo"]).formats
    ('coco', 'yolo')
    """

    run: AnyPath  # the folder of a run


@verb
def finalize(settings: FinalizeSettings, *, report: Report | None = None) -> DatasetSummary:
    """Write the dataset files of a run again. Nothing is painted.

    With the score "matched", labels are as frequent in the images that were painted as annotations were in those that
    the adapter learned from: see `matched_score`; no class's score is below the run's own. Files of formats that are
    asked to go are removed. The old dataset stays until the new one is whole. The rules stay with the run: `generate`
    and `merge` write its dataset by them, until another `finalize`.
    Raises RunError for a folder that is no run, is in use or lacks an image or its references, DatasetError for a
    training image that cannot be read, UsageError for values out of range, or below the run's own where images that
    only now would be in the dataset were never written.

    >>> finalize(FinalizeSettings("run", score=0.5, keep_empty=True)).images
    2
    """
    report, folder = report or silent, settings.run
    run = require_run(folder)
    with locked(folder), run_errors(folder):
        bring_up_to_date(folder)
        score = saved_score(folder) if settings.score is None else settings.score  # as a review chose
        if score is not None and ScorePolicy.of(score).kind is ScoreKind.MATCHED:
            report(note("finding the score by which labels are as frequent as annotations were"))
        asked = without_own(keep_files(part_of(DatasetRules, settings, score=score), read_rules(folder)), run)
        applied = apply_rules(folder, run, asked)
        report(note("writing the dataset files"))
        summary = write_dataset(folder, applied, asked, report=report)
        if settings.score is not None:
            forget_score(folder)
        return summary
