"""Paints jobs on one of optimum's pipelines; runs inside that peer's own environment, without anything of dengine.

    PEER_PYTHON peer_runner.py WORK/asked.json

`peers.py` writes what is asked (`measure`) and starts this. It exports the model once (not timed), times one full batch
of every batch size and kind of setting, and paints the whole workload with what promises to be fastest. Jobs that take
the same number of evaluations share batches, since a pipeline has one strength a call. Every image is written as a JPEG
before the clock stops. A setting that does not run is listed with its error.

Knows: the two pipelines and their settings. Does not know: where jobs come from, boxes, or other engines.
"""

import gc
import importlib
import importlib.metadata
import json
import math
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

PACKAGES = (
    "optimum", "optimum-intel", "optimum-onnx", "torch", "diffusers", "transformers", "openvino", "onnxruntime",
)  # fmt: skip
JPEG_QUALITY = 95
BATCHES = (1, 2, 4, 8, 16)  # that are tried
SEARCH_RUNS = 2  # timed calls of a batch in the search; the faster counts
PAINTED = 2  # kinds of settings that paint the whole workload: what the search predicts of dynamic shapes is too good
FALLEN = 0.95  # share of the best images/s below which no larger batch is tried, as in the search of the baseline

# Both are of the UNet; the other networks get weights of 8 bits. "hybrid", optimum's own choice for diffusion models,
# has convolutions compute in int8 and matrix products read weights of 8 bits; "full" has both compute in int8.
INT8 = ("int8 hybrid", "int8 full")
SAMPLES = 200  # calls of the UNet that its ranges are taken from, optimum's default

Job = Mapping[str, Any]


@dataclass(frozen=True)
class Setting:
    """One way to run a peer."""

    precision: str  # f32, bf16, or a way of INT8, whose other operations are in bf16 where --bf16 was given
    static: bool  # whether the graphs are compiled for one batch and size
    batch: int  # images a call


def kinds_of(peer: str, bf16: bool, int8: bool) -> list[tuple[str, bool]]:
    """(precision, static) of what is tried. ONNX Runtime's pipeline has no static shapes, its CPU kernels no bf16."""
    if peer == "onnxruntime":
        return [("f32", False)]
    precisions = INT8 if int8 else ("bf16", "f32") if bf16 else ("f32",)
    return [(precision, static) for precision in precisions for static in (True, False)]


def groups_of(jobs: Sequence[Job]) -> dict[int, list[Job]]:
    """Jobs by the number of evaluations they take, longest first, those of like strengths side by side."""
    groups: dict[int, list[Job]] = {}
    for job in sorted(jobs, key=lambda job: (-job["steps"], job["strength"], job["index"])):
        groups.setdefault(job["steps"], []).append(job)
    return groups


def batches_of(jobs: Sequence[Job], setting: Setting) -> Iterator[tuple[list[Job], int]]:
    """Batches of equal steps, each with how many of it are wanted: static graphs get a short last batch filled up."""
    for group in groups_of(jobs).values():
        for first in range(0, len(group), setting.batch):
            batch = group[first : first + setting.batch]
            spare = setting.batch - len(batch) if setting.static else 0
            yield batch + batch[-1:] * spare, len(batch)


def predicted_seconds(jobs: Sequence[Job], setting: Setting, seconds: float, steps: int) -> float:
    """What the whole workload should take, from the `seconds` of one full batch of `steps` steps."""
    calls: float = sum(
        group[0]["steps"] * (math.ceil(len(group) / setting.batch) if setting.static else len(group) / setting.batch)
        for group in groups_of(jobs).values()
    )
    return calls * seconds / steps


def versions() -> dict[str, str]:
    """Versions of what takes part, where installed."""
    found = {"python": sys.version.split()[0]}
    for package in PACKAGES:
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def export(peer: str, model: Path, folder: Path) -> None:
    """Have optimum export the model, unless that was done before."""
    done = folder / "exported"
    if done.exists():
        return
    from transformers import CLIPTextModel

    _, loading = CLIPTextModel.from_pretrained(str(model / "text_encoder"), output_loading_info=True)
    if missing := sorted(loading["missing_keys"]):
        raise RuntimeError(
            f"the text encoder would be random: its weights lack {missing[0]} and {len(missing) - 1} more"
        )
    if peer == "openvino":
        pipeline = _pipeline_class(peer).from_pretrained(str(model), export=True, compile=False, load_in_8bit=False)
    else:
        pipeline = _pipeline_class(peer).from_pretrained(str(model), export=True)
    pipeline.save_pretrained(folder)
    done.touch()


