"""train-base: a diffusers folder that its own pipeline loads and runs, exact resume, labels only where allowed."""

import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from published import assert_published
from quality_pictures import photograph
from refusals import refused
from safetensors.torch import load_file

from engines.common.events import Event
from engines.common.files import sha256_file
from engines.common.tokenizer import tokenize
from engines.datasets.dataset import Dataset, Record
from engines.datasets.learned import LEARNED, read_learned, write_learned
from engines.diffusion.base_model import base_hash, load_base
from engines.diffusion.base_notes import bad_base, read_quality
from engines.diffusion.published import plain
from engines.errors import TrainingError, UsageError
from engines.labels.boxes import Instances
from engines.training import base_model as base_training
from engines.training import presets
from engines.training import unet as unet_training
from engines.training.assess import FEWEST, LEAST, SHEET, hold_back
from engines.training.base_model import BaseTrainOptions, fit_base
from engines.training.presets import Phase, lengths_of
from engines.training.tokenizer import write_tokenizer
from engines.training.unet import diffusion_loss
from engines.training.vae import psnr

# Small boxes all over the image: every view sees some of them.
_GRID = np.array([[x, y, x + 8, y + 8] for x in range(0, 80, 8) for y in range(0, 64, 8)], np.float32)
OPTIONS = BaseTrainOptions(preset="tiny", style="test photo", precision="f32", checkpoint_minutes=0.0)


@pytest.fixture(autouse=True)
def _tiny_preset(monkeypatch: pytest.MonkeyPatch) -> None:
    small = presets.PRESETS["small"]
    tiny = replace(
        small,
        short_side=64,
        vae={
            **small.vae,
            "block_out_channels": (8, 16),
            "down_block_types": ("DownEncoderBlock2D",) * 2,
            "up_block_types": ("UpDecoderBlock2D",) * 2,
        },
        unet={
            **small.unet,
            "block_out_channels": (32, 32),
            "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D"),
            "up_block_types": ("CrossAttnUpBlock2D", "UpBlock2D"),
            "attention_head_dim": 2,
        },
        vae_size=32,
        vae_batch=2,
        vae_steps=4,
        decoder_channels=16,
        decoder_blocks=(1, 0),
        decoder_steps=4,
        phases=(Phase(32, 32, 2, 3, 4), Phase(64, 32, 2, 2, 4)),
    )
    monkeypatch.setattr(presets, "PRESETS", {"tiny": tiny})


@pytest.fixture
def dataset(tmp_path: Path) -> Dataset:
    records = []
    for i in range(3):
        pixels = np.random.default_rng(i).integers(0, 256, (64, 80, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(tmp_path / f"{i}.png")
        records.append(
            Record(
                file=tmp_path / f"{i}.png",
                name=f"{i}.png",
                width=80,
                height=64,
                instances=Instances.of(_GRID, np.full(len(_GRID), i % 2)),
                caption=None,
            )
        )
    return Dataset(root=tmp_path, class_names=("cat", "dog"), records=records, dropped=(), skipped=())


def _train(
    dataset: Dataset,
    out: Path,
    options: BaseTrainOptions = OPTIONS,
    *,
    resume: bool = False,
    continue_from: Path | None = None,
    labelled: set[str] | None = None,
    stop: str = "",
) -> Path:
    def report(event: Event) -> None:
        if stop and event.stage == stop:
            raise KeyboardInterrupt

    return fit_base(dataset, out, options, labelled=labelled, continue_from=continue_from, resume=resume, report=report)


def _weights(folder: Path) -> dict[str, torch.Tensor]:
    """Every tensor of a folder, by file and name; a text encoder's by the newer names."""
    files = sorted(folder.rglob("*.safetensors"))
    return {
        f"{file.relative_to(folder).as_posix()}/{plain(name)}": tensor
        for file in files
        for name, tensor in load_file(file).items()
    }


@pytest.mark.slow
def test_the_result_runs_in_diffusers_own_pipeline(dataset: Dataset, tmp_path: Path) -> None:
    from diffusers import StableDiffusionImg2ImgPipeline

    folder = _train(dataset, tmp_path / "base")
    assert not (folder / "training").exists()
    assert_published(folder)
    pipeline = StableDiffusionImg2ImgPipeline.from_pretrained(folder)
    pipeline.set_progress_bar_config(disable=True)
    start = Image.open(dataset.records[0].file).convert("RGB").resize((64, 32))
    image = pipeline("a test photo with one cat", image=start, num_inference_steps=4, strength=0.5).images[0]
    assert image.size == (64, 32)
    rebuilt = load_base(folder)
    latents = rebuilt.encode_images(torch.zeros(1, 3, 32, 64))
    assert latents.shape == (1, 4, 16, 32)


@pytest.mark.slow
def test_a_training_stopped_after_the_first_stage_resumes_to_the_same_bits(dataset: Dataset, tmp_path: Path) -> None:
    straight = _train(dataset, tmp_path / "straight")
    with pytest.raises(KeyboardInterrupt):
        _train(dataset, tmp_path / "broken", stop="vae")
    with pytest.raises(KeyboardInterrupt):
        _train(dataset, tmp_path / "broken", stop="unet", resume=True)
    resumed = _train(dataset, tmp_path / "broken", resume=True)
    before, after = _weights(straight), _weights(resumed)
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) for name in before)


