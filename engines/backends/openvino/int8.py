"""Int8 for OpenVINO: which products of a network read 8-bit numbers, and on which grid.

Knows: how to put the weights and inputs of convolutions and matrix products of an OpenVINO model on grids of 8 bits;
OpenVINO's own low-precision passes then choose int8 kernels; and which of a bundle's ranges are which graph's. Does not
know where the ranges come from (`export.activations`), or which calls are worth it (`openvino_backend`).

Weights are symmetric, one scale an output channel. Inputs have one grid each: unsigned where they hardly go below
zero, as behind SiLU, else symmetric (Jacob et al. 2018, arXiv 1712.05877; Nagel et al. 2021, arXiv 2106.08295).
"""

from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from engines.backends.openvino.nodes import read_weight
from engines.errors import BackendError

_MOSTLY_POSITIVE = 0.25  # of the highest number: a range that goes less far below zero gets an unsigned grid
LEVELS = 256  # of a grid of 8 bits
_LARGEST = 127  # of an int8
_SMALLEST = 1e-8  # end of a grid, and scale of a channel, where all numbers are zero
# How the names of a VAE's weights begin; those of the UNet's begin otherwise.
_PREFIXES = {"vae_encoder": "encoder.", "vae_decoder": "decoder."}

Ranges = Mapping[str, tuple[float, float]]  # lowest and highest number that a product reads, by its weight


def ranges_of(graph: str, activations: Ranges) -> Ranges:
    """The ranges of a graph's own products among those of a bundle; empty for a graph that was not measured."""
    if graph in _PREFIXES:
        return {name: span for name, span in activations.items() if name.startswith(_PREFIXES[graph])}
    others = tuple(_PREFIXES.values())
    return {name: span for name, span in activations.items() if graph == "unet" and not name.startswith(others)}


def quantize(ov: Any, model: Any, ranges: Ranges) -> None:
    """Let the products of an OpenVINO model that read the weights in `ranges` compute in int8, in place.

    Raises BackendError where the model lacks one of them.
    """
    operations = ov.opset13
    found: set[str] = set()
    for node in model.get_ordered_ops():
        if node.get_type_name() not in ("Convolution", "MatMul"):
            continue
        name, weight = read_weight(node)
        if weight is None or name not in ranges:
            continue
        found.add(name)
        low, high = grid(*ranges[name])
        ends = [operations.constant(np.float32(end)) for end in (low, high, low, high)]
        read = operations.fake_quantize(node.input_value(0), *ends, LEVELS)
        axis = 0 if node.get_type_name() == "Convolution" or node.get_attributes()["transpose_b"] else 1
        whole, scale = quantized_weight(weight, axis)
        stored = operations.convert(operations.constant(whole), np.float32)
        product = operations.multiply(stored, operations.constant(scale))
        node.input(0).replace_source_output(read.output(0))
        node.input(1).replace_source_output(product.output(0))
    if missing := sorted(set(ranges) - found):
        raise BackendError(
            f"{model.get_friendly_name()}: no product reads {missing[0]} ({len(missing)} of {len(ranges)} are missing)."
            " Export the bundle again with `int8=True`, or leave `precision=int8` out.",
            field="precision",
        )


def grid(lowest: float, highest: float) -> tuple[float, float]:
    """The ends of the grid of LEVELS for numbers from `lowest` to `highest`; zero is always on it.

    That of int8, -128 to 127 steps; or, where little is below zero, one that begins at a whole number of steps below.
    """
    if lowest < -_MOSTLY_POSITIVE * highest or highest <= 0:
        step = max(-lowest, highest, _SMALLEST) / _LARGEST
        return -(_LARGEST + 1) * step, _LARGEST * step
    below = min(lowest, 0.0)
    step = (highest - below) / (LEVELS - 1)
    start = round(-below / step)
    return -start * step, (LEVELS - 1 - start) * step


def quantized_weight(
    weight: npt.NDArray[np.float32], axis: int
) -> tuple[npt.NDArray[np.int8], npt.NDArray[np.float32]]:
    """A weight as whole numbers and a scale for each channel along `axis`, in shapes that multiply to the weight's."""
    others = tuple(other for other in range(weight.ndim) if other != axis)
    scale = np.maximum(np.abs(weight).max(axis=others, keepdims=True) / _LARGEST, _SMALLEST)
    return np.rint(weight / scale).astype(np.int8), scale.astype(np.float32)
