"""What the configurations of a base model may say, and the networks they describe, without memory behind them.

Knows: the range of every number in the config.json of unet/, vae/, text_encoder/ and decoder/ that a network is built
from, which kinds of blocks dengine reads, and which settings mean another family of models. A setting that diffusers
knows and that is not named here must have diffusers' own default; one that diffusers does not know either is passed
over, as it does.
Knows nothing about weights, tokenizers or schedulers.

Every error is a ModelError that names the file and lists what is wrong with it, before anything is built.
"""

import inspect
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from engines.common.files import read_json
from engines.common.quote import list_mistakes, quote, shorten
from engines.common.schema import in_range
from engines.errors import ModelError

MOST_BLOCKS = 8
_ACTIVATIONS = ("silu", "swish", "mish", "gelu", "relu")
_TEXT_ACTIVATIONS = ("quick_gelu", "gelu", "gelu_new", "gelu_pytorch_tanh", "relu", "silu")


@dataclass(frozen=True)
class Rule:
    """What one setting may be."""

    expected: str
    fits: Callable[[Any], bool]

    def __or__(self, other: "Rule") -> "Rule":
        return Rule(f"{self.expected} or {other.expected}", lambda value: self.fits(value) or other.fits(value))


def _whole(low: int, high: int) -> Rule:
    return Rule(f"a whole number from {low} to {high}", lambda value: type(value) is int and low <= value <= high)


def _number(low: float, high: float) -> Rule:
    return Rule(
        f"a number from {low:g} to {high:g}",
        lambda value: type(value) in (int, float) and in_range(value, low, high),
    )


def _choice(*options: Any) -> Rule:
    named = " or ".join("null" if option is None else str(option) for option in options)
    return Rule(named, lambda value: any(type(value) is type(option) and value == option for option in options))


def _blocks(rule: Rule, *, alone: bool = False) -> Rule:
    """A list with one entry a block; with `alone`, one value for all of them does too."""

    def fits(value: Any) -> bool:
        if isinstance(value, list):
            return 0 < len(value) <= MOST_BLOCKS and all(map(rule.fits, value))
        return alone and rule.fits(value)

    return Rule(f"{rule.expected}{', or' if alone else ':'} a list of 1 to {MOST_BLOCKS} of them", fits)


def _as_list(value: Any) -> list[Any]:
    return value[:MOST_BLOCKS] if isinstance(value, list) else [value]


_FLAG = _choice(True, False)
_TOKEN = Rule(
    "a token's number, or null",
    lambda value: value is None or all(type(one) is int and 0 <= one < 1_000_000 for one in _as_list(value)),
)
_SIZE = Rule(  # of training samples: nothing is built from it
    "a size, or null",
    lambda value: value is None or all(type(side) is int and 0 < side <= 65_536 for side in _as_list(value)),
)
_CHANNELS = _blocks(_whole(1, 16_384))
_LAYERS = _whole(1, 16)
_EPSILON = _number(0, 1)

