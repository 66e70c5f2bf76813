"""The tables of `full_size.py` as markdown.

Knows: how figures are laid out. Does not know how they were measured.
"""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

NAMES = {"sd15": "SD 1.5", "sd21": "SD 2.1"}
LONG_STEP = 5.0  # seconds; shorter steps of an export are left out


def report(result: Mapping[str, Any], *, most_gb: float, most_minutes: float, count: int, steps: int) -> str:
    """Every table, from what `full_size.py` prints as JSON."""
    shapes: Mapping[str, Mapping[str, Any]] = result["shapes"]
    packages = ", ".join(f"{name} {version}" for name, version in result["versions"].items())
    size = "tiny networks: a dry run" if result["toy"] else "random weights, every tensor at its published size"
    parts = [
        "# Full-size Stable Diffusion on a CPU",
        f"`python benchmarks/full_size.py`, {size}. Machine: {result['machine']}. Versions: {packages}.",
        "## Models",
        table(("shape", "UNet", "VAE", "text encoder", "adapter", "weights, float16", "frame"), _models(shapes)),
        "## Time and memory",
        f"An export may take {most_minutes:.0f} minutes and {most_gb:.0f} GB. Memory is what was resident at most. "
        f"A `generate` paints {count} images in {steps} steps each.",
        table(("shape", "command", "minutes", "peak GB", "on"), _commands(shapes)),
        *_missing(shapes),
        "## Every graph against PyTorch",
        "Largest relative norm error of any output against PyTorch fp32 with the same stored weights, at two batch "
        "sizes and two image sizes. CPU runtimes compute float16 graphs partly in float32, so these figures do not "
        "show that nothing overflows on a GPU.",
        table(("shape", "graphs", "engine", *GRAPHS), _errors(shapes)),
        "## The same job through the whole loop",
        "One image of two steps on every engine, against PyTorch f32.",
        table(("shape", "graphs", "engine", "precision", "PSNR, dB", "AP50 of the labels"), _loops(shapes)),
        "## Images",
        "Random weights paint noise: what matters is that no image is blank.",
        table(("shape", "graphs", "image", "size", "bytes", "mean", "spread", "boxes of the run"), _images(shapes)),
        "## Where an export's time and memory go",
        table(("shape", "graphs", "step", "seconds", "peak GB"), _steps(shapes)),
    ]
    islands = list(_islands(shapes))
    if islands:
        parts[-2:-2] = ["## Parts of float16 graphs that stay in float32", table(("shape", "graph", "parts"), islands)]
    return "\n\n".join(parts) + "\n"


GRAPHS = ("text_encoder", "vae_encoder", "vae_decoder", "unet", "adapter")


def table(header: Sequence[str], rows: Iterator[Sequence[object]] | Sequence[Sequence[object]]) -> str:
    """A markdown table."""
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join("| " + " | ".join(str(cell) for cell in line) + " |" for line in lines)


def _exports(shapes: Mapping[str, Mapping[str, Any]]) -> Iterator[tuple[str, str, Mapping[str, Any]]]:
    """(shape, graph dtype, record) of every export."""
    for shape, records in shapes.items():
        for name, record in records.items():
            if name.startswith("export "):
                yield NAMES[shape], name.removeprefix("export "), record


def _models(shapes: Mapping[str, Mapping[str, Any]]) -> Iterator[list[object]]:
    for shape, records in shapes.items():
        record = records["models"]
        counts = [f"{record['parameters'][part] / 1e6:.1f} M" for part in ("unet", "vae", "text_encoder", "adapter")]
        frame = "x".join(map(str, record["frame"]))
        yield [NAMES[shape], *counts, f"{record['bytes'] / 1e9:.2f} GB", frame]


def _commands(shapes: Mapping[str, Mapping[str, Any]]) -> Iterator[list[object]]:
    for shape, records in shapes.items():
        for name, record in records.items():
            if "peak_gb" in record:
                yield [NAMES[shape], name, record["minutes"], record["peak_gb"], record.get("backend", "")]


def _missing(shapes: Mapping[str, Mapping[str, Any]]) -> Iterator[str]:
    """A line for every shape of which a bundle was not made."""
    for shape, records in shapes.items():
        absent = [dtype for dtype in ("float32", "float16") if f"export {dtype}" not in records]
        if absent:
            yield f"{NAMES[shape]}: {' and '.join(absent)} graphs were not exported in this run."


def _errors(shapes: Mapping[str, Mapping[str, Any]]) -> Iterator[list[object]]:
    for shape, dtype, record in _exports(shapes):
        for engine, errors in record["relative_error"].items():
            yield [shape, dtype, engine, *(f"{errors[graph]:.1e}" for graph in GRAPHS)]


def _loops(shapes: Mapping[str, Mapping[str, Any]]) -> Iterator[list[object]]:
    for shape, dtype, record in _exports(shapes):
        for found in record["agreement"]:
            labels = "no boxes" if found["ap50"] is None else found["ap50"]
            yield [shape, dtype, found["engine"], found["precision"], found["psnr"], labels]


def _images(shapes: Mapping[str, Mapping[str, Any]]) -> Iterator[list[object]]:
    for shape, records in shapes.items():
        for name, record in records.items():
            for image in record.get("images", ()):
                size = "x".join(map(str, image["size"]))
                figures = [image[key] for key in ("bytes", "mean", "spread")]
                yield [NAMES[shape], name.split()[1], image["file"], size, *figures, record["boxes"]]


def _steps(shapes: Mapping[str, Mapping[str, Any]]) -> Iterator[list[object]]:
    for shape, dtype, record in _exports(shapes):
        for step in record["steps"]:
            if step["seconds"] >= LONG_STEP:
                yield [shape, dtype, step["step"], step["seconds"], step["peak_gb"]]


def _islands(shapes: Mapping[str, Mapping[str, Any]]) -> Iterator[list[object]]:
    for shape, dtype, record in _exports(shapes):
        for graph, names in record["islands"].items() if dtype == "float16" else ():
            others = f" and {len(names) - 1} more" if len(names) > 1 else ""
            yield [shape, graph, f"{names[0] or 'the whole graph'}{others}"]
