"""The slot loop on networks simple enough to follow: rows, order, independence, noise and errors."""

from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
import toy
from refusals import refused
from torch.nn import functional

from engines.diffusion.latents import initial_noise, step_noise
from engines.diffusion.sampler import SlotSampler, Task, always_guided, check_latents
from engines.diffusion.schedule import Schedule, make_schedule, schedule_from, step_rows
from engines.diffusion.tick import count_ticks
from engines.errors import NumericalError, UsageError

CONFIG = {
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
    "clip_sample": False,
    "set_alpha_to_one": False,
    "steps_offset": 1,
}
SHAPE = (4, 4, 6)
TEXT = (8, toy.TEXT_WIDTH)

Network = Callable[[torch.Tensor, torch.Tensor, torch.Tensor], torch.Tensor]


def formula(sample: torch.Tensor, timesteps: torch.Tensor, text: torch.Tensor) -> torch.Tensor:
    """A network whose rows are independent to the last bit."""
    shift = text.mean(dim=(1, 2)) + timesteps / 1000
    return torch.tanh(0.5 * sample + shift.reshape(-1, 1, 1, 1).float())


class FakeCall:
    """A backend's call over a plain function, that keeps what it was given."""

    capturable = False

    def __init__(self, rows: int, network: Network = formula, dtype: torch.dtype = torch.float32) -> None:
        self.network = network
        self.inputs = {
            "sample": torch.full((rows, *SHAPE), torch.nan, dtype=dtype),
            "timesteps": torch.full((rows,), -1),
            "encoder_hidden_states": torch.full((rows, *TEXT), torch.nan, dtype=dtype),
        }
        self.outputs: dict[str, torch.Tensor] = {}
        self.seen: list[dict[str, torch.Tensor]] = []

    def run(self) -> None:
        self.seen.append({name: tensor.clone() for name, tensor in self.inputs.items()})
        self.outputs = {"model_output": self.network(*self.inputs.values())}


def normal(shape: tuple[int, ...], *key: int) -> torch.Tensor:
    return torch.from_numpy(np.random.default_rng(key).standard_normal(shape, dtype=np.float32))


def task(index: int, start: int = 0, seed: int = 3) -> Task:
    latents = normal(SHAPE, 1, index) if start else None
    return Task(index, seed, latents, start, 1 + normal(TEXT, 2, index), -1 + normal(TEXT, 3, index))


def painted(sampler: SlotSampler, tasks: list[Task]) -> dict[int, torch.Tensor]:
    return {done.index: latents for done, latents in sampler.run(tasks)}


def by_hand(one: Task, schedule: Schedule, scale: float, low: float, high: float) -> torch.Tensor:
    """The same image, written as a plain loop."""
    x = initial_noise(SHAPE, one.seed, one.index)[None]
    if one.latents is not None:
        x = float(schedule.start[one.start, 0]) * torch.as_tensor(one.latents) + float(schedule.start[one.start, 1]) * x
    h = torch.zeros_like(x)
    for step in range(one.start, schedule.steps):
        t = torch.from_numpy(schedule.timesteps[step : step + 1])
        m = formula(x, t, one.cond[None])
        if low <= float(t) / 1000 <= high:
            without = formula(x, t, one.uncond[None])
            m = without + scale * (m - without)
        p_x, p_m, a_x, a_h, a_prev, a_n = (schedule.first if step == one.start else schedule.later)[step].tolist()
        clean = p_x * x + p_m * m
        x = a_x * x + a_h * clean + a_prev * h + a_n * step_noise(SHAPE, one.seed, one.index, step)
        h = clean
    return x[0]


@pytest.mark.parametrize(("sampler", "eta"), [("ddim", 0.0), ("ddim", 0.3), ("dpmpp", 0.0)])
@pytest.mark.parametrize(("slots", "rows"), [(1, 2), (3, 6), (4, 3), (5, 2), (9, 18)])
def test_every_image_is_what_a_plain_loop_paints(sampler: Any, eta: float, slots: int, rows: int) -> None:
    schedule = make_schedule(CONFIG, sampler, 8, eta)
    tasks = [task(index, start) for index, start in enumerate((0, 3, 7, 0, 5, 1, 6))]
    loop = SlotSampler(
        FakeCall(rows), schedule, slots=slots, rows=rows, guidance_scale=3.0, guidance_interval=(0.2, 0.7)
    )
    results = painted(loop, tasks)
    assert sorted(results) == list(range(7))
    for one in tasks:
        torch.testing.assert_close(results[one.index], by_hand(one, schedule, 3.0, 0.2, 0.7), rtol=1e-5, atol=1e-5)