_UNET: Mapping[str, Rule] = {
    "sample_size": _SIZE,
    "in_channels": _whole(1, 64),
    "out_channels": _whole(1, 64),
    "center_input_sample": _FLAG,
    "flip_sin_to_cos": _FLAG,
    "freq_shift": _number(-16, 16),
    "down_block_types": _blocks(_choice("DownBlock2D", "CrossAttnDownBlock2D", "AttnDownBlock2D")),
    "mid_block_type": _choice("UNetMidBlock2DCrossAttn", "UNetMidBlock2D", None),
    "up_block_types": _blocks(_choice("UpBlock2D", "CrossAttnUpBlock2D", "AttnUpBlock2D")),
    "only_cross_attention": _blocks(_FLAG, alone=True),
    "mid_block_only_cross_attention": _choice(True, False, None),
    "block_out_channels": _CHANNELS,
    "layers_per_block": _blocks(_LAYERS, alone=True),
    "downsample_padding": _whole(0, 1),
    "mid_block_scale_factor": _number(0.001, 1000),
    "dropout": _number(0, 1),
    "act_fn": _choice(*_ACTIVATIONS),
    "norm_num_groups": _whole(1, 1024),
    "norm_eps": _EPSILON,
    "cross_attention_dim": _whole(1, 16_384),
    "transformer_layers_per_block": _blocks(_LAYERS, alone=True),
    "attention_head_dim": _blocks(_whole(1, 4096), alone=True),
    "dual_cross_attention": _choice(False),
    "use_linear_projection": _FLAG,
    "upcast_attention": _FLAG,
    "resnet_time_scale_shift": _choice("default", "scale_shift"),
    "resnet_skip_time_act": _FLAG,
    "resnet_out_scale_factor": _number(0.001, 1000),
    "conv_in_kernel": _choice(1, 3, 5, 7),
    "conv_out_kernel": _choice(1, 3, 5, 7),
}
_VAE: Mapping[str, Rule] = {
    "sample_size": _SIZE,
    "in_channels": _choice(3),
    "out_channels": _choice(3),
    "down_block_types": _blocks(_choice("DownEncoderBlock2D", "AttnDownEncoderBlock2D")),
    "up_block_types": _blocks(_choice("UpDecoderBlock2D", "AttnUpDecoderBlock2D")),
    "block_out_channels": _CHANNELS,
    "layers_per_block": _LAYERS,
    "act_fn": _choice(*_ACTIVATIONS),
    "latent_channels": _whole(1, 64),
    "norm_num_groups": _whole(1, 1024),
    "scaling_factor": _number(1e-6, 1e6),
    "shift_factor": _choice(None, 0, 0.0),
    "force_upcast": _FLAG,
    "use_quant_conv": _FLAG,
    "use_post_quant_conv": _FLAG,
    "mid_block_add_attention": _FLAG,
}
_TEXT: Mapping[str, Rule] = {
    "vocab_size": _whole(3, 1_000_000),
    "hidden_size": _whole(1, 16_384),
    "intermediate_size": _whole(1, 65_536),
    "num_hidden_layers": _whole(1, 64),
    "num_attention_heads": _whole(1, 256),
    "max_position_embeddings": _whole(3, 4096),
    "hidden_act": _choice(*_TEXT_ACTIVATIONS),
    "layer_norm_eps": _EPSILON,
    "attention_dropout": _number(0, 1),
    "projection_dim": _choice(None) | _whole(1, 16_384),
    "pad_token_id": _TOKEN,
    "bos_token_id": _TOKEN,
    "eos_token_id": _TOKEN,
}
_DECODER: Mapping[str, Rule] = {
    "in_channels": _choice(3),
    "out_channels": _choice(3),
    "decoder_block_out_channels": _CHANNELS,
    "act_fn": _choice(*_ACTIVATIONS),
    "upsample_fn": _choice("nearest"),
    "latent_channels": _whole(1, 64),
    "upsampling_scaling_factor": _choice(2),
    "num_decoder_blocks": _blocks(_whole(0, 16)),
    "scaling_factor": _number(1e-6, 1e6),
    "shift_factor": _choice(None, 0, 0.0),
    "force_upcast": _FLAG,
}
_RULES = {"unet": _UNET, "vae": _VAE, "text_encoder": _TEXT, "decoder": _DECODER}
_NOT_BUILT = (  # what diffusers keeps and builds nothing from, and what is of the half of a decoder's that encodes
    "addition_embed_type_num_heads", "encoder_block_out_channels", "num_encoder_blocks", "latent_magnitude",
    "latent_shift",
)  # fmt: skip
_NO_ENCODER = {"encoder_block_out_channels": (1,), "num_encoder_blocks": (0,)}
_MORE_CONDITIONS = ("addition_embed_type", "class_embed_type", "num_class_embeds", "time_cond_proj_dim")


def check_architecture(config: Mapping[str, Any], part: str, path: Path) -> dict[str, Any]:
    """Of a configuration read from `path`, the settings that the part is built from. Raises ModelError."""
    if config.get("quantization_config") is not None:
        raise ModelError(f"{path}: the weights are quantised (quantization_config). Give the same model in float16.")
    rules, built = _RULES[part], {}
    wrong: list[str] = []
    for key, rule in rules.items():
        if key not in config or (part == "unet" and key == "only_cross_attention" and config[key] is None):
            continue
        built[key] = config[key]
        if not rule.fits(config[key]):
            wrong.append(f'"{key}" must be {rule.expected}, not {quote(config[key])}')
    wrong += _unknown_settings(config, part) if part != "text_encoder" else _text_settings(config)
    if not wrong:
        wrong = list(_at_odds(built, part))
    if wrong:
        raise ModelError(f"{path}: {list_mistakes(wrong)}.")
    return built


