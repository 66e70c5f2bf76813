"""The coefficient tables against diffusers' own schedulers, step by step."""

import json
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import DDIMScheduler, DPMSolverMultistepScheduler
from refusals import refused

from engines.diffusion.checkpoints import CONFIGS
from engines.diffusion.latents import step_noise
from engines.diffusion.sampler import SlotSampler, Task
from engines.diffusion.schedule import (
    SamplerName,
    Schedule,
    Schedules,
    guided_steps,
    make_schedule,
    schedule_from,
    smallest_strength,
    start_index,
    step_rows,
)
from engines.errors import ModelError, UsageError

# What a Stable Diffusion 1.5 folder says: written by an old PNDMScheduler, without spacing or clip_sample.
OLD_SD1 = {
    "_class_name": "PNDMScheduler",
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
    "beta_start": 0.00085,
    "num_train_timesteps": 1000,
    "set_alpha_to_one": False,
    "skip_prk_steps": True,
    "steps_offset": 1,
    "trained_betas": None,
}
SPACINGS = ("leading", "linspace", "trailing")


def config_of(**changes: Any) -> dict[str, Any]:
    return {**OLD_SD1, "clip_sample": False, "timestep_spacing": "leading", **changes}


def peer_of(config: dict[str, Any], sampler: SamplerName, steps: int) -> Any:
    kind = DDIMScheduler if sampler == "ddim" else DPMSolverMultistepScheduler
    peer = kind.from_config(config)
    peer.set_timesteps(steps)
    return peer


def latents_of(seed: int) -> torch.Tensor:
    return torch.randn((1, 4, 6, 5), generator=torch.Generator().manual_seed(seed))


def relative(found: torch.Tensor, expected: torch.Tensor) -> float:
    return float((found - expected).norm() / expected.norm())


def table_step(row: np.ndarray, x: torch.Tensor, m: torch.Tensor, h_prev: torch.Tensor, z: torch.Tensor) -> Any:
    p_x, p_m, a_x, a_h, a_prev, a_n = row.tolist()
    h = p_x * x + p_m * m
    return a_x * x + a_h * h + a_prev * h_prev + a_n * z, h


def worst_step(schedule: Schedule, peer: Any, start: int, eta: float) -> float:
    """Walk both from `start` on the same outputs and noise; the largest relative difference of any step."""
    if hasattr(peer, "set_begin_index"):
        peer.set_begin_index(start)
    x = expected = latents_of(0)
    h = torch.zeros_like(x)
    worst = 0.0
    for step in range(start, schedule.steps):
        m, z = latents_of(100 + step), latents_of(900 + step)
        more = {"eta": eta, "variance_noise": z if eta else None} if isinstance(peer, DDIMScheduler) else {}
        expected = peer.step(m, peer.timesteps[step], expected, **more, return_dict=False)[0]
        x, h = table_step((schedule.first if step == start else schedule.later)[step], x, m, h, z)
        worst = max(worst, relative(x, expected))
    return worst


@pytest.mark.slow
@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction"])
@pytest.mark.parametrize("spacing", SPACINGS)
@pytest.mark.parametrize(("sampler", "eta"), [("ddim", 0.0), ("ddim", 0.4), ("ddim", 1.0), ("dpmpp", 0.0)])
def test_every_step_equals_diffusers(sampler: SamplerName, eta: float, spacing: str, prediction: str) -> None:
    for steps in (1, 2, 3, 14, 15, 25):
        for to_one in (False, True):
            config = config_of(timestep_spacing=spacing, prediction_type=prediction, set_alpha_to_one=to_one)
            schedule = make_schedule(config, sampler, steps, eta)
            for strength in (0.35, 0.7, 1.0):
                start = steps - max(1, int(steps * strength))
                worst = worst_step(schedule, peer_of(config, sampler, steps), start, eta)
                assert worst < 1e-5, (steps, strength, to_one)


