"""What `speed.py` keeps: finished measurements on disk, and how a run of ours is timed from outside.

Knows: what decides a figure and so names it, the command line of `dengine generate`, and its two clocks. Does not know
what is measured or in which order.
"""

import dataclasses
import json
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from engines.backends.registry import ENGINES
from engines.bundle.bundle import default_bundle, open_bundle
from engines.common.files import sha256_file, write_json
from engines.errors import BackendError, DengineError
from engines.measure.alone import ROOT
from engines.measure.machine import machine, versions
from engines.measure.workload import WORKLOAD, Workload
from engines.painting.settings import GenerateSettings
from engines.worth.detectors.config import WEIGHTS_FILE

Result = dict[str, Any]
PROFILE = "profile-"  # what the names of profiles begin with
WARM_JOBS = 16  # images of the run that fills the cache of compiled models
_OPENED = re.compile(rf"({'|'.join(name for name in ENGINES if name != 'auto')})\b")
_PROGRAM = "from dengine_cli.main import main; main()"


@dataclass(frozen=True)
class Speed:
    """What is measured, and where it is kept."""

    work: Path
    workload: Workload = WORKLOAD
    bundle: Path | None = None  # None: the bundled model
    detector: Path | None = None  # None: no judge of the best settings
    search_jobs: int = 96  # images of a setting in the search, and of the float32 reference of labels
    toy: bool = False  # tiny networks in place of full size

    @property
    def references(self) -> Path:
        """The folder of images that are repainted."""
        return self.work / "references"

    def identity(self) -> Result:
        """What decides every figure, beside the code: processor and cores, too, since WORK may move."""
        folder = self.bundle or default_bundle()
        here = machine()
        return {
            "machine": {name: here[name] for name in ("processor", "cores", "gpus")},
            "workload": json.loads(json.dumps(self.workload.to_json())),
            "bundle": open_bundle(folder, verify=False).digest,
            "versions": versions(),
            "detector": None if self.detector is None else sha256_file(self.detector / WEIGHTS_FILE),
            "search_jobs": self.search_jobs,
            "toy": self.toy,
        }


class Steps:
    """Finished measurements, each a JSON file."""

    def __init__(self, folder: Path, identity: Mapping[str, Any], *, say: Callable[[str], None]) -> None:
        self._folder, self._identity, self._say = folder, dict(identity), say
        folder.mkdir(parents=True, exist_ok=True)

    def do(self, name: str, action: Callable[[], Mapping[str, Any]]) -> Result:
        """The result of `action`: as it was kept, or measured now. An error is kept, and tried again next
        time.
        """
        known = self.read(name)
        if known is not None and "error" not in known:
            return known
        self._say(name)
        begun, code = time.monotonic(), commit()
        try:
            result = dict(action())
        except DengineError as cause:
            result = {"error": str(cause)}
        value = {
            "identity": self._identity,
            "commit": code if commit() == code else f"{code} to {commit()}",
            "ended": time.strftime("%Y-%m-%d %H:%M", time.gmtime()),
            "took_seconds": round(time.monotonic() - begun, 1),
            "result": result,
        }
        write_json(self._folder / f"{name}.json", value)
        return result

    def read(self, name: str) -> Result | None:
        """What was kept under a name, for the same workload; None where there is nothing.

        A profile is history, and is read whatever changed since.
        """
        value = self._value(name)
        return None if value is None else dict(value["result"])

    def all(self) -> dict[str, Result]:
        """Everything that was kept, by name."""
        return {name: dict(value["result"]) for name, value in self._values()}

    def origins(self) -> dict[str, Result]:
        """Of everything that was kept, by name, the `commit` of the code that measured it (None outside a checkout) and
        when it `ended` (UTC); None for what an earlier form of this script kept. The code is no part of what decides
        whether a figure is kept: the report tells.
        """
        return {name: {key: value.get(key) for key in ("commit", "ended")} for name, value in self._values()}

    def _values(self) -> Iterator[tuple[str, Result]]:
        for path in sorted(self._folder.glob("*.json")):
            if (value := self._value(path.stem)) is not None:
                yield path.stem, value

    def _value(self, name: str) -> Result | None:
        path = self._folder / f"{name}.json"
        if not path.exists():
            return None
        value: Result = json.loads(path.read_text("utf-8"))
        return value if value["identity"] == self._identity or name.startswith(PROFILE) else None

    def forget(self, group: str) -> None:
        """Have a group measured again: its names begin with it."""
        for path in self._folder.glob(f"{group}*.json"):
            path.unlink()


