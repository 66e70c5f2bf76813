"""10,000 images in one run: memory, speed, every file and line of the dataset, and the same run in shards.

    python benchmarks/large.py --out benchmarks/results/large.md
    python benchmarks/large.py --images 300 --work WORK          a try

Without --bundle it paints with a tiny random one, which is made first. Images without a box are kept. The run is
painted in a process of its own, which notes time and resident memory at every tenth of the images; its dataset is
checked (`large_checks`), written again by `finalize`, searched for near duplicates and put back. Then the same jobs are
painted by --shards processes side by side, merged, and compared file by file.

What was finished in WORK is not done again, so a broken-off benchmark goes on; only the measured run begins anew, since
its speed counts. Prints tables and one JSON line last; ends with 1 when a bar is not met.
"""

import argparse
import contextlib
import itertools
import json
import multiprocessing
import shutil
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "benchmarks"), str(ROOT / "tests")]

PARTS = 10  # of a run that are timed
CHUNKS = 4  # of a part, so that each part holds whole chunks
SCORE = 0.1  # of a label: a random adapter is never sure, and some images should have boxes and some none

Record = dict[str, Any]


@dataclass(frozen=True)
class Asked:
    """The run that is measured."""

    bundle: Path
    images: int
    steps: int
    engine: str
    precision: str
    threads: int

    @property
    def part(self) -> int:
        """Images of a part."""
        return max(1, self.images // PARTS)


def main() -> int:
    """Do what is left to do, and print it; 0 when every bar is met."""
    given = read_options()
    with contextlib.ExitStack() as stack:
        work = given.work or Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="dengine-large-")))
        work.mkdir(parents=True, exist_ok=True)
        bundle = given.bundle or work / "bundle"
        if not bundle.exists():
            say("making a tiny random bundle")
            in_process(make_bundle, work)
        asked = Asked(bundle, given.images, given.steps, given.engine, given.precision, given.threads)
        result = measure(asked, work, given.shards)
    from large_report import markdown

    text = markdown(result)
    if given.out is not None:
        given.out.parent.mkdir(parents=True, exist_ok=True)
        given.out.write_text(text, "utf-8")
    print(text)
    print(json.dumps(result))
    return 0 if result["met"] else 1


def read_options() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--bundle", type=Path, help="bundle to paint with (default: a tiny random one, made first)")
    parser.add_argument("--images", type=int, default=10_000, help="images of the run (default: 10000)")
    parser.add_argument("--shards", type=int, default=3, help="processes that share the run (default: 3)")
    parser.add_argument("--steps", type=int, default=2, help="steps of the schedule (default: 2)")
    parser.add_argument("--engine", default="auto", help="as generate's (default: auto)")
    parser.add_argument("--precision", default="auto", help="as generate's (default: auto)")
    parser.add_argument("--threads", type=int, default=1, help="CPU threads of each process (default: 1)")
    parser.add_argument("--work", type=Path, help="folder for the runs; kept (default: a temporary one)")
    parser.add_argument("--out", type=Path, help="markdown file for the tables")
    return parser.parse_args()


def say(text: str) -> None:
    """A line on how far it is."""
    print(text, file=sys.stderr, flush=True)


def measure(asked: Asked, work: Path, shards: int) -> Record:
    """Every step of the benchmark, and what came out."""
    from large_checks import SHOWN, different_files, find_mistakes, read_hashes
    from large_report import bars

    from engines.measure.machine import machine, versions
    from engines.runs.finalize import finalize

    whole = work / "whole"
    result: Record = {"machine": machine(), "versions": versions(), "images": asked.images, "shards": shards}
    result |= done_once(
        whole, asked, lambda: paint_whole(asked, whole, work / "painted.json"),
        put_back=lambda: finalize(whole, near_duplicates=0.0),  # an earlier start may have ended in `finalize_again`
    )  # fmt: skip
    say("checking the dataset")
    result["mistakes"] = find_mistakes(whole, asked.images)
    expected = read_hashes(whole)
    say("finalize, with and without near duplicates")
    result |= finalize_again(whole, expected)
    result |= done_once(shard_folder(work, shards, shards), asked, lambda: paint_shards(asked, work, shards))
    merged = work / "merged"
    shutil.rmtree(merged, ignore_errors=True)
    say("merging")
    result["merge_seconds"] = seconds_of(lambda: merge_shards(work, merged, shards))
    result["files"] = len(expected)
    result["different"] = different_files(expected, read_hashes(merged))
    result["bars"] = bars(result)
    for found in ("mistakes", "finalize_changed", "different"):
        del result[found][SHOWN:]
    return result | {"met": all(bar["met"] for bar in result["bars"])}


def done_once(
    folder: Path, asked: Asked, action: Callable[[], Record], put_back: Callable[[], object] = lambda: None
) -> Record:
    """What `action`, which makes `folder`, found: now, or before where the same was asked for; `put_back` follows."""
    key, path = {name: str(value) for name, value in vars(asked).items()}, folder.with_suffix(".json")
    if folder.is_dir() and path.exists() and (stored := json.loads(path.read_text("utf-8")))["asked"] == key:
        say(f"{folder.name} is done")
        put_back()
        return dict(stored["found"])
    found = action()
    path.write_text(json.dumps({"asked": key, "found": found}), "utf-8")
    return found


