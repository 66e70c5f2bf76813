"""What single things that make `generate` fast on a CPU are worth: the same workload with one of them undone at a time.

    python benchmarks/tried.py --references FOLDER --out benchmarks/results/tried.md

FOLDER is what `speed.py` paints in WORK/references. Every run is a process of its own, one after the other; let nothing
else run. A round has each thing undone once, with a run as it is before every third; the figures are medians over the
rounds. In the first round the labels and images of each run are compared with those of a run as it is. Models are
compiled beforehand, into a cache that is removed in the end.

Two more runs are seen from inside: as it is, and with everything undone at once. What changes pictures on purpose
(precision, steps, guidance) is judged in `speed.py`, and what is on in every row here is the engine, the number of
slots, and batches of images for VAE, label pass and adapter.

Knows: how to undo each thing, by putting something plain in the place of a part of the engine. Does not know why the
parts are as they are, or how the figures are shown (`tried_report`).
"""

import argparse
import contextlib
import dataclasses
import json
import os
import shutil
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future
from pathlib import Path
from typing import Any
from unittest.mock import patch

sys.path.insert(0, str(Path(__file__).parent.parent))

from tried_report import ALL, AS_IT_IS, report

import engines.backends.openvino.backend as openvino
import engines.painting.finisher as finisher
import engines.painting.networks as networks
import engines.painting.painter as painter
import engines.runs.generate as loop
from engines.bundle.bundle import default_bundle, open_bundle
from engines.common.files import write_atomic, write_json
from engines.diffusion.sampler import SlotSampler
from engines.measure.alone import run_alone
from engines.measure.machine import machine, versions
from engines.measure.run import engine_task
from engines.measure.workload import WORKLOAD, Workload, jobs_of
from engines.painting.networks import Labeller
from engines.runs.events import Event, Opened
from engines.runs.run_folder import require_run
from engines.runs.writer import ImageWriter

