"""Bad input through Python: the same typed errors as on the command line, with the name of the field."""

from pathlib import Path
from typing import Any

import pytest
from refusals import refused

import dengine
from dengine import UsageError

COMPLETE: dict[type[Any], dict[str, Any]] = {
    dengine.TrainBaseSettings: {"data": "data", "out": "out"},
    dengine.TrainAdapterSettings: {"data": "data", "base": "base", "out": "out"},
    dengine.ExportSettings: {"base": "base", "adapter": "adapter", "out": "out"},
    dengine.BuildPlansSettings: {"bundle": "bundle"},
    dengine.GenerateSettings: {"out": "out", "count": 4},
    dengine.LabelSettings: {"images": "images", "out": "out"},
    dengine.FinalizeSettings: {"run": "run"},
    dengine.MergeSettings: {"runs": ["a", "b"], "out": "out"},
    dengine.EvaluateSettings: {"real": "real", "synthetic": [], "val": "val", "out": "out"},
    dengine.BenchSettings: {},
    dengine.PushSettings: {"run": "run", "to": "there"},
}


@pytest.mark.parametrize(
    ("kind", "wrong", "field"),
    [
        (dengine.TrainBaseSettings, {"steps_scale": 0.0}, "steps_scale"),
        (dengine.TrainBaseSettings, {"seed": "one"}, "seed"),
        (dengine.TrainAdapterSettings, {"lr": -1.0}, "lr"),
        (dengine.TrainAdapterSettings, {"loras": [("a.safetensors", "much")]}, "loras"),
        (dengine.TrainAdapterSettings, {"network": {"depth": 3}}, "network"),
        (dengine.ExportSettings, {"opset": 21}, "opset"),
        (dengine.ExportSettings, {"frame": "320x256"}, "frame"),
        (dengine.ExportSettings, {"engines": ["steam"]}, "engines"),
        (dengine.BuildPlansSettings, {"workspace": 0.0}, "workspace"),
        (dengine.BuildPlansSettings, {"batches": (1, 2)}, "batches"),
        (dengine.GenerateSettings, {"count": 0}, "count"),
        (dengine.GenerateSettings, {"count": "many"}, "count"),
        (dengine.GenerateSettings, {"count": 2.5}, "count"),
        (dengine.GenerateSettings, {"out": 3}, "out"),
        (dengine.GenerateSettings, {"sampler": "euler"}, "sampler"),
        (dengine.GenerateSettings, {"strength": 0.5}, "strength"),
        (dengine.GenerateSettings, {"score": {"rbc": "high"}}, "score"),
        (dengine.GenerateSettings, {"formats": ["voc"]}, "formats"),
        (dengine.LabelSettings, {"prompt": "loud"}, "prompt"),
        (dengine.LabelSettings, {"threads": "all"}, "threads"),
        (dengine.FinalizeSettings, {"formats": ["voc"]}, "formats"),
        (dengine.FinalizeSettings, {"near_duplicates": 2.0}, "near_duplicates"),
        (dengine.FinalizeSettings, {"score": "best"}, "score"),
        (dengine.MergeSettings, {"runs": []}, "runs"),
        (dengine.MergeSettings, {"runs": "one"}, "runs"),
        (dengine.EvaluateSettings, {"amounts": [1]}, "amounts"),
        (dengine.EvaluateSettings, {"mix": (0.0, 0.0)}, "mix"),
        (dengine.PushSettings, {"to": "ftp://server"}, "to"),
        (dengine.PushSettings, {"dry_run": "yes"}, "dry_run"),
        (dengine.BenchSettings, {"engines": ["steam"]}, "engines"),
        (dengine.BenchSettings, {"precision": "f8"}, "precision"),
        (dengine.BenchSettings, {"size": (64, 48, 3)}, "size"),
    ],
)
def test_wrong_settings_are_refused_with_their_field(kind: type[Any], wrong: dict[str, Any], field: str) -> None:
    kind(**COMPLETE[kind])
    with refused(UsageError, field):
        kind(**COMPLETE[kind] | wrong)


