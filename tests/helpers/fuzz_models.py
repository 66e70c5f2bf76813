"""The files that describe models, spoilt: adapter.json, configurations, tokenizers, headers, manifests and plans.

Knows: which files these are, and what reads each. By hand, with the repository and this folder on PYTHONPATH:
`python tests/helpers/fuzz_models.py FOLDER [COUNT] [SEED]` makes small models in FOLDER, spoils every file COUNT times,
and prints what came of it.
"""

import copy
import json
import shutil
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path

import fuzz
import torch
from lora_files import kohya, peft, peft_saved, some_changes
from safetensors.torch import save_file
from small_bundle import make_small_bundle
from toy import make_toy_adapter, make_toy_base

from engines.adapter.model import load_adapter
from engines.backends.tensorrt.plans import Machine, Needs, PlanStore, missing_plans, plan_key
from engines.bundle.bundle import open_bundle
from engines.common.tokenizer import load_tokenizer, tokenize
from engines.diffusion.architecture import tiny_decoder
from engines.diffusion.base_model import load_base
from engines.diffusion.checkpoints import checkpoint_folder
from engines.diffusion.families import check_folder_family
from engines.diffusion.loading import describe
from engines.diffusion.lora import fuse_loras
from engines.diffusion.noise import read_scheduler
from engines.diffusion.schedule import make_schedule
from engines.errors import BackendError
from engines.painting.options import resolve_options
from engines.painting.settings import GenerateSettings


def model_targets(root: Path, base: Path, adapter: Path) -> dict[Path, Callable[[], object]]:
    """Copies of the files to spoil, below `root`, and what reads each of them."""
    base = Path(shutil.copytree(base, root / "base"))
    adapter = Path(shutil.copytree(adapter, root / "adapter"))
    tiny_decoder({"decoder_block_out_channels": (8,) * 4, "num_decoder_blocks": (1, 1, 1, 0)}).save_pretrained(
        base / "decoder"
    )
    bundle = make_small_bundle(root / "bundle")

    def opened() -> None:
        found = open_bundle(bundle, verify=False)
        asked = GenerateSettings(out="out", count=1)
        resolve_options(asked, found.generate_defaults, found.adapter_info.thresholds, found.class_names)

    def network(part: str) -> Callable[[], object]:
        def read() -> None:
            check_folder_family(base)
            describe(base / part, part).load()

        return read

    def decoded() -> None:
        decoder = describe(base / "decoder", "decoder").load()
        decoder.decode(torch.zeros(1, decoder.config.latent_channels, 2, 2))

    def schedule() -> None:
        make_schedule(read_scheduler(base), "ddim", 5)

    def words() -> None:
        tokenize(load_tokenizer(base / "tokenizer", 1000, 32), ["a photo", ""])

    return {
        adapter / "adapter.json": lambda: load_adapter(adapter),
        adapter / "adapter.safetensors": lambda: load_adapter(adapter),
        base / "unet" / "config.json": network("unet"),
        base / "vae" / "config.json": network("vae"),
        base / "text_encoder" / "config.json": network("text_encoder"),
        base / "text_encoder" / "model.safetensors": network("text_encoder"),
        base / "decoder" / "config.json": decoded,
        base / "model_index.json": lambda: check_folder_family(base),
        base / "scheduler" / "scheduler_config.json": schedule,
        base / "tokenizer" / "tokenizer_config.json": words,
        base / "tokenizer" / "vocab.json": words,
        base / "tokenizer" / "merges.txt": words,
        bundle / "manifest.json": opened,
        bundle / "adapter" / "adapter.json": opened,
        bundle / "scheduler" / "scheduler_config.json": opened,
        bundle / "unet.onnx": opened,
    }


def lora_targets(root: Path, base_folder: Path) -> dict[Path, Callable[[], object]]:
    """LoRA files, with what is noted in them and beside them."""
    base = load_base(base_folder)
    changes = dict(list(some_changes(base, attention_only=True).items())[:3])
    noted = {"lora_adapter_metadata": json.dumps({"unet.lora_alpha": 6, "unet.alpha_pattern": {"to_q": 1.5}})}
    files = {"kohya": kohya(changes), "noted": peft(changes), "adapter_model": peft_saved(changes)}
    for name, tensors in files.items():
        save_file(tensors, root / f"{name}.safetensors", metadata=noted if name == "noted" else None)
    beside = root / "adapter_config.json"
    beside.write_text(json.dumps({"lora_alpha": 6, "alpha_pattern": {"to_q": 1.5}, "use_rslora": False}))

    before = copy.deepcopy(base.unet.state_dict())

    def fuse(name: str) -> None:
        base.unet.load_state_dict(before)
        fuse_loras(base, [(root / f"{name}.safetensors", 0.5)])

    targets: dict[Path, Callable[[], object]] = {root / f"{name}.safetensors": partial(fuse, name) for name in files}
    return targets | {beside: partial(fuse, "adapter_model")}


def header_target(root: Path) -> dict[Path, Callable[[], object]]:
    """A file that says it is a checkpoint."""
    path = root / "checkpoint.safetensors"
    header = (
        b'{"model.diffusion_model.input_blocks.0.0.weight":{"dtype":"F32","shape":[1,4,1,1],"data_offsets":[0,16]}}'
    )
    path.write_bytes(len(header).to_bytes(8, "little") + header + bytes(16))
    return {path: lambda: checkpoint_folder(path)}


def plan_target(root: Path, bundle_folder: Path) -> dict[Path, Callable[[], object]]:
    """A TensorRT plan in a cache folder, which may be looked at on any machine."""
    bundle, machine = open_bundle(bundle_folder, verify=False), Machine("TensorRT", "11.4.0", "9.0", "Some GPU", "580")
    sizes, content = {"B": 8, "h": 8, "w": 12}, b" " * 120  # the file is JSON then, as its header is
    profiles = [{size: (1, n, 2 * n) for size, n in sizes.items()}, {size: (n, n, n) for size, n in sizes.items()}]
    key = plan_key(bundle, "unet", machine)
    path = PlanStore(root / "plans").write(key, profiles, content)

    def look() -> None:
        store = PlanStore(root / "plans")
        store.holding(key, profiles[1])
        if (found := store.find(key, sizes)) is not None:
            with found[0].data() as data:
                assert bytes(data) == content, "another plan than was written"
        elif line := missing_plans(store, bundle, machine, Needs((("unet", sizes),))):
            raise BackendError(line.encode("utf-8").decode("utf-8"), field="engine")

    return {path: look}


def main(root: Path, count: int, seed: int) -> int:
    """Spoil everything, print what came of it, and return how many problems there were."""
    base = make_toy_base(root / "made" / "base")
    adapter = make_toy_adapter(root / "made" / "adapter", base)
    targets = model_targets(root, base, adapter) | lora_targets(root, base) | header_target(root)
    targets |= plan_target(root, root / "bundle")
    reports = fuzz.fuzz_files(targets, count, seed, lambda line: sys.stdout.write(f"{line}\n"))
    problems = [problem for report in reports.values() for problem in report.problems]
    sys.stdout.write("".join(f"  {problem}\n" for problem in problems))
    total = sum(report.total for report in reports.values())
    sys.stdout.write(f"{total} mutations of {len(reports)} files, {len(problems)} problems\n")
    return len(problems)


if __name__ == "__main__":
    sys.exit(min(main(Path(sys.argv[1]), int((sys.argv[2:3] or ["1000"])[0]), int((sys.argv[3:4] or ["0"])[0])), 1))
