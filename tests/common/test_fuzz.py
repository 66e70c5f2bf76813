"""Model files, spoilt by the hundred: each is read, or refused in a short message, soon and without much memory."""

import os
import random
import time
from pathlib import Path

import fuzz
import pytest
from fuzz_models import header_target, lora_targets, model_targets, plan_target

from engines.errors import ModelError

COUNT = int(os.environ.get("DENGINE_FUZZ", "60"))  # mutations of each file; thousands by hand
SEED = int(os.environ.get("DENGINE_FUZZ_SEED", "0"))


@pytest.mark.slow
def test_spoilt_files_of_models_are_read_or_refused(
    toy_bases: dict[str, Path], toy_adapters: dict[str, Path], tmp_path: Path
) -> None:
    targets = model_targets(tmp_path, toy_bases["sd1"], toy_adapters["sd1"]) | header_target(tmp_path)
    targets |= lora_targets(tmp_path, toy_bases["sd1"]) | plan_target(tmp_path, tmp_path / "bundle")
    reports = fuzz.fuzz_files(targets, COUNT, SEED)
    assert [problem for report in reports.values() for problem in report.problems] == []
    assert all(report.total == COUNT for report in reports.values())
    assert sum(report.refused for report in reports.values()) > COUNT
    for path, read in targets.items():  # every file is as it was
        if path.name != "checkpoint.safetensors":
            read()


def test_a_mutation_is_a_function_of_its_seed() -> None:
    data = b'{"a": [1, 2, {"b": "text"}], "c": 0.5, "d": true}'
    made = [fuzz.mutated_file(data, random.Random(f"0/{number}")) for number in range(200)]
    assert made == [fuzz.mutated_file(data, random.Random(f"0/{number}")) for number in range(200)]
    assert len(set(made)) > 100


@pytest.mark.slow
def test_what_must_not_happen_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def judged(read: object) -> list[str]:
        report = fuzz.Report()
        fuzz.judge(read, "it", report)  # type: ignore[arg-type]
        return report.problems

    def raises(error: Exception) -> object:
        def read() -> None:
            raise error

        return read

    def hangs() -> None:
        try:
            time.sleep(60)
        except Exception:
            pytest.fail("an except Exception held it up")

    monkeypatch.setattr(fuzz, "HANG", 0.2)
    assert judged(raises(ModelError("short"))) == []
    assert judged(lambda: None) == []
    assert "a message of 600 characters" in judged(raises(ModelError("x" * 600)))[0]
    assert "5 lines" in judged(raises(ModelError("a\nb\nc\nd\ne")))[0]
    assert "ValueError: 'no'" in judged(raises(ValueError("no")))[0]
    assert "more than 0.2 s" in judged(hangs)[0]
    assert "MemoryError" in judged(lambda: bytearray(1 << 40))[0]
