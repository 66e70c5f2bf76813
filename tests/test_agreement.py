"""The last gate of an export: engines in f32 must paint and label what PyTorch does, bf16 is only reported."""

from pathlib import Path

import pytest

from engines.bundle import open_bundle
from engines.errors import ExportError
from export.agreement import Agreement, check_agreement, compare_engines, figures, variants


def test_the_same_jobs_agree_on_another_engine(toy_bundle: Path) -> None:
    said: list[str] = []
    (found,) = compare_engines(
        open_bundle(toy_bundle), [("onnxruntime", "f32")], said.append, jobs=2, steps=2, threads=1
    )
    assert (found.engine, found.precision, found.jobs) == ("onnxruntime", "f32", 2)
    assert found.psnr > 40
    assert found.ap50 is None or found.ap50 > 0.9
    assert said == ["painting 2 images on torch in f32", "painting 2 images on onnxruntime in f32"]


@pytest.mark.parametrize(("psnr", "ap50"), [(20.0, 1.0), (60.0, 0.5), (20.0, None)])
def test_an_engine_in_f32_that_differs_is_refused_and_bf16_is_not(psnr: float, ap50: float | None) -> None:
    with pytest.raises(ExportError, match="onnxruntime in f32"):
        check_agreement([Agreement("onnxruntime", "f32", 4, psnr, ap50)])
    check_agreement([Agreement("openvino", "bf16", 4, psnr, ap50), Agreement("openvino", "f32", 4, 60.0, None)])


def test_every_engine_is_compared_in_f32_and_figures_are_plain_data() -> None:
    assert [pair for pair in variants(["onnxruntime", "openvino"]) if pair[1] == "f32"] == [
        ("onnxruntime", "f32"),
        ("openvino", "f32"),
    ]
    assert figures([Agreement("openvino", "f32", 4, 60.0, None)]) == [
        {"engine": "openvino", "precision": "f32", "jobs": 4, "psnr": 60.0, "ap50": None}
    ]
