"""The committed workload on optimum's pipelines: OpenVINO and ONNX Runtime, each at its own best batch and precision;
OpenVINO once more in int8, as optimum quantizes a pipeline, since int8 changes what is painted.

Each peer gets a virtual environment under WORK, the same jobs as ours (crops as PNG, prompts, strengths, steps), the
same weights and the same processor, and `peer_runner.py` paints them there. A peer that cannot run is listed with its
error and the versions tried. In the peers' favour: export and loading are not timed, crops are cut beforehand, and
they paint pictures without boxes.

Knows: environments, and how our jobs become files. Does not know optimum: `peer_runner` does.
"""

import dataclasses
import importlib.metadata
import json
import shutil
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks import peer_runner
from benchmarks.records import Record, Tell, table
from engines.bundle.bundle import Bundle, default_bundle, open_bundle
from engines.common.files import write_json
from engines.common.tokenizer import complete_vocabulary
from engines.diffusion.published import published
from engines.errors import UsageError
from engines.measure.workload import Workload, jobs_of

RUNNER = Path(peer_runner.__file__).resolve()
JOBS, MODEL, CROPS, ASKED = "jobs.json", "model", "crops", "asked.json"
PARTS = ("model_index.json", "scheduler", "text_encoder", "tokenizer", "unet", "vae")


@dataclass(frozen=True)
class Peer:
    """A system that does the same jobs."""

    name: str  # as peer_runner knows it
    title: str
    requirements: tuple[str, ...]  # of its environment
    unwanted: tuple[str, ...] = ()  # packages that come along and break it
    int8: bool = False  # in int8, and in nothing else


# torchvision's registry builds are CUDA's, and do not import beside a CPU build of torch.
_OPENVINO = Peer(
    "openvino",
    "optimum-intel, OpenVINO",
    ("optimum-intel[openvino,diffusers]==2.2.0", "transformers==5.5.*", "diffusers==0.39.*"),
    ("torchvision",),
)
PEERS = (
    _OPENVINO,
    dataclasses.replace(_OPENVINO, title="optimum-intel, OpenVINO, int8", int8=True),
    # It asks for transformers below 4.58, whose hub is below 1: newer diffusers do not go with that.
    Peer(
        "onnxruntime",
        "optimum-onnx, ONNX Runtime",
        ("optimum-onnx[onnxruntime]==0.1.0", "transformers==4.57.*", "huggingface-hub<1", "diffusers<0.37"),
    ),
)


def environment(peer: Peer, folder: Path) -> Path:
    """The Python of a peer's environment in `folder`, made where it is not whole yet; UsageError with pip's last line.

    torch is held at our own version, so that both sides compute with the same one.
    """
    python, done, log = folder / "bin" / "python", folder / "installed.txt", folder.parent / "pip.log"
    wanted = "\n".join(peer.requirements) + "\n"
    if done.exists() and done.read_text("utf-8") == wanted:
        return python
    torch_version = importlib.metadata.version("torch").partition("+")[0]
    constraint = folder.parent / "constraint.txt"
    folder.parent.mkdir(parents=True, exist_ok=True)
    constraint.write_text(f"torch=={torch_version}\n", "utf-8")
    _logged([sys.executable, "-m", "venv", "--clear", folder], log)
    _logged([python, "-m", "pip", "install", "-c", constraint, *peer.requirements], log)
    if peer.unwanted:
        _logged([python, "-m", "pip", "uninstall", "-y", *peer.unwanted], log)
    done.write_text(wanted, "utf-8")
    return python


def _logged(command: Sequence[object], log: Path) -> None:
    with log.open("a", encoding="utf-8") as file:
        done = subprocess.run([str(word) for word in command], stdout=file, stderr=subprocess.STDOUT, check=False)
    if done.returncode:
        lines = [line for line in log.read_text("utf-8").splitlines() if line.strip()]
        raise UsageError(f"{' '.join(str(word) for word in command[1:4])} failed: {lines[-1] if lines else 'no word'}")


def write_model(bundle: Bundle, folder: Path) -> None:
    """The bundle's base model in the diffusers layout, in float32, without what only dengine reads.

    float32, since newer transformers would load a text encoder in the dtype it is stored in. The text encoder's weights
    get the names that they are published with: transformers before 5.6 knows no others.
    """
    from safetensors.torch import load_file, save_file

    if folder.exists():
        return
    temporary = folder.with_name(f"{folder.name}.tmp")
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir(parents=True)
    for part in PARTS:
        source = bundle.folder / part
        if source.is_dir():
            shutil.copytree(source, temporary / part)
        else:
            shutil.copy(source, temporary / part)
    complete_vocabulary(temporary / "tokenizer")
    for path in temporary.rglob("*.safetensors"):
        spelt = published if path.parent.name == "text_encoder" else str
        loaded = load_file(path).items()
        tensors = {spelt(name): value.float() if value.is_floating_point() else value for name, value in loaded}
        written = path.with_suffix(".tmp")  # the tensors may be the old file's own memory
        save_file(tensors, written, {"format": "pt"})
        written.replace(path)
    text = temporary / "text_encoder" / "config.json"
    config = json.loads(text.read_text("utf-8"))
    config |= {key: "float32" for key in ("dtype", "torch_dtype") if key in config}
    text.write_text(json.dumps(config, indent=2), "utf-8")
    temporary.rename(folder)