def test_every_task_follows_its_own_schedule_beside_others() -> None:
    whole = make_schedule(CONFIG, "dpmpp", 8)
    own = [None, *(schedule_from(CONFIG, "dpmpp", steps, 0.0, at) for steps, at in ((8, 0.3), (3, 0.9), (5, 0.61)))]
    tasks = [replace(task(index, 0), latents=normal(SHAPE, 9, index), schedule=it) for index, it in enumerate(own)]
    loop = SlotSampler(FakeCall(5), whole, slots=3, rows=5, guidance_scale=3.0, guidance_interval=(0.2, 0.7))
    results = painted(loop, tasks)
    for one in tasks:
        expected = by_hand(one, one.schedule or whole, 3.0, 0.2, 0.7)
        torch.testing.assert_close(results[one.index], expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("steps", [4, 3])
def test_a_schedule_of_more_steps_or_rows_than_the_sampler_has_is_refused(steps: int) -> None:
    schedule = make_schedule(CONFIG, "ddim", 3)  # t = 667, 334, 1
    loop = SlotSampler(FakeCall(1), schedule, slots=1, rows=1, guidance_scale=2.0, guidance_interval=(0.8, 1.0))
    wrong = replace(task(9), latents=torch.zeros(SHAPE), schedule=schedule_from(CONFIG, "ddim", steps, 0.0, 0.85))
    with refused(UsageError, None, "image 9"):
        list(loop.run([wrong]))


@pytest.mark.slow
@pytest.mark.parametrize("kind", toy.KINDS)
def test_a_real_network_paints_the_same_alone_in_a_full_batch_and_in_another_order(
    toy_bases: dict[Any, Any], kind: toy.Kind
) -> None:
    from engines.diffusion.base_model import load_base

    unet = load_base(toy_bases[kind]).unet
    wider = int(unet.config.cross_attention_dim) - toy.TEXT_WIDTH
    schedule = make_schedule(CONFIG, "dpmpp", 5)
    tasks = [task(index, start) for index, start in enumerate((0, 2, 4, 1))]

    def sampler(slots: int, rows: int) -> SlotSampler:
        call = FakeCall(rows, lambda x, t, states: unet(x, t, functional.pad(states, (0, wider))).sample)
        return SlotSampler(call, schedule, slots=slots, rows=rows, guidance_scale=2.0)

    alone = {one.index: painted(sampler(1, 2), [one])[one.index] for one in tasks}
    together = painted(sampler(4, 8), tasks)
    reversed_order = painted(sampler(2, 3), tasks[::-1])
    for index, latents in alone.items():
        torch.testing.assert_close(together[index], latents, rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(reversed_order[index], latents, rtol=1e-4, atol=1e-4)
    assert (together[0] - together[1]).abs().max() > 0.1


def test_rows_are_counted_as_by_hand_with_a_guidance_interval() -> None:
    schedule = make_schedule(CONFIG, "ddim", 10)  # t = 901, 801, ..., 1
    loop = SlotSampler(FakeCall(4), schedule, slots=2, rows=4, guidance_scale=2.0, guidance_interval=(0.3, 0.6))
    painted(loop, [task(0), task(1, start=5)])
    # t = 501, 401, 301 take two rows: image 0 has all ten steps, image 1 only 401, 301, 201, 101, 1.
    assert loop.rows_used == (10 + 3) + (5 + 2)
    assert loop.ticks == 10


@pytest.mark.parametrize(("scale", "interval"), [(1.0, (0.0, 1.0)), (5.0, (0.95, 1.0))])
def test_without_guidance_an_image_takes_one_row_and_never_its_negative_prompt(
    scale: float, interval: tuple[float, float]
) -> None:
    call = FakeCall(3)
    schedule = make_schedule(CONFIG, "ddim", 6)
    loop = SlotSampler(call, schedule, slots=3, rows=3, guidance_scale=scale, guidance_interval=interval)
    tasks = [task(index) for index in range(3)]
    painted(loop, tasks)
    assert (loop.ticks, loop.rows_used) == (6, 18)
    for seen in call.seen:
        assert torch.equal(seen["encoder_hidden_states"], torch.stack([one.cond for one in tasks]))


def test_spare_rows_repeat_the_rows_of_the_first_image() -> None:
    call = FakeCall(5)
    painted(SlotSampler(call, make_schedule(CONFIG, "ddim", 2), slots=2, rows=5, guidance_scale=2.0), [task(0)])
    for seen in call.seen:
        for tensor in seen.values():
            assert torch.equal(tensor, tensor[[0, 1, 0, 1, 0]])
            assert tensor.isfinite().all()


def test_where_every_step_is_guided_rows_lie_in_pairs_of_one_image() -> None:
    assert always_guided(2.0, None)
    assert always_guided(2.0, (0.0, 1.0))
    assert not always_guided(1.0, None)
    assert not always_guided(2.0, (0.0, 0.9))
    call = FakeCall(6)
    tasks = [task(index, start) for index, start in enumerate((0, 3, 1, 2, 0))]
    painted(SlotSampler(call, make_schedule(CONFIG, "dpmpp", 5), slots=3, rows=6, guidance_scale=2.0), tasks)
    for seen in call.seen:
        assert torch.equal(seen["sample"][::2], seen["sample"][1::2])
        assert torch.equal(seen["timesteps"][::2], seen["timesteps"][1::2])
        for cond, uncond in seen["encoder_hidden_states"].unflatten(0, (3, 2)):
            assert any(torch.equal(cond, one.cond) and torch.equal(uncond, one.uncond) for one in tasks)


@pytest.mark.parametrize(
    ("slots", "rows", "turns"),
    [(3, 4, [[0, 1], [2, 0], [1, 2], [0, 1]]), (4, 3, [[0], [1], [2], [3], [0]])],
)
def test_slots_that_do_not_fit_take_turns(slots: int, rows: int, turns: list[list[int]]) -> None:
    call = FakeCall(rows)
    tasks = [task(index) for index in range(slots)]
    loop = SlotSampler(call, make_schedule(CONFIG, "ddim", 6), slots=slots, rows=rows, guidance_scale=2.0)
    order = [done.index for done, _ in loop.run(tasks)]
    texts = [seen["encoder_hidden_states"][: rows - 1 : 2] for seen in call.seen]
    who = [[next(one.index for one in tasks if torch.equal(text, one.cond)) for text in tick] for tick in texts]
    assert who[: len(turns)] == turns
    assert loop.ticks == slots * 6 / (rows // 2)
    assert order == list(range(slots))


def test_an_image_of_one_row_uses_a_gap_that_two_rows_do_not_fit() -> None:
    schedule = make_schedule(CONFIG, "ddim", 10)
    loop = SlotSampler(FakeCall(3), schedule, slots=3, rows=3, guidance_scale=2.0, guidance_interval=(0.5, 1.0))
    finished = [(done.index, loop.ticks) for done, _ in loop.run([task(0), task(1), task(2, start=6)])]
    # The first two images have five guided steps each and take turns for ten ticks; the third needs one row in
    # each of four ticks, and finds it beside them. Then two rows a tick for the last five steps of both.
    assert finished == [(2, 4), (0, 14), (1, 15)]
    assert loop.rows_used == 15 + 15 + 4


def test_a_finished_slot_takes_the_next_task_and_tasks_are_taken_one_by_one() -> None:
    schedule = make_schedule(CONFIG, "ddim", 4)
    taken: list[int] = []

    def source() -> Iterator[Task]:
        for index, start in enumerate((0, 3, 2, 3, 0)):
            taken.append(index)
            yield task(index, start)

    loop = SlotSampler(FakeCall(2), schedule, slots=2, rows=2)
    results = []
    for done, _ in loop.run(source()):
        results.append((done.index, len(taken), loop.ticks))
    # Slot 0 runs image 0 (4 steps) and 4; slot 1 runs images 1 (1), 2 (2), 3 (1): nobody waits.
    assert results == [(1, 2, 1), (2, 3, 3), (0, 4, 4), (3, 4, 4), (4, 5, 8)]
    assert loop.rows_used == 4 + 1 + 2 + 1 + 4


def test_the_same_tasks_come_back_in_the_same_order_with_the_same_bytes() -> None:
    schedule = make_schedule(CONFIG, "ddim", 9, 0.2)
    tasks = [task(index, start) for index, start in enumerate((3, 0, 8, 5, 2, 7, 1))]
    loop = SlotSampler(FakeCall(5), schedule, slots=3, rows=5, guidance_scale=4.0)
    first = [(done.index, latents) for done, latents in loop.run(tasks)]
    second = [(done.index, latents) for done, latents in loop.run(tasks)]
    assert [index for index, _ in first] == [index for index, _ in second]
    assert all(torch.equal(a, b) for (_, a), (_, b) in zip(first, second, strict=True))


def test_results_stay_as_they_were_while_the_loop_goes_on() -> None:
    loop = SlotSampler(FakeCall(1), make_schedule(CONFIG, "ddim", 3), slots=1, rows=1)
    run = loop.run([task(0), task(1)])
    _, latents = next(run)
    kept = latents.clone()
    list(run)
    assert torch.equal(latents, kept)


def test_noise_is_another_for_another_seed_and_for_another_index() -> None:
    loop = SlotSampler(FakeCall(1), make_schedule(CONFIG, "ddim", 3), slots=1, rows=1)
    one = task(0)
    again = Task(0, 4, None, 0, one.cond, one.uncond)
    other = Task(1, 3, None, 0, one.cond, one.uncond)
    a, b, c = (latents for _, latents in loop.run([one, again, other]))
    assert (a - b).abs().max() > 0.1
    assert (a - c).abs().max() > 0.1


def test_no_tasks_make_no_network_call() -> None:
    call = FakeCall(2)
    assert list(SlotSampler(call, make_schedule(CONFIG, "ddim", 3), slots=2, rows=2).run([])) == []
    assert call.seen == []


def test_half_precision_buffers_are_written_and_read_with_latents_kept_in_float32() -> None:
    schedule = make_schedule(CONFIG, "ddim", 5)
    exact = painted(SlotSampler(FakeCall(2), schedule, slots=1, rows=2, guidance_scale=2.0), [task(0)])[0]
    half = painted(
        SlotSampler(FakeCall(2, dtype=torch.bfloat16), schedule, slots=1, rows=2, guidance_scale=2.0),
        [task(0)],
    )[0]
    assert half.dtype == torch.float32
    assert (half - exact).norm() / exact.norm() < 0.05


def test_nan_is_named_with_graph_and_image_and_reaches_no_other_image() -> None:
    def broken(sample: torch.Tensor, timesteps: torch.Tensor, text: torch.Tensor) -> torch.Tensor:
        output = formula(sample, timesteps, text)
        output[text[:, 0, 0] > 500] = torch.nan
        return output

    schedule = make_schedule(CONFIG, "ddim", 4)
    bad = Task(41, 3, None, 0, torch.full(TEXT, 999.0), torch.zeros(TEXT))
    tasks = [task(0, start=2), bad, task(2, start=1), task(3)]
    loop = SlotSampler(FakeCall(3, broken), schedule, slots=3, rows=3, guidance_scale=2.0)
    results = painted(loop, tasks)
    assert [index for index, latents in results.items() if not latents.isfinite().all()] == [41]
    finite = torch.stack([results[one.index].isfinite().all() for one in tasks])
    check_latents(tasks[2:], finite[2:])
    with refused(NumericalError, "precision", "unet", "image 41", "seed 3"):
        check_latents(tasks, finite)


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"slots": 0}, "at least 1 slot"),
        ({"rows": 1}, "2 rows were expected"),
        ({"rows": 3}, "the unet call has 4 rows"),
        ({"guidance_scale": 0.5}, "guidance is 0.5"),
        ({"guidance_scale": float("nan")}, "guidance is nan"),
        ({"guidance_interval": (0.9, 0.1)}, "guidance interval"),
    ],
)
def test_settings_out_of_range_are_refused(changes: dict[str, Any], named: str) -> None:
    settings: dict[str, Any] = {"slots": 2, "rows": 4, "guidance_scale": 2.0}
    with pytest.raises(UsageError, match=named):
        SlotSampler(FakeCall(4), make_schedule(CONFIG, "ddim", 3), **{**settings, **changes})


