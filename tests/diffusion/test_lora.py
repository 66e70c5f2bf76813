"""LoRA files: the weights that come out, in every spelling of the names, and what is refused."""

import json
import re
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from ldm import original_unet_names
from safetensors.torch import load_file, save_file
from torch import nn

from dengine_cli.parse import parse_loras
from engines.adapter.info import AdapterInfo
from engines.common.files import sha256_file
from engines.diffusion.base_model import BaseModel, load_base
from engines.diffusion.lora import fuse_loras, fused_hash
from engines.errors import ExportError, ModelError, UsageError
from engines.labels.boxes import Instances
from export import assemble
from export.settings import ExportSettings
from export.write_graphs import Graphs, make_manifest

Tensors = dict[str, torch.Tensor]
Changes = dict[tuple[str, str], tuple[torch.Tensor, torch.Tensor, float]]  # (part, layer) to down, up, alpha

IN_LORAS = re.compile(r"attn|ff\.net|proj_|conv1|conv_shortcut|_proj|fc\d")


def layers(base: BaseModel) -> Iterator[tuple[str, str, nn.Module]]:
    for part in ("unet", "text_encoder"):
        for name, module in getattr(base, part).named_modules():
            if isinstance(module, nn.Linear | nn.Conv2d) and IN_LORAS.search(name):
                yield part, name.removeprefix("text_model."), module


def weight_of(module: nn.Module) -> torch.Tensor:
    weight = module.weight
    assert isinstance(weight, torch.Tensor)
    return weight


def some_changes(base: BaseModel, attention_only: bool = False) -> Changes:
    """Random changes to many layers, their ranks and alphas differing from layer to layer."""
    generator = torch.Generator().manual_seed(5)
    found: Changes = {}
    for part, name, module in layers(base):
        if attention_only and not re.search(r"attn\d\.to_|self_attn", name):
            continue
        rank, weight = 2 + len(found) % 3, weight_of(module)
        down = torch.randn((rank, *weight.shape[1:]), generator=generator)
        up = torch.randn((weight.shape[0], rank, *(1 for _ in weight.shape[2:])), generator=generator)
        found[part, name] = (down, up, 0.5 + len(found) % 4)
    return found


def kohya(changes: Changes) -> Tensors:
    found: Tensors = {}
    for (part, name), (down, up, alpha) in changes.items():
        flat = {"unet": "lora_unet_", "text_encoder": "lora_te_text_model_"}[part] + name.replace(".", "_")
        found |= {f"{flat}.lora_down.weight": down, f"{flat}.lora_up.weight": up, f"{flat}.alpha": torch.tensor(alpha)}
    return found


def plain(changes: Changes, down_name: str, up_name: str) -> Tensors:
    """diffusers' and peft's names; alpha is in the tensors already, as these files have it."""
    found: Tensors = {}
    for (part, name), (down, up, alpha) in changes.items():
        full = f"{part}.{'text_model.' if part == 'text_encoder' else ''}{name}"
        found |= {full + down_name: down, full + up_name: up * (alpha / len(down))}
    return found


def peft(changes: Changes) -> Tensors:
    return plain(changes, ".lora_A.weight", ".lora_B.weight")


