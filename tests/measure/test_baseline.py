"""The diffusers baseline: the same jobs, the same pictures from the same noise, batches that change no job."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from refusals import refused

from engines.bundle.bundle import open_bundle
from engines.diffusion.latents import initial_noise
from engines.errors import BackendError, UsageError
from engines.measure import baseline
from engines.measure.baseline import BaselineSettings, best_batch, run_baseline, try_batches
from engines.measure.pipeline import Baseline, batches_of, pipeline_steps
from engines.measure.workload import Workload, jobs_of
from engines.runs.generate import generate
from engines.runs.journal import read_entries

WORKLOAD = Workload(frame=(64, 48), steps=5, jobs=5, guidance=3.0, strength=(0.4, 0.8))
SCORE = 0.08


@pytest.fixture
def references(tmp_path: Path) -> Path:
    folder = tmp_path / "references"
    folder.mkdir()
    for i in range(2):
        pixels = np.random.default_rng(i).integers(0, 256, (6, 9, 3), dtype=np.uint8)
        Image.fromarray(pixels).resize((90, 60), Image.Resampling.BICUBIC).save(folder / f"{i}.png")
    return folder


@pytest.fixture(autouse=True)
def _low_threshold(monkeypatch: pytest.MonkeyPatch) -> None:
    """The random adapter's scores are low: a label is what scores SCORE."""
    monkeypatch.setattr("engines.labels.scores.FALLBACK", SCORE)


def test_batches_hold_every_job_once_and_like_strengths(toy_bundle: Path, references: Path) -> None:
    work = jobs_of(replace(WORKLOAD, jobs=40), open_bundle(toy_bundle, verify=False), references)
    batches = batches_of(work, 4)
    assert sorted(job.index for jobs in batches for job in jobs) == list(range(40))
    assert max(map(len, batches)) == 4
    strengths = [job.strength or 0.0 for jobs in batches for job in jobs]
    assert strengths == sorted(strengths)
    assert len(batches) == 10  # all full


def test_the_pipeline_gets_the_steps_of_which_it_runs_as_many_as_ours() -> None:
    for evaluations in (1, 4, 15, 50):
        for thousandths in range(1, 1001):
            steps = pipeline_steps(evaluations, thousandths / 1000)
            assert int(steps * thousandths / 1000) == evaluations
            assert int((steps - 1) * thousandths / 1000) < evaluations


