"""What pictures show, and what that means: mush, tints and noise are told from photographs."""

import numpy as np
import pytest
from PIL import Image, ImageFilter
from quality_pictures import photograph

from engines.quality.features import times_apart
from engines.quality.look import Pixels, look_at, looks_of, outlines, psnr, scaled
from engines.quality.sheet import draw_sheet
from engines.quality.verdicts import BaseQuality, compare, judge_base

PHOTOGRAPHS = [photograph(number) for number in range(6)]


def blurred(pixels: Pixels, radius: float) -> Pixels:
    return np.asarray(Image.fromarray(pixels).filter(ImageFilter.GaussianBlur(radius)))


def sepia(pixels: Pixels) -> Pixels:
    grey = pixels.mean(axis=2, keepdims=True)
    tinted: Pixels = np.clip(grey * [1.0, 0.85, 0.65], 0, 255).astype(np.uint8)
    return tinted


def noisy(pixels: Pixels) -> Pixels:
    noise = np.random.default_rng(1).normal(0, 150, pixels.shape)
    return np.clip(pixels + noise, 0, 255).astype(np.uint8)


@pytest.mark.parametrize("spoil", [lambda one: blurred(one, 5), sepia, noisy], ids=["blurred", "sepia", "noisy"])
def test_what_looks_like_no_photograph_is_said(spoil: object) -> None:
    assert callable(spoil)
    photographs = looks_of([look_at(one) for one in PHOTOGRAPHS])
    spoilt = compare(looks_of([look_at(spoil(one)) for one in PHOTOGRAPHS]), photographs, "the references")
    assert spoilt.remark is not None
    assert spoilt.figures in spoilt.remark


def test_soft_and_other_photographs_of_a_kind_pass() -> None:
    photographs = looks_of([look_at(one) for one in PHOTOGRAPHS])
    for others in ([photograph(number) for number in range(20, 26)], [blurred(one, 0.7) for one in PHOTOGRAPHS]):
        assert compare(looks_of([look_at(one) for one in others]), photographs, "the references").remark is None


def test_grey_photographs_have_no_colour_to_lose() -> None:
    grey = [np.repeat(one[..., :1], 3, axis=2) for one in PHOTOGRAPHS]
    looks = looks_of([look_at(one) for one in grey])
    found = compare(looks, looks, "the references")
    assert (found.chroma, found.remark) == (None, None)


def test_the_scale_decides_what_detail_is() -> None:
    large = np.asarray(Image.fromarray(PHOTOGRAPHS[0]).resize((480, 360), Image.Resampling.BICUBIC))
    assert look_at(large).detail < 0.7 * look_at(PHOTOGRAPHS[0]).detail
    again = scaled(large, min(PHOTOGRAPHS[0].shape[:2]))
    assert again.shape == PHOTOGRAPHS[0].shape
    assert look_at(again).detail == pytest.approx(look_at(PHOTOGRAPHS[0]).detail, rel=0.1)


def test_blobs_and_noise_have_no_outlines() -> None:
    grain = np.random.default_rng(3).uniform(0, 255, (240, 320, 3)).astype(np.uint8)
    blobs = blurred(grain, 4).astype(np.float64)
    blobs = np.clip((blobs - blobs.mean()) / blobs.std() * 50 + 128, 0, 255).astype(np.uint8)
    assert max(abs(outlines(grain)), abs(outlines(blobs))) < 0.02
    assert min(outlines(one) for one in PHOTOGRAPHS) > 0.3
    assert look_at(blobs).detail > 0.5 * look_at(PHOTOGRAPHS[0]).detail, "which detail does not tell"
    assert outlines(np.zeros((1, 3, 3), np.uint8)) == outlines(np.full((40, 40, 3), 7, np.uint8)) == 0.0


@pytest.mark.parametrize(
    ("change", "grade"),
    [
        ({}, "good"), ({"psnr": 25.0}, "weak"), ({"psnr": 20.6}, "bad"), ({"chroma_kept": 0.5}, "bad"),
        ({"detail_kept": 0.2}, "bad"), ({"painted_detail": 0.13}, "bad"), ({"painted_chroma": 0.2}, "bad"),
        ({"painted_detail": 9.0}, "bad"), ({"painted_outlines": 0.41}, "bad"), ({"painted_outlines": 0.7}, "weak"),
        ({"painted_outlines": 0.9}, "good"), ({"chroma_kept": None, "painted_chroma": None}, "good"),
    ],
)  # fmt: skip
def test_a_base_is_graded_by_its_weakest_figure(change: dict[str, float | None], grade: str) -> None:
    good = {"psnr": 31.0, "chroma_kept": 0.95, "detail_kept": 0.7, "painted_chroma": 0.9, "painted_detail": 0.8}
    fixed = {"images": 8, "held_back": True, "painted": 4}
    found = judge_base(BaseQuality(**(fixed | good | change)))  # type: ignore[arg-type]
    assert found.grade == grade
    assert f"{found.psnr:.1f} dB" in found.verdict
    assert ("colour" in found.verdict) == (found.chroma_kept is not None)


def test_what_is_painted_in_other_shapes_is_said_of_a_base_that_is_good_else() -> None:
    figures = {"images": 8, "held_back": True, "psnr": 31.0, "chroma_kept": 0.95, "detail_kept": 0.7, "painted": 4}
    texts = [
        judge_base(BaseQuality(**figures, painted_chroma=0.9, painted_detail=0.8, apart=apart)).verdict  # type: ignore[arg-type]
        for apart in (None, 1.2, 3.1)
    ]
    assert ["shapes" in text for text in texts] == [False, False, True]
    assert "3.1 times" in texts[2]


def test_pictures_unlike_every_photograph_are_far_from_them() -> None:
    rng = np.random.default_rng(2)
    two_kinds = np.concatenate([rng.normal(place, 0.1, (12, 30)) for place in (0.0, 5.0)])
    more = np.concatenate([rng.normal(place, 0.1, (4, 30)) for place in (0.0, 5.0)])
    alike, between = times_apart(more, two_kinds), times_apart(np.full((4, 30), 2.5), two_kinds)
    assert alike is not None
    assert between is not None
    assert alike < 1.3
    assert between > 5, "the mean of two kinds of photographs is none"
    assert times_apart(two_kinds, two_kinds) == 0.0, "photographs by heart"
    assert times_apart(more, two_kinds[:7]) is None
    assert times_apart(more, np.repeat(two_kinds[:1], 12, axis=0)) is None


def test_psnr_of_a_known_error() -> None:
    black = np.zeros((8, 8, 3), dtype=np.uint8)
    assert psnr(black + 51, black) == pytest.approx(13.98, abs=0.01)
    assert psnr(black, black) == 99.0


def test_a_sheet_has_a_picture_for_each() -> None:
    import io

    sheet = Image.open(io.BytesIO(draw_sheet([("one", PHOTOGRAPHS[:4]), ("two", PHOTOGRAPHS[:3])], "words " * 40)))
    assert sheet.width > 4 * 224
    assert sheet.height > 2 * 168
    assert len(set(np.asarray(sheet).reshape(-1, 3).sum(axis=1).tolist())) > 300
