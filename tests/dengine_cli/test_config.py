"""Options in a YAML file: the same as flags, and what is said of wrong ones."""

import json
import shlex
from pathlib import Path
from typing import Any

import pytest
import typer
import yaml
from command_line import assert_fails, dengine

from dengine_cli import config_file
from dengine_cli import main as program

SAME = [
    ("train-base DATA --out OUT --style 'blood smear' --stages vae --steps-scale 0.5 --rotate --seed 3",
     {"data": "DATA", "out": "OUT", "style": "blood smear", "stages": ["vae"], "steps_scale": 0.5, "rotate": True,
      "seed": 3}),
    ("train-adapter DATA --model M --out OUT --lora a.safetensors:0.5 --lora b.safetensors --lr 1e-4 --frame 64x32",
     {"data": "DATA", "base": "M", "out": "OUT", "lora": [["a.safetensors", 0.5], "b.safetensors"], "lr": "1e-4",
      "frame": [64, 32]}),
    ("export --bundle B --engine tensorrt --batch 1:8:16 --size 64x64:96x64:96x96 --for sm89,sm120",
     {"bundle": "B", "engine": "tensorrt", "batch": [1, 8, 16], "sizes": [[64, 64], [96, 64], [96, 96]],
      "for": ["sm89", "sm120"]}),
    ("generate --out OUT --count 8 --strength 0.4:0.8 --score rbc=0.3,wbc=0.5 --format coco,yolo --no-flip --shard 1/2",
     {"out": "OUT", "count": 8, "strength": [0.4, 0.8], "score": {"rbc": 0.3, "wbc": 0.5}, "formats": ["coco", "yolo"],
      "flip": False, "shard": [1, 2]}),
    ("label IMAGES --out OUT --score matched", {"images": "IMAGES", "out": "OUT", "score": "matched"}),
    ("finalize RUN --drop-empty --near-duplicates drop",
     {"run": "RUN", "keep-empty": False, "near_duplicates": "drop"}),
    ("merge A B --out OUT", {"runs": ["A", "B"], "out": "OUT"}),
    ("push RUN --to hub:OWNER/NAME --licence mit --no-private --dry-run",
     {"run": "RUN", "to": "hub:OWNER/NAME", "licence": "mit", "private": False, "dry_run": True}),
    ("audit DATA --out OUT --folds 3 --model M", {"data": "DATA", "out": "OUT", "folds": 3, "base": "M"}),
    ("review RUN --no-open --port 8000", {"what": "RUN", "open": False, "port": 8000}),
    ("report RUN --out FILE", {"folder": "RUN", "out": "FILE"}),
    ("evaluate --real R --val V --val W --out OUT --mix 0.6:0 --amounts 0,1x,20",
     {"real": "R", "val": ["V", "W"], "out": "OUT", "mix": [0.6, 0], "amounts": [0, "1x", 20]}),
    ("bench M --engine torch --engine openvino --no-baseline",
     {"bundle": "M", "engine": ["torch", "openvino"], "baseline": False}),
]  # fmt: skip
VERBS = [line.split()[0] for line, _ in SAME]


def parameters(words: list[str]) -> dict[str, Any]:
    """What a verb is given by a command line."""
    commands = typer.main.get_command(program.app).commands  # type: ignore[attr-defined]
    context = commands[words[0]].make_context(words[0], words[1:])
    return {name: tuple(value) if isinstance(value, list) else value for name, value in context.params.items()}


def written(folder: Path, content: dict[str, Any]) -> Path:
    (folder / "given.yaml").write_text(yaml.safe_dump(content), "utf-8")
    return folder / "given.yaml"


@pytest.mark.parametrize(
    ("line", "content"), SAME, ids=lambda value: value.split()[0] if isinstance(value, str) else ""
)
def test_a_verb_is_given_the_same_by_a_file_as_by_flags(line: str, content: dict[str, Any], tmp_path: Path) -> None:
    words = shlex.split(line)
    file = written(tmp_path, content)
    assert parameters([words[0], "--config", str(file)]) == parameters(words)
    assert parameters([words[0], f"--config={file}", *words[1:]]) == parameters(words), "flags take a key's place"


def test_there_is_a_case_for_every_verb_that_has_settings() -> None:
    assert set(VERBS) == {name for name, module in program.VERBS.items() if hasattr(module, "SETTINGS")}


@pytest.mark.parametrize(
    ("line", "content"), SAME, ids=lambda value: value.split()[0] if isinstance(value, str) else ""
)
def test_the_printed_file_says_what_holds_without_it(line: str, content: dict[str, Any], tmp_path: Path) -> None:
    words = shlex.split(line)
    printed = dengine("config", words[0])
    assert printed.exit_code == 0, printed.output
    assert max(map(len, printed.stdout.splitlines())) <= 160
    (tmp_path / "printed.yaml").write_text(printed.stdout, "utf-8")
    assert parameters([*words, "--config", str(tmp_path / "printed.yaml")]) == parameters(words)