JOBS, CHUNK, ROUNDS, SLOTS, PRECISION = 128, 64, 3, 16, "int8"
_EVERY = 3  # so many runs with something undone come after one as it is

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
    """An OpenVINO call with memory of its own: what goes in and out is copied once."""

    capturable = False

    def __init__(self, inner: Any) -> None:
        self._inner = inner
        self.inputs = {name: value.clone() for name, value in inner.inputs.items()}
        self.outputs = {name: value.clone() for name, value in inner.outputs.items()}

    def run(self) -> None:
        """In, call, out."""
        for name, value in self.inputs.items():
            self._inner.inputs[name].copy_(value)
        self._inner.run()
        for name, value in self.outputs.items():
            value.copy_(self._inner.outputs[name])


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
_BATCHES = _put(SlotSampler, "run", _batches)
_LATE = _put(painter, "longest_first", lambda jobs, first_step: iter(jobs))
# What is done, and how it is undone.
THINGS: Mapping[str, Undo] = {
    "an image's prompt is encoded once": _put(networks, "_PROMPTS_KEPT", 0),
    "a free slot takes the next image at once": _BATCHES,
    "images with the most steps begin first": _LATE,
    "both of these": _together(_BATCHES, _LATE),
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


def undone(stack: contextlib.ExitStack, names: Sequence[str]) -> None:
    """Undo the named things until `stack` closes. Models that were compiled otherwise are not taken for one another."""
    for name in names:
        THINGS[name](stack)
    stack.enter_context(patch.object(openvino, "_MADE", f"{openvino._MADE} without {sorted(names)}"))


def run_task(arguments: Mapping[str, Any], tell: Tell) -> Record:
    """For `alone`: paint the workload into `out` with the things in `undone` undone; `images_per_second`, from the end
    of loading to every file on the disk. With `inside`, all figures of `engines.measure.run.engine_task` instead.
    """
    with contextlib.ExitStack() as stack:
        undone(stack, arguments["undone"])
        if arguments["inside"]:
            return engine_task(arguments, tell)
        workload = Workload.from_json(arguments["workload"])
        bundle = None if arguments["bundle"] is None else Path(arguments["bundle"])
        settings = workload.generate_settings(
            Path(arguments["out"]), bundle=bundle, references=Path(arguments["references"]),
            engine=arguments["engine"], **arguments["options"],
        )  # fmt: skip
        opened: list[float] = []

        def hear(event: Event) -> None:
            if isinstance(event, Opened):
                opened.append(time.perf_counter())
                tell(event.backend)

        summary = loop.generate(settings, report=hear)
        seconds = time.perf_counter() - opened[0]
    return {"images": summary.painted, "seconds": seconds, "images_per_second": summary.painted / seconds}


def measure(asked: Mapping[str, Any], rounds: int, work: Path, tell: Tell) -> Record:
    """`rates` (images/s) as it is and with every thing undone, by name; how far labels and images are the `same` as in
    a run as it is (`speed_tasks.same_labels_task`); and `inside` of the two profiles.
    """
    variants: dict[str, list[str]] = {AS_IT_IS: [], **{name: [name] for name in THINGS}, ALL: list(THINGS)}
    order: list[str] = []
    for place, name in enumerate((*THINGS, ALL)):
        order += [AS_IT_IS] if place % _EVERY == 0 else []
        order.append(name)

    def run(what: str, name: str, **changes: Any) -> Record:
        tell(f"{what}, {name}")
        given = {**asked, "undone": variants[name], "inside": False, "out": str(work / "run"), **changes}
        shutil.rmtree(given["out"], ignore_errors=True)
        return run_alone("tried:run_task", given)

    few = dataclasses.replace(Workload.from_json(asked["workload"]), jobs=asked["options"]["slots"]).to_json()
    for name in variants:
        run("compiling", name, workload=few)
    inside = {name: run("inside", name, inside=True) for name in (AS_IT_IS, ALL)}
    plain = work / "plain"
    run("comparing", AS_IT_IS, out=str(plain))
    rates: dict[str, list[float]] = {name: [] for name in variants}
    same: dict[str, Record] = {}
    for number in range(rounds):
        for name in order:
            rates[name].append(run(f"round {number + 1}", name)["images_per_second"])
            if name not in same:
                asked_of = {"run": str(work / "run"), "reference": str(plain)}
                same[name] = run_alone("speed_tasks:same_labels_task", asked_of)
    return {"rates": rates, "same": same, "inside": inside, "run": _settings_of(plain)}


def _settings_of(folder: Path) -> Record:
    run = require_run(folder)
    return {name: getattr(run, name) for name in ("precision", "slots", "chunk", "threads")}


def main() -> None:
    """Measure, print and write the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--references", type=Path, required=True, help="images to repaint, as speed.py paints them")
    parser.add_argument("--bundle", type=Path, help="a bundle; the bundled model without it")
    parser.add_argument("--jobs", type=int, default=JOBS, help=f"images of a run (default: {JOBS})")
    parser.add_argument("--rounds", type=int, default=ROUNDS, help=f"runs with each thing undone (default: {ROUNDS})")
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
        "options": {"precision": PRECISION, "slots": SLOTS, "chunk": CHUNK},
    }
    with tempfile.TemporaryDirectory(prefix="dengine-tried-") as folder:
        os.environ["XDG_CACHE_HOME"] = str(Path(folder) / "cache")
        found = measure(asked, given.rounds, Path(folder), lambda line: print(line, file=sys.stderr, flush=True))
    options = "".join(
        f" --{name} {getattr(given, name)}"
        for name, usual in (("bundle", None), ("jobs", JOBS), ("rounds", ROUNDS))
        if getattr(given, name) != usual
    )
    value = {
        "machine": machine(),
        "versions": versions(),
        "command": f"python benchmarks/tried.py --references WORK/references{options} --out OUT",
        "workload": asked["workload"],
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
