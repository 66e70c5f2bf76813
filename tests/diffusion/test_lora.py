"""LoRA files: what several come to, where they are noted, and what is refused. Their spellings: `test_lora_names`."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from lora_files import assert_weights, expected_weights, kohya, layers, peft, some_changes, weight_of
from refusals import refused
from safetensors.torch import load_file, save_file

from dengine_cli.parse import parse_loras
from engines.adapter.info import AdapterInfo
from engines.common.files import sha256_file
from engines.diffusion.base_model import BaseModel, load_base
from engines.diffusion.lora import fuse_loras
from engines.diffusion.origin import fused_hash
from engines.errors import ExportError, ModelError, UsageError
from engines.labels.boxes import Instances
from engines.training.adapter_options import AdapterTrainOptions
from export import assemble
from export.settings import ExportSettings
from export.write_graphs import Graphs, make_manifest


@pytest.mark.parametrize("where", ["lora_down.weight", "lora_up.weight", "alpha"])
@pytest.mark.parametrize("number", [float("nan"), float("inf")])
def test_numbers_that_are_not_finite_leave_every_weight_as_it_was(
    number: float, where: str, sd1: BaseModel, tmp_path: Path
) -> None:
    tensors = kohya(some_changes(sd1))
    name = next(name for name in tensors if name.endswith(where))
    tensors[name] = torch.full_like(tensors[name], number)
    expected = expected_weights(sd1, {}, 1.0)
    save_file(tensors, tmp_path / "broken.safetensors")
    with pytest.raises(ModelError, match="holds NaN or infinity"):
        fuse_loras(sd1, [(tmp_path / "broken.safetensors", 1.0)])
    assert_weights(sd1, expected)


def test_several_files_add_up_and_a_negative_scale_takes_away(sd1: BaseModel, tmp_path: Path) -> None:
    changes = some_changes(sd1)
    expected = expected_weights(sd1, {}, 1.0)
    save_file(kohya(changes), tmp_path / "a.safetensors")
    save_file(peft(changes), tmp_path / "b.safetensors")
    names = fuse_loras(sd1, [(tmp_path / "a.safetensors", 1.5), (tmp_path / "b.safetensors", -1.5)])
    assert [name.partition(" ")[0] for name in names] == ["a.safetensors:1.5", "b.safetensors:-1.5"]
    for part, name, module in layers(sd1):
        assert torch.allclose(weight_of(module).double(), expected[part, name], atol=1e-5), (part, name)


def test_a_bad_file_leaves_every_weight_as_it_was(sd1: BaseModel, tmp_path: Path) -> None:
    expected = expected_weights(sd1, {}, 1.0)
    save_file(kohya(some_changes(sd1)), tmp_path / "good.safetensors")
    (tmp_path / "bad.safetensors").write_bytes((tmp_path / "good.safetensors").read_bytes()[:-5])
    with refused(ModelError, None, "bad.safetensors"):
        fuse_loras(sd1, [(tmp_path / "good.safetensors", 1.0), (tmp_path / "bad.safetensors", 1.0)])
    assert_weights(sd1, expected)


def test_paths_formats_and_scales_are_checked(sd1: BaseModel, tmp_path: Path) -> None:
    with refused(ModelError, None, "none.safetensors"):
        fuse_loras(sd1, [(tmp_path / "none.safetensors", 1.0)])
    torch.save({}, tmp_path / "old.pt")
    with refused(ModelError, None, "old.pt", "python -c"):
        fuse_loras(sd1, [(tmp_path / "old.pt", 1.0)])
    save_file(kohya(some_changes(sd1)), tmp_path / "good.safetensors")
    with refused(UsageError, None, "nan"):
        fuse_loras(sd1, [(tmp_path / "good.safetensors", float("nan"))])
    scaled = {"lora_adapter_metadata": json.dumps({"unet.use_rslora": True})}
    save_file(load_file(tmp_path / "good.safetensors"), tmp_path / "scaled.safetensors", metadata=scaled)
    with refused(ModelError, None, "unet.use_rslora"):
        fuse_loras(sd1, [(tmp_path / "scaled.safetensors", 1.0)])


def test_the_hash_follows_contents_and_scales_but_not_names_or_order() -> None:
    first, second = "a.safetensors:1 sha256:11", "b.safetensors:0.5 sha256:22"
    assert fused_hash("base", ()) == "base"
    assert fused_hash("base", (first, second)) == fused_hash("base", (second, first.replace("a.", "x y.")))
    others: list[tuple[str, Any]] = [
        ("base", (first,)),
        ("other", (first, second)),
        ("base", (first[:-1] + "2", second)),
    ]
    others.append(("base", (first.replace(":1 ", ":2 "), second)))
    assert fused_hash("base", (first, second)) not in [fused_hash(*other) for other in others]


def test_export_stores_the_sum_and_names_the_files(
    toy_bases: dict[str, Path],
    toy_adapters: dict[str, Path],
    sd1: BaseModel,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    changes = some_changes(sd1)
    expected = expected_weights(sd1, changes, 0.25)
    save_file(kohya(changes), tmp_path / "style.safetensors")

    def look(work: Path, info: AdapterInfo, frame: tuple[int, int], asked: Graphs, _: Any) -> None:
        stored = load_base(work)
        assert_weights(stored, expected)
        (name,) = make_manifest(stored, info, frame, asked, {}, {}).loras
        assert name.startswith("style.safetensors:0.25 sha256:")
        raise ExportError("seen enough")

    monkeypatch.setattr(assemble, "write_graphs", look)
    loras = [(tmp_path / "style.safetensors", 0.25)]
    with pytest.raises(ExportError, match="seen enough"):
        assemble.export(
            ExportSettings(
                toy_bases["sd1"], toy_adapters["sd1"], tmp_path / "out", weights_dtype="float32", loras=loras
            )
        )


def test_a_lora_that_a_bundle_was_exported_with_is_not_added_again(toy_bundle: Path, tmp_path: Path) -> None:
    bundle = Path(shutil.copytree(toy_bundle, tmp_path / "bundle"))
    base = load_base(bundle)
    save_file(kohya(some_changes(base)), tmp_path / "style.safetensors")
    save_file(peft(some_changes(base)), tmp_path / "other.safetensors")
    noted = json.loads((bundle / "manifest.json").read_text("utf-8"))
    noted["loras"] = [f"older name.safetensors:0.5 sha256:{sha256_file(tmp_path / 'style.safetensors')}"]
    (bundle / "manifest.json").write_text(json.dumps(noted), "utf-8")
    expected = expected_weights(base, {}, 1.0)
    both = [(tmp_path / "other.safetensors", 1.0), (tmp_path / "style.safetensors", 0.25)]
    with refused(ModelError, None, "style.safetensors:0.25"):
        fuse_loras(base, both)
    assert_weights(base, expected)
    assert len(fuse_loras(base, both[:1])) == 1


def test_train_adapter_learns_on_the_sum(
    toy_bases: dict[str, Path], sd1: BaseModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from engines.datasets.dataset import Dataset, Record
    from engines.training import adapter

    record = Record(tmp_path / "a.png", "a.png", 64, 48, Instances.of([[0, 0, 9, 9]], [0]), None)
    dataset = Dataset(tmp_path, ("rbc",), [record], (), ())
    changes = some_changes(sd1)
    expected = expected_weights(sd1, changes, 2.0)
    save_file(kohya(changes), tmp_path / "style.safetensors")
    seen: list[BaseModel] = []

    class EnoughError(Exception):
        """Stops a training where it would begin."""

    def frozen(base: BaseModel, *_: Any) -> None:
        seen.append(base)
        raise EnoughError

    monkeypatch.setattr(adapter, "FrozenPyramid", frozen)
    with pytest.raises(EnoughError):
        adapter.fit_adapter(
            dataset,
            toy_bases["sd1"],
            tmp_path / "out",
            AdapterTrainOptions(dev_fraction=0.0, network={"width": 16, "heads": 2, "queries": 4}),
            loras=[(tmp_path / "style.safetensors", 2.0)],
            resume=False,
            report=lambda progress: None,
        )
    assert_weights(seen[0], expected)


@pytest.mark.parametrize("where", ["lora_up.weight", "lora_down.weight", "alpha"])
def test_a_file_that_changes_nothing_is_refused(where: str, sd1: BaseModel, tmp_path: Path) -> None:
    path = tmp_path / "new.safetensors"
    tensors = kohya(some_changes(sd1))
    empty = {name: value * 0 if name.endswith(where) else value for name, value in tensors.items()}
    save_file(empty, path)
    with refused(ModelError, None, path):
        fuse_loras(sd1, [(path, 1.0)])
    first = next(name for name in tensors if name.endswith(where))
    save_file({**empty, first: tensors[first]}, path)
    assert len(fuse_loras(sd1, [(path, 1.0)])) == 1


def test_a_scale_beyond_what_numbers_hold_is_given_as_the_reason(sd1: BaseModel, tmp_path: Path) -> None:
    save_file(kohya(some_changes(sd1)), tmp_path / "style.safetensors")
    with refused(ModelError, None, tmp_path / "style.safetensors", "1e+39"):
        fuse_loras(sd1, [(tmp_path / "style.safetensors", 1e39)])


def test_files_for_few_steps_and_for_another_prediction_are_remarked_on(sd1: BaseModel, tmp_path: Path) -> None:
    tensors = kohya(some_changes(sd1))
    (tmp_path / "lcm-lora-sdv1-5").mkdir()
    named = tmp_path / "lcm-lora-sdv1-5" / "pytorch_lora_weights.safetensors"
    save_file(tensors, named)
    noted = tmp_path / "style.safetensors"
    for prediction, said in (("v", "v_prediction"), ("epsilon", "")):
        save_file(tensors, noted, metadata={"modelspec.prediction_type": prediction})
        notes: list[str] = []
        fuse_loras(sd1, [(noted, 0.5), (named, 0.5)], notes.append)
        assert ["few steps" in note for note in notes] == [False] * bool(said) + [True]
        assert not said or said in notes[0]


@pytest.mark.parametrize(
    ("texts", "expected"),
    [
        (["a.safetensors"], (("a.safetensors", 1.0),)),
        (["a.safetensors:0.8", "b:-1"], (("a.safetensors", 0.8), ("b", -1.0))),
        (["c:/loras/a.safetensors"], (("c:/loras/a.safetensors", 1.0),)),
    ],
)
def test_a_scale_may_follow_the_file(texts: list[str], expected: tuple[tuple[str, float], ...]) -> None:
    assert parse_loras(texts) == tuple((Path(file), scale) for file, scale in expected)
