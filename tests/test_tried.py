"""`benchmarks/tried.py`: undoing a thing changes no picture, every run has its turn, and the tables are plain."""

import contextlib
import importlib
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
from fakes import tree
from painting import make_paint, make_references

from engines.datasets.images import read_image
from engines.diffusion.sampler import SlotSampler
from engines.generation.loop import generate
from engines.generation.settings import GenerateSettings
from engines.measure.workload import Workload


@pytest.fixture(scope="module")
def tried() -> Iterator[ModuleType]:
    before = list(sys.path)
    sys.path.insert(0, str(Path(__file__).parent.parent / "benchmarks"))
    yield importlib.import_module("tried")
    sys.path[:] = before


def test_nothing_that_is_undone_changes_a_byte_where_arithmetic_is_exact(
    tried: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    paint = make_paint(tmp_path, monkeypatch)
    options: dict[str, Any] = {
        "reference": make_references(tmp_path / "references", 3), "jobs": 7, "steps": 6, "strength": (0.3, 0.9),
    }  # fmt: skip
    paint(tmp_path / "as it is", **options)
    wanted = tree(tmp_path / "as it is")
    for number, name in enumerate(tried.THINGS):
        with contextlib.ExitStack() as stack:
            tried.undone(stack, [name])
            paint(tmp_path / str(number), **options)
        assert tree(tmp_path / str(number)) == wanted, name
    assert SlotSampler.run is tried._RUN


def test_with_everything_undone_openvino_paints_the_same_but_for_rounding(
    tried: ModuleType, toy_bundle: Path, tmp_path: Path
) -> None:
    def painted(out: Path) -> Any:
        asked = GenerateSettings(
            out=out, bundle=toy_bundle, jobs=3, steps=3, keep_empty=True, min_quality=0.0, engine="openvino",
            precision="f32", threads=2, slots=2, image_format="png",
        )  # fmt: skip
        generate(asked)
        return np.stack([read_image(path) for path in sorted((out / "images").iterdir())]).astype(int)

    plain = painted(tmp_path / "plain")
    with contextlib.ExitStack() as stack:
        tried.undone(stack, list(tried.THINGS))
        assert np.abs(painted(tmp_path / "undone") - plain).max() <= 2


def test_every_thing_is_undone_in_every_round_beside_runs_as_it_is(
    tried: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[dict[str, Any]] = []

    def alone(task: str, arguments: dict[str, Any]) -> dict[str, Any]:
        asked.append(arguments)
        return {"images_per_second": float(len(asked)), "task": task}

    monkeypatch.setattr(tried, "run_alone", alone)
    given = {"workload": Workload(jobs=40).to_json(), "options": {"slots": 8}, "bundle": None}
    found = tried.measure(given, 2, lambda line: None)
    assert set(found["rates"]) == {tried.AS_IT_IS, tried.ALL, *tried.THINGS}
    assert all(len(found["rates"][name]) == 2 for name in (tried.ALL, *tried.THINGS))
    assert len(found["rates"][tried.AS_IT_IS]) == 2 * -(-len(tried.THINGS) // 3)
    assert [one["undone"] for one in asked if one["inside"]] == [[], list(tried.THINGS)]
    assert {one["workload"]["jobs"] for one in asked} == {8, 40}  # few where only compiled models are wanted


def test_the_table_says_what_each_thing_is_worth_and_how_sure_that_is(tried: ModuleType) -> None:
    graphs = {
        name: {"calls": 2, "batch": 4, "run_seconds": seconds}
        for name, seconds in (("unet", 6.0), ("vae_encoder", 1.0))
    }
    inside = {"graphs": graphs, "seconds": 10.0, "images": 40, "images_per_second": 4.0, "outside_share": 0.25}
    value = {
        "machine": {"processor": "a CPU", "cores": 2},
        "versions": {"python": "3.11"},
        "command": "python benchmarks/tried.py",
        "workload": Workload(jobs=40).to_json(),
        "options": {"precision": "int8", "slots": 16},
        "crops": 39,
        "rates": {name: [3.0, 3.5, 3.2] for name in tried.THINGS}
        | {tried.AS_IT_IS: [3.9, 4.2, 4.0, 4.1], tried.ALL: [2.0, 2.1]},
        "inside": {tried.AS_IT_IS: inside, tried.ALL: inside},
    }
    text = tried.report(value)
    assert "4.05 images/s, the median of 4 runs, 3.90 to 4.20" in text
    assert "| a stream for each thread | 3.20 | -21.0% | 3.00, 3.50, 3.20 |" in text
    assert "| everything undone | 2.05 | -49.4% | 2.00, 2.10 |" in text
    assert "the 40 jobs have 39 different crops. Encoding them takes 10.0% of the run." in text
    assert "| unet | 2 | 4 | 6.00 | 60.0% |" in text
    assert "| outside the graphs | - | - | 2.50 | 25.0% |" in text
