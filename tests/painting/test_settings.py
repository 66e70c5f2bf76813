"""Settings of a run: ranges, contradictions, defaults, and JSON both ways."""

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from made_runs import run_settings
from refusals import refused

from engines.errors import BundleError, RunError, UsageError
from engines.painting import resolve as resolve_module
from engines.painting.options import resolve_options
from engines.painting.resolve import default_chunk, gpu_slots, wants_compiled
from engines.painting.run_settings import RunSettings, differences
from engines.painting.settings import GenerateSettings
from engines.runs.run_folder import check_format

OUT = Path("run")
CLASSES = ("a", "b")


@pytest.mark.parametrize(
    ("options", "field", "shown"),
    [
        ({}, "count", "`jobs`"),
        ({"count": 0}, "count", 0),
        ({"count": -1}, "count", -1),
        ({"count": 1, "jobs": 1}, "count", "`jobs`"),
        ({"count": 1, "shard": (1, 2)}, "shard", "`jobs`"),
        ({"jobs": 1, "shard": (3, 2)}, "shard", "3:2"),
        ({"count": 1, "sampler": "dpmpp", "eta": 0.2}, "eta", "`sampler=dpmpp`"),
        ({"count": 1, "sampler": "euler"}, "sampler", "euler"),
        ({"count": 1, "guidance": 0.5}, "guidance", 0.5),
        ({"count": 1, "guidance": float("nan")}, "guidance", "nan"),
        ({"count": 1, "guidance": 1.0, "guidance_interval": (0.1, 0.9)}, "guidance_interval", "`guidance=1`"),
        ({"count": 1, "guidance": 1.0, "negative_prompt": "blur"}, "negative_prompt", "`guidance=1`"),
        ({"count": 1, "strength": (0.4, 0.8)}, "strength", "`reference`"),
        ({"count": 1, "strength": (0.8, 0.4), "reference": OUT}, "strength", "0.8:0.4"),
        ({"count": 1, "reference_split": "train"}, "reference_split", "`reference`"),
        ({"count": 1, "score": 0.01}, "score", 0.01),
        ({"count": 1, "formats": ("coco", "voc")}, "formats", "voc"),
        ({"count": 1, "prompt_template": "a {thing}"}, "prompt_template", "{thing}"),
        ({"count": 1, "prompt_template": "a {style.x}"}, "prompt_template", "{style.x}"),
        ({"count": 1, "prompt_template": "a {style!r:9}"}, "prompt_template", "{style}"),
        ({"count": 1, "prompt_template": "a {"}, "prompt_template", "a {"),
        ({"count": 1, "image_format": "png", "jpeg_quality": 80}, "jpeg_quality", "JPEG"),
        ({"count": 1, "near_duplicates": 2.0}, "near_duplicates", 2.0),
        ({"count": 1, "seed": -1}, "seed", -1),
    ],
)
def test_what_cannot_be_meant_is_refused(options: dict[str, Any], field: str, shown: object) -> None:
    with refused(UsageError, field, shown):
        GenerateSettings(out=OUT, **options)


def test_all_mistakes_are_listed_at_once() -> None:
    with refused(UsageError, "count", "`count`", "`steps`", "`eta`", "`guidance`"):
        GenerateSettings(out=OUT, count=0, steps=0, eta=2.0, guidance=0.0)


def test_options_come_from_the_user_then_the_bundle_then_the_defaults() -> None:
    asked = GenerateSettings(out=OUT, count=1, steps=7)
    options = resolve_options(asked, {"steps": 9, "guidance": 2.0}, {}, CLASSES)
    assert (options["steps"], options["guidance"], options["score"]) == (7, 2.0, 0.3)
    assert options["strength"] is None
    with_reference = GenerateSettings(out=OUT, count=1, reference=OUT)
    assert resolve_options(with_reference, {}, {}, CLASSES)["strength"] == (0.4, 0.8)
    assert resolve_options(with_reference, {"strength": [0.2, 0.3]}, {}, CLASSES)["strength"] == (0.2, 0.3)


def test_what_the_bundle_adds_never_contradicts_what_was_asked() -> None:
    defaults = {"eta": 0.3, "negative_prompt": "blur", "guidance_interval": [0.1, 0.8]}
    dpmpp = GenerateSettings(out=OUT, count=1, sampler="dpmpp")
    assert resolve_options(dpmpp, defaults, {}, CLASSES)["eta"] == 0.0
    unguided = resolve_options(GenerateSettings(out=OUT, count=1, guidance=1.0), defaults, {}, CLASSES)
    assert (unguided["negative_prompt"], unguided["guidance_interval"]) == ("", None)


