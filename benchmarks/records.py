"""What the benchmarks share: measurements that are kept as they finish, and reports with a JSON file beside them.

Knows: where a finished measurement lies, what decides whether it still counts, which commit made it and when, and how a
report is written. Does not know what is measured, and imports no runtime.
"""

import argparse
import json
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from engines.common.files import write_atomic, write_json
from engines.errors import DengineError
from engines.measure.alone import ROOT
from engines.measure.machine import machine, versions

Record = dict[str, Any]  # a JSON object
Tell = Callable[[str], None]
Bar = tuple[str, str, object, bool | None]  # what, wanted, found, whether that will do; None: not measured, or no bar
COMMON = {
    "bundle": "a bundle; the bundled model without it",
    "work": "folder for everything that is made; kept, and gone on with",
    "out": "markdown file for the report; a JSON file goes beside it",
}


def say(line: str) -> None:
    """A line on how far it is."""
    print(f"{time.strftime('%H:%M:%S')} {line}", file=sys.stderr, flush=True)


def here() -> Record:
    """The `machine` and `versions` that a figure belongs to."""
    return {"machine": machine(), "versions": versions()}


def here_task(arguments: Mapping[str, Any], tell: Tell) -> Record:
    """`here` as a task of `engines.measure.alone`, for a process that must not touch the GPU itself."""
    return here()


class Steps:
    """Finished measurements by name, each a JSON file. One that was made for another `identity` does not count.

    The code is no part of the identity: `origins` tells which commit made what.
    """

    def __init__(
        self, folder: Path, identity: Mapping[str, Any], *, tell: Tell = say, errors: type[Exception] = DengineError
    ) -> None:
        self._folder, self._tell, self._errors = folder, tell, errors
        self._identity = json.loads(json.dumps(identity))
        folder.mkdir(parents=True, exist_ok=True)

    def do(self, name: str, action: Callable[[], Mapping[str, Any]], *, needed: bool = False) -> Record:
        """The result of `action`: as it was kept, or measured now.

        An error is kept as {"error": words} and tried again next time; where it is `needed`, it ends the script.
        """
        known = self.all().get(name, {"error": "not done"})
        if "error" not in known:
            return known
        self._tell(name)
        begun, code = time.monotonic(), commit()
        try:
            result = dict(action())
        except self._errors as cause:
            kind = "" if isinstance(cause, DengineError) else f"{type(cause).__name__}: "
            result = {"error": kind + " ".join(str(cause).split())}
        value = {
            "identity": self._identity,
            "commit": code if commit() == code else f"{code} to {commit()}",
            "ended": time.strftime("%Y-%m-%d %H:%M", time.gmtime()),
            "took_seconds": round(time.monotonic() - begun, 1),
            "result": result,
        }
        write_json(self._folder / f"{name}.json", value)
        if needed and "error" in result:
            sys.exit(f"{name}: {result['error']}")
        return result

    def all(self) -> dict[str, Record]:
        """Every result that counts, by name."""
        return {name: dict(value["result"]) for name, value in self._values()}

    def origins(self) -> str:
        """A sentence on when all of these ended (UTC), and how many of them which commit measured."""
        values = [value for _, value in self._values()]
        if not values:
            return "Nothing was measured."
        ends = sorted(value["ended"] for value in values)
        counted = Counter(value["commit"] for value in values if value["commit"]).most_common()
        told = ", ".join(f"{count} by commit {code}" for code, count in counted)
        return f"{len(values)} measurements, ended from {ends[0]} to {ends[-1]} UTC{f': {told}' if told else ''}."

    def forget(self, beginning: str) -> None:
        """Have everything measured again whose name begins so."""
        for path in self._folder.glob(f"{beginning}*.json"):
            path.unlink()

    def _values(self) -> Iterator[tuple[str, Record]]:
        for path in sorted(self._folder.glob("*.json")):
            value = json.loads(path.read_text("utf-8"))
            if value["identity"] == self._identity:
                yield path.stem, value


def commit() -> str | None:
    """The commit of this checkout, with `-dirty` where tracked files are changed; None outside one."""
    command = ["git", "-C", str(ROOT), "describe", "--always", "--dirty", "--exclude", "*"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False)
    except OSError:
        return None  # no git here
    return done.stdout.strip() or None


def parser(doc: str | None, *common: str, required: Sequence[str] = ()) -> argparse.ArgumentParser:
    """A script's parser with its docstring as help, and those options of COMMON that it names."""
    made = argparse.ArgumentParser(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name in common:
        made.add_argument(f"--{name}", type=Path, required=name in required, help=COMMON[name])
    return made


def measured_on(value: Mapping[str, Any]) -> str:
    """The line of a report that names machine and versions, from a value with what `here` found."""
    place = value["machine"]
    parts = [*place["gpus"], place["processor"], f"{place['cores']} cores", f"{place['memory_gib']:.0f} GiB"]
    packages = ", ".join(f"{name} {version}" for name, version in value["versions"].items())
    return f"Machine: {', '.join([*parts, place['system']])}. Versions: {packages}."


def table(header: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    """A markdown table; words that say so where there are no rows."""
    lines = list(rows)
    if not lines:
        return "Not measured."
    every = [header, ["---"] * len(header), *lines]
    return "\n".join(f"| {' | '.join(str(cell).replace('|', '/') for cell in line)} |" for line in every)


def bar_table(bars: Iterable[Bar]) -> str:
    """What had to be reached, what was found, and whether that will do."""
    told = {True: "met", False: "**not met**", None: "-"}
    return table(("what", "wanted", "found", ""), [(*cells, told[reached]) for *cells, reached in bars])


def write_report(parts: Iterable[str], value: Mapping[str, Any], out: Path | None = None) -> None:
    """Print the report, its `parts` a blank line apart, and `value` as one line of JSON last; write both to `out`."""
    text = "\n\n".join(part for part in parts if part) + "\n"
    if out is not None:
        out.parent.mkdir(parents=True, exist_ok=True)
        write_atomic(out, text.encode())
        write_json(out.with_suffix(".json"), value)
    print(text)
    print(json.dumps(value))
