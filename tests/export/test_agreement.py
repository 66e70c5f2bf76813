"""The last gate of an export: engines must paint and label what PyTorch does, as closely as their precision allows."""

from pathlib import Path

import pytest

from engines.bundle import bundle as bundles
from engines.bundle.bundle import open_bundle
from engines.errors import ExportError
from export import agreement
from export.agreement import Agreement, check_agreement, compare_engines, figures, gate_size, variants


def test_the_same_jobs_agree_on_another_engine(
    toy_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nothing is hashed again for each engine, and the user's cache of compiled models stays as it is."""
    bundle = open_bundle(toy_bundle)
    hashed: list[Path] = []
    monkeypatch.setattr(bundles, "sha256_file", hashed.append)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    said: list[str] = []
    engines = [("onnxruntime", "f32"), ("openvino", "f32")]
    agreements = compare_engines(bundle, engines, said.append, jobs=2, steps=2, threads=1)
    assert [(found.engine, found.precision, found.jobs) for found in agreements] == [(*pair, 2) for pair in engines]
    for found in agreements:
        assert found.psnr > 40
        assert found.ap50 is None or found.ap50 > 0.9
    names = ("torch", "onnxruntime", "openvino")
    assert said == [f"painting 2 images on {engine} in f32" for engine in names]
    assert not hashed
    assert not (tmp_path / "dengine").exists()


def test_pytorch_itself_may_be_compared_too(toy_bundle: Path) -> None:
    bundle = open_bundle(toy_bundle)
    found = compare_engines(bundle, [("torch", "f32")] * 2, lambda text: None, jobs=1, steps=2, threads=1)
    assert [(agreement.engine, agreement.psnr) for agreement in found] == [("torch", 99.0)] * 2


@pytest.mark.parametrize(("psnr", "ap50"), [(19.0, 1.0), (60.0, 0.5), (19.0, None)])
def test_an_engine_that_differs_is_refused_and_bf16_is_not(psnr: float, ap50: float | None) -> None:
    for precision in ("f32", "f16"):
        with pytest.raises(ExportError, match=f"onnxruntime in {precision}"):
            check_agreement([Agreement("onnxruntime", precision, 4, psnr, ap50)])
    check_agreement([Agreement("openvino", "bf16", 4, psnr, ap50), Agreement("openvino", "f32", 4, 60.0, None)])


def test_half_precision_may_differ_by_more_than_f32() -> None:
    check_agreement([Agreement("onnxruntime", "f16", 4, 30.0, 0.95)])
    with pytest.raises(ExportError, match="at least 40 dB"):
        check_agreement([Agreement("onnxruntime", "f32", 4, 30.0, 0.95)])


def test_the_gate_is_smaller_for_a_bundle_of_full_size(toy_bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    bundle = open_bundle(toy_bundle)
    assert gate_size(bundle) == (4, 8)
    monkeypatch.setattr(agreement, "is_full_size", lambda bundle: True)
    assert gate_size(bundle) == (1, 2)


def test_every_engine_is_compared_in_its_own_precision_and_figures_are_plain_data() -> None:
    def without_bf16(graph_dtype: str) -> list[tuple[str, str]]:
        return [pair for pair in variants(["onnxruntime", "openvino"], graph_dtype) if pair[1] != "bf16"]

    assert without_bf16("float32") == [("onnxruntime", "f32"), ("openvino", "f32")]
    assert without_bf16("float16") == [("onnxruntime", "f16"), ("openvino", "f32")]
    assert figures([Agreement("openvino", "f32", 4, 60.0, None)]) == [
        {"engine": "openvino", "precision": "f32", "jobs": 4, "psnr": 60.0, "ap50": None}
    ]
