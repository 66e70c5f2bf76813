"""What a job begins with: the part of its reference that it repaints, with what is pasted into it, and their labels.

Knows: how a crop is read and composed. Knows nothing about networks.

H/W pixels of a frame.
"""

import numpy as np
import numpy.typing as npt
from PIL import Image

from engines.composing.given import Given, moved
from engines.composing.paste import upright
from engines.errors import DatasetError
from engines.painting.jobs import Job, JobSource


def read_job(source: JobSource, job: Job) -> tuple[npt.NDArray[np.uint8], Given | None]:
    """Pixels [H, W, 3] of a job with a reference, and the labels that are known of them; None where none are read.

    A pure function, whatever was read before. Raises DatasetError for a picture that is not as its header had it.
    """
    pixels = read_crop(source, job)
    if source.labels is None:
        return pixels, None
    assert job.reference is not None
    assert job.crop is not None
    own = moved(source.references[job.reference].instances, job.crop, job.flip, source.frame, source.labels)
    if source.composer is None:
        return pixels, Given(own)
    return source.composer.compose(pixels, Given(own), job.pasted, source.labels)


def read_crop(source: JobSource, job: Job) -> npt.NDArray[np.uint8]:
    """The part of its reference that a job repaints, uint8 [H, W, 3] of the frame's size.

    Raises DatasetError where the reference is not as its header had it.
    """
    if job.reference is None:
        raise DatasetError(f"Job {job.index} has no reference to crop.")
    image = Image.fromarray(upright(source.references[job.reference]))
    crop = image.resize(source.frame, Image.Resampling.BICUBIC, box=job.crop)
    pixels = np.array(crop, dtype=np.uint8)
    return np.ascontiguousarray(pixels[:, ::-1]) if job.flip else pixels


def without_folder(message: str, source: JobSource, job: Job) -> str:
    """What is wrong with a job's references, in words that do not depend on where the dataset lies."""
    for number in (job.reference or 0, *(paste.record for paste in job.pasted)):
        record = source.references[number]
        message = message.replace(str(record.file), record.name)
    return f"broken reference: {message}"