def peft_saved(changes: Changes) -> Tensors:
    """As `PeftModel.save_pretrained` names them, and as a state dict that still has the adapter's name."""
    found = {}
    for number, (name, value) in enumerate(peft(changes).items()):
        name = "base_model.model." + name.removeprefix("unet.")
        found[name.replace(".weight", ".default.weight") if number // 2 % 2 else name] = value
    return found


def original(name: str) -> str:
    """A layer of either toy UNet as the original layout calls it."""
    return ORIGINAL[f"{name}.weight"].removesuffix(".weight")


ORIGINAL: dict[str, str] = {}  # of the base in hand, by weight


def comfy(changes: Changes) -> Tensors:
    """ComfyUI's: dotted, the UNet in the original layout."""
    found: Tensors = {}
    for (part, name), (down, up, alpha) in changes.items():
        full = f"text_encoders.clip_l.transformer.text_model.{name}"
        if part == "unet":
            full = f"diffusion_model.{original(name)}"
        found |= {f"{full}.lora_down.weight": down, f"{full}.lora_up.weight": up, f"{full}.alpha": torch.tensor(alpha)}
    return found


def kohya_original(changes: Changes) -> Tensors:
    """kohya's, with the UNet's layers in the original layout."""
    found: Tensors = {}
    for (part, name), (down, up, alpha) in changes.items():
        flat = "lora_te1_text_model_" + name.replace(".", "_")
        if part == "unet":
            flat = "lora_unet_" + original(name).replace(".", "_")
        found |= {f"{flat}.lora_down.weight": down, f"{flat}.lora_up.weight": up, f"{flat}.alpha": torch.tensor(alpha)}
    return found


def diffusers_new(changes: Changes) -> Tensors:
    found = plain(changes, ".lora.down.weight", ".lora.up.weight")
    text = re.compile(r"^(text_encoder\..*)\.lora\.")
    return {text.sub(r"\1.lora_linear_layer.", name): value for name, value in found.items()}


def diffusers_old(changes: Changes) -> Tensors:
    found: Tensors = {}
    for name, value in plain(changes, "_lora.down.weight", "_lora.up.weight").items():
        name = re.sub(r"(attn\d)\.to_", r"\1.processor.to_", name).replace("to_out.0_", "to_out_")
        name = re.sub(r"self_attn\.([qkv])_proj", r"self_attn.to_\1", name).replace(
            "self_attn.out_proj", "self_attn.to_out"
        )
        found[name] = value
    return found


def expected_weights(base: BaseModel, changes: Changes, scale: float) -> dict[tuple[str, str], torch.Tensor]:
    """W + scale * alpha / rank * up down, in float64, of every layer."""
    found = {}
    for part, name, module in layers(base):
        weight = weight_of(module)
        found[part, name] = weight.double()
        if (part, name) in changes:
            down, up, alpha = changes[part, name]
            product = torch.tensordot(up.double().flatten(1), down.double(), dims=1)
            found[part, name] = weight.double() + scale * alpha / len(down) * product
    return found


def assert_weights(base: BaseModel, expected: dict[tuple[str, str], torch.Tensor]) -> None:
    for part, name, module in layers(base):
        weight = weight_of(module)
        error = (weight.double() - expected[part, name]).norm() / expected[part, name].norm()
        assert error < 1e-6, (part, name, float(error))


@pytest.fixture
def sd1(toy_bases: dict[str, Path]) -> BaseModel:
    return load_base(toy_bases["sd1"])


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["sd1", "sd2"])
@pytest.mark.parametrize("spelling", [kohya, kohya_original, comfy, peft, peft_saved, diffusers_new, diffusers_old])
def test_fused_weights_are_the_sum_in_every_spelling(
    spelling: Callable[[Changes], Tensors], kind: str, toy_bases: dict[str, Path], tmp_path: Path
) -> None:
    base = load_base(toy_bases[kind])
    ORIGINAL.update(original_unet_names(base.unet))
    changes = some_changes(base, attention_only=spelling is diffusers_old)
    expected = expected_weights(base, changes, 0.7)
    others = {name: value.clone() for name, value in base.vae.state_dict().items()}
    save_file(spelling(changes), tmp_path / "style.safetensors")
    (name,) = fuse_loras(base, [(tmp_path / "style.safetensors", 0.7)])
    assert_weights(base, expected)
    assert all(torch.equal(base.vae.state_dict()[key], value) for key, value in others.items())
    assert re.fullmatch(r"style\.safetensors:0\.7 sha256:[0-9a-f]{64}", name)