class RandomNetwork:
    """A call that answers noise, and keeps what each row was asked and answered. A row's text names its image."""

    capturable = False

    def __init__(self, rows: int) -> None:
        self.inputs = {
            "sample": torch.zeros(rows, 4, 6, 5),
            "timesteps": torch.zeros(rows, dtype=torch.int64),
            "encoder_hidden_states": torch.zeros(rows, 1, 1),
        }
        self.outputs: dict[str, torch.Tensor] = {}
        self.seen: dict[int, list[tuple[int, torch.Tensor, torch.Tensor]]] = {}  # image to t, x, output of its steps
        self.mixed = 0  # ticks whose rows were at different timesteps
        self._generator = torch.Generator().manual_seed(4)

    def run(self) -> None:
        sample, timesteps, texts = self.inputs.values()
        output = torch.randn(sample.shape, generator=self._generator)
        images = [int(text) for text in texts.flatten()]
        for row in {image: images.index(image) for image in images}.values():  # spare rows repeat the first
            found = (int(timesteps[row]), sample[row].clone(), output[row].clone())
            self.seen.setdefault(images[row], []).append(found)
        self.mixed += len(set(timesteps.tolist())) > 1
        self.outputs = {"model_output": output}


def worst_in_a_mixed_batch(config: dict[str, Any], sampler: SamplerName, eta: float, steps: int) -> float:
    """Images that begin at different steps, in one batch of the sampler, against a scheduler of diffusers for each.

    The largest relative difference of any image after any step, every error of the steps before included.
    """
    schedule, call = make_schedule(config, sampler, steps, eta), RandomNetwork(4)
    text = {image: torch.full((1, 1), float(image)) for image in range(7)}
    starts = {image: image * (steps - 1) // 6 for image in text}
    tasks = [Task(image, 11, latents_of(image)[0], start, text[image], text[image]) for image, start in starts.items()]
    final = {task.index: latents for task, latents in SlotSampler(call, schedule, slots=4, rows=4).run(tasks)}
    assert call.mixed > steps // 2
    worst = 0.0
    for image, start in starts.items():
        peer = peer_of(config, sampler, steps)
        if hasattr(peer, "set_begin_index"):
            peer.set_begin_index(start)
        seen = call.seen[image]
        assert [t for t, _, _ in seen] == peer.timesteps.tolist()[start:]
        after = [*(x for _, x, _ in seen[1:]), final[image]]
        expected = seen[0][1]
        for step, (t, _, output), found in zip(range(start, steps), seen, after, strict=True):
            noise = step_noise((4, 6, 5), 11, image, step) if eta else None
            more = {"eta": eta, "variance_noise": noise} if sampler == "ddim" else {}
            expected = peer.step(output, t, expected, **more, return_dict=False)[0]
            worst = max(worst, relative(found, expected))
    return worst


@pytest.mark.slow
@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction"])
@pytest.mark.parametrize("model", ["sd1", "sd2", "sd2_v"])
@pytest.mark.parametrize(("sampler", "eta"), [("ddim", 0.0), ("ddim", 0.3), ("dpmpp", 0.0)])
def test_images_at_different_steps_of_one_batch_equal_diffusers_at_every_step(
    sampler: SamplerName, eta: float, model: str, prediction: str
) -> None:
    published = json.loads((CONFIGS / model / "scheduler" / "scheduler_config.json").read_text("utf-8"))
    config = published | {"prediction_type": prediction}
    for steps in (10, 25, 50):
        assert worst_in_a_mixed_batch(config, sampler, eta, steps) < 1e-5, steps


@pytest.mark.parametrize("sampler", ["ddim", "dpmpp"])
def test_timesteps_equal_diffusers_at_every_count(sampler: SamplerName) -> None:
    for spacing, offset in (("leading", 0), ("leading", 1), ("linspace", 0), ("trailing", 0)):
        config = config_of(timestep_spacing=spacing, steps_offset=offset)
        peer = peer_of(config, sampler, 1)
        for steps in range(1, 101):
            peer.set_timesteps(steps)
            expected = peer.timesteps.tolist()
            if steps == 61 and spacing == "trailing":
                assert expected.pop() == -1  # diffusers' float rounding, see schedule.py
            assert make_schedule(config, sampler, steps).timesteps.tolist() == expected, (spacing, steps)


@pytest.mark.parametrize(("sampler", "last"), [("ddim", 1), ("dpmpp", 91)])
def test_a_config_without_spacing_takes_the_default_of_the_sampler(sampler: SamplerName, last: int) -> None:
    schedule = make_schedule(OLD_SD1, sampler, 10)
    assert schedule.timesteps.tolist() == peer_of(OLD_SD1, sampler, 10).timesteps.tolist()
    assert make_schedule(config_of(), sampler, 10).timesteps[-1] == last


@pytest.mark.parametrize("sampler", ["ddim", "dpmpp"])
def test_noise_at_every_start_equals_add_noise(sampler: SamplerName) -> None:
    schedule, peer = make_schedule(config_of(), sampler, 20), peer_of(config_of(), sampler, 20)
    clean, noise = latents_of(1), latents_of(2)
    for step in range(20):
        signal, share = schedule.start[step].tolist()
        expected = peer.add_noise(clean, noise, peer.timesteps[step : step + 1])
        assert relative(signal * clean + share * noise, expected) < 1e-5


def test_first_order_dpmpp_is_ddim_and_only_ddim_with_eta_adds_noise() -> None:
    config = config_of(timestep_spacing="linspace")
    dpmpp = make_schedule(config, "dpmpp", 20)
    assert not dpmpp.adds_noise.any()
    assert (dpmpp.first[:, 4] == 0).all()
    assert (dpmpp.later[1:-1, 4] != 0).all()
    assert (dpmpp.later[-1] == dpmpp.first[-1]).all()
    assert not make_schedule(config, "ddim", 20).adds_noise.any()
    assert make_schedule(config_of(), "ddim", 20, 0.2).adds_noise.all()


@pytest.mark.parametrize("steps", [1, 7, 25, 50])
def test_start_index_counts_as_the_img2img_pipeline(steps: int) -> None:
    schedule = make_schedule(config_of(), "ddim", steps)
    for thousandths in range(1000 // steps + 1, 1001, 7):
        strength = thousandths / 1000
        assert start_index(schedule, strength) == max(steps - min(int(steps * strength), steps), 0)
    assert start_index(schedule, 1.0) == 0


def test_a_strength_that_runs_no_step_names_the_smallest_that_does() -> None:
    schedule = make_schedule(config_of(), "ddim", 3)
    with refused(UsageError, "strength", 0.3, 0.334):
        start_index(schedule, 0.3)
    for steps in range(1, 1001):
        assert int(steps * smallest_strength(steps)) >= 1
        assert int(steps * (smallest_strength(steps) - 0.001)) < 1
    assert start_index(schedule, smallest_strength(3)) == 2


@pytest.mark.parametrize("strength", [0.0, -0.1, 1.01, float("nan")])
def test_a_strength_out_of_range_is_refused(strength: float) -> None:
    with refused(UsageError, "strength", strength):
        start_index(make_schedule(config_of(), "ddim", 10), strength)


@pytest.mark.parametrize(("sampler", "eta"), [("ddim", 0.0), ("ddim", 0.4), ("dpmpp", 0.0)])
@pytest.mark.parametrize(("steps", "strength", "of"), [(15, 0.6, 25), (5, 1.0, 5), (4, 0.8, 5), (1, 0.5, 2)])
def test_a_strength_is_the_end_of_a_trailing_schedule_of_diffusers(
    sampler: SamplerName, eta: float, steps: int, strength: float, of: int
) -> None:
    """Where steps / strength is a whole number that divides N, and no value of the file's own spacing is read."""
    schedule = schedule_from(config_of(), sampler, steps, eta, strength)
    peer = peer_of(config_of(timestep_spacing="trailing"), sampler, of)
    assert schedule.timesteps.tolist() == peer.timesteps.tolist()[of - steps :]
    whole = make_schedule(config_of(timestep_spacing="trailing"), sampler, of, eta)
    np.testing.assert_array_equal(schedule.start, whole.start[of - steps :])
    np.testing.assert_array_equal(schedule.first, whole.first[of - steps :])
    np.testing.assert_array_equal(schedule.later[1:], whole.later[of - steps + 1 :])
    peer.timesteps = peer.timesteps[of - steps :]
    if hasattr(peer, "sigmas"):
        peer.sigmas = peer.sigmas[of - steps :]
    assert worst_step(schedule, peer, 0, eta) < 1e-5


@pytest.mark.parametrize("sampler", ["ddim", "dpmpp"])
def test_a_strength_is_one_noise_level_whatever_the_steps(sampler: SamplerName) -> None:
    for strength in (0.001, 0.2, 0.37, 0.4, 0.8, 0.9999, 1.0):
        for steps in (1, 4, 5, 12, 25, 300):
            schedule = schedule_from(config_of(), sampler, steps, 0.0, strength)
            level = max(1, round(1000 * strength))
            assert schedule.timesteps[0] == level - 1
            assert schedule.steps == min(steps, level)
            assert (np.diff(schedule.timesteps) < 0).all()
            assert schedule.timesteps[-1] >= 0
            gaps = -np.diff(np.append(schedule.timesteps, -1))
            assert gaps.max() - gaps.min() <= 1  # evenly


@pytest.mark.parametrize("sampler", ["ddim", "dpmpp"])
def test_a_network_that_knows_the_noise_ends_at_the_clean_latents(sampler: SamplerName) -> None:
    """The tables of any strength take x = signal clean + noise z to `clean`, in steps that are no multiple of N / T."""
    clean, z = latents_of(1), latents_of(2)
    for strength in (0.013, 0.333, 0.777):
        schedule = schedule_from(config_of(set_alpha_to_one=True), sampler, 7, 0.0, strength)
        signal, share = schedule.start[0].tolist()
        x, h = signal * clean + share * z, torch.zeros_like(clean)
        for step in range(schedule.steps):
            assert relative(x, schedule.start[step, 0].item() * clean + schedule.start[step, 1].item() * z) < 1e-5
            x, h = table_step((schedule.first if step == 0 else schedule.later)[step], x, z, h, z)
        assert relative(x, clean) < 1e-4


def test_schedules_are_of_a_strength_or_as_runs_of_format_2_had_them() -> None:
    schedules = Schedules(config_of(), "ddim", 10)
    assert schedules.of(None) == (schedules.whole, 0)
    assert schedules.whole.timesteps.tolist() == list(range(901, 0, -100))
    found, first = schedules.of(0.5)
    assert (found.timesteps[0], found.steps, first, schedules.steps(0.5)) == (499, 10, 0, 10)
    assert schedules.of(0.5)[0] is found  # made once
    assert (schedules.steps(None), schedules.steps(0.0)) == (10, 0)
    floored = Schedules(config_of(), "ddim", 10, floored=True)
    assert floored.of(0.57) == (floored.whole, 5)
    assert (floored.steps(0.57), floored.steps(0.0)) == (5, 0)
    for strength in (-0.1, 1.01, float("nan")):
        with refused(UsageError, "strength", strength):
            schedules.of(strength)


def test_guided_steps_are_those_inside_the_interval_with_its_ends() -> None:
    schedule = make_schedule(config_of(), "ddim", 10)  # t = 901, 801, ..., 1
    assert guided_steps(schedule, (0.0, 1.0)).all()
    assert guided_steps(schedule, (0.101, 0.301)).nonzero()[0].tolist() == [6, 7, 8]
    assert not guided_steps(schedule, (0.95, 1.0)).any()
    assert step_rows(schedule, 4.0, (0.101, 0.301)).tolist() == [1] * 6 + [2] * 3 + [1] * (schedule.steps - 9)
    assert set(step_rows(schedule, 1.0, (0.0, 1.0)).tolist()) == {1}
    for wrong in ((0.5, 0.4), (-0.1, 1.0), (0.0, 1.1), (float("nan"), 1.0)):
        with refused(UsageError, "guidance_interval"):
            guided_steps(schedule, wrong)


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"clip_sample": True}, "clip_sample"),
        ({"thresholding": True}, "thresholding"),
        ({"rescale_betas_zero_snr": True}, "rescale_betas_zero_snr"),
        ({"prediction_type": "sample"}, 'prediction_type is "sample"'),
        ({"timestep_spacing": "karras"}, 'timestep_spacing is "karras"'),
    ],
)
def test_a_config_that_cannot_be_honoured_is_refused(changes: dict[str, Any], named: str) -> None:
    with pytest.raises(ModelError, match=named):
        make_schedule(config_of(**changes), "ddim", 10)


