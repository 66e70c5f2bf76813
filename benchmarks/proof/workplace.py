"""Where the proof works: its folders, its clock, the commands it runs, and the records of what is finished.

Knows: how a command runs until it ends or the time is up, what it cost over all attempts, and where things lie.
Knows nothing about what a stage is for.

    WORK/<stage>/            what a stage makes
    WORK/logs/<stage>.log    everything its commands said
    WORK/seconds/<stage>     what unfinished attempts cost so far
    RESULTS/<stage>.json     the record of a finished stage: small, and no path of the machine in it
"""

import json
import os
import platform
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

import torch

from benchmarks.proof.lists import LISTS
from benchmarks.proof.plan import Plan
from engines.common.devices import resolve_precision
from engines.common.files import read_json, write_json
from engines.common.versions import installed_versions
from engines.errors import DengineError

ROOT = Path(__file__).resolve().parent.parent.parent
_DENGINE = ("-c", "from dengine_cli.main import main; main()")
_PACKAGES = ("torch", "torchvision", "transformers", "diffusers", "openvino", "onnxruntime-gpu", "numpy")
_GLANCE = 1.0  # seconds between two looks at a running command
_PATIENCE = 180.0  # seconds that a command may take to stop at a good place


class ProofError(DengineError):
    """A stage that failed, or a record that belongs to another plan."""


class OutOfTimeError(Exception):
    """The time that was given is used up; what was begun goes on at the next start."""


@dataclass
class Workplace:
    """Folders and clock of one start of `run.py`."""

    work: Path  # everything large
    results: Path  # the records
    dataset: Path  # Pascal VOC with the splits train and val
    plan: Plan
    lists: Path = LISTS  # the fixed lists
    python: Path | None = None  # of an environment with torchvision; None: there is none
    device: str = "cpu"  # a torch device, for every training
    deadline: float = float("inf")  # time.monotonic() at which to stop
    now: Callable[[], float] = time.monotonic
    stop: threading.Event = field(default_factory=threading.Event)  # set: commands are interrupted, nothing begins
    stage: str = ""  # in work at present
    commands: list[str] = field(default_factory=list)  # of that stage, as they are recorded
    used_other: bool = False  # whether one of them ran in the environment with torchvision

    def left(self) -> float:
        """Seconds until the deadline; OutOfTimeError when there are none, or when all is to stop."""
        left = self.deadline - self.now()
        if left <= 0 or self.stop.is_set():
            raise OutOfTimeError
        return left

    def folder(self, name: str) -> Path:
        """Folder of a stage, or of data that stages share."""
        return self.work / name

    @property
    def data(self) -> Path:
        """The dataset with a split for each list."""
        return self.work / "data"

    def dengine(self, *words: object, torchvision: bool = False) -> None:
        """Run a verb."""
        self._call("dengine", [*_DENGINE, *words], words, torchvision)

    def script(self, file: Path, *words: object, torchvision: bool = False) -> None:
        """Run a Python script of this repository."""
        self._call(f"python {file.relative_to(ROOT)}", [file, *words], words, torchvision)

    def _call(self, shown: str, arguments: Sequence[object], words: Sequence[object], torchvision: bool) -> None:
        self.used_other |= torchvision
        python = self.python if torchvision else Path(sys.executable)
        if python is None:
            raise ProofError(f"{self.stage} needs torchvision: give --python of an environment that has it.")
        line = " ".join([shown, *(self.shown(word) for word in words)])
        if line not in self.commands:
            self.commands.append(line)
        self.run([str(python), *map(str, arguments)])

    def run(self, command: Sequence[str]) -> None:
        """Run a command until it ends, until the deadline or `stop`: then it is interrupted as by Ctrl-C.

        Raises OutOfTimeError, or ProofError with the last line of what a command said that failed.
        """
        self.left()
        log = self.work / "logs" / f"{self.stage}.log"
        log.parent.mkdir(parents=True, exist_ok=True)
        environment = os.environ | {"PYTHONPATH": str(ROOT)}
        with log.open("ab") as said:
            process = subprocess.Popen(command, cwd=ROOT, env=environment, stdout=said, stderr=subprocess.STDOUT)
            try:
                while (code := _ended(process, min(self.left(), _GLANCE))) is None:
                    pass
            except BaseException:
                _interrupt(process)
                raise
        if code:
            lines = log.read_text("utf-8", errors="replace").strip().splitlines()
            raise ProofError(f"{self.stage} failed ({code}): {lines[-1] if lines else 'it said nothing'} ({log})")

    def shown(self, word: object) -> str:
        """A word of a command as records have it, without the machine's own folders."""
        text = str(word)
        ours = ((self.work, "WORK"), (self.dataset, "BCCD"), (self.lists, "benchmarks/proof/label_lists"), (ROOT, "."))
        for folder, name in ours:
            text = text.replace(str(folder), name)
        return f"'{text}'" if " " in text else text

    def perform(
        self, stage: str, settings: Mapping[str, Any], action: Callable[["Workplace"], Mapping[str, Any]]
    ) -> None:
        """Do a stage and write its record. What an interrupted attempt cost counts, too.

        A stage that is done again, since its files were gone, keeps what the earlier records say, as `before`.
        """
        self.stage, self.commands, self.used_other = stage, [], False
        spent, begun = self.work / "seconds" / stage, self.now()
        before = float(spent.read_text("utf-8")) if spent.exists() else 0.0
        spent.parent.mkdir(parents=True, exist_ok=True)
        try:
            figures = action(self)
        finally:
            spent.write_text(f"{before + self.now() - begun:.1f}", "utf-8")
        record = {
            "stage": stage,
            "settings": json.loads(json.dumps(settings)),
            "seconds": float(spent.read_text("utf-8")),
            "commands": self.commands,
            "figures": figures,
            "machine": machine(self.device),
        }
        if self.used_other and self.python is not None:
            record["other_environment"] = other_versions(self.python)
        if (earlier := self.record(stage)) is not None:
            known = {key: earlier[key] for key in ("seconds", "figures", "machine")}
            record["before"] = [*earlier.get("before", ()), known]
        self.results.mkdir(parents=True, exist_ok=True)
        write_json(self.results / f"{stage}.json", record)
        spent.unlink()

    def record(self, stage: str) -> dict[str, Any] | None:
        """The record of a finished stage; None where it is not finished."""
        path = self.results / f"{stage}.json"
        return read_json(path, ProofError) if path.exists() else None

    def figures(self, stage: str) -> dict[str, Any]:
        """The figures of a stage that has to be finished."""
        found = self.record(stage)
        if found is None:
            raise ProofError(f"{stage} is not finished: run it first (--only {stage}).")
        return dict(found["figures"])


