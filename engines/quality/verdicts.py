"""What figures of pictures mean: verdicts in words, with a way out.

Knows: from when on a base model, or what was painted, is not good enough, and how that is said. Knows nothing about
how figures were measured.

The limits are a judgement, taken from a few bases whose pictures were looked at: a small one of 150 photographs of
raccoons (20.6 dB, 0.13 of the photographs' detail in what it painted) is beyond them, the bundled model (0.54 of the
detail) within. Bases of smears that were trained for an eighth, a half and the whole of the preset are shown with their
verdicts in `docs/training.md`.
"""

from dataclasses import dataclass
from typing import Literal

from engines.common.plurals import counted
from engines.quality.look import Looks

GREY = 3.0  # chroma below which photographs count as grey, so that no colour can be lost
LEAST_PSNR, GOOD_PSNR = 23.0, 27.0  # dB of the autoencoder
LEAST_CHROMA_KEPT, GOOD_CHROMA_KEPT = 0.6, 0.8  # shares, of the autoencoder
LEAST_DETAIL_KEPT, GOOD_DETAIL_KEPT = 0.4, 0.6
LEAST_PAINTED = 0.4  # share of the photographs' detail, and of their chroma, in what is painted
LEAST_OUTLINES, GOOD_OUTLINES = 0.6, 0.75  # shares of the photographs' outlines in what is painted; less are blobs
MOST_PAINTED = 3.0  # times the photographs' detail, chroma or sharpness: noise
MOST_APART = 2.0  # times as far from photographs as these from each other: what is painted has other shapes


# "weak": things can be told apart, and more training would show; "bad": not good enough to learn from.
Grade = Literal["good", "weak", "bad"]


@dataclass(frozen=True)
class BaseQuality:
    """How well a base model knows photographs: what is measured, and what that means."""

    images: int  # photographs that the autoencoder was measured on
    held_back: bool  # whether it learned from none of them
    psnr: float  # dB, mean over them
    chroma_kept: float | None  # median share of a photograph's chroma in its reconstruction; None for grey ones
    detail_kept: float  # the same of detail
    painted: int  # images painted from text
    painted_chroma: float | None  # their median chroma as a share of the photographs'
    painted_detail: float  # the same of detail
    apart: float | None = None  # times as far from photographs as these from each other, by the UNet's features
    painted_outlines: float | None = None  # median of `look.outlines` as a share of the photographs'; None: not known
    grade: Grade = "good"
    verdict: str = ""  # the figures in words, and a way out where it is not good


def judge_base(figures: BaseQuality) -> BaseQuality:
    """The same figures, with their grade and verdict.

    >>> print(judge_base(BaseQuality(8, True, 20.6, 0.48, 0.3, 4, 0.3, 0.13)).verdict)
    VAE 20.6 dB, 48% of the colour and 30% of the detail kept, on 8 images held back; what it paints has 30% of the \
photographs' colour and 13% of their detail. Not good enough to learn from: train longer (`steps_scale`), give more \
photographs, or go on from Stable Diffusion (`continue_from`) where these are everyday photographs.
    """
    grade = _grade(figures)
    kept = f"{figures.detail_kept:.0%} of the detail kept"
    painted = [f"{figures.painted_detail:.0%} of their detail"]
    if figures.chroma_kept is not None and figures.painted_chroma is not None:
        kept = f"{figures.chroma_kept:.0%} of the colour and {kept}"
        painted.insert(0, f"{figures.painted_chroma:.0%} of their colour")
    if figures.painted_outlines is not None:
        painted.append(f"{figures.painted_outlines:.0%} of their outlines")
    has = " and ".join([", ".join(painted[:-1]), painted[-1]] if painted[1:] else painted)
    where = counted(figures.images, "image") + (" held back" if figures.held_back else " that it learned from")
    text = f"VAE {figures.psnr:.1f} dB, {kept}, on {where}; what it paints has {has.replace('their', _OWN, 1)}"
    if figures.apart is not None:
        text += f", and is {figures.apart:.1f} times as far from them as they are from each other, by its own features"
    shapes = f" {_SHAPES}" if figures.apart is not None and figures.apart > MOST_APART and grade == "good" else ""
    return BaseQuality(**{**vars(figures), "grade": grade, "verdict": f"{text}. {_MEANS[grade]}{shapes}"})


