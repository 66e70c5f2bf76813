"""Every speed figure of dengine on this machine, in one run: ours, diffusers, the peers, and the machine's limit.

    python benchmarks/speed.py --work WORK --detector DETECTOR --out benchmarks/results/speed.md
    python benchmarks/speed.py --work WORK --detector DETECTOR --out ... --rows peers tick     these rows again
    python benchmarks/speed.py --work WORK --profile before                                 where the time goes, kept

The workload is `engines.measure.workload`: img2img on references that the bundled model painted beforehand. Every
measurement has a process of its own, one after the other; let nothing else run. What is done is kept in WORK, and the
same command goes on after an interruption. DETECTOR is a folder that `independent_detector.py` trained on real images;
without it the row of the best settings is left out. Beside the markdown file a JSON file holds every figure, the
machine and the versions.

Knows: what is measured, in which order. How: `speed_tasks`, `sd2_tick`, `peers` and `engines.measure`; how it is shown
and what it has to reach: `speed_report`.
"""

import argparse
import dataclasses
import json
import os
import re
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent.parent))

import speed_report
from speed_bars import OURS, best_ours, holds
from speed_store import PROFILE, Result, Speed, Steps, middle, paint, run_generate

from engines.common.files import sha256_file, write_atomic
from engines.measure.alone import run_alone
from engines.measure.baseline import BATCHES, BaselineSettings, best_batch
from engines.measure.machine import machine, versions
from engines.measure.workload import WORKLOAD, Workload
from engines.painting.settings import GenerateSettings

REFERENCES, REFERENCE_SEED = 64, 1000  # images that are repainted, and the seed that they were painted with
SEARCH_SEED = 1  # the search's jobs are other jobs than those that are reported
TRIES = 3  # settings that may fail on the whole workload after they passed the search
FINALS = 3  # measurements of the settings that are reported; the middle one counts
FIRST_IMAGES = 3  # processes of which the median counts
LATENTS = 64  # side of the full-size tick's latents
SLOTS = (None, 8, 16)  # of ours; None is what `generate` takes by itself
# Settings that change what is painted, beside the workload's own. Cheapest first is worked out from their rows.
CANDIDATES: Mapping[str, Mapping[str, Any]] = {
    "DDIM 15": {"steps": 15},
    "DDIM 10": {"steps": 10},
    "DDIM 25, guided above 0.4": {"guidance_interval": (0.4, 1.0)},
    "DPM++ 15": {"sampler": "dpmpp", "steps": 15},
    "DPM++ 12": {"sampler": "dpmpp", "steps": 12},
    "DPM++ 10": {"sampler": "dpmpp", "steps": 10},
    "DPM++ 8": {"sampler": "dpmpp", "steps": 8},
    "DPM++ 12, guided above 0.4": {"sampler": "dpmpp", "steps": 12, "guidance_interval": (0.4, 1.0)},
    "DPM++ 10, guided above 0.4": {"sampler": "dpmpp", "steps": 10, "guidance_interval": (0.4, 1.0)},
    "DPM++ 8, guided above 0.4": {"sampler": "dpmpp", "steps": 8, "guidance_interval": (0.4, 1.0)},
    "DPM++ 8, guided below 0.4": {"sampler": "dpmpp", "steps": 8, "guidance_interval": (0.0, 0.4)},
    "DPM++ 6": {"sampler": "dpmpp", "steps": 6},
    "DPM++ 6, guided above 0.4": {"sampler": "dpmpp", "steps": 6, "guidance_interval": (0.4, 1.0)},
    "DPM++ 6, guided below 0.4": {"sampler": "dpmpp", "steps": 6, "guidance_interval": (0.0, 0.4)},
    "DPM++ 6, guided above 0.6": {"sampler": "dpmpp", "steps": 6, "guidance_interval": (0.6, 1.0)},
    "DPM++ 5": {"sampler": "dpmpp", "steps": 5},
    "DPM++ 5, guided above 0.6": {"sampler": "dpmpp", "steps": 5, "guidance_interval": (0.6, 1.0)},
    "DPM++ 4": {"sampler": "dpmpp", "steps": 4},
}