@pytest.mark.slow
def test_a_resume_with_moved_boxes_is_refused_though_their_number_is_the_same(dataset: Dataset, tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt):
        _train(dataset, tmp_path / "base", stop="unet")
    moved = [replace(record, instances=record.instances.moved((-1, -1))) for record in dataset.records]
    with pytest.raises(TrainingError, match="labels"):
        _train(replace(dataset, records=moved), tmp_path / "base", resume=True)


@pytest.mark.slow
def test_labels_are_read_only_where_the_list_allows(
    dataset: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    prompts: set[str] = set()

    def spy(tokenizer: object, texts: list[str]) -> torch.Tensor:
        prompts.update(texts)
        return tokenize(tokenizer, texts)

    monkeypatch.setattr(unet_training, "tokenize", spy)
    options = replace(OPTIONS, steps_scale=2.0)
    _train(dataset, tmp_path / "one", options, labelled={"1.png"})
    assert any("dog" in text for text in prompts)
    assert not any("cat" in text for text in prompts)
    prompts.clear()
    _train(dataset, tmp_path / "none", options, labelled=set())
    assert prompts == {"", "a test photo"}


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["sd1", "sd2"])
def test_training_goes_on_from_either_stable_diffusion_shape(
    dataset: Dataset, toy_bases: dict[str, Path], tmp_path: Path, kind: str
) -> None:
    options = replace(OPTIONS, stages=("unet",))
    folder = _train(dataset, tmp_path / "more", options, continue_from=toy_bases[kind])
    before, after = _weights(toy_bases[kind]), _weights(folder)
    changed = {name.split("/")[0] for name in before if not torch.equal(before[name], after[name])}
    assert changed == {"unet", "text_encoder"}
    assert load_base(folder).scheduler_config == load_base(toy_bases[kind]).scheduler_config


@pytest.mark.slow
def test_a_decoder_is_distilled_beside_a_base_that_stays_as_it_is(
    dataset: Dataset, toy_bases: dict[str, Path], tmp_path: Path
) -> None:
    before = Path(shutil.copytree(toy_bases["sd1"], tmp_path / "before"))
    write_learned(before / LEARNED, dataset.records[:1])
    alone = replace(dataset, records=dataset.records[1:])
    options = replace(OPTIONS, stages=("decoder",))
    folder = _train(alone, tmp_path / "straight", options, continue_from=before)
    assert base_hash(folder) == base_hash(before), "its adapters fit"
    base, old = load_base(folder), load_base(before)
    assert base.decoder is not None
    assert list(base.decoder.config.num_decoder_blocks) == [3, 3, 1, 0]
    latents = old.encode_images(torch.rand(1, 3, 32, 64))
    made, wanted = base.decode_latents(latents), old.decode_latents(latents)
    assert made.shape == wanted.shape
    assert not torch.equal(made, wanted)
    learned = read_learned(folder / LEARNED)
    assert learned is not None
    assert len(learned.hashes) == 3, "those of the base, too"
    with pytest.raises(KeyboardInterrupt):
        _train(alone, tmp_path / "broken", options, continue_from=before, stop="decoder")
    resumed = _train(alone, tmp_path / "broken", options, continue_from=before, resume=True)
    assert {name: value.tolist() for name, value in _weights(resumed).items()} == {
        name: value.tolist() for name, value in _weights(folder).items()
    }


@pytest.mark.slow
def test_some_images_are_held_back_and_the_base_is_judged_on_them(dataset: Dataset, tmp_path: Path) -> None:
    records = list(dataset.records)
    for number in range(3, FEWEST):
        file = tmp_path / f"{number}.png"
        Image.fromarray(photograph(number, (80, 64))).save(file)
        records.append(replace(records[0], file=file, name=file.name))
    many = replace(dataset, records=records)
    folder = _train(many, tmp_path / "base")
    digests = {one.name: sha256_file(one.file) for one in records}
    learned, held = hold_back(records, digests)
    assert (len(learned), len(held)) == (FEWEST - LEAST, LEAST)
    assert sorted(digests[one.name] for one in held) == sorted(digests.values())[:LEAST]
    quality = read_quality(folder)
    assert quality is not None
    assert (quality.images, quality.held_back, quality.grade) == (LEAST, True, "bad")
    assert quality.apart is not None, "photographs that it learned from are near each other, too"
    assert str(folder) in str(bad_base(folder))
    with Image.open(folder / SHEET) as sheet:
        assert sheet.width > 4 * 200


