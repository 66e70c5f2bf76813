"""benchmarks/operators.py: kinds of operators, medians, and the table."""

import importlib.util
from datetime import timedelta
from pathlib import Path
from types import ModuleType, SimpleNamespace

import pytest

from engines.bundle.bundle import open_bundle

SCRIPT = Path(__file__).parents[2] / "benchmarks" / "operators.py"


@pytest.fixture(scope="module")
def operators() -> ModuleType:
    spec = importlib.util.spec_from_file_location("operators_benchmark", SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def node(kind: str, name: str, milliseconds: float, status: str = "Status.EXECUTED") -> SimpleNamespace:
    return SimpleNamespace(
        node_type=kind, node_name=name, status=status, real_time=timedelta(milliseconds=milliseconds)
    )


def test_a_call_is_added_up_by_kind_of_operator(operators: ModuleType) -> None:
    found = operators.profile(
        [
            node("Convolution", "a", 2.0),
            node("Convolution", "b", 3.0),
            node("Subgraph", "node_scaled_dot_product_attention_1", 1.0),
            node("Subgraph", "node_silu", 0.5),
            node("Reorder", "c", 0.25),
            node("Softmax", "d", 0.125),
            node("Convolution", "e", 9.0, "Status.OPTIMIZED_OUT"),
        ]
    )
    assert found == {
        "convolutions": 5.0,
        "attention": 1.0,
        "element by element": 0.5,
        "copies and layouts": 0.25,
        "others": 0.125,
    }


def test_the_table_has_medians_and_what_was_gained(operators: ModuleType) -> None:
    before = operators.middle([{"convolutions": 8.0}, {"convolutions": 10.0, "others": 2.0}, {"convolutions": 90.0}])
    assert before == {"convolutions": 10.0, "others": 0.0}
    lines = list(operators.table(before, {"convolutions": 6.0, "attention": 2.0}))
    assert lines[2] == "| convolutions | 10.0 | 6.0 | 75.0% |"
    assert lines[-1] == "| together | 10.0 | 8.0 | -20.0% |"


def test_a_graph_is_profiled_as_exported_and_rewritten(
    operators: ModuleType, toy_bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("openvino")
    rewritten: list[str | None] = []
    monkeypatch.setattr(operators, "rewrite", lambda ov, model, varies: rewritten.append(varies))
    before, after = operators.compare(open_bundle(toy_bundle, verify=False), "vae_decoder", 2, "bf16", 1)
    assert rewritten == [None]
    assert before["convolutions"] > 0
    assert after["convolutions"] > 0
