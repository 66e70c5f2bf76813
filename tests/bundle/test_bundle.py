"""Opening bundles: what is accepted, and what each kind of damage is called."""

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from refusals import refused
from small_bundle import SHAPE, WEIGHTS, make_small_bundle, write_graph, write_manifest

import engines.bundle.bundle
from engines.bundle.bundle import Manifest, default_bundle, open_bundle
from engines.bundle.files import MANIFEST
from engines.bundle.graphs import GRAPH_NAMES, graph_specs
from engines.errors import BundleError

LATER = ("opset", "islands", "loras", "activations")  # fields that older manifests do not have


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A bundle whose graphs compute nothing of use."""
    return make_small_bundle(tmp_path / "bundle")


def test_a_whole_bundle_opens_and_says_what_it_is(folder: Path) -> None:
    bundle = open_bundle(folder)
    assert bundle.class_names == ("rbc", "wbc")
    assert (bundle.timestep, bundle.short_side, bundle.frame, bundle.style) == (1, 64, (128, 64), "photo")
    assert (bundle.latent_channels, bundle.vae_stride, bundle.size_multiple) == (4, 8, 16)
    assert (bundle.text_length, bundle.hidden_size) == (8, 16)
    assert bundle.scheduler_config == {"beta_start": 0.001}
    assert bundle.generate_defaults == {"steps": 20}
    assert bundle.adapter_info.config.queries == SHAPE.queries
    assert bundle.specs == graph_specs(SHAPE)
    assert bundle.graph_path("unet").is_file()


def test_the_manifest_survives_json(folder: Path) -> None:
    manifest = open_bundle(folder).manifest
    assert Manifest.from_json(json.loads(json.dumps(manifest.to_json()))) == manifest


def test_the_digest_changes_with_the_content(folder: Path) -> None:
    before = open_bundle(folder).digest
    (folder / "unet" / "config.json").write_text("{ }")
    write_manifest(folder)
    assert open_bundle(folder).digest != before


def test_one_changed_byte_is_named(folder: Path) -> None:
    path = folder / WEIGHTS
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)
    with refused(BundleError, None, WEIGHTS):
        open_bundle(folder)
    open_bundle(folder, verify=False)


def test_all_that_is_wrong_with_the_files_is_said_at_once(folder: Path) -> None:
    (folder / "unet.onnx").write_bytes(b"")
    (folder / "vae" / "config.json").unlink()
    (folder / "unet" / "model.safetensors.index.json").write_text("{}")
    with pytest.raises(BundleError) as caught:
        open_bundle(folder)
    for part in (
        "unet.onnx was changed",
        "vae/config.json is missing",
        "unet/model.safetensors.index.json is not in the manifest",
    ):
        assert part in str(caught.value)


def test_documents_and_hidden_files_may_come_and_go(folder: Path) -> None:
    for name in ("README.md", "LICENSE", ".DS_Store"):
        (folder / name).write_text("anything")
    open_bundle(folder)


@pytest.mark.parametrize("name", ["../outside.txt", "/etc/hostname", "unet/../../x.txt", "C:\\x.txt"])
def test_names_that_leave_the_folder_are_refused(folder: Path, name: str) -> None:
    files = json.loads((folder / MANIFEST).read_text())["files"]
    write_manifest(folder, files=files | {name: "0" * 64})
    with pytest.raises(BundleError, match="must be a relative path inside"):
        open_bundle(folder)


def test_links_that_leave_the_folder_are_refused(folder: Path) -> None:
    outside = folder.parent / "elsewhere"
    (folder / "vae").rename(outside)
    (folder / "vae").symlink_to(outside)
    with refused(BundleError, None, '"vae/config.json"'):
        open_bundle(folder, verify=False)


def test_files_that_could_hold_code_are_refused_even_if_listed(folder: Path) -> None:
    (folder / "unet" / "diffusion_pytorch_model.bin").write_bytes(b"pickle")
    write_manifest(folder)
    with pytest.raises(BundleError, match="could hold code"):
        open_bundle(folder)


@pytest.mark.parametrize("location", ["../secret.bin", "/etc/hostname", "vae/absent.safetensors", ""])
@pytest.mark.parametrize("verify", [True, False])
def test_graphs_may_read_weights_from_the_bundle_only(folder: Path, location: str, verify: bool) -> None:
    write_graph(folder / "vae_decoder.onnx", location)
    write_manifest(folder)
    with refused(BundleError, None, "vae_decoder.onnx", f'"{location}"'):
        open_bundle(folder, verify=verify)


def test_graphs_may_not_read_past_the_end_of_a_file(folder: Path) -> None:
    write_graph(folder / "vae_decoder.onnx", length=1 << 20)
    write_manifest(folder)
    with refused(BundleError, None, WEIGHTS, '"w"', '"inner"'):
        open_bundle(folder)


def test_what_is_no_graph_is_said_so(folder: Path) -> None:
    (folder / "unet.onnx").write_bytes(b"\xff\xff\xff\xff")
    write_manifest(folder)
    with refused(BundleError, None, "unet.onnx"):
        open_bundle(folder)


def test_a_required_file_must_be_listed(folder: Path) -> None:
    (folder / "adapter.onnx").unlink()
    write_manifest(folder)
    with refused(BundleError, None, "adapter.onnx"):
        open_bundle(folder)


def changed_axis(axis: Any) -> dict[str, Any]:
    """The graphs of a manifest, one of whose axes is another."""
    graphs = json.loads(json.dumps({name: spec.to_json() for name, spec in graph_specs(SHAPE).items()}))
    graphs["unet"]["outputs"][0]["axes"][1] = axis
    return dict(graphs)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"format": 99}, "bundle format 99 was found; this version reads format 1"),
        ({"colour": "red"}, 'unknown key "colour"'),
        ({"frame": [100, 64], "timestep": -1}, r'"timestep" must be 0 to 100000, not -1; "frame" must be two'),
        ({"weights_dtype": "int4"}, '"weights_dtype" must be one of float32, float16, bfloat16'),
        ({"class_names": ["rbc", "rbc"]}, '"class_names" must be different names'),
        ({"class_names": ["wbc", "rbc"]}, "differ in class names or timestep"),
        ({"short_side": "64"}, '"short_side" must be a whole number'),
        ({"graphs": {}}, '"graphs" must be the graphs text_encoder'),
        ({"graphs": {name: {} for name in GRAPH_NAMES}}, "The spec of a graph is not readable"),
        ({"files": {"unet.onnx": "beef"}}, '"files" must be SHA-256 by file'),
        ({"opset": 0}, '"opset" must be 1 to 100, not 0'),
        ({"islands": {"unet": ["a"]}}, '"islands" must be names by graph, in a float16 bundle'),
        ({"graph_dtype": "float16", "islands": {"net": ["a"]}}, '"islands" must be names by graph'),
        ({"hidden_size": 17}, "the specs of text_encoder, unet are not those of its networks"),
        ({"text_length": 10**30}, r'"text_length" must be 1 to 4096, not 1000'),
        ({"graphs": changed_axis(float("inf"))}, "holds a number that is not finite"),
        ({"graphs": changed_axis(10**7)}, "The spec of a graph is not readable .*10000000 is not a whole number"),
        ({"graphs": changed_axis(5)}, "the specs of unet are not those of its networks"),
        ({"graph_dtype": "float16"}, "the specs of text_encoder, vae_encoder, .* are not in float16"),
    ],
)
def test_mistakes_in_the_manifest_are_named(folder: Path, changes: dict[str, Any], message: str) -> None:
    write_manifest(folder, **changes)
    with pytest.raises(BundleError, match=message):
        open_bundle(folder)


def test_a_manifest_from_before_the_later_fields_still_reads(folder: Path) -> None:
    whole = json.loads((folder / MANIFEST).read_text())
    manifest = Manifest.from_json({key: value for key, value in whole.items() if key not in LATER})
    assert (manifest.opset, manifest.islands, manifest.loras) == (23, {}, ())


def test_every_field_of_the_manifest_must_be_there(folder: Path) -> None:
    whole = json.loads((folder / MANIFEST).read_text())
    for field in dataclasses.fields(Manifest):
        if field.name in LATER:
            continue
        partial = {key: value for key, value in whole.items() if key != field.name}
        with pytest.raises(BundleError, match=f'missing key "{field.name}"|bundle format None'):
            Manifest.from_json(partial)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda folder: folder / "nowhere", "nowhere does not exist"),
        (lambda folder: folder / MANIFEST, "manifest.json is a file; a bundle folder was expected"),
        (lambda folder: folder / "unet", "unet has no manifest.json"),
    ],
)
def test_what_is_no_bundle_is_said_so(folder: Path, damage: Callable[[Path], Path], message: str) -> None:
    with pytest.raises(BundleError, match=message):
        open_bundle(damage(folder))


def test_a_manifest_that_is_no_json_is_named(folder: Path) -> None:
    (folder / MANIFEST).write_text("{")
    with refused(BundleError, None, "manifest.json"):
        open_bundle(folder)


def test_a_copy_without_the_bundled_model_says_what_to_give(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engines.bundle.bundle, "__file__", str(tmp_path / "bundle" / "bundle.py"))
    with refused(BundleError, "bundle"):
        default_bundle()


def test_the_bundled_model_is_found_beside_the_code(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(engines.bundle.bundle, "__file__", str(tmp_path / "bundle" / "bundle.py"))
    (tmp_path / "pretrained").mkdir()
    folder.rename(tmp_path / "pretrained" / "blood-cells")
    assert open_bundle(default_bundle()).class_names == ("rbc", "wbc")