def test_alphas_that_diffusers_notes_beside_the_tensors_count(sd1: BaseModel, tmp_path: Path) -> None:
    changes = some_changes(sd1)
    stored = {
        f"{part}.{name}.{half}.weight": value
        for (part, name), (down, up, _) in changes.items()
        for half, value in (("lora_A", down), ("lora_B", up))
    }
    special = next(name for part, name in changes if part == "unet")
    notes = {"unet.lora_alpha": 6, "unet.alpha_pattern": {special: 1.5}, "text_encoder.lora_alpha": 3}
    save_file(stored, tmp_path / "noted.safetensors", metadata={"lora_adapter_metadata": json.dumps(notes)})
    alphas = {"unet": 6.0, "text_encoder": 3.0}
    meant = {key: (down, up, alphas[key[0]]) for key, (down, up, _) in changes.items()}
    meant["unet", special] = (*changes["unet", special][:2], 1.5)
    expected = expected_weights(sd1, meant, 1.0)
    fuse_loras(sd1, [(tmp_path / "noted.safetensors", 1.0)])
    assert_weights(sd1, expected)


def test_alphas_that_peft_keeps_in_a_file_beside_count(sd1: BaseModel, tmp_path: Path) -> None:
    changes = some_changes(sd1)
    stored = {
        f"base_model.model.{'text_model.' if part == 'text_encoder' else ''}{name}.{half}.weight": value
        for (part, name), (down, up, _) in changes.items()
        for half, value in (("lora_A", down), ("lora_B", up))
    }
    save_file(stored, tmp_path / "adapter_model.safetensors")
    settings = {"lora_alpha": 6, "alpha_pattern": {r"^down_blocks\.0.*": 1}}
    (tmp_path / "adapter_config.json").write_text(json.dumps(settings))
    with pytest.raises(ModelError, match="names of layers were expected"):
        fuse_loras(sd1, [(tmp_path / "adapter_model.safetensors", 1.0)])
    special = next(name for part, name in changes if part == "unet")
    settings["alpha_pattern"] = {f"^{special}": 1.5}
    (tmp_path / "adapter_config.json").write_text(json.dumps(settings))
    meant = {key: (down, up, 6.0) for key, (down, up, _) in changes.items()}
    meant["unet", special] = (*changes["unet", special][:2], 1.5)
    expected = expected_weights(sd1, meant, 1.0)
    fuse_loras(sd1, [(tmp_path / "adapter_model.safetensors", 1.0)])
    assert_weights(sd1, expected)
    (tmp_path / "adapter_config.json").write_text(json.dumps({"use_rslora": True}))
    with pytest.raises(ModelError, match=r"another rule \(use_rslora\)"):
        fuse_loras(sd1, [(tmp_path / "adapter_model.safetensors", 1.0)])


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


def test_a_matrix_fits_a_layer_that_the_base_writes_as_a_convolution(sd1: BaseModel, tmp_path: Path) -> None:
    name = next(name for part, name, _ in layers(sd1) if part == "unet" and name.endswith("proj_in"))
    weight = sd1.unet.get_submodule(name).weight
    assert weight.ndim == 4
    down, up = torch.ones(1, weight.shape[1]), torch.ones(weight.shape[0], 1)
    save_file({f"unet.{name}.lora_A.weight": down, f"unet.{name}.lora_B.weight": up}, tmp_path / "a.safetensors")
    before = weight.clone()
    fuse_loras(sd1, [(tmp_path / "a.safetensors", 0.5)])
    assert torch.allclose(weight, before + 0.5)


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
    with pytest.raises(ModelError, match=r"bad\.safetensors is cut short"):
        fuse_loras(sd1, [(tmp_path / "good.safetensors", 1.0), (tmp_path / "bad.safetensors", 1.0)])
    assert_weights(sd1, expected)


