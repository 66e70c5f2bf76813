"""Every speed figure of dengine on this machine, in one run: ours, diffusers, the peers, and the machine's limit.

    python benchmarks/speed.py --work WORK --detector WORTH/trainings/real-seed0 --out benchmarks/results/speed.md
    python benchmarks/speed.py --work WORK --out ... --rows peers inside     these rows again

The workload is `engines.measure.workload`: img2img on references that the bundled model painted beforehand. Every
measurement has a process of its own, one after the other; let nothing else run. What is done is kept in WORK, and the
same command goes on after an interruption. The detector, which `dengine evaluate` trained on photographs alone, tells
how right labels are where other settings paint other images.
"""

import dataclasses
import json
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benchmarks import speed_report
from benchmarks.records import Record, Steps, here, parser, say, write_report
from benchmarks.speed_bars import OURS, best_ours
from engines.bundle.bundle import default_bundle, open_bundle
from engines.measure.alone import run_alone
from engines.measure.baseline import BATCHES, BaselineSettings, best_batch
from engines.measure.workload import WORKLOAD, Workload
from engines.painting.settings import DEFAULTS, STEPS

REFERENCES, REFERENCE_SEED = 64, 1000  # images that are repainted, and the seed that they were painted with
LABEL_JOBS = 96  # images of the float32 reference that labels are compared with
FINALS = 3  # measurements of the settings that are reported; the middle one counts
SLOTS = (None, 8, 16)  # of ours; None is what `generate` takes by itself
# What `generate` does where nobody says.
USUAL = {"steps": STEPS[DEFAULTS["sampler"]], "sampler": DEFAULTS["sampler"]}
SETTINGS: Mapping[str, Record] = {  # by name: what differs from the workload's
    "usual": USUAL,
    "usual-int8": USUAL | {"precision": "int8", "slots": 16},
    "fast-4": USUAL | {"precision": "int8", "slots": 16, "steps": 4, "guidance_interval": (0.4, 1.0)},
    "fast-3": USUAL | {"precision": "int8", "slots": 16, "steps": 3, "guidance_interval": (0.4, 1.0)},
}
SLOW = "ours-f32"  # the run of the workload's own settings whose labels are nearest to diffusers'


@dataclass(frozen=True)
class Speed:
    """What is measured, and where it is kept."""

    work: Path
    workload: Workload = WORKLOAD
    bundle: Path | None = None  # None: the bundled model
    detector: Path | None = None  # that judges labels; None: nothing does

    def asked(self, workload: Workload | None = None, **more: Any) -> Record:
        """The arguments that most tasks take."""
        bundle, references = None if self.bundle is None else str(self.bundle), str(self.work / "references")
        return {"workload": (workload or self.workload).to_json(), "bundle": bundle, "references": references} | more

    def run(self, name: str) -> Path:
        """Where a run of this name is painted."""
        return self.work / "runs" / name

    @property
    def few(self) -> Workload:
        """The workload's first jobs."""
        return dataclasses.replace(self.workload, jobs=min(LABEL_JOBS, self.workload.jobs))

    def identity(self) -> Record:
        """What decides every figure, beside the code: processor and cores, too, since WORK may move."""
        found = here()
        return {
            "machine": {name: found["machine"][name] for name in ("processor", "cores", "gpus")},
            "versions": found["versions"],
            "workload": self.workload.to_json(),
            "bundle": open_bundle(self.bundle or default_bundle(), verify=False).digest,
        }


def paint(speed: Speed, name: str, workload: Workload | None = None, *, times: int = 1, **options: Any) -> Record:
    """The middle one of runs of ours into the folder `name`, after a small one, which fills the model cache."""
    asked = speed.asked(workload, options={"engine": "auto"} | options)
    task, arguments = "benchmarks.speed_tasks:paint_task", asked | {"out": str(speed.run(name))}
    run_alone(task, arguments | {"warm_up": True}, say)
    return middle(lambda: run_alone(task, arguments, say), times) | {"run": name}


