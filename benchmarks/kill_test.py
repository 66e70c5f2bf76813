"""Kills dengine's verbs at random moments, goes on with them, and compares every byte with what is made in peace.

    python benchmarks/kill_test.py                               20 kills of generate, a tiny random bundle
    python benchmarks/kill_test.py --verb all --kills 600 --results benchmarks/results/kills.json
    python benchmarks/kill_test.py --bundle B --verb generate --kills 50

Each round starts a verb in a process of its own, sends it SIGKILL at a random moment of the time that it takes in
peace, looks at what is left, gives the command that goes on, until it ends by itself, and compares. Half of the rounds
of generate are killed twice. What is promised: generate, finalize and train-adapter end with the same bytes; a dataset
whose annotations.json is there agrees with its images, labels and journal; merge, label and export leave the whole
result or none. Processes are forks of this one, which has imported the libraries, so that a kill falls into the work
and not into imports. With --results, counts are added to those in that file after every round.
"""

import argparse
import contextlib
import json
import os
import random
import shutil
import signal
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")  # before torch: a fork has no threads but its own
sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benchmarks.kill_scenes import Scene, givens, make_models, make_scenes
from benchmarks.large_checks import SHOWN, different_files, read_hashes
from benchmarks.records import parser
from engines.common.files import write_json

VERBS = ("generate", "finalize", "merge", "label", "export", "train-adapter")
_WEIGHTS = (
    3,
    12,
    6,
    6,
    0.1,
    0.4,
)  # of the verbs, where all are killed: about as many as fit into the time of an export


def main() -> int:
    """Run all rounds; 0 when all were as promised."""
    given = read_options()
    verbs = list(VERBS) if given.verb == "all" else [given.verb]
    with contextlib.ExitStack() as stack:
        work = given.work or Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="dengine-kill-")))
        work.mkdir(parents=True, exist_ok=True)
        run_alone(lambda: make_models(work) and None)
        bundle = given.bundle or work / "bundle"
        import_libraries()
        for words in givens(work, bundle, given.count, given.chunk):
            run_to_the_end(words, work / "given" / "paint.log")
        scenes = make_scenes(work, bundle, given.count, given.chunk)
        peace = {verb: in_peace(scenes[verb], work / f"peace-{verb}") for verb in verbs}
        rng = random.Random(given.seed)
        weights = [_WEIGHTS[VERBS.index(verb)] for verb in verbs]
        kills = good = number = 0
        while kills < given.kills:
            number += 1
            verb = rng.choices(verbs, weights)[0]
            seconds, expected = peace[verb]
            folder = work / f"round-{number}-{verb}"
            done, wrong = one_round(
                scenes[verb], folder, seconds, expected, 1 + (verb == "generate") * rng.randrange(2), rng
            )
            kills, good = kills + done, good + done * (not wrong)
            print(f"{number:4} {verb}: {done} kills, {'; '.join(wrong[:SHOWN]) or 'as promised'}", flush=True)
            if given.results:
                add_result(given.results, verb, done, done * (not wrong))
            if not wrong:
                for left in work.glob(f"*{folder.name}*"):
                    shutil.rmtree(left) if left.is_dir() else left.unlink()
    print(f"as promised {good} of {kills}")
    return 0 if good == kills else 1


def read_options() -> argparse.Namespace:
    """The command line."""
    options = parser(__doc__)
    options.add_argument(
        "--verb", choices=(*VERBS, "all"), default="generate", help="what is killed (default: generate)"
    )
    options.add_argument("--bundle", type=Path, help="bundle to paint with (default: a tiny random one, made first)")
    options.add_argument("--kills", type=int, default=20, help="kills, all in all (default: 20)")
    options.add_argument("--count", type=int, default=60, help="images a run (default: 60)")
    options.add_argument("--chunk", type=int, default=12, help="images a chunk (default: 12)")
    options.add_argument("--seed", type=int, default=0, help="of the moments (default: 0)")
    options.add_argument("--work", type=Path, help="folder for the runs; kept (default: a temporary one)")
    options.add_argument("--results", type=Path, help="JSON file that counts are added to")
    return options.parse_args()


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
    seconds, found = time.monotonic() - started, read_hashes(folder)
    print(f"{folder.name}: {seconds:.1f} s, {len(found)} files", flush=True)
    return seconds, found


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


def add_result(file: Path, verb: str, kills: int, good: int) -> None:
    """Add to the counts of a verb in the results' file."""
    counts = json.loads(file.read_text("utf-8")) if file.exists() else {}
    before = counts.get(verb, {"kills": 0, "as_promised": 0})
    counts[verb] = {"kills": before["kills"] + kills, "as_promised": before["as_promised"] + good}
    write_json(file, counts)


if __name__ == "__main__":
    sys.exit(main())
