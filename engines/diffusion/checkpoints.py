"""Single-file checkpoints: one `.safetensors` file becomes a diffusers folder in the user's cache, once.

Knows: how a file of Stable Diffusion 1.x or 2.x in its original layout is checked by its header, converted through
diffusers' `from_single_file` with the configurations shipped here (so that no network is needed), and kept. Knows how
CLIP's vocabulary follows from its merges. Does not know how a folder is loaded (`base_model`).

What the weights cannot tell, whether a Stable Diffusion 2.x model predicts the noise or v, is asked for.
"""

import contextlib
import gzip
import json
import shutil
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch

from engines.common.cache import cache_folder, cache_key
from engines.common.files import read_json, sha256_file, sync_folder, sync_tree, write_json
from engines.diffusion.families import (
    CLIP_PREFIX,
    OPEN_CLIP_PREFIX,
    UNET_PREFIX,
    VAE_PREFIX,
    Family,
    check_folder_family,
    family_of_file,
)
from engines.diffusion.libraries import first_line, silence_libraries
from engines.diffusion.weights import STEMS, Header, TensorInfo, check_weights, read_header
from engines.errors import ModelError, UsageError

CONFIGS = Path(__file__).parent / "configs"  # see NOTICE.md there
CONVERTER = 1  # raised when a conversion gives other files than before
PREDICTION_TYPES = ("epsilon", "v_prediction")

