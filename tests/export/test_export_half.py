"""Bundles whose graphs compute in half precision."""

import re
from pathlib import Path

import numpy as np
import onnx
import pytest
import toy
from small_graphs import stores

from engines.bundle.bundle import open_bundle
from engines.bundle.graphs import GRAPH_NAMES
from engines.diffusion.base_model import base_hash


def test_a_float16_bundle_matches_pytorch_and_names_its_islands(
    toy_bundle_fp16: Path, overflowing_toy: tuple[Path, Path]
) -> None:
    bundle = open_bundle(toy_bundle_fp16)
    manifest = bundle.manifest
    assert (manifest.graph_dtype, manifest.opset, manifest.islands) == ("float16", 23, {"unet": (toy.OVERFLOWING,)})
    assert {spec.dtype for spec in bundle.specs.values()} == {"float16"}
    assert manifest.base_hash == base_hash(overflowing_toy[0])
    for engine in manifest.figures["relative_error"].values():
        assert all(0 < error <= 5e-3 for error in engine.values())
    found = {(agreement["engine"], agreement["precision"]) for agreement in manifest.figures["agreement"]}
    assert {("onnxruntime", "f16"), ("openvino", "f32")} <= found
    block, magnitude = next(iter(manifest.figures["ranges"]["unet"].items()))
    assert block.startswith(toy.OVERFLOWING)
    assert magnitude > 65504
    assert "not on real images" in manifest.figures["ranges_measured_on"]
    for graph in GRAPH_NAMES:
        model = onnx.load(str(bundle.graph_path(graph)), load_external_data=False)
        assert [entry.version for entry in model.opset_import if entry.domain == ""] == [23]
        statistics = [
            {attribute.name: attribute.i for attribute in node.attribute}.get("stash_type", 1)
            for node in model.graph.node
            if node.op_type in ("GroupNormalization", "LayerNormalization")
        ]
        assert set(statistics) <= {1}, f"{graph}: a norm's statistics are not float32"
        assert (stores(bundle.graph_path(graph))["cast weights"] > 0) == (graph == "unet")


def test_what_is_printed_of_a_float16_bundle_names_the_largest_numbers_and_the_islands(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from dengine_cli.export import show_export
    from export.assemble import ExportSummary
    from export.ranges import BlockRange, Measured

    ranges = {"": BlockRange(gives=3.0), "mid.attn": BlockRange(inside=12.0, scores=70_000.0)}
    measured = Measured({"unet": ranges}, "the checks' own inputs, not on real images")
    islands = {"unet": ("mid.attn.scores", *(f"block.{i}" for i in range(9)))}
    show_export(ExportSummary(tmp_path, 1, (), (), islands=islands, measured=measured))
    printed = capsys.readouterr().out
    assert re.search(r"^unet +mid\.attn\.scores +70000\.0$", printed, re.MULTILINE)
    assert "measured on the checks' own inputs, not on real images" in printed
    assert "in float32: unet: mid.attn.scores, block.0, block.1, block.2 and 6 more" in printed
    assert "doctor --gpu" in printed
    show_export(ExportSummary(tmp_path, 1, (), (), measured=Measured({"unet": {"": BlockRange(gives=3.0)}}, "x")))
    assert re.search(r"^unet +\(the whole graph\) +3\.0$", printed := capsys.readouterr().out, re.MULTILINE)
    assert "in float32: nothing" in printed


def test_a_float16_bundle_paints_and_labels(toy_bundle_fp16: Path, tmp_path: Path) -> None:
    from PIL import Image

    from engines.labelling import LabelSettings, label
    from engines.painting.settings import GenerateSettings
    from engines.runs.generate import generate

    for engine in ("onnxruntime", "openvino", "torch"):
        out = tmp_path / engine
        done = generate(
            GenerateSettings(
                out=out, bundle=toy_bundle_fp16, jobs=2, steps=2, keep_empty=True, engine=engine, threads=1
            )
        )
        assert done.painted == 2
    (tmp_path / "images").mkdir()
    Image.fromarray(np.full((50, 60, 3), 90, np.uint8)).save(tmp_path / "images" / "a.png")
    asked = LabelSettings(
        tmp_path / "images", tmp_path / "labels", bundle=toy_bundle_fp16, engine="onnxruntime", threads=1
    )
    assert label(asked).images == 1