def write_jobs(folder: Path, workload: Workload, bundle: Bundle, references: Path) -> Path:
    """jobs.json, the crops and the model in `folder`, for `peer_runner`: exactly the jobs that `generate` does."""
    from PIL import Image

    from engines.painting.crops import read_crop

    model = f"{MODEL}-{bundle.digest[:12]}"
    write_model(bundle, folder / model)
    made = jobs_of(workload, bundle, references)
    (folder / CROPS).mkdir(parents=True, exist_ok=True)
    jobs = []
    for job in made.jobs:
        crop = f"{CROPS}/{job.index:08d}.png"
        Image.fromarray(read_crop(made.source, job)).save(folder / crop)
        found = {"index": job.index, "prompt": job.prompt, "strength": job.strength, "steps": made.steps(job)}
        jobs.append(found | {"crop": crop})
    value = {
        "model": model,
        "frame": list(workload.frame),
        "steps": workload.steps,
        "eta": workload.eta,
        "guidance": workload.guidance,
        "negative_prompt": made.options["negative_prompt"],
        "jobs": jobs,
    }
    write_json(folder / JOBS, value)
    return folder / JOBS


def run_peer(peer: Peer, jobs: Path, work: Path) -> Record:
    """What `peer_runner` measured, or the error and the versions asked for."""
    from engines.common.devices import cpu_has_bf16

    asked = {"peer": peer.name, "title": peer.title, "int8": peer.int8, "requirements": list(peer.requirements)}
    try:
        python = environment(peer, work / "venv")
    except UsageError as cause:
        return asked | {"error": str(cause)}
    kind = "-int8" if peer.int8 else ""
    out, said, images = work / f"result{kind}.json", work / f"log{kind}", work / f"images{kind}"
    request = {"jobs": str(jobs), "work": str(work), "images": str(images), "out": str(out), "bf16": cpu_has_bf16()}
    write_json(work / ASKED, asked | request)
    shutil.rmtree(images, ignore_errors=True)
    for path in (out, said):
        path.unlink(missing_ok=True)
    try:
        _logged([python, RUNNER, work / ASKED], said)
    except UsageError as cause:
        return asked | {"error": str(cause)[:300]}
    return asked | dict(json.loads(out.read_text("utf-8")))


def fastest(results: Sequence[Mapping[str, Any]], *, int8: bool) -> Mapping[str, Any] | None:
    """The peer with the most images a second, in `int8` or without it; None where none ran."""
    ran = [result for result in results if "error" not in result and (int8 or not result.get("int8"))]
    return max(ran, key=lambda result: float(result["images_per_second"]), default=None)


def report(results: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    """The peers with their versions, and what they were tried with."""
    if results:
        yield (
            "The same jobs on optimum's pipelines, each in an environment of its own at its best batch, shapes and "
            "precision of float32 and bf16. In their favour: crops are cut beforehand, export, quantization and "
            "loading are not timed, and they paint pictures without boxes. int8 is quantized by optimum with "
            f'{peer_runner.SAMPLES} calls of the UNet while it paints the jobs\' prompts: "hybrid" is its own choice '
            'for diffusion models, "full" has matrix products compute in int8 as well. What int8 does to the pictures '
            "was not judged for them."
        )
    yield table(("peer", "versions", "setting", "images/s"), map(_cells, results))


def setting_of(one: Mapping[str, Any]) -> str:
    """How a peer painted."""
    return f"{one['precision']}, {'static' if one['static'] else 'dynamic'} shapes, batch {one['batch']}"


def _cells(result: Mapping[str, Any]) -> Sequence[str]:
    told = ", ".join(f"{name} {version}" for name, version in result.get("versions", {}).items())
    told = told or "asked for: " + ", ".join(result["requirements"])
    if "error" in result:
        return result["title"], told, f"does not run: {result['error']}", "-"
    return result["title"], told, setting_of(result), f"{result['images_per_second']:.2f}"


def measure(work: Path, workload: Workload, references: Path, bundle: Path | None = None) -> Record:
    """Every peer, one after the other, as `peers`; int8 is left out where the processor has none.

    With an `error` where one does not run, so that they are tried again next time.
    """
    from engines.common.devices import cpu_has_int8

    jobs = write_jobs(work, workload, open_bundle(bundle or default_bundle()), references)
    wanted = [peer for peer in PEERS if cpu_has_int8() or not peer.int8]
    results = [run_peer(peer, jobs, work / peer.name) for peer in wanted]
    failed = [f"{result['title']}: {result['error']}" for result in results if "error" in result]
    return {"peers": results} | ({"error": "; ".join(failed)} if failed else {})


def peers_task(arguments: Mapping[str, Any], tell: Tell) -> Record:
    """For `alone`: `measure` in `work`."""
    tell("painting with the peers")
    bundle = None if arguments["bundle"] is None else Path(arguments["bundle"])
    workload = Workload.from_json(arguments["workload"])
    return measure(Path(arguments["work"]), workload, Path(arguments["references"]), bundle)
