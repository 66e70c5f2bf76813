"""10,000 images in one run: memory, speed, every file and line of the dataset, and the same run in shards.

    python benchmarks/large.py --work WORK --out benchmarks/results/large.md
    python benchmarks/large.py --work WORK --images 300          a try

Without --bundle it paints with a tiny random one, which is made first. Images without a box are kept. The run is
painted in a process of its own, which notes time and resident memory at every tenth of the images; its dataset is
checked (`large_checks`) and written again by `finalize`. Then the same jobs are painted by --shards processes side by
side, merged, and compared file by file.

What was finished in WORK is not done again. Prints a report and one JSON line last; ends with 1 when a bar is not met.
"""

import itertools
import shutil
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benchmarks.large_checks import SHOWN, different_files, find_mistakes, read_hashes
from benchmarks.records import Bar, Record, Steps, Tell, bar_table, here, measured_on, parser, say, table, write_report
from benchmarks.toy_bundle import make_toy_bundle
from engines.bundle.bundle import open_bundle
from engines.common.events import Event, EventKind
from engines.measure.alone import run_alone
from engines.measure.memory import read_memory
from engines.painting.settings import GenerateSettings
from engines.runs.finalize import FinalizeSettings, finalize
from engines.runs.generate import generate
from engines.runs.merge import MergeSettings, merge

PARTS = 10  # of a run that are timed
CHUNKS = 4  # of a part, so that each part holds whole chunks
SCORE = 0.1  # of a label: a random adapter is never sure, and some images should have boxes and some none
STEPS = 2  # of the schedule
MOST_GROWTH = 30.0  # MB of resident memory, from the end of the first part to the end of the last
LEAST_SPEED = 0.9  # of the last part, against the first
MOST_SECONDS = 10.0  # of finalize


def main() -> int:
    """Do what is left to do, and report it; 0 when every bar is met."""
    options = parser(__doc__, "work", "out", required=("work",))
    options.add_argument("--bundle", type=Path, help="bundle to paint with (default: a tiny random one, made first)")
    options.add_argument("--images", type=int, default=10_000, help="images of the run (default: 10000)")
    options.add_argument("--shards", type=int, default=3, help="processes that share the run (default: 3)")
    given = options.parse_args()
    given.work.mkdir(parents=True, exist_ok=True)
    bundle = given.bundle or make_toy_bundle(given.work)
    result = here() | measure(given.work, bundle, given.images, given.shards)
    write_report(report(result), result, given.out)
    return 0 if all(reached for *_, reached in bars(result)) else 1


def measure(work: Path, bundle: Path, images: int, shards: int) -> Record:
    """Every step of the benchmark, and what came out."""
    digest = open_bundle(bundle, verify=False).digest
    steps = Steps(work / "steps", here() | {"bundle": digest, "images": images, "shards": shards})
    whole, merged = work / "whole", work / "merged"
    folders = [work / f"shard-{number}-of-{shards}" for number in range(1, shards + 1)]
    asked = {"bundle": str(bundle.resolve()), "images": images}

    def paint(folder: Path, shard: tuple[int, int] | None) -> Record:
        shutil.rmtree(folder, ignore_errors=True)
        return run_alone("benchmarks.large:paint_task", asked | {"out": str(folder), "shard": shard})

    def paint_shards() -> Record:
        begun = time.monotonic()
        with ThreadPoolExecutor(shards) as threads:
            list(threads.map(paint, folders, [(number, shards) for number in range(1, shards + 1)]))
        return {"shard_seconds": round(time.monotonic() - begun, 1)}

    result: Record = {"images": images, "shards": shards}
    result |= steps.do("whole", lambda: paint(whole, None), needed=True)
    result |= steps.do("shards", paint_shards, needed=True)
    say("checking, writing again, and merging")
    mistakes, expected = find_mistakes(whole, images), read_hashes(whole)
    result |= {"finalize_seconds": seconds_of(lambda: finalize(FinalizeSettings(whole))), "files": len(expected)}
    changed = different_files(expected, read_hashes(whole))
    shutil.rmtree(merged, ignore_errors=True)
    result |= {"merge_seconds": seconds_of(lambda: merge(MergeSettings(folders, merged))), "origins": steps.origins()}
    found = {"mistakes": mistakes, "changed": changed, "different": different_files(expected, read_hashes(merged))}
    named = {name: texts[:SHOWN] for name, texts in found.items()}
    return result | {"counted": {name: len(texts) for name, texts in found.items()}, "named": named}


