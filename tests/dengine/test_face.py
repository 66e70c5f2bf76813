"""`import dengine`: what it gives, that it imports nothing before it is used, and that its examples are true."""

import ast
import doctest
import inspect
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

import dengine

ROOT = Path(__file__).parents[2]
HEAVY = ("torch", "diffusers", "transformers", "onnx", "onnxruntime", "openvino", "numpy", "scipy", "PIL", "typer")
# Whose examples paint, in an order in which one finds what another left.
PAINTING = (
    "generate", "finalize", "GenerateSummary", "label", "LabelSummary", "merge", "review", "report", "push",
    "load", "LoadedBundle", "PaintedImage",
    "DatasetError", "RunError", "BundleError", "examine", "Diagnosis",
)  # fmt: skip
VERBS = (
    "train_base", "train_adapter", "export", "build_plans", "generate", "label", "finalize", "merge", "audit",
    "evaluate", "bench", "review", "report", "work", "status", "gather", "push",
)  # fmt: skip
FLAGS = doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE | doctest.IGNORE_EXCEPTION_DETAIL


def test_import_brings_nothing_heavy_and_names_bring_their_own() -> None:
    code = f"import sys, dengine\nprint(sorted(set({HEAVY!r}) & set(sys.modules)))\ndengine.Event\ndengine.UsageError\n"
    code += f"print(sorted(set({HEAVY!r}) & set(sys.modules)))\ndengine.Instances\nprint('numpy' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT)
    assert done.stdout.splitlines() == ["[]", "[]", "True"]


def test_python_m_dengine_is_the_command() -> None:
    command = [sys.executable, "-m", "dengine", "finalize", "nowhere"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 1
    assert done.stderr.startswith("error: nowhere does not exist")


def test_what_is_typed_is_what_is_there() -> None:
    tree = ast.parse((ROOT / "dengine" / "__init__.py").read_text("utf-8"))
    typed = {
        (alias.name, node.module)
        for node in ast.walk(tree)
        if isinstance(node, ast.ImportFrom) and node.module
        for alias in node.names
        if node.module != "typing"
    }
    assert typed == set(dengine._HOME.items())
    assert {name for name, _ in typed} == set(dengine.__all__) == set(dir(dengine))
    for name in dengine.__all__:
        assert getattr(dengine, name).__name__ == name
    with pytest.raises(AttributeError):
        getattr(dengine, "nothing")  # noqa: B009  a type checker knows that it is not there


def test_every_verb_has_settings_a_report_and_a_summary() -> None:
    for name in VERBS:
        parameters = inspect.signature(getattr(dengine, name)).parameters
        assert list(parameters)[:2] == ["settings", "report"]
        assert parameters["report"].default is None
        assert {one.kind for one in list(parameters.values())[1:]} == {inspect.Parameter.KEYWORD_ONLY}
        settings = parameters["settings"].annotation
        assert getattr(dengine, settings.__name__) is settings
        assert settings.__dataclass_params__.frozen
        summary = inspect.signature(getattr(dengine, name)).return_annotation
        assert getattr(dengine, summary.__name__) is summary
        assert summary.__dataclass_params__.frozen


def examples(name: str) -> list[doctest.DocTest]:
    """The examples of a public name, and of its public methods."""
    value = getattr(dengine, name)
    names: dict[str, Any] = {each: getattr(dengine, each) for each in dengine.__all__} | {"dengine": dengine}
    found = doctest.DocTestFinder(recurse=inspect.isclass(value)).find(value, name, globs=names)
    return [test for test in found if test.examples and not test.name.split(".")[-1].startswith("_")]


def run(name: str) -> None:
    for test in examples(name):
        said: list[str] = []
        failed, _ = doctest.DocTestRunner(optionflags=FLAGS, verbose=False).run(test, out=said.append)
        assert failed == 0, "".join(said)


@pytest.mark.parametrize("name", sorted(set(dengine.__all__) - set(PAINTING)))
def test_every_public_name_has_a_docstring_with_an_example_that_is_true(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert examples(name)
    run(name)


@pytest.mark.slow
def test_the_examples_that_paint_are_true(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for name in PAINTING:
        assert examples(name)
        run(name)
