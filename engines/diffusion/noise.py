"""What a base model was trained to undo: its noise schedule and prediction, as scheduler_config.json says them.

Knows: the cumulative products of the schedule, the range of every number in the file, which settings cannot be
honoured, and which make a user expect something else than dengine does. Knows nothing about sampling steps
(`schedule`) or networks.
"""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch

from engines.common.files import read_json
from engines.common.quote import quote
from engines.errors import ModelError

PREDICTION_TYPES = ("epsilon", "v_prediction")
SMALLEST_PRODUCT = 1e-6  # of alphas_cumprod; DDPM's own linear schedule ends at 4e-5
_MOST_TIMESTEPS = 10_000
_WHOLE = {"num_train_timesteps": (1, _MOST_TIMESTEPS), "steps_offset": (0, 100)}  # lowest and highest
_SHARES = ("beta_start", "beta_end")
_FAMILIES_OF_SAMPLERS = (  # beginnings of `_class_name`, of schedulers that no noise schedule of this kind describes
    ("FlowMatch", "flow matching"),
    ("EDM", "the EDM formulation"),
    ("CM", "consistency models"),
    ("VQ", "vector quantisation"),
    ("RePaint", "RePaint"),
    ("Karras", "variance expansion"),
    ("ScoreSdeVe", "variance expansion"),
)
_FEW_STEPS = ("LCMScheduler", "TCDScheduler")


def read_scheduler(folder: Path) -> dict[str, Any]:
    """The scheduler's configuration of a base model's folder, checked for what dengine can sample. ModelError."""
    config = read_json(folder / "scheduler" / "scheduler_config.json", ModelError)
    try:
        check_scheduler(config)
    except ModelError as cause:
        raise ModelError(f"{folder}: {cause}") from None
    return config


def check_scheduler(config: Mapping[str, Any]) -> None:
    """Raise ModelError for a scheduler_config.json that cannot be honoured, rather than paint something else.

    Samples that are clipped or thresholded are meant for pixels, not latents.
    """
    name = config.get("_class_name", "")
    for beginning, what in _FAMILIES_OF_SAMPLERS:
        if isinstance(name, str) and name.startswith(beginning):
            raise ModelError(f"scheduler_config.json: {quote(name)} is for {what}, which is not supported.")
    clips_by_default = name in ("DDIMScheduler", "DDPMScheduler")
    for key, found in (
        ("clip_sample", bool(config.get("clip_sample", clips_by_default))),
        ("thresholding", bool(config.get("thresholding", False))),
        ("use_flow_sigmas", bool(config.get("use_flow_sigmas", False))),
    ):
        if found:
            raise ModelError(
                f"scheduler_config.json: {key} is true{'' if key in config else f' by {name} default'}; "
                "that is not supported. If the base model was not trained with it, set it to false."
            )
    kind = config.get("prediction_type", "epsilon")
    if kind not in PREDICTION_TYPES:
        raise ModelError(
            f"scheduler_config.json: prediction_type is {quote(kind)}; {' or '.join(PREDICTION_TYPES)} was expected."
        )
    spacing = config.get("timestep_spacing", "leading")
    if spacing not in ("leading", "linspace", "trailing"):
        raise ModelError(
            f"scheduler_config.json: timestep_spacing is {quote(spacing)}; leading, linspace or trailing was expected."
        )
    alphas_cumprod(config)


def scheduler_remarks(config: Mapping[str, Any]) -> Iterator[str]:
    """What a user of this base model may not expect: where dengine samples it otherwise than others do."""
    name = config.get("_class_name", "")
    if name in _FEW_STEPS or (config.get("timestep_spacing") == "trailing" and str(name).startswith("Euler")):
        yield (
            f"its scheduler ({name}) is for models distilled for a few steps; dengine samples it with DDIM or DPM++ as "
            "any other, which such models are not made for"
        )
    elif config.get("steps_offset", 0) == 0 and config.get("timestep_spacing", "leading") == "leading":
        yield (
            "its scheduler_config.json has steps_offset 0, which is kept; diffusers' pipelines take 1 in its place. "
            "Write 1 there before an adapter is trained, if the model was made for it"
        )


def alphas_cumprod(config: Mapping[str, Any]) -> torch.Tensor:
    """The cumulative products of 1 - beta, float64 [T], computed as diffusers' DDIMScheduler does (in float32).

    Raises ModelError for betas that are no noise schedule, and for zero terminal SNR: a last product (almost) zero,
    where noisy latents hold nothing of the clean ones and 1 / sqrt(product) in the samplers' updates has no use.
    """
    if config.get("rescale_betas_zero_snr"):
        raise ModelError(
            "scheduler_config.json: rescale_betas_zero_snr is true; zero terminal SNR is not supported. If the base "
            "model was not trained with it, set it to false."
        )
    for key, (low, high) in _WHOLE.items():
        value = config.get(key, low)
        if type(value) is not int or not low <= value <= high:
            raise ModelError(f"scheduler_config.json: {key} must be from {low} to {high}, not {quote(value)}.")
    for key in _SHARES:
        if not _are_shares([config.get(key, 0.5)]):
            raise ModelError(f"scheduler_config.json: {key} must be from 0 to 1, not {quote(config[key])}.")
    steps, offset = int(config.get("num_train_timesteps", 1000)), int(config.get("steps_offset", 0))
    start, end = float(config.get("beta_start", 0.0001)), float(config.get("beta_end", 0.02))
    kind, listed = config.get("beta_schedule", "linear"), config.get("trained_betas")
    if listed is not None:
        if not isinstance(listed, list) or not 0 < len(listed) <= _MOST_TIMESTEPS or not _are_shares(listed):
            raise ModelError("scheduler_config.json: trained_betas must be a list of numbers from 0 to 1.")
        betas = torch.tensor(listed, dtype=torch.float32)
    elif kind == "linear":
        betas = torch.linspace(start, end, steps, dtype=torch.float32)
    elif kind == "scaled_linear":
        betas = torch.linspace(start**0.5, end**0.5, steps, dtype=torch.float32) ** 2
    else:
        raise ModelError(f"beta_schedule {quote(kind)} is not supported; linear or scaled_linear was expected.")
    if offset >= len(betas):
        raise ModelError(f"scheduler_config.json: steps_offset is {offset}, of {len(betas)} timesteps.")
    products = torch.cumprod(1.0 - betas, dim=0).double()
    if float(products[0]) >= 1.0:
        raise ModelError(
            f"scheduler_config.json: the betas begin at {quote(float(betas[0]))}, where nothing is noisy yet; a number "
            "above 0 was expected (Stable Diffusion's is 0.00085)."
        )
    if (last := float(products[-1])) < SMALLEST_PRODUCT:
        raise ModelError(
            f"scheduler_config.json: the betas end at alphas_cumprod {last:.1e}, that is zero terminal SNR, which is "
            f"not supported; at least {SMALLEST_PRODUCT:.0e} was expected (Stable Diffusion's is 4.7e-03)."
        )
    return products


def _are_shares(values: list[Any]) -> bool:
    return all(type(value) in (int, float) and 0 <= value <= 1 for value in values)
