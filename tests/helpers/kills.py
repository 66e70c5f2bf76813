"""Verbs in forks of this process that are killed, go on, and are compared.

Knows: how a command is given in a fork that has its libraries imported, killed after some seconds, and repeated. Knows
nothing about what verbs do (`kill_scenes`), or how many kills there are to be (`benchmarks/kill_test.py`).
"""

import contextlib
import os
import random
import shutil
import signal
import sys
import time
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path

from kill_scenes import Scene

from benchmarks.large_checks import different_files, read_hashes


def import_libraries() -> None:
    """What the verbs import, so that their forks need not."""
    import torch

    torch.set_num_threads(1)


def start(words: Sequence[str], log: Path) -> int:
    """Give the command in a fork of this process, what it says in a file; the process's number."""
    sys.stdout.flush()
    if child := os.fork():
        return child
    code = 70
    try:
        with log.open("ab") as file:
            os.dup2(file.fileno(), 1)
            os.dup2(file.fileno(), 2)
        from dengine_cli.main import app

        app([str(word) for word in words])
    except SystemExit as end:
        code = int(end.code or 0)
    except BaseException:
        traceback.print_exc()
    finally:
        with contextlib.suppress(BaseException):
            sys.stdout.flush()
            sys.stderr.flush()
        os._exit(code)


def run_to_the_end(words: Sequence[str], log: Path) -> None:
    """Give the command and wait for its end; stops the whole test when it fails by itself."""
    _, status = os.waitpid(start(words, log), 0)
    if status:
        sys.exit(f"{' '.join(words)} ended with {os.waitstatus_to_exitcode(status)}: {log.read_text('utf-8')[-2000:]}")


def run_alone(work: Callable[[], object]) -> None:
    """Do something in a fork, which takes the threads that libraries begin for it with it."""
    if child := os.fork():
        _, status = os.waitpid(child, 0)
        if status:
            sys.exit("what the kill test needs could not be made")
        return
    code = 1
    try:
        work()
        code = 0
    except BaseException:
        traceback.print_exc()
    finally:
        os._exit(code)


def in_peace(scene: Scene, folder: Path) -> tuple[float, dict[str, str]]:
    """How many seconds the verb takes, and the hashes of what it leaves."""
    shutil.rmtree(folder, ignore_errors=True)
    scene.before(folder)
    started = time.monotonic()
    run_to_the_end(scene.words(folder), folder.with_suffix(".log"))
    return time.monotonic() - started, read_hashes(folder)


def one_round(
    scene: Scene, folder: Path, seconds: float, expected: dict[str, str], times: int, rng: random.Random
) -> tuple[int, list[str]]:
    """Kill so many times, go on to the end, and compare: how often it was killed in time, and what is wrong."""
    scene.before(folder)
    log, kills, wrong = folder.with_suffix(".log"), 0, list[str]()
    words = scene.words(folder)
    for _ in range(times):
        if not words:
            break
        kills += kill(words, log, rng.uniform(0.0, 1.05 * seconds))
        wrong += scene.left_wrong(folder)
        words = scene.again(folder)
    if words:
        run_to_the_end(words, log)
    return kills, wrong + different_files(expected, read_hashes(folder))


def kill(words: Sequence[str], log: Path, seconds: float) -> bool:
    """Give the command and kill it after so many seconds; whether it was still at work."""
    child = start(words, log)
    time.sleep(seconds)
    os.kill(child, signal.SIGKILL)
    _, status = os.waitpid(child, 0)
    return os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGKILL
