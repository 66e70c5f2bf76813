"""What the notes of a base model, `dengine.json` in its folder, say of its quality.

Knows: where that is written. Knows nothing about how quality is measured, or what else stands there.
"""

from pathlib import Path

from engines.common.files import read_json
from engines.common.schema import from_object
from engines.diffusion.base_model import BASE_NOTES
from engines.errors import ModelError
from engines.quality.verdicts import MOST_APART, BaseQuality

QUALITY = "quality"  # key in the notes


def read_quality(folder: Path) -> BaseQuality | None:
    """How good the base model in `folder` is; None where its notes say nothing of it. Raises ModelError."""
    path = folder / BASE_NOTES
    notes = read_json(path, ModelError) if path.exists() else {}
    if not isinstance(notes.get(QUALITY), dict):
        return None
    return from_object(BaseQuality, notes[QUALITY], ModelError, f"{path}, {QUALITY}")


def bad_base(folder: Path) -> str | None:
    """What is to be said of a base model that was judged not good enough; None of every other. Raises ModelError."""
    found = read_quality(folder)
    if found is None or found.grade != "bad":
        return None
    return f"the base model in {folder} is not good enough: {found.verdict}"


def other_shapes(folder: Path) -> str | None:
    """What is to be said before a base model paints from text alone; None of one whose pictures were found to be near
    photographs, or of which that is not known. Raises ModelError.
    """
    found = read_quality(folder)
    if found is None or found.apart is None or found.apart <= MOST_APART:
        return None
    return (
        f"from text alone, the base model in {folder} painted what is {found.apart:.1f} times as far from photographs "
        "as these are from each other: look at the preview, or vary photographs (`reference`)"
    )
