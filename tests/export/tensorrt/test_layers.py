"""Which layer is the first that differs: with Polygraphy and ONNX Runtime on a CPU.

A plan's own tensors come from a GPU, and are not here.
"""

import threading
from pathlib import Path

import numpy as np
import onnx
import pytest
from rtx import load_rtx
from small_graphs import small_bundle, small_specs

from engines.backends.tensorrt.plans import Machine
from export.tensorrt.builder import PlanBuilder
from export.tensorrt.layers import Arrays, first_difference, run_onnxruntime

pytest.importorskip("polygraphy", reason="polygraphy, which the TensorRT extras bring, is not installed")
SIZES = {"B": 2, "h": 4, "w": 6}


@pytest.fixture
def graph(tmp_path: Path) -> Path:
    """The small UNet."""
    return small_bundle(tmp_path).graph_path("unet")


@pytest.fixture
def tensors(graph: Path) -> Arrays:
    return run_onnxruntime(graph, small_specs()["unet"].example(SIZES))


def test_onnxruntime_gives_every_tensor_of_a_graph(graph: Path, tensors: Arrays) -> None:
    names = {name for node in onnx.load(str(graph)).graph.node for name in node.output}
    assert set(tensors) == names
    np.testing.assert_allclose(tensors["sin"], np.sin(tensors["angle"]), rtol=1e-6)
    assert first_difference(graph, tensors, tensors, 0.0) is None


def test_the_first_tensor_that_differs_is_named_with_its_node(graph: Path, tensors: Arrays) -> None:
    wrong = {name: value if name in ("t", "column", "angle", "sin") else value * 1.5 for name, value in tensors.items()}
    found = first_difference(graph, wrong, tensors, 0.1)
    assert found is not None
    assert (found.tensor, found.node) == ("cos", "Cos")
    assert found.error == pytest.approx(0.5)
    del wrong["cos"]  # the plan has no tensor of this name
    found = first_difference(graph, wrong, tensors, 0.1)
    assert found is not None
    assert found.tensor == "embedding"
    assert first_difference(graph, wrong, tensors, 1.0) is None


def test_a_value_that_is_not_finite_differs_at_any_tolerance(graph: Path, tensors: Arrays) -> None:
    spoilt = {name: value.copy() for name, value in tensors.items()}
    spoilt["shift"].flat[0] = np.nan
    found = first_difference(graph, spoilt, tensors, 1e9)
    assert found is not None
    assert (found.tensor, found.error) == ("shift", float("inf"))


@pytest.mark.tensorrt
def test_a_plan_that_keeps_its_tensors_builds(tmp_path: Path) -> None:
    library = load_rtx()
    bundle = small_bundle(tmp_path)
    machine = Machine(library.flavour.title, library.version, "8.9")
    builder = PlanBuilder(library, bundle, machine, None, lambda at: None)
    profile = {size: (number,) * 3 for size, number in SIZES.items()}
    plain = builder.build("unet", [profile], threading.Event())
    kept = builder.build("unet", [profile], threading.Event(), keep_tensors=True)
    assert len(bytes(kept)) > len(bytes(plain))