def quantized(folder: Path, precision: str, prompts: Sequence[str]) -> Path:
    """The export in a way of INT8, made by optimum from the model painting `prompts`, unless that was done before."""
    made = folder.with_name(f"{folder.name}-{precision.replace(' ', '-')}")
    if not (made / "exported").exists():
        intel = importlib.import_module("optimum.intel")
        kind = intel.OVWeightQuantizationConfig if precision == INT8[0] else intel.OVQuantizationConfig
        config = kind(bits=8, dataset=list(prompts), num_samples=SAMPLES)
        pipeline = intel.OVStableDiffusionPipeline.from_pretrained(str(folder), quantization_config=config)
        pipeline.save_pretrained(made)
        (made / "exported").touch()
    return made


def _pipeline_class(peer: str) -> Any:
    if peer == "openvino":
        return importlib.import_module("optimum.intel").OVStableDiffusionImg2ImgPipeline
    return importlib.import_module("optimum.onnxruntime").ORTStableDiffusionImg2ImgPipeline


def load(peer: str, folder: Path, setting: Setting, known: Mapping[str, Any]) -> Any:
    """The pipeline, ready for a setting: a function of the pipeline's own arguments."""
    from diffusers import DDIMScheduler, StableDiffusionImg2ImgPipeline

    if peer == "openvino":
        hint = setting.precision
        if setting.precision in INT8:
            hint = "bf16" if known["bf16"] else "f32"
            folder = quantized(folder, setting.precision, sorted({job["prompt"] for job in known["jobs"]}))
        pipeline = _pipeline_class(peer).from_pretrained(
            str(folder), compile=False, ov_config={"INFERENCE_PRECISION_HINT": hint}
        )
        if setting.static:
            width, height = known["frame"]
            pipeline.reshape(setting.batch, height, width, 1)
            # optimum gives the decoder the images of one prompt; in one call it gets those of all.
            decoder = pipeline.vae_decoder.model
            shape = decoder.inputs[0].get_partial_shape()
            shape[0] = setting.batch
            decoder.reshape({decoder.inputs[0]: shape})
        pipeline.compile()
    else:
        pipeline = _pipeline_class(peer).from_pretrained(str(folder))
    pipeline.scheduler = DDIMScheduler.from_config(pipeline.scheduler.config, timestep_spacing="trailing")
    pipeline.set_progress_bar_config(disable=True)
    if not setting.static:
        return pipeline
    # With static shapes optimum passes height and width on, which img2img does not take: its wrapper is left out.
    return lambda **arguments: StableDiffusionImg2ImgPipeline.__call__(pipeline, **arguments)


def paint(pipeline: Any, batch: Sequence[Job], known: Mapping[str, Any], folder: Path) -> list[Any]:
    """The images of one batch, whose jobs take equally many evaluations, at their mean strength.

    img2img runs floor(steps x strength) of a schedule from pure noise: it gets the fewest steps that come to as many.
    One generator a call, so that the pipeline encodes its crops in one batch.
    """
    import torch
    from PIL import Image

    strength = sum(job["strength"] for job in batch) / len(batch)
    steps = math.ceil(batch[0]["steps"] / strength)
    steps += int(steps * strength) < batch[0]["steps"]  # where the product was rounded down
    crops = [Image.open(folder / job["crop"]).convert("RGB") for job in batch]
    return list(
        pipeline(
            prompt=[job["prompt"] for job in batch],
            negative_prompt=[known["negative_prompt"]] * len(batch),
            image=crops,
            strength=strength,
            num_inference_steps=steps,
            guidance_scale=known["guidance"],
            eta=known["eta"],
            generator=torch.Generator().manual_seed(batch[0]["index"]),
        ).images
    )