_MEANS: dict[Grade, str] = {
    "good": "Good enough to learn from.",
    "weak": "Weak: things can be told apart, and fine ones cannot; train longer (`steps_scale`).",
    "bad": "Not good enough to learn from: train longer (`steps_scale`), give more photographs, or go on from "
    "Stable Diffusion (`continue_from`) where these are everyday photographs.",
}


_OWN = "the photographs'"
_SHAPES = "From text alone it paints other shapes than the photographs': vary these (`reference`), or train longer."


def _grade(found: BaseQuality) -> Grade:
    chroma = 1.0 if found.chroma_kept is None else found.chroma_kept
    outlines = 1.0 if found.painted_outlines is None else found.painted_outlines
    painted = [found.painted_detail] + ([] if found.painted_chroma is None else [found.painted_chroma])
    bad = (
        found.psnr < LEAST_PSNR
        or chroma < LEAST_CHROMA_KEPT
        or found.detail_kept < LEAST_DETAIL_KEPT
        or not all(LEAST_PAINTED <= share <= MOST_PAINTED for share in painted)
        or outlines < LEAST_OUTLINES
    )
    if bad:
        return "bad"
    kept = found.psnr < GOOD_PSNR or chroma < GOOD_CHROMA_KEPT or found.detail_kept < GOOD_DETAIL_KEPT
    weak = kept or outlines < GOOD_OUTLINES
    return "weak" if weak else "good"


@dataclass(frozen=True)
class Likeness:
    """How painted images compare with photographs."""

    painted: Looks
    photographs: Looks
    of: str  # what the photographs are: "the references", "the training images"
    detail: float  # median of the painted ones as a share of the photographs'
    chroma: float | None  # the same; None where the photographs are grey
    sharpness: float  # the same; where it is much higher than detail, it is noise
    remark: str | None  # what is to be said; None where they look alike

    @property
    def figures(self) -> str:
        """The shares in words.

        >>> one, two = (Looks(9, (1, 2, 3), (1, x, 9), (4, y, 9), (0, 0, 0)) for x, y in ((1.3, 5.0), (10.0, 20.0)))
        >>> compare(one, two, "the references").figures
        '13% of the detail and 25% of the colour of the references'
        """
        colour = "" if self.chroma is None else f" and {self.chroma:.0%} of the colour"
        noise = f", and {self.sharpness:.0f} times their grain" if self.sharpness > MOST_PAINTED else ""
        return f"{self.detail:.0%} of the detail{colour} of {self.of}{noise}"


def compare(painted: Looks, photographs: Looks, of: str) -> Likeness:
    """Hold painted images against photographs of the same scale."""
    detail = painted.detail[1] / max(photographs.detail[1], 1e-6)
    chroma = painted.chroma[1] / photographs.chroma[1] if photographs.chroma[1] >= GREY else None
    sharpness = painted.sharpness[1] / max(photographs.sharpness[1], 1e-6)
    found = Likeness(painted, photographs, of, detail, chroma, sharpness, None)
    shares = [share for share in (detail, chroma) if share is not None]
    if sharpness <= MOST_PAINTED and all(LEAST_PAINTED <= share <= MOST_PAINTED for share in shares):
        return found
    text = (
        f"these do not look like your photographs: {counted(painted.images, 'painted image')} have {found.figures} "
        f"({counted(photographs.images, 'image')}). What learns from them learns little: train the base longer, or "
        "take another one"
    )
    return Likeness(**{**vars(found), "remark": text})
