"""The proof of what generated images are worth, on real data: goes on wherever it stopped.

    python benchmarks/proof/run.py --work WORK --python OTHER/bin/python --minutes 120
    python benchmarks/proof/run.py --work WORK --only tune --until 23:30
    python benchmarks/proof/run.py --work WORK --lanes 2    two stages side by side, each on its own half of the cores
    python benchmarks/proof/run.py --work WORK --plan       what is done and what is left, without doing anything

Every finished stage leaves one JSON file in benchmarks/results/proof; after each, proof.md is written again. What was
interrupted goes on from its last checkpoint. --python names the Python of an environment with torchvision, for the
RetinaNet; without it, its stages wait. See README.md in this folder.

Knows: the command line, the clock, and what is run next. Knows nothing about what a stage does.
"""

import argparse
import datetime
import signal
import sys
import threading
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent.parent
sys.path.insert(0, str(ROOT))

from benchmarks.proof import report  # noqa: E402  what stands above makes it importable
from benchmarks.proof.lanes import GOES_ON, Lanes  # noqa: E402
from benchmarks.proof.order import build  # noqa: E402
from benchmarks.proof.plan import TOY, Plan  # noqa: E402
from benchmarks.proof.progress import is_done, to_do  # noqa: E402
from benchmarks.proof.stages import Stage  # noqa: E402
from benchmarks.proof.workplace import OutOfTimeError, Workplace  # noqa: E402
from engines.errors import DengineError, UsageError  # noqa: E402

RESULTS = ROOT / "benchmarks" / "results" / "proof"
_LEAST = 60.0  # seconds that must be left to begin a stage at all


def main() -> int:
    """Do what is asked; 0 when nothing is left, 3 when the time was up, 1 for an error."""
    given = read_options()
    for ending in (signal.SIGINT, signal.SIGTERM):  # a shell's background jobs, and their children, ignore the first
        signal.signal(ending, signal.default_int_handler)
    try:
        place = make_place(given)
        stages = build(place.plan)
        if given.plan:
            show_plan(place, stages)
            return 0
        left = run(place, stages, set(given.only), given.lanes)
    except DengineError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code
    except KeyboardInterrupt:
        print("interrupted; the same command goes on", file=sys.stderr)
        return 130
    for stage, why in left:
        print(f"left: {stage.name} ({why})")
    return 3 if left else 0


def run(place: Workplace, stages: Sequence[Stage], wanted: set[str], lanes: int = 1) -> list[tuple[Stage, str]]:
    """Run what is to do until the deadline; returns what is left and why. The report is written after every stage."""
    writing = threading.Lock()

    def perform(stage: Stage) -> str:
        if stage.torchvision and place.python is None:
            return "needs --python with torchvision"
        if not stage.resumes and place.deadline - place.now() < 1.5 * 60 * stage.minutes:
            return "too little time to finish it"
        if not _perform(replace(place), stage):
            return GOES_ON
        with writing:
            report.write(place)
        return ""

    left = Lanes(to_do(place, stages, wanted), perform, place.stop).run(lanes)
    report.write(place)
    return left


def _perform(place: Workplace, stage: Stage) -> bool:
    """Whether the stage was finished before the time was up."""
    if place.deadline - place.now() < _LEAST:
        return False
    print(
        f"{datetime.datetime.now():%H:%M} {stage.name} (about {stage.minutes:.3g} min alone on two cores)", flush=True
    )
    try:
        place.perform(stage.name, stage.settings, stage.action)
    except OutOfTimeError:
        return False
    return True


def show_plan(place: Workplace, stages: Sequence[Stage]) -> None:
    """Print every stage, whether it is done, and what is left in minutes."""
    left = 0.0
    for stage in stages:
        done = is_done(place, stage)
        left += 0 if done else stage.minutes
        record = place.record(stage.name)
        cost = f"{record['seconds'] / 60:.1f} min" if record else f"about {stage.minutes:.3g} min"
        print(f"{'done' if done else 'left':5s} {stage.group:11s} {stage.name:36s} {cost}")
    print(f"about {left / 60:.1f} h are left")


def make_place(given: argparse.Namespace) -> Workplace:
    """Folders and clock; UsageError for what cannot be meant."""
    if given.toy and given.results.resolve() == RESULTS.resolve():
        raise UsageError("--toy needs --results: its figures mean nothing and do not belong beside the real ones.")
    if not (given.data / "ImageSets" / "Main" / "train.txt").exists():
        raise UsageError(f"--data is {given.data}; a Pascal VOC folder with the splits train and val was expected.")
    if given.python is not None and not given.python.exists():
        raise UsageError(f"--python is {given.python}, which does not exist.")
    if given.lanes < 1:
        raise UsageError(f"--lanes is {given.lanes}; 1 or more was expected.")
    seconds = float("inf")
    if given.minutes is not None:
        seconds = 60 * given.minutes
    if given.until is not None:
        seconds = min(seconds, seconds_until(given.until, datetime.datetime.now()))
    work = given.work.resolve()
    work.mkdir(parents=True, exist_ok=True)
    return Workplace(
        work=work,
        results=given.results.resolve(),
        dataset=given.data.resolve(),
        plan=TOY if given.toy else Plan(),
        python=None if given.python is None else Path(given.python).absolute(),
        device=given.device,
        deadline=time.monotonic() + seconds,
    )


def seconds_until(text: str, now: datetime.datetime) -> float:
    """Seconds from `now` to the next time the clock shows HH:MM."""
    try:
        at = datetime.datetime.combine(now.date(), datetime.time.fromisoformat(text))
    except ValueError:
        raise UsageError(f"--until is {text!r}; a time such as 23:30 was expected.") from None
    return ((at - now).total_seconds()) % 86400.0


def read_options() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, required=True, help="folder for everything large; kept between starts")
    parser.add_argument("--data", type=Path, default=ROOT.parent / "shared" / "bccd", help="BCCD, as Pascal VOC")
    parser.add_argument("--results", type=Path, default=RESULTS, help="folder of the records")
    parser.add_argument("--python", type=Path, default=None, help="Python of an environment with torchvision")
    parser.add_argument("--device", default="cpu", help="torch device of every training (default: cpu)")
    parser.add_argument("--only", nargs="+", default=[], metavar="STAGE", help="stages or groups, and what they need")
    parser.add_argument("--until", default=None, metavar="HH:MM", help="stop then")
    parser.add_argument("--minutes", type=float, default=None, help="stop after so long")
    parser.add_argument("--lanes", type=int, default=1, help="stages side by side, each on its share of the cores")
    parser.add_argument("--plan", action="store_true", help="show the stages and what is left")
    parser.add_argument("--toy", action="store_true", help="a dry run of everything; its figures mean nothing")
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