@pytest.mark.parametrize(
    ("defaults", "field"),
    [({"step": 3}, None), ({"steps": 0}, "steps"), ({"steps": "many"}, "steps"), ({"sampler": "euler"}, "sampler")],
)
def test_a_bundle_with_impossible_defaults_is_refused(defaults: dict[str, Any], field: str | None) -> None:
    with refused(BundleError, field, "manifest.json"):
        resolve_options(GenerateSettings(out=OUT, count=1), defaults, {}, CLASSES)


def test_run_json_keeps_every_setting() -> None:
    settings = run_settings(shard=(2, 3), jobs=9, count=None, guidance_interval=(0.25, 0.75))
    assert RunSettings.from_json(json.loads(json.dumps(settings.to_json())), "run.json") == settings


def test_a_changed_run_json_is_refused_with_every_mistake() -> None:
    value = run_settings().to_json() | {"seed": "zero", "colour": 1}
    del value["chunk"]
    with refused(RunError, None, "run.json", '"seed"', '"colour"', '"chunk"'):
        RunSettings.from_json(value, "run.json")
    with refused(RunError, None, "run.json", 4):
        RunSettings.from_json(value | {"format": 5}, "run.json")


def test_a_run_of_an_older_version_is_read_but_not_gone_on_with() -> None:
    older = RunSettings.from_json(run_settings().to_json() | {"format": 1}, "run.json")
    assert differences(older, run_settings()) == [("format", "`format` is 1 in the run, 4 was asked for")]
    with refused(RunError, None, OUT):
        check_format(OUT, older)
    check_format(OUT, run_settings())
    check_format(OUT, run_settings(format=2))
    check_format(OUT, run_settings(format=3))
    check_format(OUT, None)


def test_only_growth_and_places_are_no_difference() -> None:
    stored = run_settings()
    assert differences(stored, run_settings(count=9, bundle="/elsewhere", reference="moved", skip_bad=True)) == []
    assert differences(stored, run_settings(count=7)) == [("count", "`count` is 8 in the run, 7 was asked for")]
    assert {name for name, _ in differences(stored, run_settings(score=0.4, slots=2))} == {"score", "slots"}


def test_chunks_grow_with_the_count_and_waste_little() -> None:
    sizes = [default_chunk(count, 4) for count in (4, 32, 200, 1000, 10**6)]
    assert sizes == sorted(sizes)
    assert sizes[0] == 4
    assert sizes[-1] == 512
    assert default_chunk(1, 1) == 1
    for count in (32, 200, 1000, 10_000):
        assert default_chunk(count, 4) <= count * 0.4


@pytest.mark.parametrize(
    ("millions", "frame", "target", "slots"),
    [
        (860, (512, 512), 10**6, 8),  # Stable Diffusion's
        (860, (256, 256), 10**6, 8),
        (200, (512, 512), 10**6, 8),
        (100, (512, 512), 10**6, 16),
        (16, (256, 192), 10**6, 128),  # the bundled model
        (16, (2048, 2048), 10**6, 8),
        (16, (256, 192), 1000, 64),  # few images: a chunk is painted whole
        (16, (256, 192), 32, 8),
    ],
)
def test_a_small_model_has_more_slots_on_a_gpu(
    monkeypatch: pytest.MonkeyPatch, millions: int, frame: tuple[int, int], target: int, slots: int
) -> None:
    monkeypatch.setattr(resolve_module, "unet_parameters", lambda bundle: millions * 10**6)
    bundle: Any = SimpleNamespace(vae_stride=8)
    assert gpu_slots(bundle, frame, target) == slots


def test_long_runs_may_be_compiled_and_a_run_goes_on_as_it_began() -> None:
    def wanted(stored: RunSettings | None = None, **options: Any) -> bool | None:
        return wants_compiled(GenerateSettings(out=OUT, **options), stored)

    assert [wanted(count=999), wanted(count=1000), wanted(jobs=1000)] == [False, None, None]
    assert [wanted(count=1, compiled=True), wanted(count=10**6, compiled=False)] == [True, False]
    began = {name: run_settings(backend=f"torch 2 on GPU, f16{name}") for name in ("", ", compiled")}
    assert [wanted(stored, count=5000) for stored in began.values()] == [False, True]
