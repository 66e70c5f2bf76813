"""The verbs that train, as commands: what they leave beside what they made."""

from pathlib import Path

import pytest
import yaml
from command_line import dengine
from tiny_preset import small_trainings, tiny_preset

from benchmarks.large_checks import different_files, read_hashes
from engines.training import presets


@pytest.fixture
def words(tmp_path: Path, toy_bases: dict[str, Path], monkeypatch: pytest.MonkeyPatch) -> dict[str, list[object]]:
    monkeypatch.setattr(presets, "PRESETS", {"tiny": tiny_preset()})
    return small_trainings(tmp_path, toy_bases["sd1"], minutes=1)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("verb", "module", "found", "length"),
    [
        ("train-base", "base_model", 250, {"steps_scale": 0.25}),
        ("train-adapter", "adapter", 4, {"steps": 4}),
    ],
)
def test_the_file_that_a_training_by_minutes_leaves_repeats_its_bytes(
    verb: str, module: str, found: int, length: dict[str, float], words: dict[str, list[object]], tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.setattr(f"engines.training.{module}.longest", lambda *_: found)  # what fits here, a clock says
    first, second = tmp_path / "first", tmp_path / "second"
    minutes = ("--minutes", 1) if verb == "train-base" else ()  # the other's are in its file of settings
    assert dengine(*words[verb], *minutes, "--out", first).exit_code == 0
    left = first / ".dengine" / f"{verb}.yaml"
    said = yaml.safe_load(left.read_text("utf-8"))
    assert {key: said.get(key) for key in ("minutes", *length)} == {"minutes": None, **length}
    monkeypatch.setattr(f"engines.training.{module}.longest", lambda *_: 1)
    again = dengine(verb, "--config", left, "--out", second)
    assert again.exit_code == 0, again.output
    assert different_files(read_hashes(first), read_hashes(second)) == []
