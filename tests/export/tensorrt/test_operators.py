"""The static check of a bundle's graphs against the list of operators that TensorRT's parser supports."""

import json
import shutil
from pathlib import Path
from typing import Any

import onnx
import pytest
from onnx import TensorProto, helper

from dengine_cli.export import show_export
from engines.bundle.bundle import default_bundle
from engines.bundle.graphs import GRAPH_NAMES
from engines.errors import ExportError
from export.assemble import ExportSummary
from export.tensorrt.operators import LIST, check_operators, inspect_operators, operator_list, unsupported_operators

FLOAT, HALF, BFLOAT16, INT64, BOOL = (
    TensorProto.FLOAT,
    TensorProto.FLOAT16,
    TensorProto.BFLOAT16,
    TensorProto.INT64,
    TensorProto.BOOL,
)


def value(name: str, dtype: int = FLOAT, shape: tuple[int, ...] = (2, 3, 4, 4)) -> Any:
    return helper.make_tensor_value_info(name, dtype, shape)


def model(
    nodes: list[Any], inputs: list[Any], outputs: list[Any], opset: int = 23, functions: list[Any] | None = None
) -> Any:
    """A model of these nodes."""
    imports = [helper.make_opsetid("", opset), helper.make_opsetid("mine", 1), helper.make_opsetid("com.microsoft", 1)]
    graph = helper.make_graph(nodes, "graph", inputs, outputs)
    return helper.make_model(graph, opset_imports=imports, functions=functions or [])


def bundle(folder: Path, unet: Any) -> Path:
    """A folder of five graphs: `unet`, and four that do nothing."""
    plain = model([helper.make_node("Identity", ["x"], ["y"])], [value("x")], [value("y")])
    for name in GRAPH_NAMES:
        onnx.save(unet if name == "unet" else plain, str(folder / f"{name}.onnx"))
    return folder


def problems(folder: Path, unet: Any, version: str | None = None) -> list[str]:
    return [str(found) for found in unsupported_operators(bundle(folder, unet), version)]


def test_the_list_names_its_source_and_version_and_holds_every_operator_our_graphs_may_use() -> None:
    found = operator_list()
    assert found.tensorrt == "10.15"
    assert json.loads(LIST.read_text("utf-8"))["source"].startswith("https://github.com/onnx/onnx-tensorrt/")
    assert found.opsets == (9, 24)
    assert len(found.operators) == 158
    assert found.operators["Attention"].since == ((23, "10.14"),)
    assert found.operators["GroupNormalization"].since == ((18, "8.6"), (21, "10.9"))
    assert found.operators["GridSample"].types == {"FP32", "FP16"}


def test_no_operator_is_listed_as_supported_and_as_not_supported() -> None:
    stored = json.loads(LIST.read_text("utf-8"))
    assert not set(stored["operators"]) & set(stored["not_supported"])
    known = {schema.name for schema in onnx.defs.get_all_schemas_with_history() if schema.domain == ""}
    assert set(stored["not_supported"]) <= known


def test_every_operator_of_the_bundled_model_is_supported_from_10_14_on() -> None:
    found = inspect_operators(default_bundle(), "11.4.0.9")
    assert found.unsupported == ()
    assert (found.needs, found.needed_for) == ("10.14", ("Attention",))
    assert found.operators > 30
    assert found.lines() == [
        f"TensorRT supports all {found.operators} operators of the graphs, from 10.14 on (for Attention)"
    ]


def test_a_tensorrt_before_an_operator_came_is_told_which_version_has_it() -> None:
    found = unsupported_operators(default_bundle(), "10.13.3.9")
    assert {entry.operator for entry in found} == {"Attention"}
    assert all("needs TensorRT 10.14 or later" in entry.problem for entry in found)
    unet = next(entry for entry in found if entry.graph == "unet")
    assert unet.count > 1
    assert f"and {unet.count - 1} more" in str(unet)
    assert inspect_operators(default_bundle(), "10.13").lines()[0].startswith("TensorRT would not read text_encoder: ")
    assert not unsupported_operators(default_bundle(), "10.14.0")


def test_ten_nine_is_before_ten_fourteen_and_not_after() -> None:
    found = unsupported_operators(default_bundle(), "10.9")
    assert {entry.operator for entry in found} == {"Attention"}  # and not GroupNormalization, which 10.9 has


def test_the_opset_decides_which_version_of_an_operator_is_meant(tmp_path: Path) -> None:
    def group_norm(opset: int) -> Any:
        node = helper.make_node("GroupNormalization", ["x", "scale", "bias"], ["y"], num_groups=3)
        shape = (3,)
        return model(
            [node], [value("x"), value("scale", FLOAT, shape), value("bias", FLOAT, shape)], [value("y")], opset
        )

    assert problems(tmp_path, group_norm(18), "10.8") == []
    assert "needs TensorRT 10.9" in problems(tmp_path, group_norm(21), "10.8")[0]