@pytest.mark.parametrize("sampler", ["ddim", "dpmpp"])
@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"rescale_betas_zero_snr": True}, "rescale_betas_zero_snr is true; zero terminal SNR"),
        ({"trained_betas": [0.01] * 999 + [1.0]}, r"end at alphas_cumprod 0\.0e\+00, that is zero terminal SNR"),
        ({"trained_betas": [0.02] * 1000}, r"end at alphas_cumprod 1\.7e-09, that is zero terminal SNR"),
        ({"trained_betas": [float("nan")] * 1000}, "trained_betas must be a list of numbers from 0 to 1"),
        ({"trained_betas": [1.5] * 1000}, "trained_betas must be a list of numbers from 0 to 1"),
        ({"trained_betas": []}, "trained_betas must be a list of numbers from 0 to 1"),
        ({"beta_end": 0.5}, "zero terminal SNR"),
    ],
)
def test_zero_terminal_snr_is_refused_by_name(sampler: SamplerName, changes: dict[str, Any], named: str) -> None:
    with pytest.raises(ModelError, match=named):
        make_schedule(config_of(**changes), sampler, 10)


def test_trained_betas_that_end_above_zero_are_used() -> None:
    betas = np.linspace(0.0001, 0.02, 1000).tolist()  # DDPM's own, the noisiest in use
    named = config_of(beta_schedule="linear", beta_start=0.0001, beta_end=0.02)
    given = make_schedule(config_of(trained_betas=betas), "dpmpp", 10)
    assert np.allclose(given.later, make_schedule(named, "dpmpp", 10).later, rtol=1e-4)


def test_clip_sample_left_out_means_what_the_class_of_the_file_means() -> None:
    ddim = {key: value for key, value in config_of(_class_name="DDIMScheduler").items() if key != "clip_sample"}
    with pytest.raises(ModelError, match="clip_sample is true by DDIMScheduler default"):
        make_schedule(ddim, "ddim", 10)
    make_schedule(OLD_SD1, "ddim", 10)


@pytest.mark.parametrize(
    ("sampler", "steps", "eta"),
    [
        ("ddim", 0, 0.0),
        ("ddim", -3, 0.0),
        ("ddim", 1000, 0.0),  # leading with offset 1 would begin at t = 1000
        ("ddim", 1001, 0.0),
        ("dpmpp", 1000, 0.0),
        ("ddim", 10, 1.5),
        ("ddim", 10, -0.1),
        ("dpmpp", 10, 0.2),
        ("euler", 10, 0.0),
    ],
)
def test_settings_out_of_range_are_refused(sampler: Any, steps: int, eta: float) -> None:
    with pytest.raises(UsageError):
        make_schedule(config_of(), sampler, steps, eta)
