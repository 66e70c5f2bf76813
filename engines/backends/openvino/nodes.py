"""What the rewritings of OpenVINO models share: reading weights, and putting one output in another's place.

Knows: how OpenVINO's nodes hold constants and names. Does not know what is rewritten, or why.
"""

from collections.abc import Iterable
from typing import Any

import numpy as np
import numpy.typing as npt


def read_weight(node: Any) -> tuple[str, npt.NDArray[np.float32] | None]:
    """The name of a product's weight in the graph, and its numbers as the product reads them; None for no weight."""
    source = node.input_value(1).get_node()
    axes: Any = None
    if source.get_type_name() == "Transpose":
        axes = source.input_value(1).get_node().data
        source = source.input_value(0).get_node()
    name, weight = read_constant(source)
    return name, weight if axes is None or weight is None else weight.transpose(axes)


def read_constant(node: Any) -> tuple[str, npt.NDArray[np.float32] | None]:
    """The name and numbers of a constant, converted or not; None for any other node."""
    if node.get_type_name() == "Convert":
        node = node.input_value(0).get_node()
    if node.get_type_name() != "Constant":
        return "", None
    return node.get_friendly_name(), np.array(node.data, dtype=np.float32)


def replace_output(before: Any, after: Any, readers: Iterable[Any] | None = None) -> None:
    """Let those that read one output (all, or these) read another, which takes its names, as a model's outputs have."""
    names = before.get_tensor().get_names()
    for port in before.get_target_inputs() if readers is None else readers:
        port.replace_source_output(after)
    before.get_tensor().set_names(set())
    after.get_tensor().set_names(names | after.get_tensor().get_names())


def name_of(output: Any) -> str:
    """The name of the node that gives an output."""
    return str(output.get_node().get_friendly_name())
