"""Kills `dengine generate` at random moments, goes on with it, and compares every byte with a run left in peace.

    python benchmarks/kill_test.py                      20 kills, a tiny random bundle
    python benchmarks/kill_test.py --bundle B --engine openvino --kills 50

Each round starts a run of 200 images in a process of its own (chunks of 32, empty images kept), sends it SIGKILL at a
random moment, and gives the same command again, until it ends by itself. Half of the rounds are killed twice. A moment
is a number of image files, drawn evenly from none to all, and a fraction of a second more; one in five comes when all
are there, while the dataset files are written. So kills fall everywhere, however busy the machine is.
Processes are forked from this one, which has the libraries imported and computes nothing itself.
"""

import argparse
import contextlib
import importlib
import os
import random
import shutil
import signal
import sys
import tempfile
import time
import traceback
from collections.abc import Callable
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent


def main() -> int:
    """Run all rounds; 0 when all were identical."""
    options = read_options()
    import_libraries()
    with contextlib.ExitStack() as stack:
        work = options.work or Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="dengine-kill-")))
        work.mkdir(parents=True, exist_ok=True)
        bundle = options.bundle or work / "bundle"
        if not bundle.exists():
            wait(fork(lambda: make_bundle(work), work / "bundle.log"), work / "bundle.log")
        command = [
            *("generate", "--bundle", str(bundle), "--count", str(options.count), "--chunk", str(options.chunk)),
            *("--steps", str(options.steps), "--keep-empty", "--format", "coco,yolo,imagefolder"),
            *("--engine", options.engine, "--precision", "f32", "--threads", "1"),
        ]
        started = time.monotonic()
        run_to_the_end(command, work / "peace")
        seconds = time.monotonic() - started
        expected = read_tree(work / "peace")
        images = sum(name.startswith(("images/0", "spare/")) for name in expected)
        print(f"uninterrupted: {seconds:.1f} s, {len(expected)} files", flush=True)
        rng = random.Random(options.seed)
        identical = 0
        for number in range(1, options.kills + 1):
            folder = work / f"round-{number}"
            states = [kill(command, folder, images, rng) for _ in range(1 + number % 2)]
            run_to_the_end(command, folder)
            wrong = different_files(expected, read_tree(folder))
            identical += not wrong
            verdict = f"differs in {', '.join(wrong)}" if wrong else "identical"
            print(f"{number:3}  killed {', then '.join(states)}: {verdict}", flush=True)
            if not wrong:
                shutil.rmtree(folder)
    print(f"identical {identical} of {options.kills}")
    return 0 if identical == options.kills else 1


def read_options() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--bundle", type=Path, help="bundle to paint with (default: a tiny random one, made first)")
    parser.add_argument("--engine", default="torch", help="torch, onnxruntime or openvino (default: torch)")
    parser.add_argument("--kills", type=int, default=20, help="rounds (default: 20)")
    parser.add_argument("--count", type=int, default=200, help="images a run (default: 200)")
    parser.add_argument("--chunk", type=int, default=32, help="images a chunk (default: 32)")
    parser.add_argument("--steps", type=int, default=2, help="steps of the schedule (default: 2)")
    parser.add_argument("--seed", type=int, default=0, help="of the moments (default: 0)")
    parser.add_argument("--work", type=Path, help="folder for the runs; kept (default: a temporary one)")
    return parser.parse_args()


def import_libraries() -> None:
    """Import what every run needs, so that a forked one has it at once."""
    os.environ["OMP_NUM_THREADS"] = "1"
    sys.path[:0] = [str(ROOT), str(ROOT / "tests")]
    for name in ("diffusers", "transformers", "dengine_cli.main", "engines.runs.generate"):
        importlib.import_module(name)
    from diffusers import AutoencoderKL, UNet2DConditionModel  # noqa: F401  they are only loaded when named
    from transformers import CLIPTextModel, CLIPTokenizer  # noqa: F401


def make_bundle(work: Path) -> None:
    """A bundle of tiny random networks in work/bundle, as the tests make it."""
    import toy

    from export.assemble import export
    from export.settings import ExportSettings

    base = toy.make_toy_base(work / "base")
    adapter = toy.make_toy_adapter(work / "adapter", base)
    export(ExportSettings(base, adapter, work / "bundle", engines=["torch"], threads=1))


def fork(action: Callable[[], object], log: Path) -> int:
    """Do `action` in a process of its own, its output in `log`; returns the process's number."""
    child = os.fork()
    if child:
        return child
    code = 1
    try:
        output = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        os.dup2(output, 1)
        os.dup2(output, 2)
        action()
        code = 0
    except SystemExit as end:
        code = 0 if end.code is None else int(end.code) if isinstance(end.code, int) else 1
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stderr.flush()
        os._exit(code)


def start(command: list[str], folder: Path) -> int:
    """Give the command in a process of its own."""
    from dengine_cli.main import app

    return fork(lambda: app([*command, "--out", str(folder)]), folder.with_suffix(".log"))


def wait(process: int, log: Path) -> None:
    """Wait for a process; stops the whole test when it fails by itself."""
    _, status = os.waitpid(process, 0)
    if status != 0:
        sys.exit(f"{log.stem} ended with {os.waitstatus_to_exitcode(status)}: {log.read_text('utf-8')[-2000:]}")


def run_to_the_end(command: list[str], folder: Path) -> None:
    """Give the command and wait for its end."""
    wait(start(command, folder), folder.with_suffix(".log"))


def kill(command: list[str], folder: Path, images: int, rng: random.Random) -> str:
    """Give the command and kill it when so many image files are there; says what it left."""
    wanted = rng.randint(0, images) if rng.random() < 0.8 else images
    longest = 0.1 if wanted < images else 1.0  # seconds
    process = start(command, folder)
    ended = False
    while count_images(folder) < wanted and not ended:
        time.sleep(0.002)
        ended = os.waitid(os.P_PID, process, os.WEXITED | os.WNOHANG | os.WNOWAIT) is not None
    time.sleep(rng.uniform(0.0, longest))
    os.kill(process, signal.SIGKILL)
    _, status = os.waitpid(process, 0)
    if os.waitstatus_to_exitcode(status) != -signal.SIGKILL:
        return "too late"
    journal = folder / "journal.jsonl"
    lines = journal.read_bytes().count(b"\n") if journal.exists() else 0
    dataset = "with" if (folder / "annotations.json").exists() else "without"
    return f"at {lines} lines, {count_images(folder)} images, {dataset} annotations"


def count_images(folder: Path) -> int:
    """Image files of a run, wherever they are."""
    return sum(1 for part in ("images", "spare") for _ in (folder / part).glob("0*.jpg"))


def read_tree(folder: Path) -> dict[str, bytes]:
    """Every file of a folder, with its bytes."""
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def different_files(expected: dict[str, bytes], found: dict[str, bytes]) -> list[str]:
    """Names of files that are missing, new or changed; the first five."""
    return sorted(name for name in {*expected, *found} if expected.get(name) != found.get(name))[:5]


if __name__ == "__main__":
    sys.exit(main())