def paint_whole(asked: Asked, folder: Path, notes: Path) -> Record:
    """Paint the run in a process of its own; its speed and memory by parts."""
    shutil.rmtree(folder, ignore_errors=True)
    say(f"painting {asked.images} images")
    in_process(paint, asked, folder, None, notes)
    found: Record = json.loads(notes.read_text("utf-8"))
    return found | {"parts": parts_of(found.pop("notes"))}


def paint_shards(asked: Asked, work: Path, shards: int) -> Record:
    """Paint the same jobs in so many processes side by side; one that was broken off goes on."""
    say(f"painting {shards} shards")
    known, now = work / "shards.json", json.dumps({name: str(value) for name, value in vars(asked).items()})
    if not known.exists() or known.read_text("utf-8") != now:  # another run's are no beginning of this one
        for folder in work.glob("shard-*-of-*"):
            shutil.rmtree(folder)
        known.write_text(now, "utf-8")
    started = time.monotonic()
    processes = [
        start(paint, asked, shard_folder(work, number, shards), (number, shards), work / f"painted-{number}.json")
        for number in range(1, shards + 1)
    ]
    for process in processes:
        process.join()
    if any(process.exitcode for process in processes):
        sys.exit("a shard was not painted; what it said is above.")
    return {"shard_seconds": round(time.monotonic() - started, 1)}


def shard_folder(work: Path, number: int, shards: int) -> Path:
    """Where a shard is painted."""
    return work / f"shard-{number}-of-{shards}"


def paint(asked: Asked, folder: Path, shard: tuple[int, int] | None, notes: Path) -> None:
    """One `generate`; writes to `notes` when each part was done, and how much memory was resident then."""
    from engines.measure.memory import read_memory
    from engines.painting.settings import GenerateSettings
    from engines.runs.events import Event, Opened, Painted
    from engines.runs.generate import generate

    found: list[tuple[int, float, int | None]] = []  # images, seconds, bytes where they are known
    painted = 0

    def note(event: Event) -> None:
        nonlocal painted
        painted += isinstance(event, Painted)
        if isinstance(event, Opened) or (isinstance(event, Painted) and painted % asked.part == 0):
            found.append((painted, time.monotonic(), read_memory().rss))

    settings = GenerateSettings(
        out=folder, bundle=asked.bundle, jobs=asked.images, shard=shard, steps=asked.steps, keep_empty=True,
        score=SCORE, chunk=max(1, asked.part // CHUNKS),
        engine=asked.engine, precision=asked.precision, threads=asked.threads,
    )  # fmt: skip
    summary = generate(settings, report=note)
    record = {
        "backend": summary.backend,
        "boxes": summary.dataset.boxes,
        "paint_seconds": round(summary.seconds, 1),
        "rss_peak_mb": round(read_memory().rss_peak / 1e6, 1),
        "notes": found,
    }
    notes.write_text(json.dumps(record), "utf-8")


def parts_of(notes: Sequence[tuple[int, float, int | None]]) -> list[Record]:
    """Speed and memory (None: unknown) of each part, from what was noted at its beginning and end."""
    return [
        {
            "images": images,
            "images_per_second": round((images - before) / (seconds - begun), 2),
            "rss_mb": None if rss is None else round(rss / 1e6, 1),
        }
        for (before, begun, _), (images, seconds, rss) in itertools.pairwise(notes)
    ]


def finalize_again(folder: Path, expected: Mapping[str, str]) -> Record:
    """Time `finalize`, plain and with near duplicates dropped, and see that the dataset comes back as it was."""
    from large_checks import different_files, read_hashes

    from engines.datasets.duplicates import NEAR
    from engines.runs.finalize import finalize
    from engines.runs.near_duplicates import REPEATS_IMAGE

    plain = seconds_of(lambda: finalize(folder))
    changed = different_files(expected, read_hashes(folder))
    started = time.monotonic()
    dropped = finalize(folder, near_duplicates=NEAR).dropped.get(REPEATS_IMAGE, 0)
    search = round(time.monotonic() - started, 2)
    finalize(folder, near_duplicates=0.0)
    changed += different_files(expected, read_hashes(folder))
    return {
        "finalize_seconds": plain,
        "finalize_changed": changed,
        "near_duplicates_seconds": search,
        "near_duplicates": dropped,
    }


def merge_shards(work: Path, out: Path, shards: int) -> None:
    """Join the shards."""
    from engines.runs.merge import merge

    merge([shard_folder(work, number, shards) for number in range(1, shards + 1)], out)


def seconds_of(action: Callable[[], object]) -> float:
    """How long it takes."""
    started = time.monotonic()
    action()
    return round(time.monotonic() - started, 2)


def make_bundle(work: Path) -> None:
    """A bundle of tiny random networks in work/bundle, as the tests make it."""
    import toy

    from export.assemble import export
    from export.settings import ExportSettings

    for name in ("base", "adapter"):
        shutil.rmtree(work / name, ignore_errors=True)
    base = toy.make_toy_base(work / "base")
    adapter = toy.make_toy_adapter(work / "adapter", base)
    export(ExportSettings(base, adapter, work / "bundle", engines=["torch"], threads=1))


def start(action: Callable[..., None], *values: Any) -> Any:
    """Begin `action` in a fresh process."""
    process = multiprocessing.get_context("spawn").Process(target=action, args=values)
    process.start()
    return process


def in_process(action: Callable[..., None], *values: Any) -> None:
    """Do `action` in a fresh process, and wait for it."""
    process = start(action, *values)
    process.join()
    if process.exitcode:
        sys.exit(f"{action.__name__} ended with {process.exitcode}; what it said is above.")


if __name__ == "__main__":
    sys.exit(main())