def make_references(speed: Speed) -> Result:
    """Paint the references, at the bundle's own size."""
    settings = GenerateSettings(
        out=speed.references, bundle=speed.bundle, jobs=min(REFERENCES, speed.workload.jobs), seed=REFERENCE_SEED,
        image_format="png", keep_empty=True, min_quality=0.0,
    )  # fmt: skip
    found = run_generate(settings)
    return found | {"sha256": sha256_file(speed.references / "annotations.json")}


def measure_baseline(speed: Speed, steps: Steps) -> None:
    """The diffusers pipeline at batch 1 and at its best batch, eager and compiled."""

    def row(name: str, batch: int, compiled: bool) -> Result:
        asked = _baseline(speed, name, batch, compiled)
        return steps.do(name, lambda: run_alone("engines.measure.baseline:baseline_task", asked.to_json(), _say))

    row("baseline-1", 1, False)
    sizes = [size for size in BATCHES if size <= speed.workload.jobs]
    asked = _baseline(speed, "baseline-sizes", 1, False).to_json() | {"batches": sizes}
    rates = steps.do("baseline-sizes", lambda: run_alone("engines.measure.baseline:batches_task", asked, _say))
    if "error" in rates:
        return
    best = best_batch(rates)
    if best > 1:
        row("baseline-best", best, False)
    row("baseline-compiled-1", 1, True)
    if best > 1:
        row("baseline-compiled", best, True)


def _baseline(speed: Speed, name: str, batch: int, compiled: bool) -> BaselineSettings:
    out = speed.work / "runs" / name
    return BaselineSettings(
        out=out, workload=speed.workload, bundle=speed.bundle, references=speed.references, batch=batch,
        compiled=compiled,
    )  # fmt: skip


def measure_ours(speed: Speed, steps: Steps) -> None:
    """`dengine generate` in every precision, with several numbers of slots; and what precision does to the labels."""
    for precision in OURS:
        for slots in SLOTS if precision != "f32" else SLOTS[:1]:
            if slots is not None and slots > speed.workload.jobs:
                continue
            name = f"ours-{precision}{'' if slots is None else f'-slots{slots}'}"
            steps.do(name, partial(paint, speed, name, precision=precision, slots=slots))
        if (chosen := best_ours(steps.all(), precision)) is not None:  # measured again: the best of many flatters
            name = f"final-{precision}"
            painted = partial(paint, speed, name, precision=precision, slots=chosen["slots"])
            steps.do(name, partial(middle, painted, FINALS))
    few = dataclasses.replace(speed.workload, jobs=min(speed.search_jobs, speed.workload.jobs))
    slow = partial(paint, speed, "labels", few, warm=False, engine="torch", precision="f32")
    reference = steps.do("labels-f32-torch", slow)
    for precision in OURS:
        run = best_ours(steps.all(), precision)
        if run is not None and "run" in reference:
            asked = {"run": run["run"], "reference": reference["run"]}
            steps.do(f"labels-{precision}", partial(run_alone, "speed_tasks:same_labels_task", asked, _say))


