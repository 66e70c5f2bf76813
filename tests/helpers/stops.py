"""Trainings that Ctrl-C or SIGTERM stops at random moments, go on, and are compared.

    PYTHONPATH=. python tests/helpers/stops.py WORK MOMENTS VERB...

Knows: the verbs that train, at toy size, and what each promises when it is stopped. Each is given in a fork of
this process, which has their libraries imported. Prints a JSON object: by verb, how many were stopped in time, and
what went wrong.
"""

import json
import os
import random
import shutil
import signal
import sys
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import kills
from kill_scenes import write_pictures
from made_worth import TINY
from tiny_preset import tiny_preset
from toy import make_toy_base

from benchmarks.large_checks import different_files, read_hashes

STEPS = "steps.txt"  # a line for every step that was taken, whichever stage
FOLD_STEPS, DETECTOR_STEPS = 8, 4
LATEST = 60.0  # seconds until the first word of a command
MORE = 8  # moments that are tried where none of those asked for was in time


def make_givens(work: Path) -> None:
    """Writes what the commands read."""
    given = work / "given"
    given.mkdir(parents=True)
    make_toy_base(given / "base")
    write_pictures(given / "labelled", 6, labels=True)
    write_pictures(given / "val", 3, labels=True)
    network = {"width": 16, "heads": 2, "ffn_width": 16, "decoder_layers": 1, "queries": 8, "denoising": 0}
    usual = {"network": network, "short_side": 32, "batch": 1, "warmup": 2}
    (given / "adapter.json").write_text(json.dumps(usual | {"steps": 24, "eval_every": 10}), "utf-8")
    (given / "fold.json").write_text(
        json.dumps(usual | {"steps": FOLD_STEPS, "tune_fraction": 0.0, "precision": "f32"}), "utf-8"
    )


def commands(work: Path) -> dict[str, list[str]]:
    """The command of each verb, but for where it writes."""
    given = work / "given"
    data, base = str(given / "labelled"), str(given / "base")
    worth = ["evaluate", "--real", data, "--val", str(given / "val"), "--preset", "quick", "--seeds", "2"]
    worth += ["--short-side", "64", "--steps", str(DETECTOR_STEPS)]
    return {
        "train-base": ["train-base", data, "--preset", "tiny", "--precision", "f32"],
        "train-adapter": [
            "train-adapter", data, "--model", base, "--settings", str(given / "adapter.json"), "--precision", "f32",
        ],
        "train-adapter-folds": [
            "train-adapter", data, "--model", base, "--settings", str(given / "adapter.json"), "--precision", "f32",
            "--folds", "2", "--fold-steps", str(FOLD_STEPS),
        ],
        "audit": [
            "audit", data, "--model", base, "--folds", "2", "--rounds", "1", "--settings", str(given / "fold.json"),
        ],
        "evaluate": [*worth, "--batch", "2", "--precision", "f32"],
    }  # fmt: skip


def make_small() -> None:
    """Sizes for toys, and a line for every step that is taken."""
    from engines.training import presets, trainer
    from engines.worth.detectors import config

    presets.PRESETS = {"tiny": tiny_preset()}
    quick = config.PRESETS["quick"]
    network = replace(quick.options.network, **TINY["network"])
    config.PRESETS = {"quick": replace(quick, options=replace(quick.options, network=network))}
    take: Any = trainer._train_step

    def counted(*arguments: Any) -> Any:
        found = take(*arguments)
        with Path(STEPS).open("a", encoding="utf-8") as file:
            file.write("\n")
        return found

    trainer._train_step = counted  # type: ignore[assignment]


def stop(words: Sequence[str], log: Path, seconds: float, number: int) -> tuple[int, str]:
    """Give the command and send it a signal so many seconds after its first word: its exit code, and what it said.

    Before that it is no more than a fork of this process: of signals that come so early, `dengine` itself knows.
    """
    child, latest = kills.start(words, log), time.monotonic() + LATEST
    while time.monotonic() < latest and not (log.exists() and log.stat().st_size):
        time.sleep(0.005)
    time.sleep(seconds)
    os.kill(child, number)
    _, status = os.waitpid(child, 0)
    return os.waitstatus_to_exitcode(status), log.read_text("utf-8")


