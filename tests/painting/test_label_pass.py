"""The looks of test-time augmentation: each sees the picture as it lays it, and boxes come back to where they were."""

from pathlib import Path

import numpy as np
import pytest
import torch
from fakes import FRAME, LENGTH, STRIDE, WIDTH, FakeBackend, FakeCall, as_backend, make_bundle

from engines.adapter.looks import LOOKS, TTA_LOOKS, Look, check_looks, laid, laid_back
from engines.errors import UsageError
from engines.labels.boxes import cxcywh_to_xyxy
from engines.painting.label_pass import Labeller


@pytest.mark.parametrize("look", LOOKS)
def test_a_box_lies_round_its_object_in_every_look_and_comes_back(look: Look) -> None:
    picture = torch.zeros(1, 3, 20, 40)
    picture[:, :, 4:10, 6:30] = 1.0
    seen = laid(picture, look)
    height, width = seen.shape[-2:]
    rows, columns = seen[0, 0].nonzero(as_tuple=True)
    x0, x1 = int(columns.min()), int(columns.max()) + 1
    y0, y1 = int(rows.min()), int(rows.max()) + 1
    box = torch.tensor([[(x0 + x1) / 2 / width, (y0 + y1) / 2 / height, (x1 - x0) / width, (y1 - y0) / height]])
    back = cxcywh_to_xyxy(laid_back(box, look).numpy()) * (40, 20, 40, 20)
    np.testing.assert_allclose(back, [[6, 4, 30, 10]], atol=1e-4)


def test_the_eight_looks_differ_and_the_first_two_are_upright() -> None:
    picture = torch.arange(3 * 4 * 4).reshape(1, 3, 4, 4)
    assert len({tuple(laid(picture, look).flatten().tolist()) for look in LOOKS}) == len(LOOKS) == max(TTA_LOOKS)
    assert torch.equal(laid(picture, LOOKS[0]), picture)
    assert torch.equal(laid(picture, LOOKS[1]), picture.flip(-1))
    assert not any(look.aside for look in LOOKS[:4])


@pytest.mark.parametrize("looks", TTA_LOOKS)
def test_every_look_encodes_the_picture_anew_in_the_shape_that_it_then_has(looks: int, tmp_path: Path) -> None:
    encoded: list[torch.Tensor] = []
    passes: list[tuple[int, ...]] = []

    def note(graph: str, call: FakeCall) -> None:
        if graph == "vae_encoder":
            encoded.append(call.inputs["pixels"].clone())
        if graph == "unet":
            passes.append(tuple(call.inputs["sample"].shape[-2:]))

    h, w = FRAME[1] // STRIDE, FRAME[0] // STRIDE
    labeller = Labeller(make_bundle(tmp_path), as_backend(FakeBackend(after=note)), 1, h, w, looks)
    pixels = torch.rand(1, 3, FRAME[1], FRAME[0])
    latents = [torch.rand(4, h, w)]
    logits, boxes = labeller(latents, [torch.zeros(LENGTH, WIDTH)], [(0, 0)], ["it"], pixels)
    assert len(logits) == len(boxes) == looks
    assert len(encoded) == looks - 1
    assert all(torch.equal(seen, laid(pixels, look)) for seen, look in zip(encoded, LOOKS[1:looks], strict=True))
    assert passes == [(w, h) if look.aside else (h, w) for look in LOOKS[:looks]]


def test_turned_looks_are_for_adapters_that_may_have_learned_them() -> None:
    for looks in TTA_LOOKS:
        check_looks(looks, True)
        check_looks(looks, None)
    check_looks(2, False)
    with pytest.raises(UsageError) as caught:
        check_looks(4, False)
    assert caught.value.field == "tta"