@pytest.mark.parametrize(
    ("wrong", "named"),
    [
        (Task(9, 0, None, 1, torch.zeros(TEXT), torch.zeros(TEXT)), "image 9 begins at step 1"),
        (Task(9, 0, torch.zeros(SHAPE), 3, torch.zeros(TEXT), torch.zeros(TEXT)), "image 9 begins at step 3"),
        (Task(9, 0, torch.zeros(4, 4, 4), 0, torch.zeros(TEXT), torch.zeros(TEXT)), "image 9: latents"),
        (Task(9, 0, None, 0, torch.zeros(3, 3), torch.zeros(TEXT)), "image 9: cond"),
        (Task(9, 0, None, 0, torch.zeros(TEXT), torch.zeros(3, 3)), "image 9: uncond"),
    ],
)
def test_a_task_that_does_not_fit_is_refused_by_index(wrong: Task, named: str) -> None:
    loop = SlotSampler(FakeCall(1), make_schedule(CONFIG, "ddim", 3), slots=1, rows=1)
    with pytest.raises(UsageError, match=named):
        list(loop.run([wrong]))


def test_a_capturable_call_is_recorded_after_one_warm_up_and_paints_the_same() -> None:
    """A recording stands in for CUDA's: it must read and write only memory that stays where it is."""
    schedule = make_schedule(CONFIG, "ddim", 6, 0.5)
    tasks = [task(0), task(1, start=2), task(2, start=4), task(3)]
    settings: dict[str, Any] = {"slots": 2, "rows": 4, "guidance_scale": 2.0}
    expected = painted(SlotSampler(FakeCall(4), schedule, **settings), tasks)

    events: list[str] = []

    def record(step: Callable[[], None], device: torch.device) -> Callable[[], None]:
        events.append("record")

        def replay() -> None:
            events.append("replay")
            step()

        return replay

    call = FakeCall(4)
    call.capturable = True
    memory = {name: tensor.data_ptr() for name, tensor in call.inputs.items()}
    loop = SlotSampler(call, schedule, told=lambda: events.append("tick"), record=record, **settings)
    found = painted(loop, tasks)
    again = painted(loop, tasks)
    assert events[:3] == ["tick", "record", "replay"]
    assert events.count("record") == 1
    assert events.count("tick") == loop.ticks == events.count("replay") + 1
    assert memory == {name: tensor.data_ptr() for name, tensor in call.inputs.items()}
    for index, latents in expected.items():
        assert torch.equal(found[index], latents)
        assert torch.equal(again[index], latents)


