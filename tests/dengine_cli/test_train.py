"""The verbs that train, as commands: what they leave beside what they made."""

import json
from pathlib import Path

import pytest
import yaml
from command_line import dengine
from kill_scenes import write_pictures
from tiny_preset import tiny_preset

from benchmarks.large_checks import different_files, read_hashes
from engines.training import presets

_NETWORK = {"width": 16, "heads": 2, "ffn_width": 16, "decoder_layers": 1, "queries": 8, "denoising": 0}
_ADAPTER = {"minutes": 1, "network": _NETWORK, "short_side": 32, "batch": 1, "warmup": 2, "eval_every": 2}


@pytest.fixture
def words(tmp_path: Path, toy_bases: dict[str, Path], monkeypatch: pytest.MonkeyPatch) -> dict[str, list[object]]:
    """A small training of either verb, but for its length and where it writes."""
    monkeypatch.setattr(presets, "PRESETS", {"tiny": tiny_preset()})
    data, settings = tmp_path / "data", tmp_path / "settings.json"
    write_pictures(data, 6, labels=True)
    settings.write_text(json.dumps(_ADAPTER), "utf-8")
    usual = ["--precision", "f32", "--no-report"]
    return {
        "train-base": ["train-base", data, "--preset", "tiny", *usual],
        "train-adapter": ["train-adapter", data, "--model", toy_bases["sd1"], "--settings", settings, *usual],
    }


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
