"""Single-file checkpoints: one `.safetensors` file becomes a diffusers folder in the user's cache, once.

Knows: how a file of Stable Diffusion 1.x or 2.x in its original layout is checked by its header, written in the
diffusers layout with the configurations shipped here (so that no network is needed), and kept; and how a VAE from
elsewhere takes the place of the file's own, or of none. Which tensor becomes which weight is `original_layout`'s to
know; how a folder is loaded, `base_model`'s; how CLIP's vocabulary is written, `clip_vocabulary`'s.

What the weights cannot tell, whether a Stable Diffusion 2.x model predicts the noise or v, is asked for.
"""

import contextlib
import shutil
import tempfile
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from engines.common.cache import cache_folder, cache_key
from engines.common.files import read_json, sha256_file, sync_folder, sync_tree, usual_mode, write_json
from engines.common.quote import quote, shorten
from engines.common.weight_file import Header, check_no_quantisation, read_header
from engines.diffusion.architecture import empty_network
from engines.diffusion.clip_vocabulary import write_clip_tokenizer
from engines.diffusion.families import FAMILIES, Family, check_folder_family, family_of_file, few_steps
from engines.diffusion.noise import PREDICTION_TYPES
from engines.diffusion.original_layout import Sources, find_text_encoder, find_unet, find_vae
from engines.diffusion.vae_from import Part, one_dtype, open_vae, read_part, shapes_of
from engines.diffusion.weights import STEMS, read_headers
from engines.errors import ModelError, UsageError

CONFIGS = Path(__file__).parent / "configs"  # see NOTICE.md there
CONVERTER = 2  # raised when a conversion gives other files than before, or refuses what it took
_JSON_FILES = ("model_index.json", "unet/config.json", "vae/config.json", "text_encoder/config.json")


def checkpoint_folder(
    path: Path,
    prediction_type: str | None = None,
    *,
    vae: Path | None = None,
    configs: Path = CONFIGS,
    note: Callable[[str], None] = lambda text: None,
) -> Path:
    """The diffusers folder that the checkpoint `path` becomes; converted now, or found in the cache.

    Args:
        path: a `.safetensors` file in the original layout of Stable Diffusion 1.x or 2.x.
        prediction_type: "epsilon" or "v_prediction". None: what the file's notes say, else epsilon for 1.x; a 2.x
            file without notes needs it.
        vae: a VAE in place of the file's own, or of none: a `.safetensors` file of one or of a whole checkpoint, a
            diffusers folder of one, or that of a base model.
        configs: folder of configurations by family: sd1/, sd2/ and sd2_v/.
        note: told what the user may not expect, and before a conversion, which takes a minute or two.

    The folder's name holds the SHA-256 of what it is made of, the prediction type and the converter's version; it
    appears whole or not at all. Weights keep the file's dtype. Raises ModelError, UsageError.
    """
    header = read_header(path)
    check_no_quantisation(path, header.tensors)
    family = family_of_file(
        header, path, {one: _config(configs / one, "unet")["cross_attention_dim"] for one in FAMILIES}
    )
    prediction = _prediction_type(header, family, path, prediction_type, note)
    source = configs / ("sd2_v" if family == "sd2" and prediction == "v_prediction" else family)
    given = None if vae is None else open_vae(vae, source, note)
    parts = _find_parts(header, family, source, path, given)
    made_of = {
        "sha256": sha256_file(path),
        "vae": None if vae is None else [sha256_file(file) for file in sorted(parts["vae"].files)],
        "vae_config": parts["vae"].config,
        "prediction_type": prediction,
        "converter": CONVERTER,
        "configs": _read(source),
    }
    target = cache_folder() / "checkpoints" / cache_key(made_of)[:32]
    if _is_whole(target):
        return target
    note(f"converting {path.name} into the diffusers layout, once; the result is kept in {target}")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.rmtree(target, ignore_errors=True)
        with _temporary_folder(target.parent) as work:
            _convert(parts, source, prediction, work)
            _publish(work, target)
    except OSError as cause:
        raise ModelError(
            f"{path} cannot be converted: {cause.strerror or shorten(cause, 200)} in {target.parent}. Free some space "
            "there, or set XDG_CACHE_HOME to another folder."
        ) from cause
    return target


