"""docs/architecture.md says what is: every room has its floor, and what points up is listed there."""

import ast
import re
from pathlib import Path

ROOT = Path(__file__).parents[1]
PAGE = (ROOT / "docs" / "architecture.md").read_text("utf-8")
PACKAGES = ("dengine_cli", "export", "engines")
Edge = tuple[str, str]


def floors() -> dict[str, int]:
    """Room -> floor, from the page's table; 1 is the highest."""
    rows = re.findall(r"^\| (\d+) \| `([\w/]+)(?:\.py)?` \|", PAGE, re.MULTILINE)
    return {room: int(floor) for floor, room in rows}


def listed() -> set[Edge]:
    """What the page says still points up."""
    return set(re.findall(r"^- `([\w/]+)` takes from `([\w/]+)`", PAGE, re.MULTILINE))


def room_of(module: str) -> str:
    """`engines.adapter.info` to `engines/adapter`, `export.verify` to `export`."""
    parts = module.split(".")
    return "/".join(parts[:2]) if parts[0] == "engines" else parts[0]


def imports() -> set[Edge]:
    """(room, room that it imports), from the sources; imports inside functions and for types alone count, too."""
    found = set()
    for package in PACKAGES:
        for file in (ROOT / package).rglob("*.py"):
            own = room_of(".".join(file.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"))
            for node in ast.walk(ast.parse(file.read_text("utf-8"))):
                names = [node.module or ""] if isinstance(node, ast.ImportFrom) else []
                names += [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
                if names == ["engines"]:
                    names = [f"engines.{alias.name}" for alias in node.names]  # type: ignore[attr-defined]
                found |= {(own, room_of(name)) for name in names if name.split(".")[0] in PACKAGES}
    return {(own, other) for own, other in found if own != other}


def test_every_room_has_a_floor() -> None:
    rooms = {room for edge in imports() for room in edge}
    assert rooms - set(floors()) == set()


def test_imports_point_down_but_for_those_that_the_page_lists() -> None:
    floor = floors()
    assert {(own, other) for own, other in imports() if floor[other] <= floor[own]} == listed()
