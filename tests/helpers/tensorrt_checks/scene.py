"""The version of TensorRT's bindings that a process checks, and how its checks reach a plan.

Knows: what the environment says of the version. `test_bindings` sets it, and runs the `check_*.py` beside this file.
"""

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import pytest
from tensorrt_stubs import MODULES, VARIABLE
from tensorrt_stubs_fake import SPECS, PlanBundle

from engines.backends.tensorrt.backend import TensorRtBackend
from engines.backends.tensorrt.gpu import Gpu
from engines.bundle.bundle import Bundle
from export.tensorrt.build import BuildPlansSummary

FOLDER = Path(os.environ[VARIABLE])  # of the bindings
VERSION = FOLDER.name
MODULE = MODULES.get(VERSION, "tensorrt")  # what the code under test imports
classic = pytest.mark.skipif(VERSION == "rtx", reason="TensorRT for RTX has none of this")
Builder = Callable[..., BuildPlansSummary]


def opened(bundle: PlanBundle, gpu: Gpu, precision: str = "auto") -> TensorRtBackend:
    return TensorRtBackend(cast(Bundle, bundle), precision=precision, threads=1, gpu=gpu)


def prepared(backend: TensorRtBackend, graph: str, batch: int, outputs: list[str] | None = None) -> Any:
    return backend.prepare(graph, SPECS[graph].input_shapes({"B": batch, "h": 8, "w": 12}), outputs)