_MERGES = CONFIGS / "clip_merges.txt.gz"
_DTYPES = {"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}
_JSON_FILES = ("model_index.json", "unet/config.json", "vae/config.json", "text_encoder/config.json")


def checkpoint_folder(
    path: Path,
    prediction_type: str | None = None,
    *,
    configs: Path = CONFIGS,
    note: Callable[[str], None] = lambda text: None,
) -> Path:
    """The diffusers folder that the checkpoint `path` becomes; converted now, or found in the cache.

    Args:
        path: a `.safetensors` file in the original layout of Stable Diffusion 1.x or 2.x.
        prediction_type: "epsilon" or "v_prediction". None: what the file's notes say, else epsilon for 1.x; a 2.x
            file without notes needs it.
        configs: folder of configurations by family: sd1/, sd2/ and sd2_v/.
        note: told before a conversion, which takes a minute or two.

    The folder's name holds the file's SHA-256, the prediction type and the converter's version; it appears whole or
    not at all. Weights keep the file's dtype. Raises ModelError, UsageError.
    """
    header = read_header(path)
    family = family_of_file(header, path)
    prediction = _prediction_type(header, family, path, prediction_type)
    source = configs / ("sd2_v" if family == "sd2" and prediction == "v_prediction" else family)
    _check_complete(header, family, source, path)
    dtype = _dtype(header, path)
    key = cache_key(
        {"sha256": sha256_file(path), "prediction_type": prediction, "converter": CONVERTER, "configs": _read(source)}
    )
    target = cache_folder() / "checkpoints" / key[:32]
    if _is_whole(target):
        return target
    note(f"converting {path.name} into the diffusers layout, once; the result is kept in {target}")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.rmtree(target, ignore_errors=True)
        with _temporary_folder(target.parent) as work:
            _convert(path, source, prediction, dtype, work)
            _publish(work, target)
    except OSError as cause:
        raise ModelError(
            f"{path} cannot be converted: {cause.strerror or cause} in {target.parent}. Free some space there, or set "
            "XDG_CACHE_HOME to another folder."
        ) from cause
    return target


def write_clip_tokenizer(folder: Path) -> None:
    """Write CLIP's vocab.json and merges.txt to `folder`, from the merges shipped here.

    The vocabulary is the 256 byte letters, the same at a word's end, one token a merge, and the two special tokens,
    in this order (openai/CLIP, clip/simple_tokenizer.py).
    """
    with gzip.open(_MERGES, "rt", encoding="utf-8") as file:
        merges = file.read().splitlines()
    letters = _byte_letters()
    tokens = [*letters, *(f"{letter}</w>" for letter in letters), *(merge.replace(" ", "") for merge in merges)]
    vocabulary = {token: i for i, token in enumerate([*tokens, "<|startoftext|>", "<|endoftext|>"])}
    (folder / "vocab.json").write_text(json.dumps(vocabulary, ensure_ascii=False), encoding="utf-8")
    (folder / "merges.txt").write_text("\n".join(["#version: 0.2", *merges, ""]), encoding="utf-8")


def _byte_letters() -> list[str]:
    """The printable letter that stands for each byte, in the vocabulary's order."""
    printable = [*range(ord("!"), ord("~") + 1), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = len(set(range(256)) - set(printable))
    return [chr(code) for code in [*printable, *range(256, 256 + others)]]


def _prediction_type(header: Header, family: Family, path: Path, asked: str | None) -> str:
    """What the model predicts: as asked, else as the file's notes say (modelspec), else what all of its family do."""
    if asked is not None:
        if asked not in PREDICTION_TYPES:
            raise UsageError(
                f'`prediction_type` is "{asked}"; {" or ".join(PREDICTION_TYPES)} was expected.',
                field="prediction_type",
            )
        return asked
    noted = header.metadata.get("modelspec.prediction_type", "").lower()
    if noted in ("epsilon", "v", "v_prediction", "v-prediction"):
        return "epsilon" if noted == "epsilon" else "v_prediction"
    if family == "sd2":
        raise ModelError(
            f"{path} is a Stable Diffusion 2.x checkpoint, and its weights do not tell what it predicts. Add "
            "`prediction_type=epsilon` for a model of 512 pixels, or `prediction_type=v_prediction` for one of 768.",
            field="prediction_type",
        )
    return "epsilon"


def _dtype(header: Header, path: Path) -> torch.dtype:
    """The dtype to store: the file's own where it is the same for all, else float32. ModelError for eight bits."""
    parts = (UNET_PREFIX, VAE_PREFIX, CLIP_PREFIX, OPEN_CLIP_PREFIX)
    found = {info.dtype for name, info in header.tensors.items() if name.startswith(parts)} - {"I64", "I32"}
    if unknown := sorted(found - _DTYPES.keys()):
        raise ModelError(f"{path} holds {unknown[0]} weights; float32, float16 or bfloat16 was expected.")
    return _DTYPES[found.pop()] if len(found) == 1 else torch.float32


def _check_complete(header: Header, family: Family, source: Path, path: Path) -> None:
    """Raise ModelError unless the file has a tensor of the right shape for every weight of every network.

    `from_single_file` leaves weights random that a file lacks, so this is counted beforehand, shape by shape. Sides of
    length 1 do not count: the original layout writes some matrices as 1x1 convolutions.
    """
    text = CLIP_PREFIX if family == "sd1" else OPEN_CLIP_PREFIX
    for part, prefix in (("unet", UNET_PREFIX), ("vae", VAE_PREFIX), ("text_encoder", text)):
        network = _empty_network(source, part)
        needed = Counter(_squeezed(tuple(value.shape)) for _, value in network.named_parameters())
        stored: Counter[tuple[int, ...]] = Counter()
        for name, info in header.tensors.items():
            if name.startswith(prefix):
                stored.update(_as_diffusers(name, info, network.config))
        if missing := needed - stored:
            shape = next(iter(missing))
            raise ModelError(
                f"{path} is not whole: its {part} lacks {missing.total()} of {needed.total()} weights, one of shape "
                f"{'x'.join(map(str, shape))} among them. Download it again, or give a checkpoint with all its parts."
            )


def _as_diffusers(name: str, info: TensorInfo, config: Any) -> list[tuple[int, ...]]:
    """The shapes that a tensor has in the diffusers layout: open_clip stores query, key and value in one."""
    layer = name.partition(".resblocks.")[2].partition(".")[0]
    if layer and int(layer) >= config.num_hidden_layers:  # SD 2 does not use open_clip's last layer
        return []
    if name.endswith((".in_proj_weight", ".in_proj_bias")):
        return 3 * [_squeezed((info.shape[0] // 3, *info.shape[1:]))]
    return [_squeezed(info.shape)]


def _squeezed(shape: tuple[int, ...]) -> tuple[int, ...]:
    return tuple(side for side in shape if side != 1) or (1,)


def _empty_network(source: Path, part: str) -> Any:
    """A network of this configuration without memory behind its weights."""
    from diffusers import AutoencoderKL, UNet2DConditionModel
    from transformers import CLIPTextConfig, CLIPTextModel

    config = read_json(source / part / "config.json", ModelError)
    with torch.device("meta"):
        if part == "text_encoder":
            return CLIPTextModel(CLIPTextConfig(**config))
        kind: Any = UNet2DConditionModel if part == "unet" else AutoencoderKL
        return kind.from_config(config)


def _convert(path: Path, source: Path, prediction: str, dtype: torch.dtype, work: Path) -> None:
    """Write the diffusers folder of a checkpoint to the empty folder `work`."""
    from diffusers import StableDiffusionPipeline
    from safetensors import SafetensorError
    from safetensors.torch import save_file

    for part in ("unet", "vae", "text_encoder", "tokenizer", "scheduler"):
        (work / part).mkdir()
    for name in _JSON_FILES:
        shutil.copyfile(source / name, work / name)
    shutil.copytree(source / "tokenizer", work / "tokenizer", dirs_exist_ok=True)
    if not (work / "tokenizer" / "vocab.json").exists():
        write_clip_tokenizer(work / "tokenizer")
    scheduler = read_json(source / "scheduler" / "scheduler_config.json", ModelError)
    write_json(work / "scheduler" / "scheduler_config.json", scheduler | {"prediction_type": prediction})
    silence_libraries()
    try:
        pipeline: Any = StableDiffusionPipeline.from_single_file(str(path), config=str(work), local_files_only=True)
    except (ValueError, RuntimeError, KeyError, TypeError, SafetensorError) as cause:
        raise ModelError(f"{path} does not convert to a diffusers folder: {first_line(cause)}") from cause
    # Written here and not by the libraries, whose versions would change the files and with them the base's hash.
    for part, stem in STEMS.items():
        prefix = "text_model." if part == "text_encoder" else ""  # as published; transformers reads both
        state = getattr(pipeline, part).state_dict()
        tensors = {prefix + name.removeprefix(prefix): value.to(dtype).contiguous() for name, value in state.items()}
        try:
            save_file(tensors, work / part / f"{stem}.safetensors", metadata={"format": "pt"})
        except SafetensorError as cause:  # how safetensors says that a disk is full
            raise OSError(f"{cause}") from cause


def _read(source: Path) -> dict[str, str]:
    """The configurations as text, for the key: other configurations, another folder."""
    return {
        file.relative_to(source).as_posix(): file.read_text("utf-8")
        for file in sorted(source.rglob("*"))
        if file.is_file()
    }


def _is_whole(target: Path) -> bool:
    """Whether a cached folder is there and none of its weight files were cut or removed since."""
    try:
        check_folder_family(target)
        return all(check_weights(target / part) for part in STEMS)
    except (ModelError, OSError):
        return False


@contextlib.contextmanager
def _temporary_folder(parent: Path) -> Iterator[Path]:
    """A folder of this process's own that is gone afterwards, unless it was renamed."""
    work = Path(tempfile.mkdtemp(prefix=".converting-", dir=parent))
    try:
        yield work
    finally:
        shutil.rmtree(work, ignore_errors=True)


def _publish(work: Path, target: Path) -> None:
    """Give the finished folder its name, its files on disk; another process that was faster wins."""
    sync_tree(work)
    work.chmod(0o755)  # mkdtemp's folders are for their owner alone
    try:
        work.rename(target)
    except OSError:
        if not _is_whole(target):
            raise
    sync_folder(target.parent)
