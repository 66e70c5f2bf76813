"""What a runtime can do here, found out by running something, without a bundle.

Knows: a tiny graph whose result is exact in every precision, as ONNX and as arrays, and how trying it becomes a
`Device` of a `Probe`. Does not know any runtime: each backend's own file has a `probe()` that runs it, and
`engines.doctor` asks them all.
"""

import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[Any]
_WORDS = 300  # characters of a library's own message that are passed on


@dataclass(frozen=True)
class Device:
    """One thing a runtime computes on."""

    name: str  # "CPU", or the GPU's name
    works: bool  # whether the tiny graph ran there and gave the right numbers
    precisions: tuple[str, ...]  # those it was right in
    problem: str = ""  # of the precision that was wrong or failed, if one was


@dataclass(frozen=True)
class Probe:
    """What a backend says of its runtime."""

    name: str  # the engine's name
    version: str = ""  # empty where it is not installed
    devices: tuple[Device, ...] = ()  # empty where there is none it could use
    advice: str = ""  # what is missing and the command that mends it; empty when nothing is
    details: Mapping[str, str] = field(default_factory=dict)  # what else is worth knowing, such as its providers

    @property
    def ready(self) -> bool:
        """Whether this engine works on any device here."""
        return any(device.works for device in self.devices)


def tiny_input() -> Array:
    """x, float32 [1, 2, 2, 2]: small integers, so that no precision rounds."""
    return np.arange(8, dtype=np.float32).reshape(1, 2, 2, 2) - 3


def tiny_weights() -> Array:
    """w of the 1x1 convolution, float32 [3, 2, 1, 1]."""
    return np.array([[1, 2], [-1, 1], [2, -3]], dtype=np.float32).reshape(3, 2, 1, 1)


def tiny_expected() -> Array:
    """y = relu(conv(x, w)), float32 [1, 3, 2, 2]."""
    result: Array = np.maximum(np.einsum("oc,bchw->bohw", tiny_weights()[:, :, 0, 0], tiny_input()), 0)
    return result


def tiny_onnx(dtype: str = "float32") -> bytes:
    """The graph x -> y as an ONNX file, opset 18, all tensors of `dtype`: float32 or float16."""
    from onnx import helper, numpy_helper

    kind = helper.np_dtype_to_tensor_dtype(np.dtype(dtype))
    graph = helper.make_graph(
        [helper.make_node("Conv", ["x", "w"], ["z"]), helper.make_node("Relu", ["z"], ["y"])],
        "tiny",
        [helper.make_tensor_value_info("x", kind, tiny_input().shape)],
        [helper.make_tensor_value_info("y", kind, tiny_expected().shape)],
        [numpy_helper.from_array(tiny_weights().astype(dtype), "w")],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)
    return bytes(model.SerializeToString())


def try_device(name: str, precisions: Sequence[str], run: Callable[[str], Array]) -> Device:
    """Run the tiny graph on a device in every precision. Raises nothing: what `run` raises becomes the problem.

    `run` takes a precision and returns y as an array of any float type.
    """
    right, problems = [], []
    for precision in precisions:
        try:
            found = np.asarray(run(precision), dtype=np.float32)
            if np.array_equal(found, tiny_expected()):
                right.append(precision)
            else:
                problems.append(f"{precision}: wrong numbers for the test graph")
        except Exception as cause:  # runtimes raise errors of many kinds, and none may stop a diagnosis
            problems.append(f"{precision}: {one_line(cause)}")
    return Device(name, bool(right), tuple(right), "; ".join(problems))


def has_nvidia() -> bool:
    """Whether an NVIDIA driver is installed here, whatever the libraries make of it."""
    return shutil.which("nvidia-smi") is not None or Path("/proc/driver/nvidia/version").is_file()


def one_line(error: BaseException) -> str:
    """An error's message in one line of bounded length; its kind where it has none."""
    text = " ".join(str(error).split()) or type(error).__name__
    return text if len(text) <= _WORDS else text[:_WORDS] + "..."
