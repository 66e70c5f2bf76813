"""Kills `dengine generate` at random moments, goes on with it, and compares every byte with a run left in peace.

    python benchmarks/kill_test.py                      20 kills, a tiny random bundle
    python benchmarks/kill_test.py --bundle B --engine openvino --kills 50

Each round starts a run of 200 images in a process of its own (chunks of 32, empty images kept), sends it SIGKILL at a
random moment, and gives the same command again, until it ends by itself. Half of the rounds are killed twice. A moment
is a number of image files, drawn evenly from none to all, and a fraction of a second more; one in five comes when all
are there, while the dataset files are written. So kills fall everywhere, however busy the machine is.
"""

import argparse
import contextlib
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benchmarks.large_checks import SHOWN, different_files, read_hashes
from benchmarks.records import parser
from benchmarks.toy_bundle import make_toy_bundle
from engines.measure.alone import ROOT

PROGRAM = "from dengine_cli.main import main; main()"


def main() -> int:
    """Run all rounds; 0 when all were identical."""
    given = read_options()
    with contextlib.ExitStack() as stack:
        work = given.work or Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="dengine-kill-")))
        work.mkdir(parents=True, exist_ok=True)
        bundle = given.bundle or make_toy_bundle(work)
        command = [
            *("generate", "--bundle", str(bundle), "--count", str(given.count), "--chunk", str(given.chunk)),
            *("--steps", "2", "--keep-empty", "--format", "coco,yolo,imagefolder"),
            *("--engine", given.engine, "--precision", "f32", "--threads", "1"),
        ]
        started = time.monotonic()
        run_to_the_end(command, work / "peace")
        seconds = time.monotonic() - started
        expected = read_hashes(work / "peace")
        images = sum(name.startswith(("images/0", "spare/")) for name in expected)
        print(f"uninterrupted: {seconds:.1f} s, {len(expected)} files", flush=True)
        rng = random.Random(given.seed)
        identical = 0
        for number in range(1, given.kills + 1):
            folder = work / f"round-{number}"
            states = [kill(command, folder, images, rng) for _ in range(1 + number % 2)]
            run_to_the_end(command, folder)
            wrong = different_files(expected, read_hashes(folder))[:SHOWN]
            identical += not wrong
            print(f"{number:3}  killed {', then '.join(states)}: {', '.join(wrong) or 'identical'}", flush=True)
            if not wrong:
                shutil.rmtree(folder)
    print(f"identical {identical} of {given.kills}")
    return 0 if identical == given.kills else 1


def read_options() -> argparse.Namespace:
    """The command line."""
    options = parser(__doc__)
    options.add_argument("--bundle", type=Path, help="bundle to paint with (default: a tiny random one, made first)")
    options.add_argument("--engine", default="torch", help="torch, onnxruntime or openvino (default: torch)")
    options.add_argument("--kills", type=int, default=20, help="rounds (default: 20)")
    options.add_argument("--count", type=int, default=200, help="images a run (default: 200)")
    options.add_argument("--chunk", type=int, default=32, help="images a chunk (default: 32)")
    options.add_argument("--seed", type=int, default=0, help="of the moments (default: 0)")
    options.add_argument("--work", type=Path, help="folder for the runs; kept (default: a temporary one)")
    return options.parse_args()


def start(command: Sequence[str], folder: Path) -> "subprocess.Popen[bytes]":
    """Give the command in a process of its own, its words in a file beside the folder."""
    with folder.with_suffix(".log").open("wb") as log:
        words = [sys.executable, "-c", PROGRAM, *command, "--out", str(folder)]
        return subprocess.Popen(words, cwd=ROOT, stdout=log, stderr=subprocess.STDOUT)


def run_to_the_end(command: Sequence[str], folder: Path) -> None:
    """Give the command and wait for its end; stops the whole test when it fails by itself."""
    if code := start(command, folder).wait():
        sys.exit(f"{folder.name} ended with {code}: {folder.with_suffix('.log').read_text('utf-8')[-2000:]}")


def kill(command: Sequence[str], folder: Path, images: int, rng: random.Random) -> str:
    """Give the command and kill it when so many image files are there; says what it left."""
    wanted = rng.randint(0, images) if rng.random() < 0.8 else images
    longest = 0.1 if wanted < images else 1.0  # seconds
    process = start(command, folder)
    while count_images(folder) < wanted and process.poll() is None:
        time.sleep(0.002)
    time.sleep(rng.uniform(0.0, longest))
    process.kill()
    if process.wait() != -signal.SIGKILL:
        return "too late"
    journal = folder / "journal.jsonl"
    lines = journal.read_bytes().count(b"\n") if journal.exists() else 0
    dataset = "with" if (folder / "annotations.json").exists() else "without"
    return f"at {lines} lines, {count_images(folder)} images, {dataset} annotations"


def count_images(folder: Path) -> int:
    """Image files of a run, wherever they are."""
    return sum(1 for part in ("images", "spare") for _ in (folder / part).glob("0*.jpg"))


if __name__ == "__main__":
    sys.exit(main())
