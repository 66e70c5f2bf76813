"""Products that are cut: the same numbers, without a split."""

from typing import Any

import numpy as np
import pytest

from engines.backends.openvino.halves import cut_products
from engines.backends.openvino.int8 import quantize
from engines.common.rng import generator

ov: Any = pytest.importorskip("openvino")
IN, OUT = 6, 8


def geglu(*, axis: int = -1, transposed: bool = False, bias: bool = True, twice: bool = False) -> Any:
    """x [2, 4, IN] -> a * gelu(b), where a and b are the halves of x W + c; `twice`: the product is read whole, too."""
    operations = ov.opset13
    rng = generator(5)
    x = operations.parameter([2, 4, IN], np.float32, "x")
    stored = rng.normal(size=(OUT, IN) if transposed else (IN, OUT)).astype(np.float16)
    weight = operations.constant(stored)
    weight.set_friendly_name("proj.weight")
    product = operations.matmul(x, operations.convert(weight, np.float32), False, transposed)
    whole = product
    if bias:
        whole = operations.add(product, operations.constant(rng.normal(size=OUT).astype(np.float32)))
    parts = operations.split(whole, operations.constant(np.int64(axis)), 2).outputs()
    outputs = [operations.multiply(parts[0], operations.gelu(parts[1], "erf"))]
    if twice:
        outputs.append(operations.relu(whole))
    return ov.Model(outputs, [x], "geglu")


def kinds(model: Any) -> list[str]:
    return [node.get_type_name() for node in model.get_ordered_ops()]


def run(model: Any) -> list[np.ndarray[Any, Any]]:
    compiled = ov.Core().compile_model(model, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    return list(compiled({0: generator(6).normal(size=(2, 4, IN)).astype(np.float32)}).values())


@pytest.mark.parametrize(
    "changes", [{}, {"transposed": True}, {"bias": False}, {"axis": 2}, {"twice": True}], ids=lambda x: str(x)
)
def test_a_split_product_becomes_two_that_give_the_same(changes: dict[str, Any]) -> None:
    model, before = geglu(**changes), run(geglu(**changes))
    assert cut_products(ov, model) == 1
    assert "Split" not in kinds(model)
    assert kinds(model).count("MatMul") == 2 + bool(changes.get("twice"))
    for expected, found in zip(before, run(model), strict=True):
        np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-5)


def test_one_number_for_all_columns_and_a_weight_for_each_item_stay() -> None:
    operations = ov.opset13
    x = operations.parameter([2, 4, IN], np.float32, "x")
    weights = {1: np.ones((IN, OUT), dtype=np.float32), 0: np.ones((2, IN, OUT), dtype=np.float32)}
    for added, weight in weights.items():
        whole = operations.matmul(x, operations.constant(weight), False, False)
        if added:
            whole = operations.add(whole, operations.constant(np.float32(1.0)))
        parts = operations.split(whole, operations.constant(np.int64(2)), 2).outputs()
        assert cut_products(ov, ov.Model([operations.add(parts[0], parts[1])], [x], "other")) == 0


def test_a_split_in_more_parts_gives_as_many_products() -> None:
    operations = ov.opset13
    weight = generator(8).normal(size=(IN, 9)).astype(np.float32)

    def model() -> Any:
        x = operations.parameter([2, 4, IN], np.float32, "x")
        whole = operations.matmul(x, operations.constant(weight), False, False)
        parts = operations.split(whole, operations.constant(np.int64(2)), 3)
        return ov.Model([operations.relu(part) for part in parts.outputs()], [x], "parts")

    cut, before = model(), run(model())
    assert cut_products(ov, cut) == 1
    assert kinds(cut).count("MatMul") == 3
    for expected, found in zip(before, run(cut), strict=True):
        np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-5)


def test_a_split_of_rows_stays() -> None:
    model = geglu(axis=1)
    assert cut_products(ov, model) == 0
    assert "Split" in kinds(model)


def test_a_split_of_two_inputs_product_stays() -> None:
    operations = ov.opset13
    x = operations.parameter([2, 4, IN], np.float32, "x")
    product = operations.matmul(x, operations.relu(x), False, True)
    parts = operations.split(product, operations.constant(np.int64(2)), 2).outputs()
    model = ov.Model([operations.add(parts[0], parts[1])], [x], "scores")
    assert cut_products(ov, model) == 0


def test_int8_finds_both_parts_by_the_weights_name() -> None:
    model = geglu()
    cut_products(ov, model)
    quantize(ov, model, {"proj.weight": (-3.0, 3.0)})
    assert kinds(model).count("FakeQuantize") == 2
    np.testing.assert_allclose(run(model)[0], run(geglu())[0], atol=0.5)
