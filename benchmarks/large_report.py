"""The tables of `large`: what it had to reach and reached, and how speed and memory went along.

Knows: the bars, and the fields of the benchmark's result. Knows nothing about how they were measured.
"""

from collections.abc import Mapping
from typing import Any

MOST_GROWTH = 30.0  # MB of resident memory, from the end of the first part to the end of the last
LEAST_SPEED = 0.9  # of the last part, against the first
MOST_SECONDS = 10.0  # of finalize

Record = dict[str, Any]


def bars(result: Mapping[str, Any]) -> list[Record]:
    """What was asked for, what was found, and whether that will do."""
    first, last = result["parts"][0], result["parts"][-1]
    known = first["rss_mb"] is not None and last["rss_mb"] is not None
    growth = round(last["rss_mb"] - first["rss_mb"], 1) if known else "unknown"
    speed = round(last["images_per_second"] / first["images_per_second"], 3)
    mistakes, different = len(result["mistakes"]), len(result["different"])
    changed = len(result["finalize_changed"])
    rows: list[tuple[str, Any, str, bool]] = [
        (f"memory after {last['images']} images against {first['images']}, MB", growth,
         f"<= {MOST_GROWTH:g}", known and growth <= MOST_GROWTH),
        ("speed of the last part against the first", speed, f">= {LEAST_SPEED:g}", speed >= LEAST_SPEED),
        ("mistakes in journal, COCO file and images", mistakes, "0", mistakes == 0),
        ("finalize, seconds", result["finalize_seconds"], f"<= {MOST_SECONDS:g}",
         result["finalize_seconds"] <= MOST_SECONDS),
        ("files that finalize changed", changed, "0", changed == 0),
        (f"files of {result['shards']} merged shards that differ from the unsplit run's {result['files']}", different,
         "0", different == 0),
        ("boxes that were checked", result["boxes"], "> 0", result["boxes"] > 0),
    ]  # fmt: skip
    return [{"what": what, "found": found, "wanted": wanted, "met": met} for what, found, wanted, met in rows]


def markdown(result: Mapping[str, Any]) -> str:
    """The tables."""
    machine, versions = result["machine"], result["versions"]
    lines = [
        f"# {result['images']} images in one run",
        "",
        f"{result['backend']}; {machine['processor']}, {machine['cores']} cores, {machine['memory_gib']} GiB.",
        ", ".join(f"{name} {version}" for name, version in versions.items()) + ".",
        "",
        "| what | found | wanted | met |",
        "|---|---|---|---|",
        *(
            f"| {bar['what']} | {bar['found']} | {bar['wanted']} | {'yes' if bar['met'] else 'no'} |"
            for bar in result["bars"]
        ),
        "",
        "| after images | images/s of the part | resident, MB |",
        "|---|---|---|",
        *(
            f"| {part['images']} | {part['images_per_second']} | {'-' if part['rss_mb'] is None else part['rss_mb']} |"
            for part in result["parts"]
        ),
        "",
        f"Painted in {result['paint_seconds']} s with {result['boxes']} boxes, {result['rss_peak_mb']} MB resident at "
        f"most; in {result['shards']} processes side by side in {result['shard_seconds']} s, merged in "
        f"{result['merge_seconds']} s. finalize with near duplicates dropped: {result['near_duplicates_seconds']} s, "
        f"{result['near_duplicates']} images.",
        "",
        *(f"- {text}" for text in (*result["mistakes"], *result["finalize_changed"], *result["different"])),
    ]
    return "\n".join(lines).rstrip() + "\n"