def test_paths_may_be_text() -> None:
    for kind, given in COMPLETE.items():
        settings = kind(**given)
        for name, value in given.items():
            if name not in ("base", "count", "to"):
                wanted = tuple(map(Path, value)) if isinstance(value, list) else Path(value)
                assert getattr(settings, name) == (
                    (wanted,) if (kind, name) == (dengine.EvaluateSettings, "val") else wanted
                )


VERBS = (
    "train_base", "train_adapter", "export", "build_plans", "generate", "label", "finalize", "merge", "audit",
    "evaluate", "bench", "review", "report", "work", "status", "gather", "push", "generate_on_cluster",
)  # fmt: skip


@pytest.mark.parametrize("name", VERBS)
def test_what_are_no_settings_is_refused_by_every_verb(name: str) -> None:
    more = (dengine.ClusterSettings(cluster="local"),) if name == "generate_on_cluster" else ()
    with refused(UsageError, "settings"):
        getattr(dengine, name)("run", *more)


@pytest.mark.parametrize("field", ["report", "stop"])
def test_what_cannot_be_called_is_refused_before_anything_is_written(tmp_path: Path, field: str) -> None:
    given: dict[str, Any] = {field: True}
    with refused(UsageError, field):
        dengine.generate(dengine.GenerateSettings(out=tmp_path / "run", count=1), **given)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("verb", "settings", "field"),
    [
        ("train_base", dengine.TrainBaseSettings(data="nowhere", out="out"), "data"),
        ("train_adapter", dengine.TrainAdapterSettings(data="nowhere", base="base", out="out"), "data"),
        ("export", dengine.ExportSettings(base="nowhere", adapter="adapter", out="out"), "base"),
        ("build_plans", dengine.BuildPlansSettings(bundle="nowhere"), "bundle"),
        ("generate", dengine.GenerateSettings(out="out", count=1, reference="nowhere"), "reference"),
        ("generate", dengine.GenerateSettings(out="out", count=1, bundle="nowhere"), "bundle"),
        ("label", dengine.LabelSettings("nowhere", out="out"), "images"),
        ("finalize", dengine.FinalizeSettings("nowhere"), "run"),
        ("merge", dengine.MergeSettings(["nowhere", "else"], out="out"), "runs"),
        ("audit", dengine.AuditSettings(data="nowhere", out="out"), "data"),
        ("evaluate", dengine.EvaluateSettings("nowhere", synthetic=["run"], val="val", out="out"), "real"),
        ("bench", dengine.BenchSettings(bundle="nowhere"), "bundle"),
        ("review", dengine.ReviewSettings("nowhere"), "what"),
        ("report", dengine.ReportSettings("nowhere"), "folder"),
        ("status", dengine.StatusSettings("nowhere"), "run"),
        ("push", dengine.PushSettings("nowhere", to="there"), "run"),
    ],
)
def test_a_folder_that_is_not_there_is_refused_with_its_setting(
    verb: str, settings: Any, field: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(dengine.DengineError) as caught:
        getattr(dengine, verb)(settings)
    assert caught.value.field == field


@pytest.mark.parametrize(
    ("given", "kind", "field"),
    [
        ({"bundle": "nowhere"}, dengine.BundleError, "bundle"),
        ({"bundle": 3}, UsageError, "bundle"),
        ({"engine": "steam"}, UsageError, "engine"),
        ({"precision": "f8"}, UsageError, "precision"),
        ({"threads": 0}, UsageError, "threads"),
        ({"threads": "all"}, UsageError, "threads"),
        ({"engine": "openvino", "device": "cuda"}, dengine.DengineError, "device"),
    ],
)
def test_what_cannot_be_loaded_is_refused(given: dict[str, Any], kind: type[dengine.DengineError], field: Any) -> None:
    with pytest.raises(kind) as caught:
        dengine.load(**given)
    assert caught.value.field == field