def _prediction_type(header: Header, family: Family, path: Path, asked: str | None, note: Callable[[str], None]) -> str:
    """What the model predicts: as asked, else as the file says (a marker, modelspec), else as all of its family do."""
    if asked is not None and asked not in PREDICTION_TYPES:
        expected = " or ".join(PREDICTION_TYPES)
        raise UsageError(f"`prediction_type` is {quote(asked)}; {expected} was expected.", field="prediction_type")
    noted = _noted_prediction(header)
    if few_steps(path.stem, header.metadata.get("modelspec.title", "")):
        note(f"{path.name} looks like a model distilled for few steps; dengine samples it as any other")
    if noted is None and (unknown := header.metadata.get("modelspec.prediction_type", "")):
        note(f"{path.name} says of itself that it predicts {quote(unknown)}, which dengine does not know")
    if asked is not None:
        if noted not in (None, asked):
            note(f"{path.name} says of itself that it predicts {noted}; {asked} is taken, as you asked")
        return asked
    if noted is not None:
        if noted == "v_prediction":
            note(f"{path.name} says of itself that it predicts v; it is taken so")
        return noted
    if family == "sd2":
        raise ModelError(
            f"{path} is a Stable Diffusion 2.x checkpoint, and its weights do not tell what it predicts. Add "
            "`prediction_type=epsilon` for a model of 512 pixels, or `prediction_type=v_prediction` for one of 768.",
            field="prediction_type",
        )
    return "epsilon"


def _noted_prediction(header: Header) -> str | None:
    """What a file says that it predicts: by a marker among its tensors, or in its notes."""
    if "v_pred" in header.tensors:
        return "v_prediction"
    text = header.metadata.get("modelspec.prediction_type", "").lower()
    return {"v": "v_prediction", "v-prediction": "v_prediction"}.get(text, text if text in PREDICTION_TYPES else None)


def _find_parts(header: Header, family: Family, source: Path, path: Path, vae: Part | None) -> dict[str, Part]:
    """Where each weight of every part is, checked by the headers alone. Raises ModelError."""
    unet, text = (empty_network(source / part, part).state_dict() for part in ("unet", "text_encoder"))
    own: dict[str, Sources] = {"unet": find_unet(header, unet, _config(source, "unet"), path)}
    layers = int(_config(source, "text_encoder")["num_hidden_layers"])
    own["text_encoder"] = find_text_encoder(header, text, layers if family == "sd2" else None, path)
    if vae is None:
        empty = empty_network(source / "vae", "vae").state_dict()
        found = find_vae(header, empty, _config(source, "vae"), path)
        if found is None:
            raise ModelError(
                f"{path} has no VAE. Give one with `vae`: a .safetensors file of it, or a diffusers folder with it.",
                field="vae",
            )
        own["vae"] = found
    names = {place.name for sources in own.values() for place in sources.values()}
    dtype = one_dtype({header.tensors[name].dtype for name in names})
    shapes = {"unet": unet, "text_encoder": text} | ({} if vae is not None else {"vae": empty})
    parts = {
        part: Part({name: (path, place) for name, place in sources.items()}, shapes_of(shapes[part]), dtype, None)
        for part, sources in own.items()
    }
    return parts if vae is None else {**parts, "vae": vae}


def _config(source: Path, part: str) -> dict[str, Any]:
    return read_json(source / part / "config.json", ModelError)


def _convert(parts: Mapping[str, Part], source: Path, prediction: str, work: Path) -> None:
    """Write the diffusers folder of a checkpoint to the empty folder `work`."""
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
    for part, stem in STEMS.items():
        if (config := parts[part].config) is not None:
            write_json(work / part / "config.json", config)
        try:
            save_file(read_part(parts[part], part), work / part / f"{stem}.safetensors", metadata={"format": "pt"})
        except SafetensorError as cause:  # how safetensors says that a disk is full
            raise OSError(f"{cause}") from cause
    usual_mode(work)


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
        return all(read_headers(target / part) for part in STEMS)
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
