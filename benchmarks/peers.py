"""The committed workload on optimum's pipelines: OpenVINO and ONNX Runtime, each at its own best batch and precision;
OpenVINO once more in int8, as optimum quantizes a pipeline, since int8 changes what is painted.

    python benchmarks/peers.py --work WORK --references FOLDER --jobs 256 --out peers.json

Each peer gets a virtual environment under WORK, the same jobs as ours (crops as PNG, prompts, strengths, steps), the
same weights and the same processor, and `peer_runner.py` paints them there. A peer that cannot run is listed with its
error and the versions tried. Prints a table, and one JSON line last.

In the peers' favour: export and loading are not timed, crops are cut beforehand, and there are no boxes. Peers paint
pictures; what a user needs besides is the label pass, in PyTorch, since no peer gives the UNet's features. Its time is
measured here, in dengine's own environment (the adapter needs a newer transformers than the peers allow), on latents
that are there already; a second figure adds it.

Knows: environments, and how our jobs become files. Does not know optimum: `peer_runner` does.
"""

import argparse
import dataclasses
import importlib.metadata
import json
import shutil
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent.parent))

from engines.bundle.bundle import Bundle, default_bundle, open_bundle
from engines.common.files import write_atomic, write_json
from engines.errors import UsageError
from engines.measure.workload import WORKLOAD, Workload, jobs_of

RUNNER = Path(__file__).resolve().parent / "peer_runner.py"
JOBS, MODEL, CROPS = "jobs.json", "model", "crops"
BATCHES = "1,2,4,8,16"
PARTS = ("model_index.json", "scheduler", "text_encoder", "tokenizer", "unet", "vae")
LABEL_BATCHES, LABEL_CALLS = (1, 4, 8), 5


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
    for path in temporary.rglob("*.safetensors"):
        prefix = "text_model." if path.parent.name == "text_encoder" else ""
        tensors = {
            prefix + name.removeprefix(prefix): value.float() if value.is_floating_point() else value
            for name, value in load_file(path).items()
        }
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

    from engines.painting.painter import read_crop

    model = f"{MODEL}-{bundle.digest[:12]}"
    write_model(bundle, folder / model)
    made = jobs_of(workload, bundle, references)
    (folder / CROPS).mkdir(parents=True, exist_ok=True)
    jobs = []
    for job in made.jobs:
        crop = f"{CROPS}/{job.index:08d}.png"
        Image.fromarray(read_crop(made.plan, job)).save(folder / crop)
        jobs.append(
            {
                "index": job.index,
                "prompt": job.prompt,
                "strength": job.strength,
                "steps": made.steps(job),
                "crop": crop,
            }
        )
    value = {
        "model": model,
        "frame": list(workload.frame),
        "steps": workload.steps,
        "eta": workload.eta,
        "guidance": workload.guidance,
        "negative_prompt": made.options["negative_prompt"],
        "jobs": jobs,
    }
    write_atomic(folder / JOBS, (json.dumps(value, indent=1) + "\n").encode())
    return folder / JOBS


def run_peer(peer: Peer, jobs: Path, work: Path, batches: str = BATCHES) -> dict[str, Any]:
    """What `peer_runner` measured, or the error and the versions asked for."""
    from engines.common.devices import cpu_has_bf16

    asked = {"peer": peer.name, "title": peer.title, "int8": peer.int8, "requirements": list(peer.requirements)}
    try:
        python = environment(peer, work / "venv")
    except UsageError as cause:
        return asked | {"error": str(cause)}
    kind = "-int8" if peer.int8 else ""
    out, images = work / f"result{kind}.json", work / f"images{kind}"
    out.unlink(missing_ok=True)
    command: list[object] = [python, RUNNER, "--peer", peer.name, "--jobs", jobs, "--work", work, "--out", out]
    command += ["--images", images]
    command += ["--batches", batches, *(["--bf16"] if cpu_has_bf16() else []), *(["--int8"] if peer.int8 else [])]
    shutil.rmtree(images, ignore_errors=True)
    with (work / f"log{kind}").open("w", encoding="utf-8") as log:
        done = subprocess.run([str(word) for word in command], stdout=log, stderr=log, check=False)
    if not out.exists():
        lines = [line for line in (work / f"log{kind}").read_text("utf-8").splitlines() if line.strip()]
        return asked | {"error": f"exit {done.returncode}: {lines[-1] if lines else 'it said nothing'}"[:300]}
    return asked | dict(json.loads(out.read_text("utf-8")))


