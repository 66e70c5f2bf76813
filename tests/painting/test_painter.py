"""The painter: in which order jobs are begun, how far ahead references are read, and what that saves."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from fakes import FRAME, FakeBackend, as_backend, make_bundle
from PIL import Image

from engines.datasets.dataset import open_dataset
from engines.painting import painter as painter_module
from engines.painting.crops import read_job
from engines.painting.jobs import Job, JobSource, make_job
from engines.painting.networks import TextEncoder
from engines.painting.painter import Painter, in_advance, longest_first
from engines.painting.references import job_source
from engines.painting.resolve import resolve
from engines.painting.settings import GenerateSettings

STEPS = 10


def make_painter(
    folder: Path, backend: FakeBackend, floored: bool = False, **options: Any
) -> tuple[Painter, JobSource]:
    """A painter of repaintings of three images."""
    data = folder / "data"
    data.mkdir(exist_ok=True)
    for i in range(3):
        Image.fromarray(np.full((40, 60, 3), 80 * i, dtype=np.uint8)).save(data / f"{i}.png")
    bundle, references = make_bundle(folder), open_dataset(data, require_boxes=False)
    choices: dict[str, Any] = {"jobs": 40, "steps": STEPS, "reference": data, "strength": (0.2, 0.9)}
    choices |= {"sampler": "ddim"} | options
    asked = GenerateSettings(out=folder / "run", **choices)
    wanted = resolve(asked, bundle, as_backend(backend), references, None).options
    source = job_source(wanted, bundle, references)
    told: dict[str, Any] = {"stage": lambda text: None, "tick": lambda: None}
    return Painter(bundle, as_backend(backend), wanted, source, floored=floored, **told), source


def test_jobs_with_the_most_steps_come_first_and_equal_ones_in_their_own_order() -> None:
    steps = {0: 5, 1: 8, 2: 5, 3: 10, 4: 8}
    jobs = [Job(index, 0, "") for index in steps]
    assert [job.index for job in longest_first(jobs, lambda job: steps[job.index])] == [3, 1, 4, 0, 2]
    assert list(longest_first(jobs, lambda job: 0)) == jobs


def test_a_chunk_of_any_size_is_taken_up_512_jobs_at_a_time() -> None:
    taken: list[int] = []

    def source() -> Iterator[Job]:
        for index in range(1200):
            taken.append(index)
            yield Job(index, 0, "")

    ordered = longest_first(source(), lambda job: job.index)
    assert next(ordered).index == 511
    assert len(taken) == 512
    assert sorted(job.index for job in ordered) == [*range(511), *range(512, 1200)]


def test_every_job_takes_all_steps_and_strength_sets_where_they_begin(tmp_path: Path) -> None:
    backend = FakeBackend()
    painter, source = make_painter(tmp_path, backend, slots=4)
    jobs = [make_job(source, 0, index) for index in range(8)]
    assert len({job.strength for job in jobs}) == 8
    assert len(list(painter.paint(jobs, lambda: False))) == 8
    assert backend.calls["unet"] == 2 * STEPS + 2  # and a label pass for each batch of 4


def test_the_slots_of_a_chunk_of_an_older_run_empty_nearly_together(tmp_path: Path) -> None:
    backend = FakeBackend()
    painter, source = make_painter(tmp_path, backend, floored=True, slots=4)
    jobs = [make_job(source, 0, index) for index in range(32)]
    outcomes = list(painter.paint(jobs, lambda: False))
    assert sorted(outcome.job.index for outcome in outcomes) == list(range(32))
    steps = sum(int(STEPS * (job.strength or 1.0)) for job in jobs)
    ticks = backend.calls["unet"] - 8  # one label pass for each batch of 4
    assert ticks <= -(-steps // 4) + 2


@pytest.mark.parametrize(
    ("options", "varies"),
    [
        ({}, "encoder_hidden_states"),
        ({"guidance_interval": (0.0, 1.0)}, "encoder_hidden_states"),
        ({"rows": 5}, None),
        ({"guidance": 1.0}, None),
        ({"guidance_interval": (0.0, 0.5)}, None),
    ],
)
def test_the_sampler_says_that_its_rows_are_pairs_where_all_are(
    tmp_path: Path, options: dict[str, Any], varies: str | None
) -> None:
    backend = FakeBackend()
    make_painter(tmp_path, backend, slots=4, **options)
    unets = [said for (graph, _), said in zip(backend.prepared, backend.varying, strict=True) if graph == "unet"]
    assert unets == [None, varies]  # the label pass, then the sampler


@pytest.mark.parametrize("ahead", [0, 2])
def test_an_item_comes_when_so_many_more_were_asked_for(ahead: int) -> None:
    asked: list[int] = []

    def source() -> Iterator[int]:
        for number in range(6):
            asked.append(number)
            yield number

    items = in_advance(source(), ahead)
    assert next(items) == 0
    assert asked == list(range(ahead + 1))
    assert list(items) == [1, 2, 3, 4, 5]


def test_on_a_cpu_nothing_is_read_ahead(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    read: list[int] = []
    real = read_job

    def note(source: JobSource, job: Job) -> Any:
        read.append(job.index)
        return real(source, job)

    monkeypatch.setattr(painter_module, "read_job", note)
    painter, source = make_painter(tmp_path, FakeBackend(), slots=2, strength=(0.5, 0.5))
    outcomes = painter.paint((make_job(source, 0, index) for index in range(40)), lambda: False)
    next(outcomes)
    # Two that are done, two that took their slots, two encoded beside them, and the one just asked for.
    assert read == list(range(len(read)))
    assert len(read) <= 2 + 2 + 2 + 1
    assert len(list(outcomes)) == 39


def test_pictures_have_the_size_of_the_frame(tmp_path: Path) -> None:
    painter, source = make_painter(tmp_path, FakeBackend(), slots=2)
    (outcome,) = painter.paint([make_job(source, 0, 0)], lambda: False)
    assert outcome.pixels is not None
    assert outcome.pixels.shape == (FRAME[1], FRAME[0], 3)


@pytest.mark.parametrize(("most", "encoded"), [(0, 5), (2, 4)])
def test_as_many_prompts_are_kept_as_the_device_gains_by(tmp_path: Path, most: int, encoded: int) -> None:
    backend = FakeBackend()
    text = TextEncoder(make_bundle(tmp_path / "bundle"), as_backend(backend))
    assert text._most == 0, "nothing on a CPU"
    text._most = most
    found = [text(prompt) for prompt in ("a", "b", "a", "c", "b")]
    assert backend.calls["text_encoder"] == encoded
    assert torch.equal(found[0], found[2])
    assert not torch.equal(found[0], found[1])
