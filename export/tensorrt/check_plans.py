"""TensorRT plans against PyTorch, on the GPU.

Knows: how each plan is compared with PyTorch in float32 and the stored weights, at every shape it names, and how
TensorRT's labels are compared with PyTorch's. Does not know how plans are built, kept or removed.

This is also where an overflow shows that no CPU runtime can show: a plan computes in half precision for certain.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import torch

from engines.backends.base import Backend
from engines.backends.registry import open_backend
from engines.backends.tensorrt.plans import Bounds
from engines.bundle.bundle import Bundle
from engines.bundle.graphs import GRAPH_NAMES
from engines.diffusion.latents import to_uint8
from engines.errors import ExportError
from engines.painting.label_pass import Labeller
from export.matching import MATCHINGS, match_boxes
from export.verify import Chain, check_graph, run_graph

ROWS = 4  # that PyTorch computes; a larger batch repeats them, since no row depends on another
_BLACK = 1  # no value of a picture above this: black
_BEFORE = {  # what a graph's inputs are made by
    "text_encoder": (),
    "vae_encoder": (),
    "vae_decoder": ("vae_encoder",),
    "unet": ("text_encoder", "vae_encoder"),
    "adapter": ("text_encoder", "vae_encoder", "unet"),
}


class PlanCheck:
    """Compares the plans of one bundle with PyTorch, whose results it keeps from graph to graph."""

    def __init__(self, bundle: Bundle, tested: Backend) -> None:
        """`tested` runs the plans; PyTorch runs beside it, on the same device."""
        specs = {name: spec.as_dtype("float32") for name, spec in bundle.specs.items()}
        self._wide = dataclasses.replace(bundle, specs=specs)
        self._reference = open_backend(self._wide, "torch", precision="f32", device=str(tested.device))
        self._bundle, self._tested = bundle, tested
        self._chains: dict[tuple[int, ...], Chain] = {}

    def check(self, graph: str, profiles: Sequence[Bounds]) -> float:
        """The largest relative error of a graph's outputs, at the smallest, usual and largest shapes of its profiles.

        Raises ExportError for values that are not finite, a black picture, or an error beyond the graph's tolerance.
        """
        worst = 0.0
        for sizes in _shapes(profiles):
            inputs, expected = self._case(graph, sizes)
            spec = self._bundle.specs[graph]
            found = run_graph(self._tested, spec, inputs)
            for name, value in found.items():
                if not torch.isfinite(value).all():
                    raise ExportError(
                        f"{graph}: its plan gives {name} with NaN or infinite values, which PyTorch does not. It is "
                        f"too large for half precision: export the bundle with `ranges` on images of your own.",
                        field="ranges",
                    )
            if graph == "vae_decoder" and is_black(found["pixels"]) and not is_black(expected["pixels"]):
                raise ExportError(
                    f"{graph}: its plan paints black, which PyTorch does not. "
                    f"Export the bundle with `ranges` on images of your own.",
                    field="ranges",
                )
            worst = max(worst, *check_graph(self._tested, spec, inputs, expected).errors.values())
        return worst

    def labels(self, profile: Bounds) -> tuple[int, int]:
        """Boxes of the plans' own label pass and adapter beside PyTorch's: how many there are, and how many on either
        side have no counterpart on the other. `profile` is the adapter's.
        """
        sizes = {size: usual for size, (_, usual, _) in profile.items()}
        images = min(sizes["B"], ROWS)
        inputs, _ = self._case("unet", {**sizes, "B": images})
        _, encoded = self._case("vae_encoder", {**sizes, "B": images})
        states = [inputs["encoder_hidden_states"][0]] * images  # of the generic prompt
        keys, names = [(0, image) for image in range(images)], [f"check {image}" for image in range(images)]
        found = []
        for bundle, backend, batch in (
            (self._bundle, self._tested, sizes["B"]),
            (self._wide, self._reference, images),
        ):
            labeller = Labeller(bundle, backend, batch, sizes["h"], sizes["w"])
            logits, boxes = labeller(list(encoded["latents"]), states, keys, names)
            found.append({"logits": torch.from_numpy(logits[0]), "boxes": torch.from_numpy(boxes[0])})
        return match_boxes(found[0], found[1], MATCHINGS[self._bundle.specs["adapter"].dtype])

    def _case(self, graph: str, sizes: Mapping[str, int]) -> tuple[dict[str, Any], dict[str, Any]]:
        """Inputs of a graph at these sizes, and what PyTorch makes of them."""
        rows = {**sizes, "B": min(sizes["B"], ROWS)}
        chain = self._chains.setdefault(tuple(rows.values()), Chain(self._bundle, rows, len(self._chains)))
        for name in GRAPH_NAMES:
            if name in (*_BEFORE[graph], graph) and name not in chain.outputs:
                chain.run(name, self._reference)
        places = torch.arange(sizes["B"]) % rows["B"]
        inputs, outputs = chain.inputs[graph], chain.outputs[graph]
        return {n: x[places] for n, x in inputs.items()}, {n: x[places] for n, x in outputs.items()}


def _shapes(profiles: Sequence[Bounds]) -> list[dict[str, int]]:
    """The different shapes that profiles name."""
    found: list[dict[str, int]] = []
    for profile in profiles:
        for end in (1, 0, 2):  # the usual one first
            sizes = {size: bounds[end] for size, bounds in profile.items()}
            if sizes not in found:
                found.append(sizes)
    return found


def is_black(pixels: torch.Tensor) -> bool:
    """Whether any of these pictures [B, 3, H, W] in [-1, 1] is black."""
    return any(int(picture.max()) <= _BLACK for picture in to_uint8(pixels.float()))