def test_pictures_and_boxes_are_those_of_generate_from_the_same_noise(
    toy_bundle: Path, references: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The pipeline draws noise, and a sample of the VAE's posterior where dengine takes its mode; with these two as
    dengine has them, crops, prompts, steps, guidance, decoding and labels must come to the same."""
    out, workload = tmp_path / "ours", replace(WORKLOAD, strength=(0.5, 0.5))  # half of ten steps, to the timestep
    ours = workload.generate_settings(
        out, bundle=toy_bundle, references=references, engine="torch", precision="f32", threads=1, image_format="png"
    )
    generate(ours)
    bundle = open_bundle(toy_bundle, verify=False)
    work = jobs_of(workload, bundle, references)
    painter = Baseline(bundle, work, device="cpu", compiled=False)
    index = 0

    def noise(shape: tuple[int, ...], **_: Any) -> torch.Tensor:
        return initial_noise(tuple(shape[1:]), WORKLOAD.seed, index)[None]

    module = "diffusers.pipelines.stable_diffusion.pipeline_stable_diffusion_img2img"
    monkeypatch.setattr(f"{module}.randn_tensor", noise)
    monkeypatch.setattr("diffusers.models.autoencoders.vae.randn_tensor", lambda shape, **_: torch.zeros(tuple(shape)))
    scores = 0
    for entry, job in zip(read_entries(out / "journal.jsonl"), work.jobs, strict=True):
        index = job.index
        (picture,) = painter.paint([job])
        expected = np.asarray(Image.open(out / "images" / str(entry.file)), dtype=np.int16)
        assert np.abs(np.asarray(picture.image, dtype=np.int16) - expected).max() <= 1
        assert expected.std() > 1  # it is a picture
        labels = entry.instances.take(entry.instances.scores >= SCORE)
        assert len(picture.instances) == len(labels)
        assert np.allclose(picture.instances.scores, labels.scores, atol=2e-3)
        assert np.allclose(picture.instances.boxes, labels.boxes, atol=0.1)
        scores += len(labels)
    assert scores > 0


def test_a_batch_paints_what_its_jobs_paint_alone(
    toy_bundle: Path, references: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        "diffusers.pipelines.stable_diffusion.pipeline_stable_diffusion_img2img.randn_tensor",
        lambda shape, **_: torch.ones(tuple(shape)),
    )
    monkeypatch.setattr("diffusers.models.autoencoders.vae.randn_tensor", lambda shape, **_: torch.zeros(tuple(shape)))
    bundle = open_bundle(toy_bundle, verify=False)
    work = jobs_of(replace(WORKLOAD, strength=(0.6, 0.6)), bundle, references)
    painter = Baseline(bundle, work, device="cpu", compiled=False)
    jobs = max(batches_of(work, 5), key=len)
    assert len(jobs) > 1
    for job, together in zip(jobs, painter.paint(jobs), strict=True):
        (alone,) = painter.paint([job])
        assert together.job == alone.job == job
        assert np.abs(np.asarray(together.image, np.int16) - np.asarray(alone.image, np.int16)).max() <= 1
        assert np.allclose(together.instances.scores, alone.instances.scores, atol=1e-3)


@pytest.mark.parametrize("kind", ["img2img", "text to image"])
def test_a_run_leaves_every_image_and_its_labels(toy_bundle: Path, references: Path, tmp_path: Path, kind: str) -> None:
    folder = references if kind == "img2img" else None
    told: list[str] = []
    settings = BaselineSettings(tmp_path / "out", WORKLOAD, toy_bundle, folder, batch=2, threads=1, device="cpu")
    assert BaselineSettings.from_json(json.loads(json.dumps(settings.to_json()))) == settings
    found = run_baseline(settings, told.append)
    assert (found["images"], found["precision"], found["threads"], found["batch"]) == (5, "f32", 1, 2)
    assert found["images_per_second"] == pytest.approx(5 / found["seconds"])
    assert 0 < found["load_seconds"] < found["first_image_seconds"]
    assert found["memory"]["rss_peak"] > 1e8
    images = sorted(path.name for path in (tmp_path / "out" / "images").iterdir())
    assert images == [f"{index:08d}.jpg" for index in range(5)]
    dataset = json.loads((tmp_path / "out" / "annotations.json").read_text("utf-8"))
    assert [image["file_name"] for image in dataset["images"]] == images
    assert [image["prompt"] for image in dataset["images"]] == [
        job.prompt for job in jobs_of(WORKLOAD, open_bundle(toy_bundle, verify=False), folder).jobs
    ]
    assert len(dataset["annotations"]) == found["boxes"] > 0
    assert any(line.startswith("painting 5/5") for line in told)


def test_batch_sizes_are_tried_until_they_are_slower(
    toy_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seconds = {1: 1.0, 2: 1.0, 4: 3.0, 8: 1.0}
    monkeypatch.setattr(baseline, "_chain_seconds", lambda painter, jobs, compiled, folder: seconds[len(jobs)])
    settings = BaselineSettings(tmp_path, WORKLOAD, toy_bundle, threads=1, device="cpu")
    rates = try_batches(settings, (1, 2, 4, 8))
    assert rates == {"1": 1.0, "2": 2.0, "4": pytest.approx(4 / 3)}
    assert best_batch(rates) == 2


def test_a_compiler_that_fails_is_named(toy_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def compiled(module: torch.nn.Module) -> Callable[..., None]:
        class Broken:
            config, dtype = module.config, module.dtype

            def __call__(self, *_: object, **__: object) -> None:
                raise RuntimeError("no C++ compiler was found\nand more lines")

        return Broken()

    monkeypatch.setattr(torch, "compile", compiled)
    settings = BaselineSettings(tmp_path, WORKLOAD, toy_bundle, threads=1, device="cpu", compiled=True)
    with pytest.raises(BackendError, match=r"torch.compile of the UNet fails here: no C\+\+ compiler was found$"):
        run_baseline(settings)


def test_devices_that_are_none_are_refused_before_anything_is_loaded(toy_bundle: Path, references: Path) -> None:
    bundle = open_bundle(toy_bundle, verify=False)
    work = jobs_of(WORKLOAD, bundle, references)
    with refused(UsageError, "device", "gpu"):
        Baseline(bundle, work, device="gpu", compiled=False)
    if not torch.cuda.is_available():
        with refused(BackendError, "device", "`device=cpu`"):
            Baseline(bundle, work, device="cuda", compiled=False)
