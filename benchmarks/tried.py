"""What each thing that makes `generate` fast on a CPU is worth: the committed workload, one of them undone at a time.

    python benchmarks/tried.py --references FOLDER --out benchmarks/results/tried.md

FOLDER is what `speed.py` paints in WORK/references. Every run is a process of its own, one after the other; let nothing
else run. A round has each thing undone once, with a run as it is before every third; the figures are medians over the
rounds. The caches of compiled models are kept under WORK, apart from the user's.

Two more runs are seen from inside: as it is, and with everything undone at once, which is the profile that one would
start from. What changes pictures (precision, steps, guidance) is judged in `speed.py`.

Knows: how to undo each thing, by putting something plain in the place of a part of the engine. Does not know why the
parts are as they are.
"""

import argparse
import contextlib
import dataclasses
import json
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np

sys.path.insert(0, str(Path(__file__).parent.parent))

import engines.backends.openvino_backend as openvino
import engines.generation.finisher as finisher
import engines.generation.loop as loop
import engines.generation.networks as networks
import engines.generation.painter as painter
from engines.bundle import default_bundle, open_bundle
from engines.diffusion.sampler import SlotSampler
from engines.files import write_atomic, write_json
from engines.generation.events import Event, Opened
from engines.generation.networks import Labeller
from engines.generation.writer import ImageWriter
from engines.measure.alone import run_alone
from engines.measure.machine import machine, versions
from engines.measure.run import engine_task
from engines.measure.workload import WORKLOAD, Workload, jobs_of

JOBS, ROUNDS, SLOTS, PRECISION = 96, 3, 16, "int8"
_EVERY = 3  # after so many runs with something undone comes one as it is

Tell = Callable[[str], None]
Undo = Callable[[contextlib.ExitStack], None]  # enters the patches that undo a thing
Record = dict[str, Any]


class AtOnce:
    """In the place of a ThreadPoolExecutor: work is done where it is submitted."""

    def __init__(self, *_: Any) -> None:
        pass

    def submit(self, work: Callable[..., Any], *given: Any) -> "Future[Any]":
        """A future that is done."""
        future: Future[Any] = Future()
        try:
            future.set_result(work(*given))
        except Exception as cause:
            future.set_exception(cause)
        return future

    def shutdown(self, **_: Any) -> None:
        """Nothing is left to wait for."""


class InPlaceWriter(ImageWriter):
    """Encodes and writes an image where it is submitted."""

    def submit(self, name: str, pixels: Any) -> None:
        """The image is on the disk when this returns."""
        self._done.put(self._write(name, pixels))


class CopyingCall:
    """An OpenVINO call with memory of its own on both sides: what goes in and out is copied."""

    capturable = False

    def __init__(self, inner: Any) -> None:
        self._inner = inner
        self.inputs = {name: value.clone() for name, value in inner.inputs.items()}
        self.outputs = {name: value.clone() for name, value in inner.outputs.items()}

    def run(self) -> None:
        """Once through NumPy in each direction."""
        for name, value in self.inputs.items():
            self._inner.inputs[name].numpy()[...] = np.array(value.numpy())
        self._inner.run()
        for name, value in self.outputs.items():
            value.numpy()[...] = np.array(self._inner.outputs[name].numpy())


def _put(where: Any, name: str, new: Any) -> Undo:
    return lambda stack: stack.enter_context(patch.object(where, name, new))


def _together(*undone: Undo) -> Undo:
    def undo(stack: contextlib.ExitStack) -> None:
        for one in undone:
            one(stack)

    return undo


def _batches(sampler: SlotSampler, tasks: Any) -> Iterator[Any]:
    """`SlotSampler.run` where a free slot waits until all are."""
    source = iter(tasks)
    while (first := next(source, None)) is not None:
        # One at a time, as `run` asks for them: a batch is what fits into the slots.
        batch = [first, *(task for _, task in zip(range(sampler._slots - 1), source, strict=False))]
        yield from _RUN(sampler, batch)


def _two_rows(labeller: Labeller, *given: Any) -> Any:
    """`Labeller._look` with the unconditional row, too, which nobody reads."""
    found = _LOOK(labeller, *given)
    labeller._unet.run()
    return found


def _copying(*given: Any) -> CopyingCall:
    return CopyingCall(_CALL(*given))


