"""Which graphs a run will prepare, and at which sizes, for the engine whose plans are built beforehand.

Knows: what `painter` and `labelling` prepare, before they do, and the arguments of `build_plans` that make it build
for that. Does not know what a plan is, or whether there is one (`engines.backends.tensorrt.plans`).

B batch, R rows, h/w latents.
"""

from collections.abc import Collection
from typing import TYPE_CHECKING, Any

from engines.backends.tensorrt.plans import Needs
from engines.painting.networks import LARGEST_BATCH
from engines.painting.options import painting_options
from engines.painting.resolve import GPU_SLOTS, default_rows, slots_and_rows
from engines.painting.run_settings import RunSettings
from engines.painting.settings import OPEN, GenerateSettings

if TYPE_CHECKING:
    from engines.bundle.bundle import Bundle

Size = tuple[int, int]  # width, height in pixels
Graphs = tuple[tuple[str, dict[str, int]], ...]


def generate_needs(asked: GenerateSettings, bundle: "Bundle", stored: RunSettings | None) -> Needs:
    """What `generate` prepares with these settings; nothing for a size that `prepare.resolve` refuses anyway."""
    frame = bundle.frame if asked.size is OPEN else asked.size
    if any(side % bundle.size_multiple for side in frame):
        return Needs(())
    options, schedules = painting_options(asked, bundle, stored)
    slots, rows = slots_and_rows(asked, stored, GPU_SLOTS, schedules, options, bundle)
    build: dict[str, Any] = {}
    if rows != default_rows(bundle, slots):
        build["batches"] = (1, slots, max(slots, rows))
    elif slots != GPU_SLOTS:
        build["batches"] = (slots,) * 3
    if frame != bundle.frame:
        build["sizes"] = (frame,) * 3
    paints = options["strength"] != (0.0, 0.0)
    if not paints and asked.labels == "reference":
        return Needs(())
    graphs = painted_graphs(bundle, slots, rows, frame, references=asked.reference is not None, paints=paints)
    return Needs(graphs, build)


def label_needs(bundle: "Bundle", frames: Collection[Size]) -> Needs:
    """What `label` prepares for images of these padded sizes."""
    graphs: dict[tuple[str, tuple[int, ...]], tuple[str, dict[str, int]]] = {}
    for frame in sorted(set(frames)):
        for graph, sizes in painted_graphs(bundle, LARGEST_BATCH, LARGEST_BATCH, frame, references=True):
            if graph != "vae_decoder":
                graphs[graph, tuple(sizes.values())] = (graph, sizes)
    widths, heights = zip(*(frames or [bundle.frame]), strict=True)
    least, most = (min(widths), min(heights)), (max(widths), max(heights))
    return Needs(tuple(graphs.values()), {} if set(frames) <= {bundle.frame} else {"sizes": (least, most, most)})


def painted_graphs(
    bundle: "Bundle", slots: int, rows: int, frame: Size, *, references: bool, paints: bool = True
) -> Graphs:
    """Every graph that `painter.Painter` prepares, with its sizes: `unet` for the sampler, then for the label pass;
    where nothing `paints`, what `unpainted.Unpainted` prepares."""
    w, h = (side // bundle.vae_stride for side in frame)
    batch = {"B": min(slots, LARGEST_BATCH), "h": h, "w": w}
    encoder: Graphs = (("vae_encoder", batch),) if references else ()
    sampler: Graphs = (("unet", {"B": rows, "h": h, "w": w}),) if paints else ()
    decoder: Graphs = (("vae_decoder", batch),) if paints else ()
    return (("text_encoder", {"B": 1}), *encoder, *sampler, ("unet", batch), ("adapter", batch), *decoder)