def measure_best(speed: Speed, steps: Steps) -> None:
    """The fastest settings whose labels the detector agrees with as it does with the slow reference's."""
    if speed.detector is None:
        return
    judge = {"detector": str(speed.detector)}
    base = speed.work / "runs" / "baseline-1"
    slow = steps.do(
        "best-reference",
        lambda: run_alone("speed_tasks:judge_baseline_task", _asked(speed) | judge | {"run": str(base)}, _say),
    )
    few = dataclasses.replace(
        speed.workload, jobs=min(speed.search_jobs, speed.workload.jobs), seed=speed.workload.seed + SEARCH_SEED
    )
    fastest = best_ours(steps.all(), *OURS) or {"precision": "auto", "slots": None}
    ours = {"precision": fastest["precision"], "slots": fastest["slots"]}

    def judged(name: str, workload: Workload, changes: Mapping[str, Any], times: int = 1) -> Result:
        def measured() -> Result:
            painted = middle(partial(paint, speed, name, workload, **(ours | dict(changes))), times)
            found = run_alone("speed_tasks:judge_run_task", judge | {"run": painted["run"]}, _say)
            return painted | _judgement(found)

        return steps.do(name, measured)

    finals = [step for name, step in steps.all().items() if name.startswith("final-") and "run" in step]
    if finals:  # the workload's own settings, on all of its jobs
        own_final = max(finals, key=lambda step: float(step["images_per_second"]))
        asked = judge | {"run": own_final["run"]}
        steps.do("best-own", lambda: own_final | _judgement(run_alone("speed_tasks:judge_run_task", asked, _say)))
    own = judged("best-search-own", few, {})
    passed = []
    for name, changes in CANDIDATES.items():
        found = judged(f"best-search-{_file_name(name)}", few, changes) | {"setting": name}
        if "error" not in found and "error" not in own and holds(found, own):
            passed.append(found)
    passed.sort(key=lambda found: -float(found["images_per_second"]))
    for found in passed[:TRIES]:
        name = str(found["setting"])
        final = judged(f"best-final-{_file_name(name)}", speed.workload, CANDIDATES[name], FINALS)
        if "error" not in final and "error" not in slow and holds(final, slow):
            break


def _judgement(found: Result) -> Result:
    """What the detector said of a run, its first figures on top."""
    return {name: found[name] for name in ("label_ap50", "labels")} | {"judged": found}


def measure_peers(speed: Speed, steps: Steps) -> None:
    """optimum's pipelines."""
    asked = _asked(speed) | {"work": str(speed.work / "peers")}
    steps.do("peers", lambda: run_alone("speed_tasks:peers_task", asked, _say))


def measure_inside(speed: Speed, steps: Steps) -> None:
    """One run of ours seen from inside: what every graph takes, and what is outside them."""
    steps.do("inside-rows", lambda: run_alone("speed_tasks:used_rows_task", _asked(speed)))
    for precision in OURS[:2]:
        steps.do(f"inside-{precision}", partial(_inside, speed, precision, best_ours(steps.all(), precision)))


def _inside(speed: Speed, precision: str, best: Mapping[str, Any] | None = None) -> Result:
    options = {"precision": precision, "slots": best["slots"] if best else None}
    return run_alone("engines.measure.run:engine_task", _asked(speed) | {"engine": "auto", "options": options}, _say)


def measure_tick(speed: Speed, steps: Steps) -> None:
    """A tick of a UNet of full size, diffusers and ours."""
    asked: Result = {"folder": str(speed.work / ("toy-unet" if speed.toy else "sd2-unet")), "toy": speed.toy}
    asked |= {"side": 16 if speed.toy else LATENTS}
    steps.do("tick-unet", partial(run_alone, "sd2_tick:make_task", asked, _say))
    steps.do("tick-diffusers", partial(run_alone, "sd2_tick:diffusers_task", asked, _say))
    for precision in OURS[:2]:
        for whole in (False, True):
            more = {"precision": precision, "whole": whole}
            name = f"tick-ours-{precision}{'-whole' if whole else ''}"
            steps.do(name, partial(run_alone, "sd2_tick:ours_task", asked | more, _say))


def measure_first_image(speed: Speed, steps: Steps) -> None:
    """From load to one finished image, the cache of compiled models warm."""
    one = dataclasses.replace(speed.workload, jobs=1)  # one job takes one slot: the choice for latency
    asked = _asked(speed) | {"workload": one.to_json(), "engine": "auto", "options": {"precision": "auto"}}
    for number in range(FIRST_IMAGES + 1):
        steps.do(f"first-image-{number}", lambda: run_alone("speed_tasks:first_image_task", asked, _say))


def _asked(speed: Speed) -> Result:
    bundle = None if speed.bundle is None else str(speed.bundle)
    return {"workload": speed.workload.to_json(), "bundle": bundle, "references": str(speed.references)}