_RUN, _LOOK, _CALL = SlotSampler.run, Labeller._look, openvino.OpenVinoBackend._call
# What is done, and how it is undone.
THINGS: Mapping[str, Undo] = {
    "a prompt is encoded once": _put(networks, "_PROMPTS_KEPT", 0),
    "a free slot takes the next image at once": _put(SlotSampler, "run", _batches),
    "images with the most steps begin first": _put(painter, "longest_first", lambda jobs, first_step: iter(jobs)),
    "the label pass has no unconditional row": _put(Labeller, "_look", _two_rows),
    "images are encoded and written in threads of their own": _put(loop, "ImageWriter", InPlaceWriter),
    "pixels to bytes, checks and boxes in a thread of their own": _put(finisher, "ThreadPoolExecutor", AtOnce),
    "references are read in a thread, a batch ahead, and kept": _together(
        _put(painter, "ThreadPoolExecutor", AtOnce), _put(painter, "_KEPT", 0)
    ),
    "a stream for each thread": _put(openvino, "count_streams", lambda batch, threads: 1),
    "no copies between PyTorch and OpenVINO": _put(openvino.OpenVinoBackend, "_call", _copying),
    "PyTorch leaves the cores to the graphs": _put(loop, "cores_for_graphs", lambda backend: contextlib.nullcontext()),
    "what the two rows of an image share is computed once": _put(openvino, "share_pairs", lambda *_: None),
    "products that are split are cut": _put(openvino, "cut_products", lambda *_: None),
    "convolutions of doubled images are folded": _put(openvino, "fold_upsampling", lambda *_: None),
}
AS_IT_IS, ALL = "as it is", "everything undone"


def undone(stack: contextlib.ExitStack, names: Sequence[str]) -> None:
    """Undo the named things until `stack` closes. Models that were compiled otherwise are not taken for one another."""
    for name in names:
        THINGS[name](stack)
    stack.enter_context(patch.object(openvino, "_MADE", f"{openvino._MADE} without {sorted(names)}"))


def run_task(arguments: Mapping[str, Any], tell: Tell) -> Record:
    """For `alone`: paint the workload with the things in `undone` undone; `images_per_second`, from the end of loading
    to every file on the disk. With `inside`, all figures of `engines.measure.run.engine_task`.
    """
    with contextlib.ExitStack() as stack:
        undone(stack, arguments["undone"])
        if arguments["inside"]:
            return engine_task(arguments, tell)
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="dengine-tried-")))
        workload = Workload.from_json(arguments["workload"])
        bundle = None if arguments["bundle"] is None else Path(arguments["bundle"])
        settings = workload.generate_settings(
            folder / "run", bundle=bundle, references=Path(arguments["references"]), **arguments["options"]
        )
        opened: list[float] = []

        def hear(event: Event) -> None:
            if isinstance(event, Opened):
                opened.append(time.perf_counter())
                tell(event.backend)

        summary = loop.generate(settings, report=hear)
        seconds = time.perf_counter() - opened[0]
    return {"images": summary.painted, "seconds": seconds, "images_per_second": summary.painted / seconds}


def measure(asked: Mapping[str, Any], rounds: int, tell: Tell) -> Record:
    """`rates` (images/s) of every thing undone and as it is, by name, and `inside` of the two profiles."""
    order: list[tuple[str, list[str]]] = []
    for place, name in enumerate(THINGS):
        order += [(AS_IT_IS, [])] if place % _EVERY == 0 else []
        order.append((name, [name]))
    order.append((ALL, list(THINGS)))

    def run(names: Sequence[str], inside: bool) -> Record:
        return run_alone("tried:run_task", {**asked, "undone": list(names), "inside": inside})

    inside = {}
    for name, names in ((AS_IT_IS, []), (ALL, list(THINGS))):
        tell(f"inside, {name}")
        inside[name] = run(names, inside=True)
    for _, names in order:  # fills the cache of compiled models
        tell("compiling")
        run_alone("tried:run_task", {**_few(asked), "undone": names, "inside": False})
    rates: dict[str, list[float]] = {name: [] for name in (AS_IT_IS, *THINGS, ALL)}
    for number in range(rounds):
        for name, names in order:
            tell(f"round {number + 1}, {name}")
            rates[name].append(run(names, inside=False)["images_per_second"])
    return {"rates": rates, "inside": inside}


def _few(asked: Mapping[str, Any]) -> Record:
    """The same for so many images as there are slots."""
    workload = Workload.from_json(asked["workload"])
    few = dataclasses.replace(workload, jobs=min(workload.jobs, asked["options"]["slots"]))
    return {**asked, "workload": few.to_json()}


