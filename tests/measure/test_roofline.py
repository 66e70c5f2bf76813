"""The machine's matmul rate."""

from dataclasses import asdict

import pytest
import torch

from engines.common.devices import cpu_has_bf16
from engines.measure import roofline
from engines.measure.roofline import Rate, best_rates, matmul_rates, rate_of

CPU = torch.device("cpu")
RATES = [Rate("f32", "torch", 1024, 2e9), Rate("f32", "openvino", 2048, 3e9), Rate("bf16", "torch", 1024, 5e9)]
BEST = {precision: asdict(rate) for precision, rate in best_rates(RATES).items()}


def test_the_best_rate_is_the_fastest_of_its_precision() -> None:
    assert best_rates(RATES) == {"f32": RATES[1], "bf16": RATES[2]}


def test_a_precision_that_was_not_measured_is_held_against_the_fastest() -> None:
    assert rate_of(BEST, "f32") == asdict(RATES[1])
    assert rate_of(BEST, "int8") == asdict(RATES[2])
    assert rate_of({}, "f32") is None


def test_every_runtime_multiplies_here() -> None:
    rates = matmul_rates(CPU, 1, sizes=(64,), patience=0.0)
    expected = {("torch", "f32"), ("openvino", "f32"), ("onnxruntime", "f32")}
    if cpu_has_bf16():
        expected |= {("torch", "bf16"), ("openvino", "bf16")}
    assert {(rate.runtime, rate.precision) for rate in rates} == expected
    assert all(1e6 < rate.flops_per_second < 1e14 for rate in rates)


def test_openvino_computes_the_product() -> None:
    (found,) = roofline._openvino_product(64, "f32", CPU, 1)().values()
    a, b = roofline._matrices(64)
    assert torch.allclose(torch.from_numpy(found), a @ b, atol=1e-4)


def test_a_runtime_that_fails_is_told_of_and_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        raise Exception("openvino is out of order")

    monkeypatch.setattr(roofline, "_openvino_product", fail)
    told: list[str] = []
    rates = matmul_rates(CPU, 1, sizes=(64,), patience=0.0, tell=told.append)
    assert {rate.runtime for rate in rates} == {"torch", "onnxruntime"}
    assert any("openvino is out of order" in line for line in told)
