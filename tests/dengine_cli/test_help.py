"""The command line: help, defaults, exit codes, and one line for a wrong one or an error."""

import errno
import re
import shlex
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from command_line import assert_fails, dengine
from typer.testing import Result

from dengine_cli import main as program
from engines import errors

HEAVY = ("torch", "diffusers", "transformers", "onnx", "onnxruntime", "openvino", "numpy", "scipy", "PIL")


@pytest.fixture
def failing_doctor(monkeypatch: pytest.MonkeyPatch) -> Callable[[BaseException], Result]:
    """Runs `dengine doctor` with an error inside."""

    def run(error: BaseException) -> Result:
        def fail(*_: object, **__: object) -> None:
            raise error

        monkeypatch.setattr("engines.doctor.examine", fail)
        return dengine("doctor")

    return run


def test_help_imports_nothing_heavy() -> None:
    code = (
        "import sys\nfrom dengine_cli.main import app\n"
        "try: app(['generate', '--help'])\nexcept SystemExit as done: assert done.code == 0\n"
        f"print('heavy:', sorted(set({HEAVY!r}) & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "heavy: []"


@pytest.mark.parametrize("verb", program.VERBS)
def test_every_verb_has_help_with_an_example_of_itself(verb: str) -> None:
    result = dengine(verb, "--help")
    assert result.exit_code == 0
    assert f"Example:\n  dengine {verb}" in result.stdout


@pytest.mark.parametrize("verb", [None, *program.VERBS])
def test_help_is_whole_on_a_terminal_of_80_columns(verb: str | None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    result = dengine(*(() if verb is None else (verb,)), "--help")
    lines = result.stdout.splitlines()
    assert [line for line in lines if len(line) > 80] == []
    assert [line for line in lines[1:] if line.endswith("...")] == [], "nothing is cut"
    if verb is not None:
        example = shlex.split(result.stdout.partition("Example:\n")[2].replace("\\\n", ""))
        assert example == shlex.split(program.VERBS[verb].EXAMPLE)


@pytest.mark.parametrize("verb", program.VERBS)
def test_every_option_is_described(verb: str) -> None:
    options = described_options(verb)
    assert "--help" in options
    bare = re.compile(r"(/ --\S+ ?)?(<\w+>|[A-Z/:x]+)?\s*(\[.*\])?")
    assert [name for name, text in options.items() if bare.fullmatch(text)] == []


def test_no_arguments_show_the_help() -> None:
    assert dengine().stdout == dengine("--help").stdout


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["generate", "--cuont", "3"], ["--cuont", "--count"]),
        (["genrate"], ["genrate", "generate"]),
        (["generate", "--count", "3"], ["--out"]),
        (["generate", "--out", "x"], ["--count", "--jobs"]),
        (["generate", "--out", "x", "--count", "0"], ["--count is 0"]),
        (["generate", "--out", "x", "--count", "-1"], ["--count is -1"]),
        (["generate", "--out", "x", "--count", "many"], ["--count"]),
        (["generate", "--out", "x", "--count", "1", "--jobs", "2"], ["exclude"]),
        (["generate", "--out", "x", "--count", "1", "--sampler", "dpmpp", "--eta", "0.3"], ["--eta"]),
        (["generate", "--out", "x", "--count", "1", "--strength", "a:b"], ["--strength"]),
        (["generate", "--out", "x", "--count", "1", "--size", "12"], ["--size"]),
        (["generate", "--out", "x", "--count", "1", "--reference-split", "train"], ["--reference-split"]),
        (["generate", "--out", "x", "--count", "1", "--format", "coko"], ["coko", "yolo"]),
        (["generate", "--out", "x", "--jobs", "4", "--shard", "3"], ["shard"]),
        (["merge", "--out", "x"], ["RUN"]),
        (["train-base", "x"], ["--out"]),
        (["train-adapter", "x", "--out", "y"], ["--model"]),
        (["export", "--out", "y"], ["--model"]),
        (["label", "x", "--out", "y", "--prompt", "loud"], ["--prompt", "generic"]),
    ],
)
def test_a_wrong_command_line_is_one_line_and_exit_code_2(
    arguments: list[str], words: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert_fails(dengine(*arguments), 2, *words)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("error", "code", "words"),
    [
        (errors.BundleError("graph.onnx was changed."), 1, ["graph.onnx was changed."]),
        (errors.UsageError("two\nlines."), 2, ["two lines."]),
        (OSError(errno.ENOSPC, "No space left on device", "runs/a.png"), 1, ["no space left", "runs/a.png"]),
        (RuntimeError("I/O error: No space left on device (os error 28)"), 1, ["no space left"]),
        (PermissionError(errno.EACCES, "Permission denied", "runs"), 1, ["permission denied", "runs"]),
        (OSError(errno.EROFS, "Read-only file system", "runs"), 1, ["permission denied", "runs"]),
        (NotADirectoryError(errno.ENOTDIR, "Not a directory", "runs/x"), 1, ["a file stands", "runs/x"]),
        (OSError(errno.EIO, "Input/output error", "disk"), 1, ["Input/output error", "disk"]),
        (ZeroDivisionError("division by zero"), 1, ["ZeroDivisionError", "--debug"]),
    ],
)
def test_trouble_is_one_line_and_an_exit_code(
    error: BaseException, code: int, words: list[str], failing_doctor: Callable[[BaseException], Result]
) -> None:
    assert_fails(failing_doctor(error), code, *words)