def test_a_version_that_every_tensorrt_we_run_with_is_past_is_not_worth_a_word(tmp_path: Path) -> None:
    nodes = [helper.make_node("LayerNormalization", ["x", "s"], ["y"])]
    bundle(tmp_path, model(nodes, [value("x"), value("s", FLOAT, (4,))], [value("y")], 18))
    found = inspect_operators(tmp_path)
    assert found.needs == "8.6"
    assert found.lines() == ["TensorRT supports all 2 operators of the graphs"]


def test_an_operator_that_is_listed_as_not_supported_is_named_with_graph_and_node(tmp_path: Path) -> None:
    node = helper.make_node("Bernoulli", ["x"], ["y"], name="dice")
    assert problems(tmp_path, model([node], [value("x")], [value("y")])) == [
        'unet: Bernoulli at opset 23 (node "dice") is not among the operators that TensorRT 10.15 supports'
    ]


def test_an_operator_of_another_domain_is_not_taken_for_onnx_own(tmp_path: Path) -> None:
    node = helper.make_node("Gelu", ["x"], ["y"], domain="com.microsoft")
    (found,) = problems(tmp_path, model([node], [value("x")], [value("y")]))
    assert "com.microsoft::Gelu at opset 1" in found
    standard = helper.make_node("Gelu", ["x"], ["y"], domain="ai.onnx")
    assert problems(tmp_path, model([standard], [value("x")], [value("y")])) == []


def test_a_type_the_operator_is_not_supported_for_is_reported(tmp_path: Path) -> None:
    def sample(dtype: int) -> Any:
        node = helper.make_node("GridSample", ["x", "grid"], ["y"])
        return model([node], [value("x", dtype), value("grid", dtype, (2, 5, 5, 2))], [value("y", dtype)])

    assert problems(tmp_path, sample(FLOAT)) == []
    assert problems(tmp_path, sample(HALF)) == []
    (found,) = problems(tmp_path, sample(BFLOAT16))
    assert "is not supported for BF16 (X), only for FP16, FP32" in found


def test_a_type_that_appears_only_inside_a_graph_is_found(tmp_path: Path) -> None:
    nodes = [
        helper.make_node("Cast", ["x"], ["wide"], to=TensorProto.DOUBLE),
        helper.make_node("Cast", ["wide"], ["y"], to=FLOAT),
    ]
    found = problems(tmp_path, model(nodes, [value("x")], [value("y")]))
    assert [line.split(",")[0] for line in found] == [  # only inference knows it: the file has no type for "wide"
        'unet: Cast at opset 23 (node "") is not supported for DOUBLE (output)',
        'unet: Cast at opset 23 (node "") is not supported for DOUBLE (input)',
    ]


def test_conditions_masks_indices_and_shapes_are_not_taken_for_data(tmp_path: Path) -> None:
    nodes = [
        helper.make_node("Greater", ["x", "x"], ["mask"]),
        helper.make_node("Where", ["mask", "x", "x"], ["chosen"]),
        helper.make_node("CumSum", ["chosen", "axis"], ["summed"]),
        helper.make_node("Reshape", ["summed", "shape"], ["flat"]),
        helper.make_node("Attention", ["x", "x", "x", "allowed"], ["y"]),
    ]
    inputs = [
        value("x"),
        value("axis", INT64, (1,)),
        value("shape", INT64, (1,)),
        value("allowed", BOOL, (1, 1, 4, 4)),
    ]
    assert problems(tmp_path, model(nodes, inputs, [value("flat", FLOAT, (96,)), value("y")])) == []


def test_an_opset_outside_the_range_is_reported(tmp_path: Path) -> None:
    nodes = [helper.make_node("Relu", ["x"], ["y"])]
    assert "outside the opsets 9 to 24" in problems(tmp_path, model(nodes, [value("x")], [value("y")], 8))[0]
    assert problems(tmp_path, model(nodes, [value("x")], [value("y")], 9)) == []