def wide(width: int, name: str = "lora_unet_down_blocks_0_attentions_0_transformer_blocks_0_attn2_to_k") -> Tensors:
    return {f"{name}.lora_down.weight": torch.zeros(2, width), f"{name}.lora_up.weight": torch.zeros(32, 2)}


@pytest.mark.parametrize(
    ("tensors", "said"),
    [
        ({"lora_te2_x.lora_down.weight": torch.zeros(1)}, "is a LoRA for Stable Diffusion XL"),
        ({"transformer.transformer_blocks.0.lora_A.weight": torch.zeros(1)}, "Stable Diffusion 3 or Flux"),
        ({"lora_unet_double_blocks_0.lora_down.weight": torch.zeros(1)}, "a LoRA for Flux"),
        ({"lora_unet_mid_block.hada_w1_a": torch.zeros(1)}, "is a LoHa file"),
        ({"lora_unet_mid_block.lokr_w1": torch.zeros(1)}, "is a LoKr file"),
        ({"lora_unet_mid_block.dora_scale": torch.zeros(1)}, "is a DoRA file"),
        ({"model.diffusion_model.out.0.weight": torch.zeros(1)}, "which is no part of a LoRA"),
        ({"diffusion_model.out.2.diff": torch.zeros(1)}, "a file of whole differences"),
        ({"unet.conv_in.lora_A.weight": torch.zeros(2, 2).to(torch.float8_e4m3fn)}, "holds F8_E4M3 weights"),
        (wide(2048, "lora_unet_input_blocks_4_1_transformer_blocks_1_attn2_to_k"), "is a LoRA for Stable Diffusion XL"),
        ({"lora_unet_nothing.lora_down.weight": torch.zeros(1)}, "only one half of the change"),
        (wide(2048), r"is a LoRA for Stable Diffusion XL \(its text is 2048 wide, that of .* 32\)"),
        (wide(1024), "is a LoRA for Stable Diffusion 2.x"),
        (wide(40), r"does not fit .* is 2x40 and 32x2, the weight there is 32x32"),
        ({"unet.none.lora_A.weight": torch.zeros(1), "unet.none.lora_B.weight": torch.zeros(1)}, '"unet.none" first'),
    ],
)
def test_files_of_other_kinds_and_families_are_refused(
    tensors: Tensors, said: str, sd1: BaseModel, tmp_path: Path
) -> None:
    save_file(tensors, tmp_path / "other.safetensors")
    with pytest.raises(ModelError, match=said) as caught:
        fuse_loras(sd1, [(tmp_path / "other.safetensors", 1.0)])
    assert "\n" not in str(caught.value)


def test_paths_formats_and_scales_are_checked(sd1: BaseModel, tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="is no file"):
        fuse_loras(sd1, [(tmp_path / "none.safetensors", 1.0)])
    torch.save({}, tmp_path / "old.pt")
    with pytest.raises(ModelError, match="is a pickle, which can run code"):
        fuse_loras(sd1, [(tmp_path / "old.pt", 1.0)])
    save_file(kohya(some_changes(sd1)), tmp_path / "good.safetensors")
    with pytest.raises(UsageError, match="the scale is nan"):
        fuse_loras(sd1, [(tmp_path / "good.safetensors", float("nan"))])
    scaled = {"lora_adapter_metadata": json.dumps({"unet.use_rslora": True})}
    save_file(load_file(tmp_path / "good.safetensors"), tmp_path / "scaled.safetensors", metadata=scaled)
    with pytest.raises(ModelError, match=r"another rule \(unet\.use_rslora\)"):
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
    with pytest.raises(ModelError, match=r"^style\.safetensors:0\.25 is in the weights of .*bundle already"):
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
            adapter.AdapterTrainOptions(dev_fraction=0.0, network={"width": 16, "heads": 2, "queries": 4}),
            loras=[(tmp_path / "style.safetensors", 2.0)],
            resume=False,
            report=lambda progress: None,
        )
    assert_weights(seen[0], expected)


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
