"""Pairs of rows: what two rows share is computed once, and every row gives what it gave before."""

from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch

from engines.backends.openvino.pairs import share_pairs
from engines.backends.registry import open_backend
from engines.bundle.bundle import Bundle, open_bundle
from engines.common.devices import cpu_has_bf16
from engines.common.rng import generator

ov: Any = pytest.importorskip("openvino")
ROWS = 6
Arrays = dict[str, npt.NDArray[np.float32]]


def network(rows: int = ROWS) -> Any:
    """tanh(x W) [rows, 3], which is shared; that times its own row's text [rows, 3]; and the two together."""
    operations = ov.opset13
    x, text = operations.parameter([rows, 4], np.float32, "x"), operations.parameter([rows, 3], np.float32, "text")
    weight = operations.constant(generator(1).normal(size=(4, 3)).astype(np.float32))
    common = operations.tanh(operations.matmul(x, weight, False, False))
    scaled = operations.convert_like(operations.constant(np.float16(2.0)), common)
    own = operations.multiply(operations.multiply(text, scaled), common)
    shape = operations.shape_of(common, "i64")
    model = ov.Model([common, operations.reshape(own, shape, False), operations.add(own, common)], [x, text], "pairs")
    for port, name in zip((*model.inputs, *model.outputs), ("x", "text", "common", "own", "both"), strict=True):
        port.get_tensor().set_names({name})
    return model


