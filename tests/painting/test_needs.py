"""Which TensorRT plans a run needs, and the shapes they are built for."""

from collections.abc import Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pytest
from fakes import SPECS, FakeBackend, FakeBundle, make_bundle
from PIL import Image
from refusals import refused

from engines.backends.tensorrt.plans import Needs
from engines.diffusion.schedule import Schedules
from engines.errors import UsageError
from engines.labelling import LabelSettings, label
from engines.painting.needs import generate_needs, label_needs
from engines.painting.resolve import default_rows, needed_rows
from engines.painting.settings import GenerateSettings
from engines.runs.generate import generate
from export.tensorrt.profiles import wanted_profiles

# --- which are needed --------------------------------------------------------------------------------------------


def as_prepared(needs: Needs) -> set[tuple[str, tuple[tuple[str, tuple[int, ...]], ...]]]:
    return {(graph, tuple(SPECS[graph].input_shapes(sizes).items())) for graph, sizes in needs.graphs}


@pytest.mark.parametrize(
    "options",
    [{}, {"slots": 3}, {"rows": 5}, {"size": (64, 48)}, {"guidance": 1.0}, {"guidance_interval": (0.2, 0.7)}],
    ids=str,
)
@pytest.mark.parametrize("references", [False, True])
def test_generate_needs_what_it_then_prepares(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, options: dict[str, Any], references: bool
) -> None:
    bundle = make_bundle(tmp_path / "bundle")
    backend, asked = FakeBackend(name="tensorrt"), {}
    if references:
        (tmp_path / "images").mkdir()
        Image.fromarray(np.full((40, 60, 3), 99, dtype=np.uint8)).save(tmp_path / "images" / "a.png")
        options = options | {"reference": tmp_path / "images"}

    def opened(*_: Any, **given: Any) -> FakeBackend:
        asked.update(given)
        return backend

    monkeypatch.setattr("engines.bundle.bundle.open_bundle", lambda folder: bundle)
    monkeypatch.setattr("engines.backends.registry.open_backend", opened)
    generate(GenerateSettings(out=tmp_path / "run", bundle=bundle.folder, count=1, keep_empty=True, **options))
    prepared = {(graph, tuple(shapes.items())) for graph, shapes in backend.prepared}
    assert as_prepared(asked["needs"]) == prepared


def test_label_needs_what_it_then_prepares(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    bundle, backend, asked = make_bundle(tmp_path / "bundle"), FakeBackend(name="tensorrt"), {}
    (tmp_path / "images").mkdir()
    for name, width in (("a", 48), ("b", 48), ("c", 70)):
        Image.fromarray(np.full((32, width, 3), 99, dtype=np.uint8)).save(tmp_path / "images" / f"{name}.png")

    def opened(*_: Any, **given: Any) -> FakeBackend:
        asked.update(given)
        return backend

    monkeypatch.setattr("engines.bundle.bundle.open_bundle", lambda folder: bundle)
    monkeypatch.setattr("engines.backends.registry.open_backend", opened)
    label(LabelSettings(images=tmp_path / "images", out=tmp_path / "out", bundle=bundle.folder))
    assert as_prepared(asked["needs"]) == {(graph, tuple(shapes.items())) for graph, shapes in backend.prepared}
    assert asked["needs"].build == {"sizes": ((48, 32), (72, 32), (72, 32))}


def test_plans_are_asked_for_by_size_only_where_the_defaults_do_not_serve(tmp_path: Path) -> None:
    bundle = make_bundle(tmp_path / "bundle")

    def build(**asked: Any) -> Mapping[str, Any]:
        return generate_needs(GenerateSettings(out=tmp_path, count=1, **asked), bundle, None).build

    assert build() == {}
    assert build(slots=4) == {"batches": (4, 4, 4)}
    assert build(rows=9, size=(64, 48)) == {"batches": (1, 8, 9), "sizes": ((64, 48),) * 3}
    assert build(slots=20, rows=7) == {"batches": (1, 20, 20)}
    assert generate_needs(GenerateSettings(out=tmp_path, count=1, size=(9, 9)), bundle, None) == Needs(())
    assert label_needs(bundle, {bundle.frame}).build == {}
    assert label_needs(bundle, {(40, 32)}).build == {"sizes": ((40, 32),) * 3}
    assert label_needs(bundle, set()).graphs == ()


@pytest.mark.parametrize(
    ("guidance", "interval", "strength", "rows"),
    [
        (1.0, None, None, 7),
        (4.0, None, None, 14),
        (4.0, (0.5, 1.0), None, 10),  # 5 of 10 steps: 10.5, and the nearest even number
        (4.0, (0.5, 1.0), (0.6, 0.6), 8),  # 2 of 10: t = 599, 539, 479, ...
        (4.0, (0.9, 1.0), (0.3, 0.6), 8),  # none of them
        (4.0, (0.0, 0.5), (0.3, 0.5), 14),  # all of them
        (4.0, (0.0, 0.5), (0.0, 0.0), 8),  # nothing is painted
    ],
)
def test_rows_are_those_that_the_steps_of_the_jobs_need(
    tmp_path: Path, guidance: float, interval: Any, strength: Any, rows: int
) -> None:
    bundle = make_bundle(tmp_path)
    schedules = Schedules(bundle.scheduler_config, "ddim", 10)  # from noise t = 901, 801, ..., 1 of 1000
    options = {"guidance": guidance, "guidance_interval": interval, "strength": strength}
    assert needed_rows(schedules, 7, options) == rows
    if strength == (0.6, 0.6):
        floored = Schedules(bundle.scheduler_config, "ddim", 10, floored=True)
        assert needed_rows(floored, 7, options) == 8  # 1 of 6


def test_profiles_are_made_of_the_bundles_own_settings(tmp_path: Path) -> None:
    bundle = make_bundle(tmp_path, generate_defaults={"steps": 4, "guidance": 1.0})
    assert default_rows(bundle, 8) == 8
    assert [profile["B"] for profile in wanted_profiles(bundle)["unet"]] == [(8, 8, 8)]  # one serves both
    assert [profile["B"] for profile in wanted_profiles(bundle, (20, 20, 20))["unet"]] == [(20,) * 3, (8,) * 3]
    (unet,) = wanted_profiles(bundle, (2, 20, 30))["unet"]
    assert unet["B"] == (2, 20, 30)
    assert wanted_profiles(bundle)["text_encoder"] == ({"B": (1, 1, 1)},)


@pytest.mark.parametrize(
    ("batches", "frames", "field", "shown"),
    [
        ((4, 2, 8), None, "batches", "4:2:8"),
        ((0, 0, 0), None, "batches", "0"),
        (None, ((64, 64), (48, 96), (96, 96)), "sizes", "64x64:48x96:96x96"),
        (None, ((50, 32),) * 3, "sizes", "50x32"),
    ],
)
def test_ranges_that_make_no_sense_are_refused(
    batches: Any, frames: Any, field: str, shown: str, tmp_path: Path
) -> None:
    with refused(UsageError, field, shown):
        wanted_profiles(make_bundle(tmp_path), batches, frames)


def test_a_size_too_small_for_the_adapter_is_refused(tmp_path: Path) -> None:
    bundle = make_bundle(tmp_path)
    cast(Any, cast(FakeBundle, bundle)).adapter_info.config = SimpleNamespace(queries=99, cells=lambda h, w: h * w)
    with refused(UsageError, "sizes", "32x32", 64, 99):
        wanted_profiles(bundle, None, ((32, 32), (64, 64), (64, 64)))
