"""The committed workload, and its jobs."""

from pathlib import Path

import fakes
import pytest
from painting import make_references
from refusals import refused

from engines.datasets.dataset import open_dataset
from engines.errors import UsageError
from engines.measure.workload import WORKLOAD, Workload, jobs_of
from engines.painting.jobs import make_job
from engines.painting.references import job_source
from engines.painting.resolve import resolve

SMALL = Workload(frame=fakes.FRAME, steps=10, jobs=20, seed=3)


@pytest.fixture
def references(tmp_path: Path) -> Path:
    return make_references(tmp_path / "references", 3)


def test_it_is_the_one_that_was_committed() -> None:
    assert Workload((256, 192), 15, 0.0, 4.0, (0.4, 0.8), 256, 0, True) == WORKLOAD
    settings = WORKLOAD.generate_settings(Path("out"), references=Path("refs"), slots=4, steps=12)
    assert (settings.jobs, settings.size, settings.sampler, settings.guidance) == (256, (256, 192), "ddim", 4.0)
    assert (settings.strength, settings.keep_empty, settings.count) == ((0.4, 0.8), True, None)
    assert (settings.slots, settings.steps) == (4, 12)


def test_json_gives_the_same_workload() -> None:
    assert Workload.from_json(SMALL.to_json()) == SMALL


@pytest.mark.parametrize("with_references", [True, False])
def test_its_jobs_are_those_of_generate(tmp_path: Path, references: Path, with_references: bool) -> None:
    folder = references if with_references else None
    bundle, backend = fakes.make_bundle(tmp_path), fakes.as_backend(fakes.FakeBackend())
    dataset = open_dataset(references, require_boxes=False) if with_references else None
    run = resolve(SMALL.generate_settings(tmp_path / "out", references=folder), bundle, backend, dataset, None)
    source = job_source(run.options, bundle, dataset)

    work = jobs_of(SMALL, bundle, folder)

    assert work.jobs == tuple(make_job(source, SMALL.seed, index) for index in range(20))
    assert {job.reference is not None for job in work.jobs} == {with_references}
    assert (work.options["guidance"], work.options["steps"]) == (4.0, 10)


def test_every_job_takes_the_steps_whatever_its_strength(tmp_path: Path, references: Path) -> None:
    work = jobs_of(SMALL, fakes.make_bundle(tmp_path), references)
    assert len({job.strength for job in work.jobs}) > 1
    assert {work.steps(job) for job in work.jobs} == {10}
    text = jobs_of(SMALL, fakes.make_bundle(tmp_path), None)
    assert {text.steps(job) for job in text.jobs} == {10}


def test_what_cannot_be_painted_is_refused(tmp_path: Path, references: Path) -> None:
    bundle = fakes.make_bundle(tmp_path)
    with refused(UsageError, "size", (50, 32), 8):
        jobs_of(Workload(frame=(50, 32)), bundle, None)
    with refused(UsageError, "steps"):
        jobs_of(Workload(frame=fakes.FRAME, steps=1000), bundle, references)
