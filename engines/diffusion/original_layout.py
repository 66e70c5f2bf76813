"""Which tensor of a single file becomes which weight: every one accounted for by name, or the file is refused.

Knows: how the weights that a configuration describes are found in a file of the original layout, in the spellings of
the repositories and tools that write such files, and what such a file may hold besides. Does not know how files are
converted or kept (`checkpoints`), or how a file's family is told (`families`).

What diffusers' `from_single_file` reads, this reads, to the same weights. Where that would leave weights as they were
drawn at random (names of two layouts mixed, weights that are there only as averaged copies), the file is refused.
"""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from engines.common.quote import quote
from engines.common.weight_file import Header, TensorInfo, by_sides
from engines.diffusion.families import EMA_PREFIX, TEXT_PREFIXES, UNET_PREFIX, VAE_PREFIXES
from engines.diffusion.ldm_names import Source, open_clip_name, unet_name, vae_name
from engines.errors import ModelError

Sources = dict[str, Source]  # a weight's name in its network -> where in the file it is

_BESIDE_TEXT = ("logit_scale", "text_projection", "text_projection.weight", "position_ids", "attn_mask")
_BESIDE_VAE = ("loss.", "model_ema.", "quantize.")  # of the VAE's own training
_OLD_ATTENTION = {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "proj_attn"}  # diffusers before 0.15


@dataclass(frozen=True)
class _Spelling:
    """One way to name the weights of a part."""

    prefix: str
    source: Callable[[str], Source]  # a weight's own name to where it is, behind the prefix


def find_unet(header: Header, described: Mapping[str, Any], config: Mapping[str, Any], path: Path) -> Sources:
    """Where each of a UNet's weights is. `described` is its state, without memory behind it. Raises ModelError."""
    spelling = _Spelling(UNET_PREFIX, lambda name: Source(unet_name(name, config)))
    return _match(header, described, spelling, "unet", path, lambda rest: False)


def find_vae(header: Header, described: Mapping[str, Any], config: Mapping[str, Any], path: Path) -> Sources | None:
    """Where each of a VAE's weights is; None for a file without any."""
    present = [prefix for prefix in VAE_PREFIXES if _begins(header, prefix)]
    if not present:
        return None
    spelling = _Spelling(_only(present, "VAE", path), lambda name: Source(vae_name(name, config)))
    return _match(header, described, spelling, "vae", path, lambda rest: rest.startswith(_BESIDE_VAE))


def find_vae_alone(header: Header, described: Mapping[str, Any], config: Mapping[str, Any], path: Path) -> Sources:
    """Where each of a VAE's weights is in a file of a VAE, in diffusers' names or the original ones."""
    for prefix in VAE_PREFIXES:
        if _begins(header, prefix):
            found = find_vae(header, described, config, path)
            assert found is not None
            return found
    if any(name.startswith(("encoder.down_blocks.", "decoder.up_blocks.")) for name in header.tensors):
        spelling = _Spelling("", lambda name: Source(stored_name(name, header.tensors)))
    else:
        spelling = _Spelling("", lambda name: Source(vae_name(name, config)))
    return _match(header, described, spelling, "vae", path, lambda rest: rest.startswith(_BESIDE_VAE))


def find_text_encoder(header: Header, described: Mapping[str, Any], unused_layer: int | None, path: Path) -> Sources:
    """Where each of a text encoder's weights is. `unused_layer` may be there or not: Stable Diffusion 2.x does not use
    open_clip's last one.
    """
    prefix = _only([prefix for prefix in TEXT_PREFIXES if _begins(header, prefix)], "text encoder", path)
    plain = {name: name.removeprefix("text_model.") for name in described}
    if f"{prefix}positional_embedding" in header.tensors:
        spelling = _Spelling(prefix, lambda name: open_clip_name(plain[name]))
        unused = f"transformer.resblocks.{unused_layer}."
    else:
        inner = "text_model." if _begins(header, f"{prefix}text_model.") else ""
        spelling = _Spelling(prefix, lambda name: Source(inner + plain[name]))
        unused = f"{inner}encoder.layers.{unused_layer}."

    def beside(rest: str) -> bool:
        return rest.endswith(_BESIDE_TEXT) or rest.startswith((unused, "visual.", "vision_model."))

    return _match(header, described, spelling, "text_encoder", path, beside)