# What the results of a group decide, and what is measured again with it.
DECIDED_BY: Mapping[str, tuple[str, ...]] = {"ours": ("final-", "labels-", "inside-", "best-"), "baseline": ("best-",)}
GROUPS: Mapping[str, Callable[[Speed, Steps], None]] = {
    "baseline": measure_baseline,
    "ours": measure_ours,
    "inside": measure_inside,
    "best": measure_best,
    "peers": measure_peers,
    "tick": measure_tick,
    "first-image": measure_first_image,
}


def main() -> None:
    """Measure what is missing, and write the report."""
    given = _options()
    os.environ["PYTHONPATH"] = os.pathsep.join([str(Path(__file__).resolve().parent), os.environ.get("PYTHONPATH", "")])
    work = given.work.resolve()
    speed = Speed(
        work, dataclasses.replace(WORKLOAD, jobs=given.jobs), given.bundle and given.bundle.resolve(),
        given.detector and given.detector.resolve(), given.search_jobs, given.toy,
    )  # fmt: skip
    steps = Steps(work / "steps", speed.identity(), say=_say)
    if "error" in (painted := steps.do("references", lambda: make_references(speed))):
        sys.exit(f"the references were not painted: {painted['error']}")
    if given.profile:
        steps.forget(f"{PROFILE}{given.profile}")
        steps.do("inside-rows", lambda: run_alone("speed_tasks:used_rows_task", _asked(speed)))
        steps.do(f"{PROFILE}{given.profile}", lambda: _inside(speed, "auto"))
    for group in () if given.profile else given.rows or GROUPS:
        for name in (group, *DECIDED_BY.get(group, ())) if given.rows else ():
            steps.forget(name)
        GROUPS[group](speed, steps)
    report(speed, steps, given)


def report(speed: Speed, steps: Steps, given: argparse.Namespace) -> None:
    """Print the table, and write it with the JSON file beside it."""
    options = " --detector DETECTOR" if given.detector else ""
    options += f" --bundle {given.bundle.name}" if given.bundle else ""
    options += f" --jobs {given.jobs}" if given.jobs != WORKLOAD.jobs else ""
    value = {
        "machine": machine(),
        "versions": versions(),
        "command": f"python benchmarks/speed.py --work WORK{options} --out OUT",
        "toy": speed.toy,
        "workload": speed.workload.to_json(),
        "candidates": {f"best-search-{_file_name(name)}": name for name in CANDIDATES},
        "steps": steps.all(),
        "origins": steps.origins(),
    }
    text = speed_report.report(value).replace(str(speed.work), "WORK")
    if given.out is not None:
        given.out.parent.mkdir(parents=True, exist_ok=True)
        write_atomic(given.out, text.encode())
        figures = json.dumps(value, indent=1).replace(str(speed.work), "WORK")
        write_atomic(given.out.with_suffix(".json"), f"{figures}\n".encode())
    print(text)


def _file_name(setting: str) -> str:
    return re.sub(r"[^a-z0-9.]+", "-", setting.lower().replace("+", "p"))


def _say(line: str) -> None:
    print(f"{time.strftime('%H:%M:%S')} {line}", file=sys.stderr, flush=True)


def _options(words: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, required=True, help="folder for everything that is made; kept")
    parser.add_argument("--out", type=Path, help="markdown file for the report")
    parser.add_argument("--detector", type=Path, help="folder of the independent detector")
    parser.add_argument("--bundle", type=Path, help="a bundle; the bundled model without it")
    parser.add_argument("--jobs", type=int, default=WORKLOAD.jobs, help="images of the workload")
    parser.add_argument("--search-jobs", type=int, default=96, help="images of each setting in the search")
    parser.add_argument("--rows", nargs="+", choices=list(GROUPS), help="measure only these, and again")
    parser.add_argument("--profile", metavar="LABEL", help="measure only where the time goes, and keep it as LABEL")
    parser.add_argument("--toy", action="store_true", help="a tiny UNet in place of the full-size one: a dry run")
    given = parser.parse_args(words)
    if given.jobs < 1:
        parser.error("--jobs must be at least 1")
    return given


if __name__ == "__main__":
    main()
