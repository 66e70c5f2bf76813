"""Values into the fields of dataclasses: from JSON, flat ones among them, and as a caller gives them."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pytest
from refusals import refused

from engines.common.schema import FLAT, KEY, OLDER, from_object, part_of, settle, to_object
from engines.errors import RunError, UsageError


@dataclass(frozen=True, kw_only=True)
class Inner:
    size: tuple[int, int] = field(default=None, metadata={KEY: "frame"})  # type: ignore[assignment]
    newer: float = field(default=0.5, metadata={OLDER: 0.0})
    folder: Path | None = None


@dataclass(frozen=True, kw_only=True)
class Asked(Inner):
    out: Path
    score: Mapping[str, float] | float | Literal["own"] | None = None
    names: tuple[str, ...] = ()
    files: tuple[tuple[Path, float], ...] = ()

    def __post_init__(self) -> None:
        settle(self)


@dataclass(frozen=True)
class Stored:
    hash: str
    options: Inner = field(metadata=FLAT)
    last: int = 1


def test_a_flat_dataclass_lies_among_the_keys_of_its_owner() -> None:
    value = {"hash": "0", "frame": [4, 3], "newer": 1.0, "folder": "data", "last": 2}
    stored = from_object(Stored, value, RunError, "run.json")
    assert stored == Stored("0", Inner(size=(4, 3), newer=1.0, folder=Path("data")), 2)
    assert to_object(stored) == value | {"frame": (4, 3)}
    assert list(to_object(stored)) == list(value)


def test_a_key_that_an_older_file_lacks_is_what_it_was_then_and_no_other_may_be_missing() -> None:
    assert from_object(Stored, {"hash": "0", "frame": None, "folder": None}, RunError, "x").options.newer == 0.0
    with refused(RunError, None, 'missing key "frame"', 'missing key "folder"', 'unknown key "sides"', '"last"'):
        from_object(Stored, {"hash": "0", "sides": [4, 3], "last": "two"}, RunError, "x")


def test_a_field_with_another_name_in_files_is_read_under_both_its_own_first() -> None:
    assert from_object(Asked, {"out": "a", "size": [4, 3]}, RunError, "x").size == (4, 3)
    assert from_object(Asked, {"out": "a", "frame": [8, 6], "size": [4, 3]}, RunError, "x").size == (4, 3)
    assert from_object(Stored, {"hash": "0", "size": [4, 3], "folder": None}, RunError, "x").options.size == (4, 3)


def test_text_is_a_path_and_a_list_a_tuple() -> None:
    asked = Asked(
        out="run",  # type: ignore[arg-type]
        size=[np.int64(4), 3],  # type: ignore[arg-type]
        score={"a": np.float32(0.5)},  # type: ignore[dict-item]
        names=["a"],  # type: ignore[arg-type]
        files=[("a.safetensors", 1)],  # type: ignore[arg-type]
    )
    assert (asked.out, asked.size, asked.names, asked.folder) == (Path("run"), (4, 3), ("a",), None)
    assert asked.score == {"a": 0.5}
    assert asked.files == ((Path("a.safetensors"), 1.0),)
    assert type(asked.size[0]) is int


@pytest.mark.parametrize(
    ("wrong", "field"),
    [
        ({"size": (4, "three")}, "size"),
        ({"size": (4,)}, "size"),
        ({"size": 4}, "size"),
        ({"newer": True}, "newer"),
        ({"newer": "half"}, "newer"),
        ({"folder": 3}, "folder"),
        ({"score": "other"}, "score"),
        ({"names": "abc"}, "names"),
        ({"out": None}, "out"),
        ({"names": [1], "newer": "half"}, "newer"),
    ],
)
def test_a_value_of_another_type_names_its_field(wrong: dict[str, Any], field: str) -> None:
    with refused(UsageError, field, *(f"`{name}" for name in wrong)):
        Asked(**{"out": "run"} | wrong)


def test_a_part_of_settings_has_their_values_but_for_the_changes() -> None:
    asked = Asked(out=Path("run"), size=(4, 3), newer=0.25)
    assert part_of(Inner, asked, size=(8, 8)) == Inner(size=(8, 8), newer=0.25)
