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
import sys
import tempfile
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")  # before torch: a fork has no threads but its own
sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
sys.path.insert(1, str(Path(__file__).resolve().parent.parent / "tests" / "helpers"))

from kill_scenes import givens, make_models, make_scenes
from kills import import_libraries, in_peace, one_round, run_alone, run_to_the_end

from benchmarks.large_checks import SHOWN
from benchmarks.records import parser
from engines.common.files import write_json

# The verbs with their weights where all are killed: about as many as fit into the time of an export.
WEIGHTS = {"generate": 3, "finalize": 12, "merge": 6, "label": 6, "export": 0.1, "train-adapter": 0.4}


def main() -> int:
    """Run all rounds; 0 when all were as promised."""
    given = read_options()
    verbs = list(WEIGHTS) if given.verb == "all" else [given.verb]
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
        print(", ".join(f"{verb} {seconds:.1f} s" for verb, (seconds, _) in peace.items()), flush=True)
        rng = random.Random(given.seed)
        weights = [WEIGHTS[verb] for verb in verbs]
        kills = good = number = 0
        while kills < given.kills:
            number += 1
            verb = rng.choices(verbs, weights)[0]
            seconds, expected = peace[verb]
            folder = work / f"round-{number}-{verb}"
            times = 1 + (verb == "generate") * rng.randrange(2)
            done, wrong = one_round(scenes[verb], folder, seconds, expected, times, rng)
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
    options.add_argument("--verb", choices=(*WEIGHTS, "all"), default="generate", help="default: generate")
    options.add_argument("--bundle", type=Path, help="bundle to paint with (default: a tiny random one, made first)")
    options.add_argument("--kills", type=int, default=20, help="kills, all in all (default: 20)")
    options.add_argument("--count", type=int, default=60, help="images a run (default: 60)")
    options.add_argument("--chunk", type=int, default=12, help="images a chunk (default: 12)")
    options.add_argument("--seed", type=int, default=0, help="of the moments (default: 0)")
    options.add_argument("--work", type=Path, help="folder for the runs; kept (default: a temporary one)")
    options.add_argument("--results", type=Path, help="JSON file that counts are added to")
    return options.parse_args()


def add_result(file: Path, verb: str, kills: int, good: int) -> None:
    """Add to the counts of a verb in the results' file."""
    counts = json.loads(file.read_text("utf-8")) if file.exists() else {}
    before = counts.get(verb, {"kills": 0, "as_promised": 0})
    counts[verb] = {"kills": before["kills"] + kills, "as_promised": before["as_promised"] + good}
    write_json(file, counts)


if __name__ == "__main__":
    sys.exit(main())
