"""A bundle in its whole layout whose graphs compute nothing: made in milliseconds, for tests of how bundles are opened.

Knows: which files a bundle has, and a manifest that fits them. Nothing in it can run.
"""

import json
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import safetensors.numpy
from onnx import TensorProto, helper

from engines.adapter.info import AdapterConfig, AdapterInfo
from engines.bundle.bundle import FORMAT, Manifest
from engines.bundle.files import MANIFEST
from engines.bundle.graphs import GRAPH_NAMES, ModelShape, graph_specs
from engines.common.files import sha256_file

WEIGHTS = "unet/diffusion_pytorch_model.safetensors"
SHAPE = ModelShape(
    latent_channels=4,
    vae_stride=8,
    pyramid=(32, 64),
    text_length=8,
    hidden_size=16,
    vocabulary=50,
    train_timesteps=1000,
    queries=5,
    classes=2,
)


def write_graph(path: Path, location: str = WEIGHTS, length: int = 64) -> None:
    """An ONNX graph with one external initializer of 16 floats, and one inside a branch of an If."""

    def external(name: str) -> Any:
        tensor = TensorProto(name=name, data_type=TensorProto.FLOAT, dims=[16])
        tensor.data_location = TensorProto.EXTERNAL
        for key, value in (("location", location), ("offset", "0"), ("length", str(length))):
            tensor.external_data.add(key=key, value=value)
        return tensor

    output = helper.make_tensor_value_info("y", TensorProto.FLOAT, [16])
    branch = helper.make_graph(
        [helper.make_node("Identity", ["inner"], ["z"])],
        "branch",
        [],
        [helper.make_tensor_value_info("z", TensorProto.FLOAT, [16])],
        [external("inner")],
    )
    nodes = [helper.make_node("If", ["c"], ["y"], then_branch=branch, else_branch=branch)]
    condition = helper.make_tensor_value_info("c", TensorProto.BOOL, [])
    graph = helper.make_graph(nodes, "g", [condition], [output], [external("w")])
    onnx.save(helper.make_model(graph), str(path))


def write_manifest(folder: Path, **changes: Any) -> None:
    """Write a manifest that fits what is in `folder`, but for `changes`."""
    files = {
        path.relative_to(folder).as_posix(): sha256_file(path)
        for path in sorted(folder.rglob("*"))
        if path.is_file() and path.name != MANIFEST
    }
    manifest = Manifest(
        format=FORMAT,
        class_names=("rbc", "wbc"),
        weights_dtype="float16",
        graph_dtype="float32",
        timestep=1,
        short_side=64,
        frame=(128, 64),
        base_hash="0" * 64,
        style="photo",
        prompts={},
        generate={"steps": 20},
        latent_channels=4,
        vae_stride=8,
        latent_multiple=2,
        text_length=8,
        hidden_size=16,
        graphs={name: spec.to_json() for name, spec in graph_specs(SHAPE).items()},
        made_with={"torch": "2.13.0"},
        figures={"AP50": 0.8},
        files=files,
    )
    (folder / MANIFEST).write_text(json.dumps(manifest.to_json() | changes))


def make_small_bundle(root: Path) -> Path:
    """Write the bundle to `root`, which must not exist, and return `root`."""
    for part in ("unet", "vae", "text_encoder"):
        (root / part).mkdir(parents=True)
        (root / part / "config.json").write_text("{}")
    (root / "scheduler").mkdir()
    (root / "scheduler" / "scheduler_config.json").write_text('{"beta_start": 0.001}')
    (root / "tokenizer").mkdir()
    (root / "tokenizer" / "tokenizer_config.json").write_text("{}")
    (root / "adapter").mkdir()
    config = AdapterConfig(channels=SHAPE.pyramid, num_classes=SHAPE.classes, queries=SHAPE.queries)
    info = AdapterInfo(("rbc", "wbc"), 1, 64, (128, 64), 16, "photo", {}, "0" * 64, config)
    (root / "adapter" / "adapter.json").write_text(json.dumps(info.to_json()))
    weights = {"w": np.arange(16, dtype=np.float32)}
    safetensors.numpy.save_file(weights, root / "adapter" / "adapter.safetensors")
    safetensors.numpy.save_file(weights, root / WEIGHTS)
    for graph in GRAPH_NAMES:
        write_graph(root / f"{graph}.onnx")
    write_manifest(root)
    return root
