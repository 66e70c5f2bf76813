"""The label pass: the adapter's logits and boxes from clean latents, and from further looks at the same picture.

Knows: the networks between latents and boxes at a fixed batch, and the looks of test-time augmentation. Knows nothing
about jobs, slots or files.

B batch, L tokens, D text width, H/W pixels, Z/h/w latents, V looks, Q queries, K classes.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt
import torch

from engines.adapter.looks import LOOKS, laid, laid_back
from engines.common.streams import begin_fetch
from engines.diffusion.capture import Record, Recorded, capture
from engines.diffusion.latents import label_latents
from engines.diffusion.noise import alphas_cumprod
from engines.painting.networks import check_flags, fill, finite_rows, prepare

if TYPE_CHECKING:
    from engines.backends.base import Backend
    from engines.bundle.bundle import Bundle

Keys = Sequence[tuple[int, int]]


@dataclass(frozen=True, eq=False)
class Labels:
    """What a label pass and the adapter give, as soon as it is there."""

    take: Callable[[], tuple[torch.Tensor, ...]]  # whole bool [V, n], logits [V, n, Q, K], boxes [V, n, Q, 4]

    def __call__(self, names: Sequence[str]) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.float32]]:
        """Logits and boxes. Raises NumericalError that names the graph and the image whose numbers are not finite."""
        whole, logits, boxes = self.take()
        check_flags("unet", whole.all(0), names)
        for values in (logits, boxes):
            check_flags("adapter", finite_rows(values.transpose(0, 1)), names)
        return logits.numpy(), boxes.numpy()


class Labeller:
    """The label pass and the adapter at one size and a fixed batch, boxes read from `looks` looks at each picture."""

    def __init__(
        self,
        bundle: "Bundle",
        backend: "Backend",
        batch: int,
        h: int,
        w: int,
        looks: int = 1,
        record: Record = capture,
        *,
        encodes: bool = False,
    ) -> None:
        """Prepare the graphs, with the encoder where it `encodes`; others for pictures on their side, where a look lays
        them so and they are not square."""
        self._looks = LOOKS[:looks]
        self._abar = alphas_cumprod(bundle.scheduler_config)
        self._timestep = bundle.timestep
        self._upright = _Networks(bundle, backend, batch, h, w, record, encodes=encodes or looks > 1)
        self._aside = self._upright
        if h != w and any(look.aside for look in self._looks):
            self._aside = _Networks(bundle, backend, batch, w, h, record, encodes=True)

    def __call__(
        self,
        latents: Sequence[torch.Tensor],
        states: Sequence[torch.Tensor],
        keys: Keys,
        names: Sequence[str],
        pixels: torch.Tensor | None = None,
    ) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.float32]]:
        """Logits [V, n, Q, K] and boxes [V, n, Q, 4] (centre, size; shares of the frame) of n <= batch images.

        latents: clean, scaled, [Z, h, w] each. states: embeddings [L, D]. keys: (seed, index) of the noise.
        names: what an error calls each image. pixels: the pictures, [n, 3, H, W], nominally -1 to 1; None for a single
        look. Raises NumericalError.
        """
        return self.begin(latents, states, keys, pixels)(names)

    def encode(self, pixels: torch.Tensor) -> list[torch.Tensor]:
        """Clean latents [Z, h, w] of n <= batch pictures [n, 3, H, W], -1 to 1."""
        return self._upright.encode(pixels)

    def begin(
        self,
        latents: Sequence[torch.Tensor],
        states: Sequence[torch.Tensor],
        keys: Keys,
        pixels: torch.Tensor | None = None,
    ) -> Labels:
        """The same, begun: what comes back takes the names, waits and gives the numbers."""
        found = [self._upright.read(self._noisy(latents, keys), states, self._timestep)]
        for look in self._looks[1:]:
            assert pixels is not None
            networks = self._aside if look.aside else self._upright
            seen = networks.encode(laid(pixels, look).clamp(-1.0, 1.0))
            whole, logits, boxes = networks.read(self._noisy(seen, keys), states, self._timestep)
            found.append((whole, logits, laid_back(boxes, look)))
        return Labels(begin_fetch(*(torch.stack(values) for values in zip(*found, strict=True))))

    def _noisy(self, latents: Sequence[torch.Tensor], keys: Keys) -> list[torch.Tensor]:
        return [
            label_latents(clean.float(), seed, index, self._abar, self._timestep)
            for clean, (seed, index) in zip(latents, keys, strict=True)
        ]


class _Networks:
    """From latents [Z, h, w] to what the adapter gives, and to latents from pictures where it `encodes`."""

    def __init__(
        self, bundle: "Bundle", backend: "Backend", batch: int, h: int, w: int, record: Record, *, encodes: bool
    ) -> None:
        sizes = {"B": batch, "h": h, "w": w}
        self._pyramid = [spec.name for spec in bundle.specs["adapter"].inputs]
        self._unet = prepare(bundle, backend, "unet", sizes, self._pyramid, role="labels")
        self._adapter = prepare(bundle, backend, "adapter", sizes, ["logits", "boxes"])
        self._encoder = prepare(bundle, backend, "vae_encoder", sizes) if encodes else None
        self._run = Recorded(self._networks, [self._unet, self._adapter], backend.device, record)

    def encode(self, pixels: torch.Tensor) -> list[torch.Tensor]:
        """Clean latents of n <= B pictures."""
        assert self._encoder is not None
        fill(self._encoder.inputs["pixels"], list(pixels))
        self._encoder.run()
        return list(self._encoder.outputs["latents"][: len(pixels)].float().clone())

    def read(
        self, noisy: Sequence[torch.Tensor], states: Sequence[torch.Tensor], timestep: int
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Whether an image's pyramid is finite, bool [n] (the adapter was handed what is not, or made it), logits
        [n, Q, K] and boxes [n, Q, 4], in memory of their own.

        On a CPU the first is looked at only where something came out that is not.
        """
        self._unet.inputs["timesteps"].fill_(timestep)
        fill(self._unet.inputs["encoder_hidden_states"], states)
        fill(self._unet.inputs["sample"], noisy)
        self._run()
        count = len(noisy)
        logits, boxes = (self._adapter.outputs[name][:count].float().clone() for name in ("logits", "boxes"))
        whole = torch.ones(count, dtype=torch.bool, device=logits.device)
        if logits.is_cuda or not bool(logits.isfinite().all() & boxes.isfinite().all()):
            for name in self._pyramid:
                whole = whole & finite_rows(self._unet.outputs[name][:count])
        return whole, logits, boxes

    def _networks(self) -> None:
        self._unet.run()
        for name in self._pyramid:
            self._adapter.inputs[name].copy_(self._unet.outputs[name])
        self._adapter.run()
