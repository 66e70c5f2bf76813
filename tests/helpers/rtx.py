"""The real TensorRT for RTX, which builds plans on a machine without a GPU.

Knows: where `make test` puts its packages, how they are loaded, and how bundles are exported for it without the checks
of an export, which other tests make. Does not know what should become of a build.
"""

import sys
from collections.abc import Collection
from pathlib import Path
from typing import Any
from unittest import mock

import onnx
import pytest
import torch

from engines.adapter.model import load_adapter
from engines.backends.tensorrt.flavours import RTX, Library, load_library
from engines.bundle.files import MANIFEST
from engines.bundle.graphs import GraphSpec
from engines.common.files import write_json
from engines.diffusion.base_model import load_base
from export import write_graphs
from export.assemble import _resolve_frame
from export.progress import Steps
from export.store import store_model
from export.to_onnx import export_graph

FOLDER = Path(__file__).parents[2] / "build" / "tensorrt" / "rtx"
_STEPS = 100  # no fewer than an export has; nobody reads how far it is


def load_rtx() -> Library:
    """TensorRT for RTX; skips the test where its packages are not here."""
    if not (FOLDER / RTX.module).is_dir():
        pytest.skip(f"no TensorRT for RTX in {'/'.join(FOLDER.parts[-3:])}; `make test` fetches it")
    if str(FOLDER) not in sys.path:
        sys.path.append(str(FOLDER))
    return load_library(RTX)


def export_unchecked(base: Path, adapter: Path, out: Path, dtype: str, opset: int, graphs: Collection[str]) -> Path:
    """A bundle with these of its graphs, which compute in `dtype`, exported as `export` does, and not run."""

    def wanted(module: Any, spec: GraphSpec, path: Path, *rest: Any, **options: Any) -> None:
        if spec.name in graphs:
            export_graph(module, spec, path, *rest, **options)
        else:  # a bundle has five graphs: one that nobody builds is empty
            onnx.save(onnx.helper.make_model(onnx.helper.make_graph([], spec.name, [], [])), path)

    source = load_base(base)
    network, info = load_adapter(adapter)
    out.mkdir(parents=True)
    store_model(source, network, info, out, torch.float16)
    asked = write_graphs.Graphs(dtype, "float16", opset, None, {})
    frame, steps = _resolve_frame(None, source, info), Steps([1.0] * _STEPS, lambda _: None)
    with mock.patch.object(write_graphs, "export_graph", wanted):
        manifest, _ = write_graphs.write_graphs(out, info, frame, asked, steps)
    write_json(out / MANIFEST, manifest.to_json())
    return out
