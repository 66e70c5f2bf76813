"""Products that are cut: where a network splits what one matrix product gives, a product of its own gives each part.

Knows: the pattern in an OpenVINO model, and what replaces it. Does not know networks: Stable Diffusion's feed-forward
layers (GEGLU) have it.

OpenVINO copies the parts of a split out of the product, by plain loops: 2% of the bundled UNet's time in int8. Parts of
the weight cost nothing, and give the same numbers but for rounding.
"""

from typing import Any

import numpy as np

from engines.backends.openvino.nodes import read_constant, read_weight, replace_output


def cut_products(ov: Any, model: Any) -> int:
    """Replace every split along the last axis of a product with a constant weight, in place; returns how many."""
    operations, cut = ov.opset13, 0
    for split in model.get_ordered_ops():
        product, bias = _product(split)
        if product is None:
            continue
        name, weight = read_weight(product)
        if weight is None or weight.ndim != 2 or (bias is not None and bias.shape[-1:] != (_width(split),)):
            continue
        parts = split.get_output_size()
        transposed = bool(product.get_attributes()["transpose_b"])
        weights = np.split(weight, parts, axis=0 if transposed else 1)
        biases = [None] * parts if bias is None else np.split(bias, parts, axis=-1)
        dtype = product.get_output_element_type(0).to_dtype()  # half precision where the graph is
        for output, part, added in zip(split.outputs(), weights, biases, strict=True):
            stored = operations.constant(np.ascontiguousarray(part, dtype=dtype))
            stored.set_friendly_name(name)
            found = operations.matmul(product.input_value(0), stored, False, transposed)
            if added is not None:
                found = operations.add(found, operations.constant(np.ascontiguousarray(added, dtype=dtype)))
            replace_output(output, found.output(0))
        cut += 1
    return cut


def _width(split: Any) -> int:
    """Columns of what is split, before."""
    return sum(output.get_partial_shape()[-1].get_length() for output in split.outputs())


def _product(split: Any) -> tuple[Any, Any]:
    """The matrix product that a node splits along its last axis, and the constant added to it; None for other nodes."""
    if split.get_type_name() != "Split" or len(split.output(0).get_partial_shape()) < 2:
        return None, None
    rank = len(split.input_value(0).get_partial_shape())
    axis = split.input_value(1).get_node()
    if axis.get_type_name() != "Constant" or int(axis.data) not in (-1, rank - 1):
        return None, None
    source, bias = split.input_value(0).get_node(), None
    if source.get_type_name() == "Add":
        sides = [source.input_value(place).get_node() for place in (0, 1)]
        added = [value for side in sides if (value := read_constant(side)[1]) is not None]
        if len(added) != 1:
            return None, None
        bias, source = added[0], next(side for side in sides if read_constant(side)[1] is None)
    if source.get_type_name() != "MatMul" or source.get_attributes()["transpose_a"]:
        return None, None
    return source, bias