def test_a_finished_folder_is_not_trained_over(dataset: Dataset, toy_bases: dict[str, Path]) -> None:
    with pytest.raises(TrainingError, match="already holds"):
        _train(dataset, toy_bases["sd1"])


def test_unknown_presets_stages_and_devices_are_usage_errors(dataset: Dataset, tmp_path: Path) -> None:
    with refused(UsageError, "preset", "huge", "tiny"):
        _train(dataset, tmp_path / "a", replace(OPTIONS, preset="huge"))
    with refused(UsageError, "stages"):
        _train(dataset, tmp_path / "a", replace(OPTIONS, stages=("unet",)))
    with pytest.raises(UsageError, match='Unknown device "mps"'):
        _train(dataset, tmp_path / "a", replace(OPTIONS, device="mps"))


def test_the_loss_is_zero_for_a_perfect_prediction() -> None:
    class Oracle(torch.nn.Module):
        def __init__(self, answer: torch.Tensor) -> None:
            super().__init__()
            self.answer = answer

        def forward(self, *_: torch.Tensor) -> object:
            return type("Output", (), {"sample": self.answer})

    latents, noise = torch.randn(2, 4, 8, 8), torch.randn(2, 4, 8, 8)
    alphas, timesteps, states = torch.tensor([0.9, 0.2]), torch.tensor([0, 1]), torch.zeros(2, 1, 1)
    alpha = alphas[:, None, None, None]
    velocity = alpha.sqrt() * noise - (1 - alpha).sqrt() * latents
    assert diffusion_loss(Oracle(noise), latents, noise, timesteps, states, alphas, "epsilon") == 0
    at_velocity = diffusion_loss(Oracle(velocity), latents, noise, timesteps, states, alphas, "v_prediction")
    assert at_velocity < 1e-12, "but for rounding"
    assert diffusion_loss(Oracle(latents), latents, noise, timesteps, states, alphas, "epsilon") > 0.1


def test_the_small_tokenizer_keeps_its_words_whole_and_spells_the_rest(tmp_path: Path) -> None:
    tokenizer = write_tokenizer(tmp_path, ["red", "white", "whiteboard", "with", "b2"], 12)
    assert tokenizer.tokenize("White with whiteboard") == ["white</w>", "with</w>", "whiteboard</w>"]
    assert "".join(tokenizer.tokenize("zebra")).replace("</w>", "") == "zebra"
    assert len(tokenizer("white", padding="max_length").input_ids) == 12


def test_psnr_of_a_known_error() -> None:
    zeros = torch.zeros(1, 3, 8, 8)
    assert psnr(zeros + 0.2, zeros) == pytest.approx(20.0, abs=1e-3)


@pytest.mark.slow
def test_minutes_become_a_share_of_the_presets_steps(
    dataset: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def longest(seconds: float, parts: Any, most: int) -> int:
        whole, half = (next(one for one in parts(number) if one.stage == "vae").units for number in (1000, 500))
        assert (whole, half) == (4, 2)
        return 500

    monkeypatch.setattr(base_training, "longest", longest)
    seen: list[Event] = []
    asked = replace(OPTIONS, minutes=1.0)
    fit_base(dataset, tmp_path / "out", asked, labelled=None, continue_from=None, resume=False, report=seen.append)
    assert {event.total for event in seen if event.stage == "vae"} == {2}
    assert {event.total for event in seen if event.stage == "unet"} == {3}, "rounded, of two phases of 3 and 2 steps"
    assert any("steps_scale=0.5" in event.text for event in seen)


def test_minutes_and_a_share_of_the_steps_contradict_each_other() -> None:
    with refused(UsageError, "minutes"):
        BaseTrainOptions(minutes=3, steps_scale=0.5)


def test_a_shorter_training_encodes_fewer_views_but_one_of_each_image() -> None:
    preset = replace(presets.PRESETS["tiny"], phases=(Phase(32, 32, 8, 100, 1000),))
    assert lengths_of(preset, 1.0, 40).phases[0].views == 1000
    assert lengths_of(preset, 4.0, 40).phases[0].views == 1000
    assert lengths_of(preset, 0.1, 40).phases[0].views == 100
    assert lengths_of(preset, 0.01, 40).phases[0].views == 10, "one step of eight shows no more"
    assert lengths_of(preset, 0.02, 16).phases[0].views == 20
    assert lengths_of(preset, 0.1, 300).phases[0].views == 100
    assert lengths_of(preset, 0.1, 40, all_views=True).phases[0].views == 1000