def _ended(process: "subprocess.Popen[bytes]", patience: float) -> int | None:
    """Exit code of a process that ends within `patience` seconds; None for one that goes on."""
    try:
        return process.wait(patience)
    except subprocess.TimeoutExpired:
        return None


def _interrupt(process: "subprocess.Popen[bytes]") -> None:
    """Ask a process to stop as Ctrl-C does, and end it where it does not."""
    for how, patience in ((signal.SIGINT, _PATIENCE), (signal.SIGTERM, 10.0), (signal.SIGKILL, 10.0)):
        if process.poll() is None:
            process.send_signal(how)
            try:
                process.wait(patience)
            except subprocess.TimeoutExpired:
                continue


def machine(device: str) -> dict[str, Any]:
    """What figures were made on: processor, cores, what networks are trained in (`f32` or `bf16`), library versions.

    The versions are those of the environment that drives the proof. Where `device` is a GPU, its name is there, too.
    """
    model = platform.processor() or platform.machine()
    cpu = Path("/proc/cpuinfo")
    for line in cpu.read_text("utf-8").splitlines() if cpu.exists() else ():
        if line.startswith("model name"):
            model = line.partition(":")[2].strip()
            break
    gpu = {} if device == "cpu" else {"gpu": torch.cuda.get_device_name(device)}
    return {
        "cpu": model,
        "cores": os.cpu_count(),
        **gpu,
        "precision": resolve_precision("auto", device),
        "python": platform.python_version(),
        "versions": versions(),
    }


def versions() -> dict[str, str]:
    """Of the libraries that figures depend on, as far as they are installed."""
    return installed_versions(_PACKAGES)


@cache
def other_versions(python: Path) -> Mapping[str, str]:
    """The same of another environment, asked once."""
    code = "import json; from benchmarks.proof.workplace import versions; print(json.dumps(versions()))"
    said = subprocess.run([str(python), "-c", code], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    return dict(json.loads(said))
