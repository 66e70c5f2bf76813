"""Sampling schedules as tables of coefficients.

Knows: the timesteps of DDIM and DPM-Solver++ 2M, and the numbers that turn one network output into the next
latents. Both samplers are the same two lines with different numbers, for latents x and network output m:

    h  = p_x x + p_m m                                    the clean latents as this step predicts them
    x' = a_x x + a_h h + a_prev h_prev + a_n noise        h_prev is the step before's h

so a batch may mix images at different steps, each with its own row of the table, and nothing branches on
values. Knows nothing about networks, random numbers or tensors on a device.

Sources: DDIM, Song et al. 2020 (arXiv 2010.02502, equations 12 and 16). DPM-Solver++ 2M, Lu et al. 2022
(arXiv 2211.01095, algorithm 2). v-prediction, Salimans and Ho 2022 (arXiv 2202.00512, appendix D). Timesteps
and the last step are those of diffusers' DDIMScheduler and DPMSolverMultistepScheduler, to the number.

T steps of the schedule, N timesteps of the training (1000 for Stable Diffusion).
"""

import functools
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from engines.diffusion.noise import alphas_cumprod, check_scheduler
from engines.errors import UsageError

SamplerName = Literal["ddim", "dpmpp"]
Floats = npt.NDArray[np.float64]
_KEPT = 256  # schedules kept, of as many strengths


@dataclass(frozen=True, eq=False)
class Schedule:
    """T steps from noise to clean latents. An image may begin at any of them (see `start_index`)."""

    timesteps: npt.NDArray[np.int64]  # [T], descending, in 0..N-1
    first: npt.NDArray[np.float32]  # [T, 6]: p_x, p_m, a_x, a_h, a_prev, a_n of a step with none before it
    later: npt.NDArray[np.float32]  # [T, 6]: the same of a step with one before it
    start: npt.NDArray[np.float32]  # [T, 2], x at the start of a step = [0] clean latents + [1] noise
    train_timesteps: int  # N

    @property
    def steps(self) -> int:
        """T."""
        return len(self.timesteps)

    @property
    def adds_noise(self) -> npt.NDArray[np.bool_]:
        """Which steps add noise, bool [T]."""
        return np.asarray(self.later[:, 5] > 0.0)


