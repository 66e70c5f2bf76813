"""An image that was painted in memory, and what it can show of itself.

Knows: its pixels, its labels and what it was made from. Knows nothing about how it was painted.

H/W pixels.
"""

import io
import sys
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from PIL import Image

from engines.labels.boxes import Instances
from engines.runs.preview import drawn


@dataclass(frozen=True, eq=False)
class PaintedImage:
    """An image that was painted, and its labels.

    >>> import dengine
    >>> (image,) = dengine.load().paint(1, steps=2)
    >>> image.pixels.shape, image.pixels.dtype
    ((256, 320, 3), dtype('uint8'))
    >>> image.to_pil().size
    (400, 320)
    """

    pixels: npt.NDArray[np.uint8]  # [H, W, 3]
    instances: Instances  # its labels by the bundle's rules, in its pixels; regions to ignore as crowds
    detections: Instances  # every box that scores 0.05 or more, best first
    prompt: str
    class_names: tuple[str, ...]  # what `instances.labels` count
    index: int  # of its job: with the seed and the settings, it says which image this is
    reference: str | None = None  # name of the image that was repainted
    strength: float | None = None  # how much of it was

    def to_pil(self) -> Image.Image:
        """A picture with the boxes of the labels and their scores in percent, enlarged as on a run's preview."""
        return drawn(Image.fromarray(self.pixels), self.instances.single)

    def show(self) -> None:
        """Show `to_pil`: in a notebook where it is called, else in the system's viewer of pictures."""
        notebook = sys.modules.get("ipykernel")
        if notebook is None:
            self.to_pil().show()
        else:
            from IPython.display import display

            display(self)  # type: ignore[no-untyped-call]

    def _repr_png_(self) -> bytes:
        """What a notebook shows."""
        buffer = io.BytesIO()
        self.to_pil().save(buffer, "PNG")
        return buffer.getvalue()

    def __repr__(self) -> str:
        height, width = self.pixels.shape[:2]
        counts = self.instances.single.count(self.class_names)
        found = ", ".join(f"{number} {name}" for name, number in counts.items() if number) or "no labels"
        return f"<PaintedImage {self.index}: {width}x{height}, {found}>"