def empty_network(folder: Path, part: str, tensors: int | None = None) -> Any:
    """The network of a part that `folder/config.json` describes, on the meta device: no memory is taken for weights.

    `tensors` is how many the part's weight files hold: a description of more layers than that is refused unbuilt.
    Raises ModelError.
    """
    path = folder / "config.json"
    config = check_architecture(read_json(path, ModelError), part, path)
    if tensors is not None and _least_tensors(config, part) > tensors:
        raise ModelError(f"{path} describes more layers than the weights beside it have ({tensors} tensors).")
    try:
        with torch.device("meta"):
            return _build(config, part)
    except Exception as cause:  # the libraries validate with errors of their own
        raise ModelError(f"{path} describes no network: {shorten(first_words(cause), 200)}.") from cause


def first_words(error: BaseException) -> str:
    """The last line of a library's error without its full stop: validators put the reason there."""
    lines = [line.strip() for line in str(error).strip().splitlines() if line.strip()]
    return (lines[-1] if lines else type(error).__name__).rstrip(".")


def _build(config: Mapping[str, Any], part: str) -> Any:
    from transformers import CLIPTextConfig, CLIPTextModel

    if part == "text_encoder":
        return CLIPTextModel(CLIPTextConfig(**config))
    if part == "decoder":
        return tiny_decoder(config)
    return _kind(part).from_config(dict(config))


def tiny_decoder(config: Mapping[str, Any]) -> Any:
    """A diffusers.AutoencoderTiny without the half that encodes, by its settings of the half that decodes."""
    network = _kind("decoder").from_config({**config, **_NO_ENCODER})
    del network.encoder
    return network


def _kind(part: str) -> Any:
    from diffusers import AutoencoderKL, AutoencoderTiny, UNet2DConditionModel

    return {"unet": UNet2DConditionModel, "vae": AutoencoderKL, "decoder": AutoencoderTiny}[part]


def _unknown_settings(config: Mapping[str, Any], part: str) -> Iterator[str]:
    """Settings that diffusers knows, that are not among the rules, and that ask for more than its default."""
    for key, parameter in inspect.signature(_kind(part).__init__).parameters.items():
        if key in config and key not in _RULES[part] and key not in _NOT_BUILT and config[key] != parameter.default:
            why = ", a condition beside the prompt" if key in _MORE_CONDITIONS else ""
            yield f'"{key}" is {quote(config[key])}{why}; only {quote(parameter.default)} is supported'


def _text_settings(config: Mapping[str, Any]) -> Iterator[str]:
    if config.get("use_attention_mask"):  # diffusers' pipelines then hide the padding, which changes every embedding
        yield '"use_attention_mask" is true, which is not supported'


def _at_odds(config: Mapping[str, Any], part: str) -> Iterator[str]:
    """Settings that are right one by one and not together."""
    if part == "text_encoder":
        width, heads = config.get("hidden_size", 512), config.get("num_attention_heads", 8)
        if width % heads:
            yield f'"hidden_size" ({width}) must be a multiple of "num_attention_heads" ({heads})'
        return
    blocks = {key: len(value) for key, value in config.items() if isinstance(value, list) and key != "sample_size"}
    for key in blocks if len(set(blocks.values())) > 1 else ():
        yield f'"{key}" has {blocks[key]} entries, where all lists need as many as there are blocks'
    if part == "decoder" and len(set(config.get("decoder_block_out_channels", ()))) > 1:
        yield '"decoder_block_out_channels" must be the same number for all blocks'
    if part == "unet" and config.get("out_channels", 4) != config.get("in_channels", 4):
        yield (
            f'"out_channels" is {config.get("out_channels", 4)} where "in_channels" is {config.get("in_channels", 4)}: '
            "a network that predicts something else than the noise"
        )


def _least_tensors(config: Mapping[str, Any], part: str) -> int:
    """How many tensors a network of this description has at the very least: some for each of its layers."""
    if part == "text_encoder":
        return 10 * int(config.get("num_hidden_layers", 12))
    if part == "decoder":
        return 6 * int(sum(config.get("num_decoder_blocks", (3, 3, 3, 1))))

    def of_block(key: str, block: int, default: int) -> int:
        value = config.get(key, default)
        return int(value[block] if isinstance(value, list) else value)

    kinds = config.get("down_block_types", ["CrossAttnDownBlock2D"] * 3 if part == "unet" else ["DownEncoderBlock2D"])
    total = 0
    for block, kind in enumerate(kinds):
        depth = of_block("transformer_layers_per_block", block, 1) if "Cross" in kind else 0
        total += of_block("layers_per_block", block, 2 if part == "unet" else 1) * (8 + 20 * depth)
    return total
