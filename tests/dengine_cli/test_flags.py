"""How a setting that the library names becomes a flag."""

import pytest

from dengine_cli.flags import with_flags

FLAGS = {"score": "--score", "size": "--size", "keep_empty": "--keep-empty", "compiled": "--compile", "mix": "--mix"}


@pytest.mark.parametrize(
    ("message", "expected"),
    [
        ("`score` is 7.", "--score is 7."),
        ("take `score=0.5`.", "take --score 0.5."),
        ("give `keep_empty=True`, or none", "give --keep-empty, or none"),
        ("`compiled` is for torch", "--compile is for torch"),
        ("`size=(256, 192)` would do", "--size 256x192 would do"),
        ("`mix=(0.6, 0.0)` would do", "--mix 0.6:0.0 would do"),
        ("the same `dengine generate` command", "the same `dengine generate` command"),
        ("`unknown` stays", "`unknown` stays"),
    ],
)
def test_a_marked_setting_becomes_its_flag(message: str, expected: str) -> None:
    assert with_flags(message, FLAGS) == expected