def commit() -> str | None:
    """The commit of this checkout, with `-dirty` where tracked files are changed; None outside one."""
    command = ["git", "-C", str(ROOT), "describe", "--always", "--dirty", "--exclude", "*"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False)
    except OSError:
        return None  # no git here
    return done.stdout.strip() or None


def generate_arguments(settings: GenerateSettings) -> list[str]:
    """The command line of `dengine generate` that asks for these settings."""
    words: list[str] = []
    for field in dataclasses.fields(settings):
        value, flag = getattr(settings, field.name), f"--{field.name.replace('_', '-')}"
        if value == field.default:
            continue
        if isinstance(value, bool):
            words.append(flag if value else f"--no-{flag[2:]}")
        elif isinstance(value, tuple):
            words += [flag, ("x" if field.name == "size" else ":").join(map(str, value))]
        else:
            words += [flag, str(value)]
    return words


def run_generate(settings: GenerateSettings) -> Result:
    """`dengine generate` in a process: seconds of all of it, and from when it begins to paint to its end.

    The second clock starts when the command says which backend is open, and stops when the process is gone: images,
    journal and dataset files are on the disk then. Raises BackendError with the command's own words where it fails.
    """
    command = ["generate", *generate_arguments(settings)]
    shutil.rmtree(settings.out, ignore_errors=True)
    opened, lines = None, []
    begun = time.perf_counter()
    with subprocess.Popen(
        [sys.executable, "-c", _PROGRAM, *command],
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, cwd=ROOT,
    ) as process:  # fmt: skip
        for line in process.stdout or ():
            lines.append(line.rstrip())
            if opened is None and _OPENED.match(line):
                opened = time.perf_counter()
    ended = time.perf_counter()
    if process.returncode or opened is None:
        raise BackendError(lines[-1].removeprefix("error: ") if lines else "dengine generate said nothing.")
    run = json.loads((settings.out / "run.json").read_text("utf-8"))
    return {
        "command": f"dengine {' '.join(command)}",
        "images": run["jobs"],
        "seconds": ended - opened,
        "images_per_second": run["jobs"] / (ended - opened),
        "wall_seconds": ended - begun,
        **{name: run[name] for name in ("backend", "precision", "slots", "rows", "steps", "sampler")},
        "guidance_interval": run["guidance_interval"],
    }


def middle(measure: Callable[[], Result], times: int) -> Result:
    """Of several measurements the one of middle speed; `rates` holds the images/s of all, in their order."""
    runs = [measure() for _ in range(times)]
    ordered = sorted(runs, key=lambda run: float(run["images_per_second"]))
    return ordered[len(runs) // 2] | {"rates": [run["images_per_second"] for run in runs]}


def paint(speed: Speed, name: str, workload: Workload | None = None, *, warm: bool = True, **ours: Any) -> Result:
    """A measured run of ours into WORK/runs/`name`; before it, if `warm`, a small one that fills the cache of compiled
    models.
    """
    asked = workload or speed.workload
    out = speed.work / "runs" / name

    def settings(count: int, folder: Path) -> GenerateSettings:
        some = dataclasses.replace(asked, jobs=count)
        return some.generate_settings(folder, bundle=speed.bundle, references=speed.references, **ours)

    if warm:
        run_generate(settings(min(WARM_JOBS, asked.jobs), speed.work / "runs" / "warm-up"))
    return run_generate(settings(asked.jobs, out)) | {"run": str(out)}