def one_moment(verb: str, words: list[str], folder: Path, seconds: float, number: int) -> tuple[bool, list[str]]:
    """Stop the verb once: whether it was in time, and what was wrong with how it stopped."""
    from engines.training.stopping import reached

    log = folder.with_suffix(".log")
    Path(STEPS).write_text("", "utf-8")
    code, said = stop(words, log, seconds, number)
    if code == 0 or (code == -signal.SIGTERM and not said.strip() and not folder.exists()):  # too late, or too early
        return False, []
    wrong = [] if code == 130 else [f"{verb} ended with {code}: {said[-500:]}"]
    last, kept, taken = said.strip().splitlines()[-1], reached(folder), len(Path(STEPS).read_text("utf-8"))
    if "stopped" not in last or not any(after in last for after in ("goes on", "begins anew", "nothing was begun")):
        wrong.append(f"{verb} said: {last}")
    if kept and f"{kept}" not in last:
        wrong.append(f"{verb} kept {kept}, and said: {last}")
    if taken != steps_below(folder):
        wrong.append(f"{verb} took {taken} steps and kept {steps_below(folder)}")
    return True, wrong


def steps_below(folder: Path) -> int:
    """Steps that checkpoints and finished trainings below a folder hold."""
    indices = [json.loads(path.read_text("utf-8")) for path in folder.rglob("checkpoint.json")]
    finished = FOLD_STEPS * len(list(folder.rglob("folds/*/adapter.json")))
    finished += DETECTOR_STEPS * len(list(folder.glob("trainings/*/detector.json")))
    return sum(int(index["step"]) for index in indices) + finished


def main(work: Path, moments: int, verbs: Sequence[str]) -> None:
    """Stop each verb so many times, each time from a fresh folder."""
    kills.import_libraries()
    from diffusers import AutoencoderKL, UNet2DConditionModel  # noqa: F401  what every fork needs
    from transformers import CLIPTextModel, CLIPTokenizer  # noqa: F401

    import dengine_cli.main  # noqa: F401
    import engines.training.train_adapter
    import engines.training.train_base  # noqa: F401

    kills.run_alone(lambda: make_givens(work))
    make_small()
    rng, found = random.Random(moments), dict[str, Any]()
    for verb, start in ((verb, commands(work)[verb]) for verb in verbs):
        folder, wrong, in_time = work / verb / "out", list[str](), 0
        folder.parent.mkdir()
        os.chdir(folder.parent)
        words = [*start, "--out", str(folder)]
        started = time.monotonic()
        kills.run_to_the_end(words, folder.with_suffix(".log"))
        seconds, expected = time.monotonic() - started, read_hashes(folder)
        number = 0
        while number < moments or (not in_time and number < moments + MORE):
            shutil.rmtree(folder, ignore_errors=True)
            folder.with_suffix(".log").unlink()
            asked = (signal.SIGINT, signal.SIGTERM)[number % 2]
            number += 1
            stopped, mistakes = one_moment(verb, words, folder, rng.uniform(0.0, seconds), asked)
            wrong += mistakes
            if stopped or not folder.exists():
                again = [*words, *(() if verb == "audit" else ("--resume",))]
                kills.run_to_the_end(again, folder.with_suffix(".log"))
                in_time += stopped
            else:
                seconds *= 0.7  # it was too late: the machine was busier when it was timed
            wrong += different_files(expected, read_hashes(folder))
        found[verb] = {"seconds": round(seconds, 2), "moments": number, "stopped": in_time, "wrong": wrong}
        sys.stderr.write(f"{verb}: {found[verb]}\n")
    json.dump(found, sys.stdout)


if __name__ == "__main__":
    main(Path(sys.argv[1]).resolve(), int(sys.argv[2]), sys.argv[3:])
