"""Test-time augmentation: the looks that are taken at a picture, and how pictures and boxes lie in one.

Knows: which looks there are, and which an adapter can use. What several looks show becomes one in
`engines.adapter.inference.fuse`.

A further look is the picture itself mirrored or turned, and encoded as it then lies. Latents that are mirrored instead
are no mirrored picture's: a VAE pads right and below alone where it halves the sides, so that they lie a few pixels
beside (AP of an adapter of 30 smears on 68 others: one look 0.711, latents mirrored 0.690, pictures mirrored 0.731).

n images, H/W pixels.
"""

from dataclasses import dataclass
from typing import TYPE_CHECKING

from engines.errors import UsageError

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class Look:
    """How a picture lies when it is looked at."""

    mirrored: bool  # left to right, before it is turned
    quarters: int  # of a turn against the clock, 0 to 3

    @property
    def aside(self) -> bool:
        """Whether its width and height change places."""
        return self.quarters % 2 == 1


# The first of these are looked at; beyond two, pictures are upside down or on their side.
LOOKS = tuple(Look(mirrored, quarters) for quarters in (0, 2, 1, 3) for mirrored in (False, True))
TTA_LOOKS = (1, 2, 4, 8)  # how many
TTA_WANTED = "1, 2, 4 or 8"  # the same in words
UPRIGHT_LOOKS = 2  # how many of LOOKS leave a picture upright


def check_looks(looks: int, rotate: bool | None, remedy: str = "train it with `rotate=True`") -> None:
    """UsageError for looks at turned pictures by an adapter that learns from upright ones; `rotate`: see its info.

    remedy: what makes an adapter learn from turned ones.
    """
    if looks > UPRIGHT_LOOKS and rotate is False:
        raise UsageError(
            f"`tta` is {looks}: beyond {UPRIGHT_LOOKS}, pictures are turned, and this adapter learns from upright ones "
            f"alone. Take 1 or 2, or {remedy} where pictures have no upright.",
            field="tta",
        )


def laid(pixels: "Tensor", look: Look) -> "Tensor":
    """Pictures [n, 3, H, W] as a look has them: mirrored left to right, then turned by quarters against the clock."""
    return (pixels.flip(-1) if look.mirrored else pixels).rot90(look.quarters, (-2, -1))


def laid_back(boxes: "Tensor", look: Look) -> "Tensor":
    """Boxes [..., 4] (centre, size; shares of the frame) of pictures that `laid` gave, as these lay before."""
    boxes = boxes.clone()
    for _ in range(look.quarters):
        boxes = boxes[..., [1, 0, 3, 2]]
        boxes[..., 0] = 1.0 - boxes[..., 0]
    if look.mirrored:
        boxes[..., 0] = 1.0 - boxes[..., 0]
    return boxes