@pytest.mark.parametrize(
    ("node", "inputs", "said"),
    [
        (
            helper.make_node("Attention", ["q", "q", "q"], ["y"], q_num_heads=2, kv_num_heads=2),
            [value("q", FLOAT, (2, 3, 4))],
            "has Q of 3 axes; 4 are supported",
        ),
        (helper.make_node("Attention", ["x", "x", "x"], ["y"], softcap=1.0), [value("x")], "has softcap 1.0"),
        (
            helper.make_node("Attention", ["x", "x", "x", "", "x", "x"], ["y"]),
            [value("x")],
            "must not have the input past_key",
        ),
        (
            helper.make_node("LayerNormalization", ["x", "s"], ["y", "mean"]),
            [value("x"), value("s", FLOAT, (4,))],
            "has more than 1 output in use",
        ),
        (
            helper.make_node("Resize", ["x", "", "scales"], ["y"], mode="linear", antialias=1),
            [value("x"), value("scales", FLOAT, (4,))],
            "has antialias 1; only 0 is supported",
        ),
    ],
)
def test_what_the_list_excludes_by_a_remark_is_reported(
    tmp_path: Path, node: Any, inputs: list[Any], said: str
) -> None:
    found = problems(tmp_path, model([node], inputs, []))
    assert any(said in line for line in found), found


def test_functions_are_looked_into_with_the_types_of_their_caller(tmp_path: Path) -> None:
    body = [helper.make_node("GridSample", ["a", "b"], ["c"]), helper.make_node("Det", ["c"], ["d"])]
    function = helper.make_function("mine", "sample", ["a", "b"], ["d"], body, [helper.make_opsetid("", 23)])
    node = helper.make_node("sample", ["x", "grid"], ["y"], domain="mine")
    inputs = [value("x", BFLOAT16), value("grid", BFLOAT16, (2, 4, 4, 2))]
    found = problems(tmp_path, model([node], inputs, [value("y", BFLOAT16, (2, 3))], functions=[function]))
    assert any("GridSample" in line and "BF16" in line for line in found)
    assert any("Det" in line for line in found)
    assert not any("mine::sample" in line for line in found)


def test_a_function_with_an_opset_of_its_own_is_checked_at_that_opset(tmp_path: Path) -> None:
    body = [helper.make_node("GroupNormalization", ["a", "s", "s"], ["b"], num_groups=3)]
    function = helper.make_function("mine", "norm", ["a", "s"], ["b"], body, [helper.make_opsetid("", 18)])
    node = helper.make_node("norm", ["x", "scale"], ["y"], domain="mine")
    whole = model([node], [value("x"), value("scale", FLOAT, (3,))], [value("y")], 23, [function])
    assert problems(tmp_path, whole, "10.8") == []  # 18's version, which is known since 8.6


def test_subgraphs_are_looked_into_and_see_the_outer_values(tmp_path: Path) -> None:
    grid = value("grid", BFLOAT16, (2, 5, 5, 2))
    inner = helper.make_graph(
        [helper.make_node("GridSample", ["x", "grid"], ["z"])], "then", [], [value("z", BFLOAT16)]
    )
    other = helper.make_graph([helper.make_node("Bernoulli", ["x"], ["w"])], "else", [], [value("w", BFLOAT16)])
    node = helper.make_node("If", ["which"], ["y"], then_branch=inner, else_branch=other)
    found = problems(
        tmp_path, model([node], [value("x", BFLOAT16), grid, value("which", BOOL, ())], [value("y", BFLOAT16)])
    )
    assert any("GridSample" in line and "BF16" in line for line in found)
    assert any("Bernoulli" in line for line in found)


def test_the_error_is_one_line_that_says_how_to_mend_it(tmp_path: Path) -> None:
    with pytest.raises(ExportError) as caught:
        check_operators(default_bundle(), "10.12.0.36")
    message = str(caught.value)
    assert message.startswith("TensorRT 10.12.0.36 does not read these graphs: text_encoder: Attention at opset 23")
    assert "and 1 more" in message  # three of four findings are named
    assert "`opset=18`" in message
    assert "\n" not in message
    check_operators(default_bundle())


def test_export_prints_what_was_found_before_the_bundle(capsys: pytest.CaptureFixture[str]) -> None:
    checks = inspect_operators(default_bundle(), "10.13")
    show_export(ExportSummary(Path("bundles/mine"), 10**6, (), (), operators=checks))
    lines = capsys.readouterr().out.splitlines()
    assert [line for line in lines if line.startswith("TensorRT would not read unet: Attention at opset 23")]
    assert lines[-1].startswith("bundle ")


def test_a_file_that_is_no_graph_is_named(tmp_path: Path) -> None:
    folder = bundle(tmp_path, model([], [], []))
    (folder / "adapter.onnx").write_bytes(b"\xff\xff not protobuf")
    with pytest.raises(ExportError, match=r"adapter\.onnx cannot be read as an ONNX graph"):
        check_operators(folder)
    (folder / "adapter.onnx").unlink()
    with pytest.raises(ExportError, match=r"adapter\.onnx cannot be read"):
        check_operators(folder)


def test_weights_need_not_be_there(tmp_path: Path) -> None:
    for name in GRAPH_NAMES:
        shutil.copy(default_bundle() / f"{name}.onnx", tmp_path)
    assert unsupported_operators(tmp_path) == []