def label_seconds(bundle: Bundle, workload: Workload) -> dict[str, Any]:
    """Seconds an image of the label pass and the adapter in PyTorch float32, at its best batch, on latents at hand."""
    import torch

    from engines.backends.registry import open_backend
    from engines.painting.networks import Labeller

    backend = open_backend(bundle, "torch", precision="f32", device="cpu")
    w, h = (side // bundle.vae_stride for side in workload.frame)
    latents = torch.randn((bundle.latent_channels, h, w), generator=torch.Generator().manual_seed(0))
    states = torch.zeros((bundle.text_length, bundle.hidden_size))
    found: dict[str, float] = {}
    for batch in LABEL_BATCHES:
        labeller = Labeller(bundle, backend, batch, h, w)
        times = []
        for _ in range(LABEL_CALLS + 1):
            begun = time.perf_counter()
            labeller(
                [latents] * batch, [states] * batch, [(0, i) for i in range(batch)], [str(i) for i in range(batch)]
            )
            times.append(time.perf_counter() - begun)
        found[str(batch)] = sorted(times[1:])[LABEL_CALLS // 2] / batch
    return {"seconds_an_image": min(found.values()), "by_batch": found}


def with_labels(result: Mapping[str, Any], label: float) -> float | None:
    """images/s of a peer with `label` seconds an image added for labels; None for one that did not run."""
    if "error" in result:
        return None
    return 1.0 / (1.0 / float(result["images_per_second"]) + label)


def fastest(results: Sequence[Mapping[str, Any]], *, int8: bool) -> Mapping[str, Any] | None:
    """The peer with the most images a second, in `int8` or without it; None where none ran."""
    ran = [result for result in results if "error" not in result and (int8 or not result.get("int8"))]
    return max(ran, key=lambda result: float(result["images_per_second"]), default=None)


def table(results: Sequence[Mapping[str, Any]], label: float) -> str:
    """The peers as a markdown table."""
    lines = [
        "| peer | versions | setting | images/s, pictures alone | images/s, with labels |",
        "|---|---|---|---|---|",
    ]
    for result in results:
        known = result.get("versions") or {}
        told = ", ".join(f"{name} {version}" for name, version in known.items())
        told = told or "asked for: " + ", ".join(result["requirements"])
        if "error" in result:
            lines.append(f"| {result['title']} | {told} | does not run: {result['error'].replace('|', '/')} | - | - |")
            continue
        shapes = "static" if result["static"] else "dynamic"
        setting = f"{result['precision']}, {shapes} shapes, batch {result['batch']}"
        both = with_labels(result, label)
        lines.append(f"| {result['title']} | {told} | {setting} | {result['images_per_second']:.2f} | {both:.2f} |")
    return "\n".join(lines) + "\n"


def measure(
    work: Path, workload: Workload, references: Path, bundle: Path | None = None, names: Sequence[str] = ()
) -> dict[str, Any]:
    """Every peer (or those named), one after the other: {"peers": [...], "label": ...}.

    int8 is left out where the processor has none.
    """
    from engines.common.devices import cpu_has_int8

    opened = open_bundle(bundle or default_bundle())
    jobs = write_jobs(work, workload, opened, references)
    wanted = [peer for peer in PEERS if (not names or peer.name in names) and (cpu_has_int8() or not peer.int8)]
    results = [run_peer(peer, jobs, work / peer.name) for peer in wanted]
    return {"peers": results, "label": label_seconds(opened, workload)}


def main() -> None:
    """Measure, print, and write the JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, required=True, help="folder for environments, exports and images; kept")
    parser.add_argument("--references", type=Path, required=True, help="images to repaint, as speed.py paints them")
    parser.add_argument("--bundle", type=Path, default=None, help="a bundle; the bundled model without it")
    parser.add_argument("--jobs", type=int, default=WORKLOAD.jobs)
    parser.add_argument(
        "--peer", action="append", choices=sorted({peer.name for peer in PEERS}), help="one of them only"
    )
    parser.add_argument("--out", type=Path, help="JSON file for the figures")
    given = parser.parse_args()
    workload = dataclasses.replace(WORKLOAD, jobs=given.jobs)
    result = measure(given.work, workload, given.references, given.bundle, given.peer or ())
    if given.out is not None:
        write_json(given.out, result)
    print(table(result["peers"], result["label"]["seconds_an_image"]))
    print(json.dumps(result))


if __name__ == "__main__":
    main()