def test_ctrl_c_is_no_error(failing_doctor: Callable[[BaseException], Result]) -> None:
    for stop, said in (
        (KeyboardInterrupt(), f"stopped; {program.VERBS['doctor'].AFTER_INTERRUPT}"),
        (errors.Interrupted("stopped at 3 of 4", kept=False), "stopped at 3 of 4; the same command begins anew"),
    ):
        result = failing_doctor(stop)
        assert result.exit_code == 130
        assert result.stderr.splitlines()[-1] == said


def test_debug_shows_the_traceback(
    failing_doctor: Callable[[BaseException], Result], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DENGINE_DEBUG", "1")
    result = failing_doctor(errors.BundleError("changed"))
    assert isinstance(result.exception, errors.BundleError)


def described_options(verb: str) -> dict[str, str]:
    """What a verb's help says of each option, by its name."""
    options = dengine(verb, "--help").stdout.split("\nOptions:\n")[1].split("\n\n")[0]
    entries = [" ".join(entry.split()) for entry in re.split(r"^  (?=-)", options, flags=re.MULTILINE) if entry]
    return {match[1]: match[2] for entry in entries if (match := re.match(r"(?:-h, )?(--[a-z-]+) (.*)", entry))}


def option_defaults(verb: str) -> dict[str, str]:
    """The defaults that a verb's help writes out, by setting."""
    found = {name: re.search(r"\[default: (.+)\]$", text) for name, text in described_options(verb).items()}
    return {name[2:].replace("-", "_"): match[1] for name, match in found.items() if match}


def test_help_of_generate_writes_the_defaults_that_are_used() -> None:
    from engines.labels.scores import FALLBACK
    from engines.painting.settings import DEFAULTS, FROM_NOISE, JPEG_QUALITY, STEPS

    shown = option_defaults("generate")
    for name in ("sampler", "eta", "guidance"):
        assert type(DEFAULTS[name])(shown[name]) == DEFAULTS[name]
    usual = f"{STEPS['dpmpp']}, from text alone {FROM_NOISE['dpmpp']}"
    assert shown["steps"] == f"{usual}; ddim {STEPS['ddim']} and {FROM_NOISE['ddim']}"
    assert shown["score"] == f"the adapter's own, else {FALLBACK}"
    assert float(shown["min_quality"]) == DEFAULTS["min_quality"]
    assert shown["strength"] == ":".join(map(str, DEFAULTS["strength"]))
    assert int(shown["jpeg_quality"]) == JPEG_QUALITY


def test_help_of_train_adapter_writes_the_defaults_that_are_used() -> None:
    from engines.adapter.info import AdapterConfig
    from engines.training.adapter_options import AdapterTrainOptions

    shown, options, network = option_defaults("train-adapter"), AdapterTrainOptions(), AdapterConfig((8,), 1)
    for name in ("steps", "batch", "lr", "pseudo_share", "dev_fraction", "precision_goal", "eval_every", "seed"):
        assert float(shown[name]) == getattr(options, name)
    for name in ("head", "width", "queries", "encoder_layers", "decoder_layers", "extra_levels"):
        assert shown[name] == str(getattr(network, name))