def report(value: Mapping[str, Any]) -> str:
    """The tables as markdown."""
    here, load, rates = value["machine"], value["workload"], value["rates"]
    whole = statistics.median(rates[AS_IT_IS])
    spread = f"{min(rates[AS_IT_IS]):.2f} to {max(rates[AS_IT_IS]):.2f}"
    lines = [
        "# What each thing is worth on a CPU",
        "",
        f"Machine: {here['processor']}, {here['cores']} cores. Versions: "
        f"{', '.join(f'{name} {version}' for name, version in value['versions'].items())}.",
        "",
        f"Command: `{value['command']}`. {load['jobs']} images of the committed workload (`speed.md`) in "
        f"{value['options']['precision']} with {value['options']['slots']} slots, each run in a process of its own. As "
        f"it is: {whole:.2f} images/s, the median of {len(rates[AS_IT_IS])} runs, {spread}: a change within that "
        "spread may be none. Pictures and labels are the same in every row, but for the rounding of what is computed "
        "in another order.",
        "",
        "| what is done | images/s without it | change | runs |",
        "| --- | --- | --- | --- |",
    ]
    for name in (*THINGS, ALL):
        found = statistics.median(rates[name])
        every = ", ".join(f"{rate:.2f}" for rate in rates[name])
        lines.append(f"| {name} | {found:.2f} | {found / whole - 1:+.1%} | {every} |")
    lines += [
        "",
        f"Latents of references are not kept: the {load['jobs']} jobs have {value['crops']} different crops. Encoding "
        f"them takes {_share(value['inside'][AS_IT_IS], 'vae_encoder'):.1%} of the run.",
    ]
    for name in (ALL, AS_IT_IS):
        lines += ["", f"## Where the time goes, {name}", "", *_profile(value["inside"][name])]
    return "\n".join([*lines, ""])


def _profile(step: Mapping[str, Any]) -> Iterator[str]:
    yield "| graph | calls | batch | seconds in the run | of the run |"
    yield "| --- | --- | --- | --- | --- |"
    for name, graph in sorted(step["graphs"].items(), key=lambda item: -float(item[1]["run_seconds"])):
        cells = name, graph["calls"], graph["batch"], f"{graph['run_seconds']:.2f}", f"{_share(step, name):.1%}"
        yield f"| {' | '.join(map(str, cells))} |"
    outside = step["outside_share"]
    yield f"| outside the graphs | - | - | {outside * step['seconds']:.2f} | {outside:.1%} |"
    yield ""
    yield f"{step['images']} images in {step['seconds']:.1f} s, {step['images_per_second']:.2f} images/s."


def _share(step: Mapping[str, Any], graph: str) -> float:
    return float(step["graphs"][graph]["run_seconds"] / step["seconds"]) if graph in step["graphs"] else 0.0


def main() -> None:
    """Measure, print and write the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--references", type=Path, required=True, help="images to repaint, as speed.py paints them")
    parser.add_argument("--bundle", type=Path, help="a bundle; the bundled model without it")
    parser.add_argument("--jobs", type=int, default=JOBS, help=f"images of a run (default: {JOBS})")
    parser.add_argument("--rounds", type=int, default=ROUNDS, help=f"runs with each thing undone (default: {ROUNDS})")
    parser.add_argument("--slots", type=int, default=SLOTS, help=f"images at once (default: {SLOTS})")
    parser.add_argument("--precision", default=PRECISION, help=f"int8, bf16 or f32 (default: {PRECISION})")
    parser.add_argument("--out", type=Path, help="markdown file; a JSON file with every figure goes beside it")
    given = parser.parse_args()
    os.environ["PYTHONPATH"] = os.pathsep.join([str(Path(__file__).resolve().parent), os.environ.get("PYTHONPATH", "")])
    workload = dataclasses.replace(WORKLOAD, jobs=given.jobs)
    opened = open_bundle(given.bundle or default_bundle(), verify=False)
    jobs = jobs_of(workload, opened, given.references).jobs
    asked: Record = {
        "workload": workload.to_json(),
        "bundle": None if given.bundle is None else str(given.bundle.resolve()),
        "references": str(given.references.resolve()),
        "engine": "openvino",
        "options": {"precision": given.precision, "slots": given.slots},
    }
    with tempfile.TemporaryDirectory(prefix="dengine-tried-cache-") as cache:
        os.environ["XDG_CACHE_HOME"] = cache
        found = measure(asked, given.rounds, lambda line: print(line, file=sys.stderr, flush=True))
    options = f" --bundle {given.bundle.name}" if given.bundle else ""
    value = {
        "machine": machine(),
        "versions": versions(),
        "command": f"python benchmarks/tried.py --references WORK/references{options} --out OUT",
        "workload": asked["workload"],
        "options": asked["options"],
        "crops": len({(job.reference, job.crop, job.flip) for job in jobs}),
        **found,
    }
    text = report(value)
    if given.out is not None:
        write_atomic(given.out, text.encode())
        write_json(given.out.with_suffix(".json"), value)
    print(text)
    print(json.dumps(value))


if __name__ == "__main__":
    main()