def stored_name(name: str, stored: Iterable[str]) -> str:
    """The name under which a diffusers file has a weight: its own, or the one of earlier versions."""
    known = stored if isinstance(stored, Mapping | set) else set(stored)
    if name not in known:
        for theirs, old in _OLD_ATTENTION.items():
            before = name.replace(f".attentions.0.{theirs}.", f".attentions.0.{old}.")
            if before != name and before in known:
                return before
    return name


def source_shape(source: Source, info: TensorInfo) -> tuple[int, ...]:
    """The shape of what a source gives."""
    if source.third is None or not info.shape or info.shape[0] % 3:
        return info.shape
    return (info.shape[0] // 3, *info.shape[1:])


def same_but_ones(first: tuple[int, ...], second: tuple[int, ...]) -> bool:
    """Whether two shapes are one: the original layout writes some matrices as 1x1 convolutions."""
    return [side for side in first if side != 1] == [side for side in second if side != 1]


def _match(
    header: Header,
    described: Mapping[str, Any],
    spelling: _Spelling,
    part: str,
    path: Path,
    beside: Callable[[str], bool],
) -> Sources:
    """The source of every weight, each in its shape; ModelError for one that is missing, and for one too many."""
    sources = {}
    for name in described:
        found = spelling.source(name)
        sources[name] = Source(spelling.prefix + found.name, found.third)
    missing = [source.name for source in sources.values() if source.name not in header.tensors]
    used = {source.name for source in sources.values()}
    extra = [
        name
        for name in header.tensors
        if name.startswith(spelling.prefix) and name not in used and not beside(name.removeprefix(spelling.prefix))
    ]
    if missing:
        _refuse_missing(missing, extra, len(described), header, part, path)
    if extra:
        raise ModelError(
            f"{path} holds {quote(extra[0])} ({len(extra)} such tensors), which no layer of its {part} reads: it is "
            "another model than it looks like. Give a plain Stable Diffusion checkpoint."
        )
    for name, source in sources.items():
        found_shape = source_shape(source, header.tensors[source.name])
        if not same_but_ones(found_shape, tuple(described[name].shape)):
            raise ModelError(
                f"{path}: {quote(source.name)} is {by_sides(header.tensors[source.name].shape)}, where its {part} has "
                f"{by_sides(tuple(described[name].shape))}. Give a plain Stable Diffusion checkpoint."
            )
    return sources


def _refuse_missing(missing: list[str], extra: list[str], total: int, header: Header, part: str, path: Path) -> None:
    """Raise ModelError for weights that are not there, with the nearest thing that is."""
    averaged = {name.rpartition(EMA_PREFIX)[2].replace(".", "") for name in header.tensors if EMA_PREFIX in name}
    inside = ("model.", *VAE_PREFIXES)  # what copies leave out of a name, and the dots in it
    if any(name.removeprefix(prefix).replace(".", "") in averaged for name in missing for prefix in inside):
        reason = "They are there only as averaged (EMA) copies, and a network is not mixed from both"
    elif part == "unet" and not _begins(header, f"{UNET_PREFIX}middle_block."):
        reason = "It has no middle block, as small distilled models have none: give the diffusers folder of this model"
    elif extra:
        reason = f"It holds {quote(extra[0])}, a name of another layout"
    else:
        reason = "Download it again, or give a checkpoint with all its parts"
    raise ModelError(
        f"{path} is not whole: its {part} lacks {len(missing)} of {total} weights, {quote(missing[0])} first. {reason}."
    )


def _begins(header: Header, prefix: str) -> bool:
    return any(name.startswith(prefix) for name in header.tensors)


def _only(prefixes: list[str], what: str, path: Path) -> str:
    if len(prefixes) != 1:
        raise ModelError(
            f"{path} holds more than one {what} ({' and '.join(prefixes)}). Give a file with one of them."
            if prefixes
            else f"{path} holds no {what}."
        )
    return prefixes[0]
