"""Whether a dataset's labels look incomplete, in a line.

Knows: from when on that is worth saying. What is suspicious in detail is `findings`' matter.
"""

from collections.abc import Sequence

from engines.labels.findings import FindingKind, Picture, judge

LEAST_MISSING = 10  # confident finds without a label
LEAST_SHARE = 0.1  # of them, in labels


def looks_incomplete(pictures: Sequence[Picture], class_names: Sequence[str], where: object) -> str | None:
    """What is to be said of the labels of `where`, naming `audit`; None where they look complete.

    The finds must be those of a detector that did not learn from these labels; of one that did, they say too little.
    """
    labels = sum(len(one.truth.single) for one in pictures)
    found = judge(pictures, len(class_names)).confident(FindingKind.MISSING)
    if len(found) < max(LEAST_MISSING, LEAST_SHARE * labels):
        return None
    counts = {name: sum(one.label == label for one in found) for label, name in enumerate(class_names)}
    named = ", ".join(f"{number} {name}" for name, number in counts.items() if number)
    return (
        f"{where} looks incomplete: on {len(pictures)} images with {labels} labels, {len(found)} confident finds have "
        f"none ({named}); `dengine audit` shows them, and can add them"
    )