def test_what_a_tick_records_waits_for_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """No value may travel to the host inside a tick: a CUDA graph cannot be recorded over that."""
    call = FakeCall(4)
    call.capturable = True
    recorded: list[Callable[[], None]] = []
    loop = SlotSampler(
        call,
        make_schedule(CONFIG, "ddim", 4),
        slots=2,
        rows=4,
        guidance_scale=2.0,
        record=lambda step, device: recorded.append(step) or step,  # type: ignore[func-returns-value]
    )
    painted(loop, [task(0), task(1)])
    for name in ("item", "tolist", "cpu", "numpy", "__bool__", "__int__", "__float__", "nonzero"):
        monkeypatch.setattr(torch.Tensor, name, lambda *_, name=name: pytest.fail(f"{name} waits for the device"))
    monkeypatch.setattr(call, "seen", [])
    recorded[0]()


@pytest.mark.parametrize(("slots", "rows", "jobs"), [(2, 4, 5), (4, 4, 6), (3, 5, 7), (1, 2, 3)])
def test_how_many_ticks_jobs_take_is_known_before(slots: int, rows: int, jobs: int) -> None:
    schedule = make_schedule(CONFIG, "ddim", 6)
    interval = (0.3, 0.7)
    loop = SlotSampler(FakeCall(rows), schedule, slots=slots, rows=rows, guidance_scale=2.0, guidance_interval=interval)
    starts = [index % 3 for index in range(jobs)]
    painted(loop, [task(index, start) for index, start in enumerate(starts)])
    taken = step_rows(schedule, 2.0, interval).tolist()
    assert loop.ticks == count_ticks([taken[start:] for start in starts], slots, rows)