def paint_task(arguments: Mapping[str, Any], tell: Tell) -> Record:
    """For `alone`: `generate` of `images` into `out`, or of a `shard` of them; speed and resident memory by parts."""
    part = max(1, arguments["images"] // PARTS)
    notes: list[tuple[int, float, int | None]] = []  # images, seconds, bytes where they are known
    painted = 0

    def note(event: Event) -> None:
        nonlocal painted
        painted += event.kind is EventKind.IMAGE
        if event.kind is EventKind.STARTED or (event.kind is EventKind.IMAGE and painted % part == 0):
            notes.append((painted, time.monotonic(), read_memory().rss))

    shard = arguments["shard"]
    settings = GenerateSettings(
        out=Path(arguments["out"]), bundle=Path(arguments["bundle"]), jobs=arguments["images"], steps=STEPS, threads=1,
        shard=None if shard is None else (shard[0], shard[1]), keep_empty=True, score=SCORE,
        chunk=max(1, part // CHUNKS),
    )  # fmt: skip
    summary = generate(settings, report=note)
    return {
        "backend": summary.backend,
        "boxes": summary.dataset.boxes,
        "paint_seconds": round(summary.seconds, 1),
        "rss_peak_mb": round(read_memory().rss_peak / 1e6, 1),
        "parts": parts_of(notes),
    }


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


def seconds_of(action: Callable[[], object]) -> float:
    """How long it takes."""
    started = time.monotonic()
    action()
    return round(time.monotonic() - started, 2)


def bars(result: Mapping[str, Any]) -> Iterator[Bar]:
    """Every row with what it has to reach."""
    first, last, counted = result["parts"][0], result["parts"][-1], result["counted"]
    known = first["rss_mb"] is not None and last["rss_mb"] is not None
    growth = round(float(last["rss_mb"] - first["rss_mb"]), 1) if known else float("inf")
    speed = round(last["images_per_second"] / first["images_per_second"], 3)
    seconds, shards, files = (result[name] for name in ("finalize_seconds", "shards", "files"))
    grown = f"memory after {last['images']} images against {first['images']}, MB"
    yield grown, f"<= {MOST_GROWTH:g}", growth if known else "unknown", growth <= MOST_GROWTH
    yield "speed of the last part against the first", f">= {LEAST_SPEED:g}", speed, speed >= LEAST_SPEED
    yield "finalize, seconds", f"<= {MOST_SECONDS:g}", seconds, seconds <= MOST_SECONDS
    for name, what in (
        ("mistakes", "mistakes in journal, COCO file and images"),
        ("changed", "files that finalize changed"),
        ("different", f"files of {shards} merged shards that differ from the unsplit run's {files}"),
    ):
        yield what, "0", counted[name], counted[name] == 0
    yield "boxes that were checked", "> 0", result["boxes"], result["boxes"] > 0


def report(result: Mapping[str, Any]) -> Iterator[str]:
    """The report's parts."""
    yield f"# {result['images']} images in one run"
    yield f"{measured_on(result)} Painted on: {result['backend']}. {result['origins']}"
    yield bar_table(bars(result))
    parts = [(part["images"], part["images_per_second"], part["rss_mb"] or "-") for part in result["parts"]]
    yield table(("after images", "images/s of the part", "resident, MB"), parts)
    yield (
        f"Painted in {result['paint_seconds']} s with {result['boxes']} boxes, {result['rss_peak_mb']} MB resident at "
        f"most; in {result['shards']} processes side by side in {result['shard_seconds']} s, merged in "
        f"{result['merge_seconds']} s."
    )
    yield "\n".join(f"- {text}" for texts in result["named"].values() for text in texts)


if __name__ == "__main__":
    sys.exit(main())
