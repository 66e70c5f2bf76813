"""The names in an ONNX file: are its inputs and outputs those of its spec?

Knows: how a tensor's name, dtype and axes are told, in a file and in a spec. Knows nothing about what is computed.
"""

from typing import Any

from engines.bundle.bundle import Bundle
from engines.bundle.graphs import GraphSpec, TensorSpec
from engines.errors import ExportError


class NamesError(ExportError):
    """A graph's inputs or outputs are not those of its spec."""


def check_names(spec: GraphSpec, bundle: Bundle) -> None:
    """Names, dtypes and axes in the ONNX file, against the spec. Raises NamesError."""
    import onnx

    graph = onnx.load(str(bundle.graph_path(spec.name)), load_external_data=False).graph
    for kind, values, tensors in (("inputs", graph.input, spec.inputs), ("outputs", graph.output, spec.outputs)):
        found, expected = [_describe(value) for value in values], [_expect(tensor) for tensor in tensors]
        if found != expected:
            raise NamesError(
                f"{spec.name}: the graph's {kind} are {', '.join(found)}; {', '.join(expected)} was expected."
            )


def _describe(value: Any) -> str:
    import onnx

    dtype = onnx.helper.tensor_dtype_to_np_dtype(value.type.tensor_type.elem_type)
    axes = [axis.dim_param or axis.dim_value for axis in value.type.tensor_type.shape.dim]
    return f"{value.name} {dtype} {axes}"


def _expect(tensor: TensorSpec) -> str:
    return f"{tensor.name} {tensor.dtype} {list(tensor.axes)}"