def search(
    peer: str, exported: Path, known: Mapping[str, Any], folder: Path, kinds: Sequence[tuple[str, bool]]
) -> list[dict[str, Any]]:
    """Seconds of a full batch of every kind and batch size, and what the workload should then take; or the error.

    Batch sizes go up until one is slower than FALLEN of the best before it.
    """
    middle = sorted(known["jobs"], key=lambda job: job["steps"])[len(known["jobs"]) // 2]
    alike = groups_of(known["jobs"])[middle["steps"]]
    found: list[dict[str, Any]] = []
    for precision, static in kinds:
        best = 0.0  # images/s
        for size in BATCHES:
            setting = Setting(precision, static, size)
            found.append(asdict(setting))
            try:
                pipeline = load(peer, exported, setting, known)
                batch = [alike[place % len(alike)] for place in range(size)]
                paint(pipeline, batch, known, folder)
                seconds = min(_timed(pipeline, batch, known, folder) for _ in range(SEARCH_RUNS))
            except Exception as error:  # whatever the peer raises is what the report says of it
                found[-1]["error"] = one_line(error)
                continue
            finally:
                pipeline = None
                gc.collect()
                print(json.dumps(found[-1]), file=sys.stderr, flush=True)
            found[-1]["predicted_seconds"] = predicted_seconds(known["jobs"], setting, seconds, middle["steps"])
            if size / seconds < FALLEN * best:
                break
            best = max(best, size / seconds)
    return found


def _timed(pipeline: Any, batch: Sequence[Job], known: Mapping[str, Any], folder: Path) -> float:
    begun = time.perf_counter()
    paint(pipeline, batch, known, folder)
    return time.perf_counter() - begun


def run(
    peer: str, exported: Path, known: Mapping[str, Any], folder: Path, setting: Setting, images: Path
) -> dict[str, Any]:
    """Paint the whole workload after a warm-up batch of every size; seconds from the first call to the last file."""
    pipeline = load(peer, exported, setting, known)
    batches = list(batches_of(known["jobs"], setting))
    for batch in {len(batch): batch for batch, _ in batches}.values():
        paint(pipeline, batch, known, folder)
    images.mkdir(parents=True, exist_ok=True)
    begun = time.perf_counter()
    for batch, wanted in batches:
        for job, image in zip(batch[:wanted], paint(pipeline, batch, known, folder), strict=False):
            image.save(images / f"{job['index']:08d}.jpg", quality=JPEG_QUALITY, subsampling=0)
    seconds = time.perf_counter() - begun
    count = len(known["jobs"])
    return {**asdict(setting), "images": count, "seconds": seconds, "images_per_second": count / seconds}


def one_line(error: Exception) -> str:
    """An error's kind and words."""
    return f"{type(error).__name__}: {' '.join(str(error).split())}"[:300]


def measure(asked: Mapping[str, Any]) -> dict[str, Any]:
    """Export, search and paint; what went wrong as text.

    `asked`: `peer`, `jobs` (file), `work` (folder for exports), `images` (folder), `bf16` (the processor multiplies
    it), `int8` (it and nothing else).
    """
    peer, jobs, work = asked["peer"], Path(asked["jobs"]), Path(asked["work"])
    known: dict[str, Any] = json.loads(jobs.read_text("utf-8")) | {"bf16": asked["bf16"]}
    exported = work / f"exported-{known['model']}"
    result: dict[str, Any] = {"versions": versions()}
    try:
        export(peer, jobs.parent / known["model"], exported)
    except Exception as error:  # see `search`
        return result | {"error": f"export: {one_line(error)}"}
    found = search(peer, exported, known, jobs.parent, kinds_of(peer, asked["bf16"], asked["int8"]))
    result |= {"search": found, "painted": []}
    for setting in promising(found):
        try:
            result["painted"].append(run(peer, exported, known, jobs.parent, setting, Path(asked["images"])))
        except Exception as error:  # see `search`
            result["painted"].append(asdict(setting) | {"error": one_line(error)})
    painted = [one for one in result["painted"] if "error" not in one]
    if painted:
        best: dict[str, Any] = max(painted, key=lambda one: float(one["images_per_second"]))
        return result | best
    return result | {"error": (result["painted"] or found)[0]["error"]}


def promising(found: Sequence[Mapping[str, Any]]) -> list[Setting]:
    """The best batch of each kind of setting (precision, and whether shapes are static), of the PAINTED best kinds."""
    ranked = sorted((one for one in found if "error" not in one), key=lambda one: float(one["predicted_seconds"]))
    best: dict[tuple[str, bool], Setting] = {}
    for one in ranked:
        best.setdefault((one["precision"], one["static"]), Setting(one["precision"], one["static"], one["batch"]))
    return list(best.values())[:PAINTED]


if __name__ == "__main__":
    request = json.loads(Path(sys.argv[1]).read_text("utf-8"))
    Path(request["out"]).write_text(json.dumps(measure(request), indent=1), "utf-8")
