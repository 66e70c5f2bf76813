"""Is a base model good enough? Photographs that were held back, through its autoencoder, and a few painted ones.

Knows: which images are held back, and how a base model in training is measured and shown on them. What the figures
mean is `engines.quality.verdicts`' matter.

H/W pixels of a frame; frames are cut as the last phase of the training cuts them.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from engines.adapter.pyramid import PyramidUNet, label_pass
from engines.common.events import Event, EventKind, Report, silent
from engines.common.rng import Stream, generator, normal
from engines.common.tokenizer import tokenize
from engines.datasets.dataset import Record
from engines.diffusion import prompts
from engines.diffusion.base_model import decode_latents, encode_pixels
from engines.diffusion.latents import quantise, to_pixels
from engines.diffusion.schedule import make_schedule
from engines.quality.features import Features, times_apart
from engines.quality.look import look_at, looks_of, outlines, psnr
from engines.quality.sheet import draw_sheet
from engines.quality.verdicts import GREY, BaseQuality, judge_base
from engines.training.trainer import autocast
from engines.training.views import ImageStore, ViewOptions, draw_view

SHARE, LEAST, MOST = 0.05, 4, 32  # of the images that are held back
FEWEST = 20  # images from which some are held back; of fewer, all are learned from
PAINTED, SHOWN = 4, 4  # images painted from text, and columns of the sheet
LEAST_OUTLINED = 0.05  # outlines of photographs below which they are texture alone, and nothing can be missed
STEPS, GUIDANCE = 20, 3.0  # of the painting
TIMESTEP = 1  # by which the UNet is asked what it sees, as adapters ask it
LOOKING = "looking"  # in events
SHEET = "samples.png"  # in the base's folder

Pixels = npt.NDArray[np.uint8]


@dataclass(frozen=True)
class Networks:
    """A base model in training."""

    vae: Any
    unet: Any
    text_encoder: Any
    tokenizer: Any
    scheduler_config: dict[str, Any]
    decoder: Any | None = None  # what decodes in the place of `vae`

    def decoded(self, latents: torch.Tensor) -> torch.Tensor:
        """Scaled latents [B, Z, h, w] to pixels [B, 3, H, W], nominally in [-1, 1], not clipped."""
        return decode_latents(self.vae if self.decoder is None else self.decoder, latents)


def hold_back(records: Sequence[Record], digests: Mapping[str, str]) -> tuple[list[Record], list[Record]]:
    """Images to learn from, and those held back: a twentieth, 4 at least and 32 at most; of fewer than 20 none.

    Which, the SHA-256 of their files says (`digests`, by record name), lowest first: names and order don't matter.
    """
    if len(records) < FEWEST:
        return list(records), []
    number = min(MOST, max(LEAST, round(SHARE * len(records))))
    chosen = {record.name for record in sorted(records, key=lambda one: (digests[one.name], one.name))[:number]}
    return [one for one in records if one.name not in chosen], [one for one in records if one.name in chosen]


def assess_base(
    networks: Networks,
    records: Sequence[Record],
    class_names: Sequence[str],
    style: str,
    views: ViewOptions,
    *,
    learned: Sequence[Record],
    held_back: bool,
    seed: int,
    device: str,
    precision: str,
    report: Report = silent,
) -> tuple[BaseQuality, bytes]:
    """What a base model makes of the photographs `records`, with a verdict, and a PNG that shows it.

    learned: photographs beside `records` that it learned from. They count where it is asked how far photographs lie
    from each other, of which a few would not tell.
    """
    store = ImageStore([*records, *learned])
    every = [draw_view(store, i, views, generator(seed, Stream.ASSESS_VIEWS, i)) for i in range(len(store.records))]
    drawn = every[: len(records)]
    photographs = [view.pixels for view in drawn]
    with torch.no_grad(), autocast(precision, device):
        rebuilt: list[Pixels] = []
        for pixels in photographs:
            report(Event(EventKind.PROGRESS, LOOKING, done=len(rebuilt), total=len(photographs) + PAINTED))
            rebuilt.append(_rebuilt(networks, pixels, device))
        report(Event(EventKind.PROGRESS, LOOKING, done=len(rebuilt), total=len(photographs) + PAINTED))
        counts = [Counter(view.instances.labels.tolist()) for view in drawn[:PAINTED]]
        named = [{name: found[i] for i, name in enumerate(class_names) if found[i]} for found in counts]
        texts = [prompts.listing_prompt(style, one) for one in np.resize(np.array(named, dtype=object), PAINTED)]
        painted = _paint(networks, texts, (views.height, views.width), seed, device)
        report(Event(EventKind.PROGRESS, LOOKING, done=len(rebuilt) + PAINTED, total=len(rebuilt) + PAINTED))
        pictures = painted, [view.pixels for view in every]
        seen = [_features(networks, some, style, device) for some in pictures]
    before, after = ([look_at(pixels) for pixels in images] for images in (photographs, rebuilt))
    colour = [(one.chroma, two.chroma) for one, two in zip(before, after, strict=True) if one.chroma >= GREY]
    whole, made = looks_of(before), looks_of([look_at(pixels) for pixels in painted])
    quality = judge_base(
        BaseQuality(
            images=len(records),
            held_back=held_back,
            psnr=_mean([psnr(one, two) for one, two in zip(rebuilt, photographs, strict=True)]),
            chroma_kept=_median([two / one for one, two in colour]) if colour else None,
            detail_kept=_median([two.detail / max(one.detail, 1e-6) for one, two in zip(before, after, strict=True)]),
            painted=len(painted),
            painted_chroma=round(made.chroma[1] / whole.chroma[1], 3) if whole.chroma[1] >= GREY and colour else None,
            painted_detail=round(made.detail[1] / max(whole.detail[1], 1e-6), 3),
            apart=times_apart(*seen),
            painted_outlines=_outlines_kept(painted, photographs),
        )
    )
    rows = [("photographs", photographs), ("through the autoencoder", rebuilt), ("painted", painted)]
    sheet = draw_sheet([(name, pictures[:SHOWN]) for name, pictures in rows], quality.verdict.replace("`", ""))
    return quality, sheet


def _rebuilt(networks: Networks, pixels: Pixels, device: str) -> Pixels:
    latents = encode_pixels(networks.vae, to_pixels(pixels)[None].to(device))
    return _bytes(networks.decoded(latents))[0]


def _paint(networks: Networks, texts: Sequence[str], size: tuple[int, int], seed: int, device: str) -> list[Pixels]:
    """Images from noise and words, by DDIM with guidance."""
    schedule = make_schedule(networks.scheduler_config, "ddim", STEPS)
    stride = 2 ** (len(networks.vae.config.block_out_channels) - 1)
    shape = (int(networks.vae.config.latent_channels), size[0] // stride, size[1] // stride)
    states = networks.text_encoder(tokenize(networks.tokenizer, [*texts, *[""] * len(texts)]).to(device))[0]
    noise = [torch.from_numpy(normal(shape, seed, Stream.ASSESS_NOISE, i)) for i in range(len(texts))]
    latents = torch.stack(noise).to(device) * float(schedule.start[0, 1])
    for timestep, row in zip(schedule.timesteps.tolist(), schedule.later.tolist(), strict=True):
        output = networks.unet(torch.cat([latents, latents]), timestep, states).sample.float()
        led, free = output.chunk(2)
        clean = row[0] * latents + row[1] * (free + GUIDANCE * (led - free))
        latents = row[2] * latents + row[3] * clean
    return _bytes(networks.decoded(latents))


def _features(networks: Networks, pictures: Sequence[Pixels], style: str, device: str) -> Features:
    """What the UNet sees in each picture, [N, C]: the means over its place of the pyramid's first level."""
    network, found = PyramidUNet(networks.unet), []
    text = tokenize(networks.tokenizer, [prompts.generic_prompt(style)]).to(device)
    states = networks.text_encoder(text)[0]
    for pixels in pictures:
        latents = encode_pixels(networks.vae, to_pixels(pixels)[None].to(device))
        found.append(label_pass(network, latents, states, TIMESTEP)[0].float().mean(dim=(0, 2, 3)))
    return torch.nan_to_num(torch.stack(found), posinf=0.0, neginf=0.0).cpu().double().numpy()


def _outlines_kept(painted: Sequence[Pixels], photographs: Sequence[Pixels]) -> float | None:
    """Outlines of painted pictures as a share of the photographs'; None where these have none to speak of."""
    ours, theirs = (_median([outlines(pixels) for pixels in pictures]) for pictures in (painted, photographs))
    return round(ours / theirs, 3) if theirs >= LEAST_OUTLINED else None


def _bytes(pixels: torch.Tensor) -> list[Pixels]:
    return list(quantise(torch.nan_to_num(pixels.float())).cpu().numpy())


def _mean(values: Sequence[float]) -> float:
    return round(float(np.mean(values)), 2)


def _median(values: Sequence[float]) -> float:
    return round(float(np.median(values)), 3)