def middle(measure: Callable[[], Record], times: int) -> Record:
    """Of several measurements the one of middle speed; `rates` holds the images/s of all, in their order."""
    runs = [measure() for _ in range(times)]
    ordered = sorted(runs, key=lambda run: float(run["images_per_second"]))
    return ordered[len(runs) // 2] | {"rates": [run["images_per_second"] for run in runs]}


def measure_baseline(speed: Speed, steps: Steps) -> None:
    """The diffusers pipeline at batch 1 and at its best batch."""
    references = speed.work / "references"
    settings = BaselineSettings(speed.work, workload=speed.workload, bundle=speed.bundle, references=references)

    def measure(name: str, task: str, **more: Any) -> Record:
        asked = settings.to_json() | {"out": str(speed.run(name))} | more
        return steps.do(name, lambda: run_alone(f"engines.measure.baseline:{task}", asked, say))

    measure("baseline-1", "baseline_task")
    rates = measure("baseline-sizes", "batches_task", batches=[size for size in BATCHES if size <= speed.workload.jobs])
    if "error" not in rates and (best := best_batch(rates)) > 1:
        measure("baseline-best", "baseline_task", batch=best)


def measure_ours(speed: Speed, steps: Steps) -> None:
    """`generate` in every precision, with several numbers of slots; and what precision does to the labels."""
    for precision in OURS:
        for slots in SLOTS if precision != "f32" else SLOTS[:1]:
            if slots is None or slots <= speed.workload.jobs:
                name = f"ours-{precision}{'' if slots is None else f'-slots{slots}'}"
                steps.do(name, partial(paint, speed, name, precision=precision, slots=slots))
        if (best := best_ours(steps.all(), precision)) is not None:  # measured again: the best of many flatters
            name = f"final-{precision}"
            steps.do(name, partial(paint, speed, name, times=FINALS, precision=precision, slots=best["slots"]))
    slow = steps.do("labels-reference", partial(paint, speed, "labels", speed.few, engine="torch", precision="f32"))
    for precision in OURS:
        ours = best_ours(steps.all(), precision)
        if ours is not None and "run" in slow:
            asked = {"run": str(speed.run(ours["run"])), "reference": str(speed.run(slow["run"]))}
            task = "benchmarks.speed_tasks:same_labels_task"
            steps.do(f"labels-{precision}", partial(run_alone, task, asked, say))


def measure_settings(speed: Speed, steps: Steps) -> None:
    """Other settings of the same jobs, and how right the labels of each are, beside those of the workload's own."""
    for name, options in SETTINGS.items():
        steps.do(f"settings-{name}", partial(paint, speed, name, times=FINALS, **options))
    for name in (SLOW, *SETTINGS) if speed.detector else ():
        asked = {"run": str(speed.run(name)), "detector": str(speed.detector)}
        steps.do(f"judged-{name}", partial(run_alone, "benchmarks.speed_tasks:judged_task", asked, say))


def measure_inside(speed: Speed, steps: Steps) -> None:
    """One run of ours seen from inside: what every graph takes, and what is outside them."""
    for precision in OURS[:2]:
        best = best_ours(steps.all(), precision)
        asked = speed.asked(engine="auto", options={"precision": precision, "slots": best["slots"] if best else None})
        steps.do(f"inside-{precision}", partial(run_alone, "engines.measure.run:engine_task", asked, say))


def measure_peers(speed: Speed, steps: Steps) -> None:
    """optimum's pipelines, in as many steps as `generate` takes where nobody says."""
    asked = speed.asked(dataclasses.replace(speed.workload, steps=USUAL["steps"]), work=str(speed.work / "peers"))
    steps.do("peers", lambda: run_alone("benchmarks.peers:peers_task", asked, say))


# What the results of a group decide, and what is measured again with it.
DECIDED_BY: Mapping[str, tuple[str, ...]] = {"ours": ("final-", "labels-", "inside-"), "settings": ("judged-",)}
GROUPS: Mapping[str, Callable[[Speed, Steps], None]] = {
    "baseline": measure_baseline,
    "ours": measure_ours,
    "settings": measure_settings,
    "inside": measure_inside,
    "peers": measure_peers,
}


def main() -> None:
    """Measure what is missing, and write the report."""
    options = parser(__doc__, "work", "out", "bundle", required=("work",))
    options.add_argument("--jobs", type=int, default=WORKLOAD.jobs, help="images of the workload")
    options.add_argument("--detector", type=Path, help="folder of a training of `dengine evaluate`, real images alone")
    options.add_argument("--rows", nargs="+", choices=list(GROUPS), help="measure only these, and again")
    given = options.parse_args()
    if given.jobs < 1:
        options.error("--jobs must be at least 1")
    work, *paths = (path and path.resolve() for path in (given.work, given.bundle, given.detector))
    speed = Speed(work, dataclasses.replace(WORKLOAD, jobs=given.jobs), *paths)
    steps = Steps(work / "steps", speed.identity())
    references = speed.asked(out=str(work / "references"), jobs=min(REFERENCES, given.jobs), seed=REFERENCE_SEED)
    steps.do("references", lambda: run_alone("benchmarks.speed_tasks:references_task", references, say), needed=True)
    for group in given.rows or GROUPS:
        for name in (group, *DECIDED_BY.get(group, ())) if given.rows else ():
            steps.forget(name)
        GROUPS[group](speed, steps)
    value = here() | {
        "origins": steps.origins(),
        "workload": speed.workload.to_json(),
        "steps": steps.all(),
    }
    value = json.loads(json.dumps(value).replace(str(work), "WORK"))
    write_report(speed_report.report(value), value, given.out)


if __name__ == "__main__":
    main()