def make_schedule(scheduler_config: Mapping[str, Any], sampler: SamplerName, steps: int, eta: float = 0.0) -> Schedule:
    """The schedule of `steps` steps that diffusers makes from the base model's scheduler_config.json.

    "ddim" is `DDIMScheduler.from_config`; `eta` in 0..1 is the share of DDPM's noise. "dpmpp" is
    `DPMSolverMultistepScheduler.from_config` with that class's own solver settings: dpmsolver++, order 2,
    midpoint, last sigma zero. Solver settings that the file may hold (Karras sigmas, order, SDE) are not
    read: the sampler is the run's choice, and only what the network was trained with is the base model's.
    Where the file has no `timestep_spacing`, each takes its class's default, as in diffusers: "leading" for
    DDIM, "linspace" for DPM++.

    Raises UsageError for a step count or eta out of range, ModelError for a configuration that cannot be
    honoured: clipped or thresholded samples (meant for pixels, not latents), zero terminal SNR, other
    predictions.
    """
    if sampler not in ("ddim", "dpmpp"):
        raise UsageError(f'sampler "{sampler}" is unknown; ddim or dpmpp was expected.', field="sampler")
    if not 0.0 <= eta <= 1.0:
        raise UsageError(f"eta is {eta}; a number from 0 to 1 was expected.", field="eta")
    if sampler == "dpmpp" and eta > 0.0:
        raise UsageError(
            f"eta is {eta}, but the dpmpp sampler adds no noise: leave eta out, or take ddim.", field="eta"
        )
    check_scheduler(scheduler_config)
    abar = alphas_cumprod(dict(scheduler_config)).numpy()
    timesteps = _timesteps(scheduler_config, sampler, steps, len(abar))
    # As in diffusers, a step of DDIM ends N // T timesteps lower, whatever the spacing.
    return _tables(scheduler_config, sampler, abar, timesteps, timesteps - len(abar) // steps, eta)


def schedule_from(
    scheduler_config: Mapping[str, Any], sampler: SamplerName, steps: int, eta: float, strength: float
) -> Schedule:
    """The schedule of `steps` evaluations between the noise level of `strength` in (0, 1] and none, evenly spaced.

    The first is at t = round(N strength) - 1, whatever the number of steps and the sampler. This is diffusers'
    "trailing" spacing of that part of the N timesteps: where `steps / strength` is a whole number n that divides N, it
    is the last part of a trailing schedule of n steps. A level of fewer timesteps than `steps` has an evaluation at
    each of them.
    Settings that `make_schedule` refuses must have been refused; raises UsageError for a strength out of range.
    """
    _check_strength(strength)
    abar = alphas_cumprod(dict(scheduler_config)).numpy()
    level = max(1, round(len(abar) * strength))
    marks = np.unique(np.round(level * np.arange(1, steps + 1) / steps).astype(np.int64))
    timesteps = marks[marks > 0][::-1] - 1
    return _tables(scheduler_config, sampler, abar, timesteps, np.append(timesteps[1:], -1), eta)


class Schedules:
    """The schedules of a run's jobs, by their strength."""

    def __init__(
        self,
        scheduler_config: Mapping[str, Any],
        sampler: SamplerName,
        steps: int,
        eta: float = 0.0,
        *,
        floored: bool = False,
    ) -> None:
        """`floored`: a strength means what it did in runs of format 2: of the schedule from pure noise, the last
        floor(T strength) steps are run. Raises what `make_schedule` does.
        """
        self.whole = make_schedule(scheduler_config, sampler, steps, eta)  # from pure noise
        self._floored = floored
        self._from = functools.lru_cache(_KEPT)(
            lambda strength: schedule_from(scheduler_config, sampler, steps, eta, strength)
        )

    def of(self, strength: float | None) -> tuple[Schedule, int]:
        """The schedule of a job and the step of it that comes first; `strength` None: from pure noise.

        Raises UsageError for a strength out of range, or one that leaves no step.
        """
        if strength is None:
            return self.whole, 0
        if self._floored:
            return self.whole, start_index(self.whole, strength)
        return self._from(strength), 0

    def steps(self, strength: float | None) -> int:
        """How many evaluations a job takes; none at strength 0."""
        if strength == 0.0:
            return 0
        schedule, first = self.of(strength)
        return schedule.steps - first


def _tables(
    scheduler_config: Mapping[str, Any],
    sampler: SamplerName,
    abar: Floats,
    timesteps: npt.NDArray[np.int64],
    below: npt.NDArray[np.int64],
    eta: float,
) -> Schedule:
    """The tables of these timesteps; `below` is where each step of DDIM ends, negative for the clean end."""
    prediction = np.stack(_predict_clean(scheduler_config, abar[timesteps]), axis=1)
    if sampler == "ddim":
        update = _ddim_update(scheduler_config, abar, timesteps, below, eta)
        updates = (update, update)
    else:
        updates = _dpmpp_updates(abar[timesteps])
    first, later = (np.concatenate([prediction, update], axis=1).astype(np.float32) for update in updates)
    start = np.stack([np.sqrt(abar[timesteps]), np.sqrt(1.0 - abar[timesteps])], axis=1).astype(np.float32)
    return Schedule(timesteps, first, later, start, len(abar))


def _check_strength(strength: float) -> None:
    if not 0.0 < strength <= 1.0:
        raise UsageError(f"strength is {strength}; a number above 0 and up to 1 was expected.", field="strength")


def start_index(schedule: Schedule, strength: float) -> int:
    """First step of a reference repainted at `strength` in (0, 1], as diffusers' img2img counts: the last
    floor(T strength) are run. What runs of format 2 did.

    Raises UsageError for a strength out of range, or one that leaves no step to run.
    """
    _check_strength(strength)
    run = min(int(schedule.steps * strength), schedule.steps)
    if run == 0:
        raise UsageError(
            f"strength {strength} of {schedule.steps} steps leaves no step to run; the smallest that does is "
            f"{smallest_strength(schedule.steps):g}. Raise the strength or the number of steps.",
            field="strength",
        )
    return schedule.steps - run


def smallest_strength(steps: int) -> float:
    """The smallest strength, in thousandths, that runs at least one of `steps` steps."""
    return next(x for x in (k / 1000 for k in range(1000 // steps, 1001)) if int(steps * x) >= 1)


def guided_steps(schedule: Schedule, guidance_interval: tuple[float, float]) -> npt.NDArray[np.bool_]:
    """Which steps lie inside the interval, bool [T]: low <= t / N <= high.

    Guidance at high noise costs variety and at low noise does little; inside an interval alone it gives
    better images for fewer network rows (Kynkäänniemi et al. 2024, arXiv 2404.07724, who state it in sigma).
    Raises UsageError unless 0 <= low <= high <= 1.
    """
    low, high = guidance_interval
    if not 0.0 <= low <= high <= 1.0:
        raise UsageError(
            f"guidance interval is {low}:{high}; two rising numbers from 0 to 1 were expected.",
            field="guidance_interval",
        )
    fraction = schedule.timesteps / schedule.train_timesteps
    return np.asarray((fraction >= low) & (fraction <= high))


def step_rows(
    schedule: Schedule, guidance_scale: float, guidance_interval: tuple[float, float]
) -> npt.NDArray[np.int64]:
    """Rows of a network call that each step takes, int64 [T]: two where guidance acts, else one. Raises UsageError."""
    guided = guided_steps(schedule, guidance_interval) & (guidance_scale > 1.0)
    return 1 + guided.astype(np.int64)


def _timesteps(config: Mapping[str, Any], sampler: SamplerName, steps: int, trained: int) -> npt.NDArray[np.int64]:
    """The timesteps, int64 [T], as diffusers spaces them; DPM++ counts the clean end as one step more."""
    if steps < 1:
        raise UsageError(f"{steps} steps: at least 1 was expected.", field="steps")
    spacing = config.get("timestep_spacing", "leading" if sampler == "ddim" else "linspace")
    marks = steps if sampler == "ddim" else steps + 1
    descending: npt.NDArray[np.number]
    if spacing == "leading":
        descending = np.arange(marks)[::-1] * (trained // marks) + int(config.get("steps_offset", 0))
    elif spacing == "linspace":
        descending = np.linspace(0, trained - 1, marks).round()[::-1]
    else:  # trailing: `check_scheduler` knows no other
        descending = np.arange(trained, 0, -trained / steps).round() - 1
    # At some counts diffusers' trailing spacing has one step too many, at t = -1: it is left out too.
    timesteps = descending[:steps].astype(np.int64)
    if timesteps[0] >= trained or timesteps[-1] < 0 or bool((np.diff(timesteps) >= 0).any()):
        raise UsageError(f"{steps} steps do not fit the model's {trained} timesteps: take fewer.", field="steps")
    return timesteps


def _predict_clean(config: Mapping[str, Any], abar: Floats) -> tuple[Floats, Floats]:
    """p_x and p_m, each [T]: from noisy latents and network output to clean latents."""
    signal, noise = np.sqrt(abar), np.sqrt(1.0 - abar)
    if config.get("prediction_type", "epsilon") == "v_prediction":
        return signal, -noise
    return 1.0 / signal, -noise / signal


def _ddim_update(
    config: Mapping[str, Any],
    abar: Floats,
    timesteps: npt.NDArray[np.int64],
    below: npt.NDArray[np.int64],
    eta: float,
) -> Floats:
    """a_x, a_h, a_prev (0) and a_n of DDIM, [T, 4].

    x holds the noise eps = (x - sqrt(abar) h) / sqrt(1 - abar), and
    x' = sqrt(abar') h + sqrt(1 - abar' - std^2) eps + std z, at the timesteps `below`.
    """
    final = 1.0 if config.get("set_alpha_to_one", True) else abar[0]
    now, target = abar[timesteps], np.where(below >= 0, abar[np.maximum(below, 0)], final)
    variance = (1.0 - target) / (1.0 - now) * (1.0 - now / target)
    std = eta * np.sqrt(np.maximum(variance, 0.0))
    a_x = np.sqrt(np.maximum(1.0 - target - std**2, 0.0) / (1.0 - now))
    a_h = np.sqrt(target) - a_x * np.sqrt(now)
    return np.stack([a_x, a_h, np.zeros_like(a_x), std], axis=1)


def _dpmpp_updates(abar: Floats) -> tuple[Floats, Floats]:
    """a_x, a_h, a_prev and a_n (0) of DPM-Solver++ 2M: [T, 4] of first order, [T, 4] of second.

    With sigma and alpha the shares of noise and signal, lambda = log(alpha / sigma) and h = lambda' - lambda:
    x' = sigma'/sigma x - alpha' (e^-h - 1) (D0 + D1 / 2), D0 this step's prediction and D1 its slope.
    The last step ends at sigma 0, where lambda is infinite, and is always of first order.
    """
    alpha, sigma = np.sqrt(abar), np.sqrt(1.0 - abar)
    next_alpha, next_sigma = np.append(alpha[1:], 1.0), np.append(sigma[1:], 0.0)
    a_x = next_sigma / sigma
    gain = next_alpha - alpha * a_x  # alpha' (1 - e^-h), finite at sigma' = 0
    none = np.zeros_like(a_x)
    first = np.stack([a_x, gain, none, none], axis=1)
    later = first.copy()
    inner = np.diff(np.log(alpha) - np.log(sigma))  # h of every step but the last
    for step in range(1, len(abar) - 1):
        slope = 0.5 * gain[step] * inner[step] / inner[step - 1]
        later[step, 1:3] = gain[step] + slope, -slope
    return first, later