def inputs(rows: int = ROWS) -> Arrays:
    rng = generator(2)
    halves = rng.normal(size=(rows // 2, 4)).astype(np.float32)
    return {"x": np.repeat(halves, 2, axis=0), "text": rng.normal(size=(rows, 3)).astype(np.float32)}


def run(model: Any, given: Arrays) -> Arrays:
    compiled = ov.Core().compile_model(model, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    return {next(iter(port.get_names())): value.copy() for port, value in compiled(given).items()}


def product_rows(model: Any) -> list[int]:
    """The rows of every matrix product that really runs."""
    compiled = ov.Core().compile_model(model, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    nodes = compiled.get_runtime_model().get_ops()
    products = [node for node in nodes if node.get_rt_info()["layerType"].value == "FullyConnected"]
    return sorted(node.get_output_shape(0)[0] for node in products)


def test_what_is_shared_is_computed_for_half_the_rows_and_every_row_stays() -> None:
    model, before = network(), run(network(), inputs())
    assert share_pairs(ov, model, "text")
    found = run(model, inputs())
    assert found.keys() == before.keys() == {"common", "own", "both"}
    for name, value in before.items():
        np.testing.assert_array_equal(found[name], value, err_msg=name)
    assert product_rows(model) == [ROWS // 2, ROWS]  # the second one for the output that is all shared
    alone = ov.Model([model.output(name).get_node() for name in ("own", "both")], model.get_parameters(), "alone")
    assert product_rows(alone) == [ROWS // 2]


def test_rows_that_are_no_pairs_are_taken_for_pairs() -> None:
    given = inputs()
    given["x"][1] += 1.0
    model, before = network(), run(network(), given)
    assert share_pairs(ov, model, "text")
    found = run(model, given)
    np.testing.assert_array_equal(found["both"][[0, 2, 3, 4, 5]], before["both"][[0, 2, 3, 4, 5]])
    assert not np.allclose(found["both"][1], before["both"][1])
    np.testing.assert_array_equal(found["common"], before["common"])  # does not depend on the text: left as it is


def read_as(kind: str, rows: int = 4) -> Any:
    """x and text [rows, 4], added up after x was read in a way that is not row by row; or read for its shape alone."""
    operations = ov.opset13
    x, text = (operations.parameter([rows, 4], np.float32, name) for name in ("x", "text"))
    read: Any = operations.tanh(x)
    if kind == "turned":
        read = operations.transpose(x, operations.constant([1, 0]))
    elif kind == "mean":
        read = operations.reduce_mean(x, operations.constant([0]), True)
    elif kind == "columns first":  # [2 rows, 2], of which half is not that of half the batch
        read = operations.reshape(operations.transpose(x, operations.constant([1, 0])), [-1, 2], False)
    elif kind == "shape":
        read = operations.reshape(read, operations.shape_of(text, "i64"), False)
    both = operations.reshape(text, [-1, 2], False) if kind == "columns first" else text
    model = ov.Model([operations.relu(x) if kind == "alone" else operations.add(read, both)], [x, text], kind)
    for port, name in zip(model.inputs, ("x", "text"), strict=True):
        port.get_tensor().set_names({name})
    return model


@pytest.mark.parametrize("kind", ["turned", "mean", "columns first", "alone"])
def test_what_is_not_computed_row_by_row_stays(kind: str) -> None:
    model = read_as(kind)
    before = [node.get_friendly_name() for node in model.get_ordered_ops()]
    assert not share_pairs(ov, model, "text")
    assert [node.get_friendly_name() for node in model.get_ordered_ops()] == before


def test_an_odd_number_of_rows_stays() -> None:
    assert not share_pairs(ov, network(5), "text")


def test_the_shape_of_what_varies_may_be_read_by_what_is_shared() -> None:
    given = {"x": np.repeat(np.eye(2, 4, dtype=np.float32), 2, axis=0), "text": np.arange(16.0).reshape(4, 4)}

    def summed(model: Any) -> Any:
        return next(iter(ov.Core().compile_model(model, "CPU")(given).values()))

    model, before = read_as("shape"), summed(read_as("shape"))
    assert share_pairs(ov, model, "text")
    np.testing.assert_allclose(summed(model), before, rtol=1e-2)


@pytest.fixture(scope="module")
def bundle(toy_bundle: Path) -> Bundle:
    return open_bundle(toy_bundle, verify=False)


def batches(call: Any) -> set[int]:
    """The batches of the convolutions that a call runs."""
    nodes = call.requests[0].get_compiled_model().get_runtime_model().get_ops()
    found = [node for node in nodes if node.get_rt_info()["layerType"].value == "Convolution"]
    return {node.get_output_shape(0)[0] for node in found}


def test_compiled_models_are_kept_apart_and_odd_parts_of_a_batch_share_nothing(
    bundle: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    spec, side = bundle.specs["unet"], bundle.manifest.latent_multiple
    backend = open_backend(bundle, "openvino", precision="f32", threads=2)

    def prepared(rows: int, varies: str | None) -> int:
        shapes = spec.input_shapes({"B": rows, "h": 8 * side, "w": 8 * side})
        return len(batches(backend.prepare("unet", shapes, ["model_output"], varies)))

    assert [prepared(8, varies) for varies in (None, "encoder_hidden_states")] == [1, 2]
    assert prepared(6, "encoder_hidden_states") == 1  # two streams of three rows


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("precision", ["f32", "bf16"])
def test_the_unet_gives_what_it_gave(bundle: Bundle, precision: str, threads: int) -> None:
    if precision == "bf16" and not cpu_has_bf16():
        pytest.skip("no bf16 on this processor")
    spec, side = bundle.specs["unet"], 8 * bundle.manifest.latent_multiple
    sizes = {"B": 8, "h": side, "w": side}
    example = {name: torch.from_numpy(array) for name, array in spec.example(sizes, 3).items()}
    example["encoder_hidden_states"] *= 4  # far enough apart to tell
    for name in ("sample", "timesteps"):
        example[name][1::2] = example[name][::2]
    backend = open_backend(bundle, "openvino", precision=precision, threads=threads, keep_compiled=False)
    found = []
    for varies in (None, "encoder_hidden_states"):
        call = backend.prepare("unet", spec.input_shapes(sizes), ["model_output"], varies)
        for name, value in example.items():
            call.inputs[name].copy_(value)
        call.run()
        found.append(call.outputs["model_output"].clone())
    assert len(batches(call)) == 2  # of convolutions: one before the first text, and one behind it
    torch.testing.assert_close(found[1], found[0], rtol=0, atol=1e-5 if precision == "f32" else 0.02)
    assert (found[1][0] - found[1][1]).abs().max() > 0.1  # the two texts of a pair
