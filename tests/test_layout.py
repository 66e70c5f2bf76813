"""The house: which floor each package stands on, that imports run downward alone, and how large files may be.

`docs/architecture.md` draws the floors; this is where they are held.
"""

import ast
import functools
import re
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parents[1]
PACKAGES = ("dengine", "dengine_cli", "export", "engines")
# From the ground up. What stands on one line may not import each other.
FLOORS: tuple[tuple[str, ...], ...] = (
    ("engines.errors",),
    ("engines.common",),
    ("engines.labels", "engines.quality"),
    ("engines.datasets",),
    ("engines.adapter", "engines.composing"),
    ("engines.bundle",),
    ("engines.diffusion",),
    ("engines.backends",),
    ("engines.painting",),
    ("engines.runs",),
    (
        "engines.labelling", "engines.session", "engines.measure", "engines.doctor", "engines.review", "engines.report",
        "engines.cluster",
    ),
    ("export", "engines.push"),
    ("engines.training",),
    ("engines.audit", "engines.worth"),
    ("dengine",),
    ("dengine_cli",),
    ("dengine.__main__",),
)  # fmt: skip
FLOOR = {room: floor for floor, rooms in enumerate(FLOORS) for room in rooms}
MOST_LINES, LONG_FILES = 300, 5
MOST_FUNCTION_LINES = 60
MOST_BENCHMARK_LINES = 3100
FLAG = re.compile(r"(?<![\w-])--[a-zA-Z{]")
NOT_OURS = re.compile(r"pip install --\S+|--query-gpu=|--format=csv|var\(--")  # of pip, nvidia-smi and style sheets


@functools.cache
def sources() -> list[tuple[str, Path, ast.Module]]:
    """(module, file, what it says) of every module of ours."""
    found = []
    for package in PACKAGES:
        for path in sorted((ROOT / package).rglob("*.py")):
            module = ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")
            found.append((module, path, ast.parse(path.read_text("utf-8"))))
    return found


def room(module: str) -> str:
    """The room of a module: the longest name in FLOORS that it begins with."""
    parts = module.split(".")
    names = (".".join(parts[:length]) for length in range(len(parts), 0, -1))
    return next((name for name in names if name in FLOOR), "")


def imported(tree: ast.Module) -> Iterator[str]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield node.module
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def edges() -> set[tuple[str, str]]:
    """(room that imports, room imported), of rooms of ours."""
    found = set()
    for module, _, tree in sources():
        for name in imported(tree):
            pair = room(module), room(name)
            if all(pair) and pair[0] != pair[1]:
                found.add(pair)
    return found


def test_every_module_has_a_floor() -> None:
    homeless = [module for module, _, _ in sources() if not room(module) and module != "engines"]
    assert homeless == []


def test_the_page_on_the_architecture_draws_these_floors() -> None:
    page = (ROOT / "docs" / "architecture.md").read_text("utf-8")
    rows = re.findall(r"^\| (\d+) \| `([\w/]+)(?:\.py)?` \|", page, re.MULTILINE)
    drawn = sorted((int(floor), name.replace("/", ".")) for floor, name in rows if name != "benchmarks")
    assert drawn == sorted((len(FLOORS) - floor, name) for name, floor in FLOOR.items())  # each once


def test_imports_run_downward() -> None:
    upward = sorted(f"{low} imports {high}" for low, high in edges() if FLOOR[low] <= FLOOR[high])
    assert upward == []


def test_packages_have_no_cycles() -> None:
    graph: dict[str, set[str]] = {}
    for low, high in edges():
        graph.setdefault(low, set()).add(high)

    def reachable(start: str) -> set[str]:
        seen: set[str] = set()
        waiting = list(graph.get(start, ()))
        while waiting:
            name = waiting.pop()
            if name not in seen:
                seen.add(name)
                waiting += graph.get(name, ())
        return seen

    assert [name for name in graph if name in reachable(name)] == []


def test_files_are_short() -> None:
    long = {str(path.relative_to(ROOT)): len(path.read_text("utf-8").splitlines()) for _, path, _ in sources()}
    assert len([name for name, lines in long.items() if lines > MOST_LINES]) <= LONG_FILES, long


def test_benchmarks_stay_a_small_part() -> None:
    lines = {path.name: len(path.read_text("utf-8").splitlines()) for path in (ROOT / "benchmarks").glob("*.py")}
    assert sum(lines.values()) < MOST_BENCHMARK_LINES, lines


def test_functions_are_short() -> None:
    """Verbs of the command line are mostly their options, and do not count."""
    long = []
    for module, _, tree in sources():
        for node in ast.walk(tree):
            if not isinstance(node, ast.FunctionDef) or (module.startswith("dengine_cli") and node.name == "command"):
                continue
            lines = (node.end_lineno or node.lineno) - node.lineno + 1
            if lines > MOST_FUNCTION_LINES:
                long.append(f"{module}.{node.name}: {lines} lines")
    assert long == []


def test_no_flag_is_spelt_below_the_command_line() -> None:
    """In strings, docstrings and comments alike: messages name settings, and `dengine_cli.flags` shows their flags."""
    spelt = []
    for module, path, _ in sources():
        if module.partition(".")[0] not in ("engines", "export"):
            continue
        for number, line in enumerate(path.read_text("utf-8").splitlines(), start=1):
            if FLAG.search(NOT_OURS.sub("", line)):
                spelt.append(f"{path.relative_to(ROOT)}:{number}: {line.strip()}")
    assert spelt == []