def test_flags_override_the_file(tmp_path: Path) -> None:
    file = written(tmp_path, {"out": "OUT", "count": 8, "steps": 9})
    given = parameters(["generate", "--count", "4", "--config", str(file)])
    assert (given["count"], given["steps"]) == (4, 9)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("siez: 64x64", ["siez", "size"]),
        ("count: many", ["--count", "given.yaml"]),
        ("strength: [a, b]", ["--strength"]),
        ("count: &a 3\njobs: *a", ["given.yaml", "alias"]),
        ("[1, 2]", ["given.yaml", "list"]),
        ("a: b: c", ["given.yaml", "YAML"]),
    ],
)
def test_a_wrong_file_is_one_line(content: str, words: list[str], tmp_path: Path) -> None:
    (tmp_path / "given.yaml").write_text(content, "utf-8")
    result = dengine("generate", "--out", tmp_path / "x", "--config", tmp_path / "given.yaml")
    assert_fails(result, 2, *words)
    assert not (tmp_path / "x").exists()


def test_a_file_that_is_not_there_and_an_unknown_verb_are_refused(tmp_path: Path) -> None:
    assert_fails(dengine("generate", "--config", tmp_path / "none.yaml"), 2, "none.yaml")
    assert_fails(dengine("config", "paint"), 2, "paint", "generate")


def test_settings_without_a_flag_reach_the_library(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from engines.training import train_adapter as module

    seen: list[Any] = []

    def stop(settings: Any, **_: Any) -> None:
        seen.append(settings)
        raise KeyboardInterrupt

    monkeypatch.setattr(module, "train_adapter", stop)
    file = written(
        tmp_path, {"data": "D", "model": "M", "out": "O", "colour": 0.5, "scale": [0.9, 1.1], "rotate": True}
    )
    assert dengine("train-adapter", "--config", file, "--dev-fraction", "0.2").exit_code == 130
    assert (seen[0].colour, seen[0].scale, seen[0].rotate, seen[0].dev_fraction) == (0.5, (0.9, 1.1), True, 0.2)
    assert_fails(dengine("train-adapter", "--config", written(tmp_path, {"data": "D", "color": 0.5})), 2, "colour")


def test_all_that_a_file_of_a_trainings_settings_says_holds_unless_an_option_does(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from engines.training import train_adapter as module

    seen: list[Any] = []
    monkeypatch.setattr(module, "train_adapter", lambda settings, **_: seen.append(settings))
    content = {"folds": 3, "boxes": "corners", "turns": True, "resume": True, "seed": 5, "network": {"width": 64}}
    (tmp_path / "settings.json").write_text(json.dumps(content), "utf-8")
    words = ("train-adapter", "D", "--model", "M", "--out", tmp_path / "O", "--settings", tmp_path / "settings.json")
    for options in ((), ("--folds", 0, "--boxes", "auto", "--seed", 7, "--queries", 9)):
        dengine(*words, *options)
    (whole, changed) = seen
    assert (whole.folds, whole.boxes, whole.rotate, whole.resume, whole.seed) == (3, "corners", True, True, 5)
    assert (changed.folds, changed.boxes, changed.rotate, changed.seed) == (0, "auto", True, 7)
    assert changed.network == {"width": 64, "queries": 9}


def test_what_was_given_is_left_in_the_folder_and_repeats_it(tmp_path: Path) -> None:
    command = typer.main.get_command(program.app).commands["finalize"]  # type: ignore[attr-defined]
    words = [str(tmp_path), "--score", "a=0.3", "--format", "coco,yolo", "--drop-empty"]
    context = command.make_context("finalize", words)
    text = config_file.repeated("finalize", context, {}, {})
    assert yaml.safe_load(text) == {"run": str(tmp_path), "score": "a=0.3", "format": "coco,yolo", "keep_empty": False}
    (tmp_path / "again.yaml").write_text(text, "utf-8")
    again = command.make_context("finalize", ["--config", str(tmp_path / "again.yaml")])
    assert again.params == context.params


@pytest.mark.parametrize(
    ("words", "length"),
    [
        (["train-adapter", "D", "--model", "M", "--out", "O", "--minutes", "5"], {"steps": 4}),
        (["audit", "D", "--out", "O", "--folds", "2", "--model", "M", "--steps-scale", "2"], {"steps_scale": 2.0}),
    ],
)
def test_what_a_verb_settled_takes_the_place_of_what_was_given_but_not_what_a_verb_inside_it_did(
    words: list[str], length: dict[str, float]
) -> None:
    command = typer.main.get_command(program.app).commands[words[0]]  # type: ignore[attr-defined]
    context = command.make_context(words[0], words[1:])
    said = yaml.safe_load(config_file.repeated(words[0], context, {}, {"minutes": None, "steps": 4}))
    assert {key: said.get(key) for key in ("minutes", "steps", "steps_scale") if said.get(key) is not None} == length
