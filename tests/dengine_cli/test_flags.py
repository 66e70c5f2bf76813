"""How a setting that the library names becomes a flag."""

import shlex
from pathlib import Path

import pytest
import typer
from command_line import dengine

from dengine_cli.flags import CALLS, RENAMED, renewed, with_flags
from dengine_cli.main import VERBS, app

NAMES = ("score", "size", "keep_empty", "mix", "shard", "near_duplicates", "precision", "lr", "formats")
FLAGS = {name: f"--{name.replace('_', '-')}" for name in NAMES} | {"compiled": "--compile"}


@pytest.mark.parametrize(
    ("message", "expected"),
    [
        ("`score` is 7.", "--score is 7."),
        ("take `score=0.5`.", "take --score 0.5."),
        ("give `keep_empty=True`, or none", "give --keep-empty, or none"),
        ("`compiled` is for torch", "--compile is for torch"),
        ("take `compiled=False`.", "take --no-compile."),
        ("`size=(256, 192)` would do", "--size 256x192 would do"),
        ("`mix=(0.6, 0.0)` would do", "--mix 0.6:0.0 would do"),
        ("not `shard=(2, 4)`", "not --shard 2/4"),
        ("`formats=('coco', 'yolo')` would do", "--formats coco,yolo would do"),
        ("`score={}` is for others", "--score adapter is for others"),
        ("take `near_duplicates=0`.", "take --near-duplicates keep."),
        ("take `precision=auto` or `lr=1e-4`", "take --precision auto or --lr 1e-4"),
        ("the same `dengine generate` command", "the same `dengine generate` command"),
        ("`unknown` stays", "`unknown` stays"),
    ],
)
def test_a_marked_setting_becomes_its_flag(message: str, expected: str) -> None:
    assert with_flags(message, FLAGS) == expected


@pytest.mark.parametrize(
    ("call", "expected"),
    [
        ("build_plans(BuildPlansSettings('my bundle'))", "dengine export --bundle 'my bundle' --engine tensorrt"),
        (
            "build_plans(BuildPlansSettings('b', batches=(1, 8, 16), sizes=((64, 32), (64, 64), (96, 64))))",
            "dengine export --bundle b --engine tensorrt --batch 1:8:16 --size 64x32:64x64:96x64",
        ),
        (
            "export(ExportSettings('b', 'b/adapter', 'b-fp16', graph_dtype='float16'))",
            "dengine export --model b --adapter b/adapter --out b-fp16 --graph-dtype float16",
        ),
    ],
)
def test_a_marked_call_becomes_the_command_that_makes_it(call: str, expected: str) -> None:
    assert with_flags(f"Run `{call}`.", FLAGS) == f'Run "{expected}".'
    known = {flag for option in _options(shlex.split(expected)[1]) for flag in option.opts}
    assert {word for word in shlex.split(expected) if word.startswith("--")} <= known


@pytest.mark.parametrize(
    "call",
    [
        "paint(8)",
        "build_plans(settings)",
        "build_plans(BuildPlansSettings(bundle))",
        "build_plans('b')",
        "build_plans(BuildPlansSettings('b', other=1))",
        "build_plans(BuildPlansSettings('b')",
    ],
)
def test_a_call_that_no_command_makes_stays(call: str) -> None:
    assert with_flags(f"Run `{call}`.", FLAGS) == f"Run `{call}`."


def test_every_call_is_made_with_flags_that_its_verb_has() -> None:
    for spelling in CALLS.values():
        known = {flag for option in _options(spelling.verb) for flag in option.opts}
        assert {*spelling.flags.values(), *spelling.always[:1]} <= known


@pytest.mark.parametrize("old", sorted(RENAMED))
def test_a_flag_is_taken_by_its_old_name_where_a_verb_has_the_new_one(old: str) -> None:
    known = {flag for name in VERBS for option in _options(name) for flag in option.opts}
    assert RENAMED[old] in known
    assert old not in known
    assert renewed([old, "2", f"{old}=2"], known) == (
        [RENAMED[old], "2", f"{RENAMED[old]}=2"],
        [(old, RENAMED[old])] * 2,
    )
    assert renewed([old], ()) == ([old], []), "and is refused by a verb that never had it"


def test_an_old_name_works_and_says_the_new_one(tmp_path: Path) -> None:
    result = dengine("finalize", tmp_path, "--uncertain", "7")
    assert result.exit_code != 0
    said, error = result.stderr.splitlines()
    assert "--uncertain" in said
    assert "--ignore-score" in said
    assert error.startswith("error: ")
    assert "--uncertain" not in error


def _options(verb: str) -> list[typer.core.TyperOption]:
    verbs: dict[str, typer.core.TyperCommand] = typer.main.get_command(app).commands  # type: ignore[attr-defined]
    return [parameter for parameter in verbs[verb].params if isinstance(parameter, typer.core.TyperOption)]
