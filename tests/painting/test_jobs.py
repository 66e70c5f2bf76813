"""Jobs: pure, spread evenly over the references, and dealt to shards without gaps."""

from collections import Counter
from dataclasses import replace
from itertools import islice
from pathlib import Path

import numpy as np
import pytest

from engines.datasets.dataset import Record
from engines.labels.boxes import Instances
from engines.painting.jobs import Job, JobSource, balanced_shares, chunk_ranges, make_job

CLASSES = ("rbc", "wbc")


def record(
    name: str = "a.jpg",
    size: tuple[int, int] = (64, 48),
    boxes: list[tuple[float, float, float, float]] | None = None,
    labels: list[int] | None = None,
    caption: str | None = None,
    crowds: list[bool] | None = None,
) -> Record:
    count = len(boxes or [])
    return Record(
        file=Path(name),
        name=name,
        width=size[0],
        height=size[1],
        instances=Instances.of(boxes or [], labels or [0] * count, crowd=crowds or [False] * count),
        caption=caption,
    )


def source(*references: Record) -> JobSource:
    return JobSource(
        frame=(32, 32), short_side=32, style="photo", references=references, class_names=CLASSES, strength=(0.4, 0.8)
    )


def jobs(of: JobSource, count: int, seed: int = 0) -> list[Job]:
    return [make_job(of, seed, index) for index in range(count)]


def test_a_job_is_a_function_of_plan_seed_and_index() -> None:
    settings = source(*(record(f"{i}.jpg", (90, 70)) for i in range(5)))
    first = jobs(settings, 20)
    assert [make_job(settings, 0, index) for index in reversed(range(20))] == first[::-1]
    assert jobs(settings, 20, seed=1) != first


def test_references_are_used_equally_often_and_in_another_order_each_pass() -> None:
    settings = source(*(record(f"{i}.jpg") for i in range(7)))
    used = [job.reference for job in jobs(settings, 21)]
    assert set(Counter(used).values()) == {3}
    assert len({tuple(used[i : i + 7]) for i in (0, 7, 14)}) == 3


def test_crops_have_the_shape_of_the_frame_and_lie_inside_references_of_any_size() -> None:
    sizes = [(640, 480), (480, 640), (20, 200), (33, 31), (8, 8)]
    settings = replace(source(*(record(size=size) for size in sizes)), frame=(48, 32), short_side=40)
    for job in jobs(settings, 50):
        assert job.reference is not None
        assert job.crop is not None
        width, height = sizes[job.reference]
        x0, y0, x1, y1 = job.crop
        assert x0 >= 0
        assert y0 >= 0
        assert x1 <= width
        assert y1 <= height
        assert (x1 - x0) / (y1 - y0) == pytest.approx(48 / 32)


def test_crops_show_the_reference_at_the_adapters_scale() -> None:
    settings = replace(source(record(size=(640, 480))), frame=(64, 64), short_side=96)
    crop = make_job(settings, 0, 0).crop
    assert crop is not None
    assert crop[2] - crop[0] == pytest.approx(64 * 480 / 96)


def test_strength_position_and_mirroring_vary_within_their_ranges() -> None:
    made = jobs(source(record(size=(200, 100))), 60)
    strengths = [job.strength or 0.0 for job in made]
    assert min(strengths) >= 0.4
    assert max(strengths) <= 0.8
    assert max(strengths) - min(strengths) > 0.3
    assert len({job.crop for job in made}) == 60
    assert 15 < sum(job.flip for job in made) < 45


def test_no_flip_mirrors_nothing_and_changes_nothing_else() -> None:
    settings = source(record(size=(200, 100)))
    plain = jobs(replace(settings, flip=False), 20)
    assert not any(job.flip for job in plain)
    assert plain == [replace(job, flip=False) for job in jobs(settings, 20)]


def test_the_prompt_counts_the_objects_whose_centre_is_in_the_crop() -> None:
    boxes = [(0.0, 0.0, 10.0, 10.0), (2.0, 2.0, 12.0, 12.0), (190.0, 4.0, 198.0, 12.0), (5.0, 5.0, 9.0, 9.0)]
    reference = record(size=(200, 32), boxes=boxes, labels=[0, 0, 1, 1], crowds=[False, False, False, True])
    settings = source(reference)
    for job in jobs(settings, 40):
        assert job.crop is not None
        left, right = job.crop[0], job.crop[2]
        wanted = [name for name, inside in (("few rbc", left <= 5), ("one wbc", right >= 194)) if inside]
        if left <= 5 or left > 7:  # at 5..7 one of the two is cut off
            assert job.prompt == " ".join(["a photo", *(["with"] if wanted else []), *wanted])


def test_a_caption_takes_the_place_of_the_classes() -> None:
    settings = source(record(boxes=[(0, 0, 64, 48)], caption="two cats on a sofa"))
    assert make_job(settings, 0, 0).prompt == "a photo of two cats on a sofa"


def test_without_references_classes_are_drawn_from_the_training_images() -> None:
    settings = replace(source(), class_statistics=({"rbc": 12, "wbc": 1}, {"rbc": 2}, {}))
    made = jobs(settings, 60)
    assert {job.prompt for job in made} == {
        "a photo with many rbc and one wbc", "a photo with one wbc and many rbc", "a photo with few rbc", "a photo",
    }  # fmt: skip
    assert all(job.reference is None and job.strength is None and job.crop is None for job in made)


def test_references_without_labels_take_drawn_classes_too() -> None:
    settings = replace(source(record()), class_statistics=({"wbc": 5},))
    assert make_job(settings, 0, 3).prompt == "a photo with several wbc"


RARE = (*({"rbc": 8 + i} for i in range(6)), {"rbc": 6, "wbc": 2}, {"rbc": 1, "wbc": 3})


def labelled(counts: dict[str, int]) -> Record:
    labels = [CLASSES.index(name) for name, n in counts.items() for _ in range(n)]
    return record(boxes=[(20.0, 20.0, 30.0, 30.0)] * len(labels), labels=labels)


def test_balanced_shares_give_every_class_the_same_and_leave_nobody_out() -> None:
    shares = balanced_shares(RARE)
    assert shares.sum() == pytest.approx(1.0)
    assert shares.min() > 0
    rbc = np.array([1.0] * 6 + [6 / 8, 1 / 4])
    wbc = 1.0 - rbc
    assert shares == pytest.approx((rbc / rbc.sum() + wbc / wbc.sum()) / 2)
    with_empty = balanced_shares([*RARE, {}, {}])
    assert with_empty[8:] == pytest.approx(0.1), "images without objects as often as ever"
    assert with_empty[:8] == pytest.approx(0.8 * shares)
    assert balanced_shares([{}, {}]) == pytest.approx(0.5)
    assert len(balanced_shares([])) == 0


def test_balance_draws_references_with_rare_classes_more_often_and_all_by_their_share() -> None:
    settings = replace(source(*(labelled(counts) for counts in RARE)), balance=True)
    made = jobs(settings, 80)
    used = Counter(job.reference for job in made)
    shares = balanced_shares(RARE)
    assert all(abs(used[i] - 80 * share) <= 10 for i, share in enumerate(shares)), "each of ten passes rounds"
    assert used[7] > 2 * max(used[i] for i in range(6))
    assert [make_job(settings, 0, index) for index in reversed(range(80))] == made[::-1]
    plain = jobs(replace(settings, balance=False), 80)
    assert set(Counter(job.reference for job in plain).values()) == {10}
    assert sum("wbc" in job.prompt for job in made) > 1.5 * sum("wbc" in job.prompt for job in plain)


@pytest.mark.parametrize("references", [(), (record(),)])
def test_balance_draws_prompts_with_rare_classes_more_often(references: tuple[Record, ...]) -> None:
    settings = replace(source(*references), class_statistics=RARE)
    plain, balanced = (
        sum("wbc" in job.prompt for job in jobs(replace(settings, balance=balance), 200)) for balance in (False, True)
    )
    assert balanced > 1.5 * plain > 0


def test_balance_changes_nothing_but_what_is_drawn() -> None:
    settings = source(record(size=(200, 100)))
    assert jobs(replace(settings, balance=True), 10) == jobs(settings, 10)


def test_without_statistics_the_prompt_is_generic() -> None:
    assert make_job(source(), 0, 0).prompt == "a photo"


def test_a_template_words_the_prompt() -> None:
    settings = replace(source(), class_statistics=({"rbc": 2},), template="{style}:  {classes}, sharp{caption}")
    assert make_job(settings, 0, 0).prompt == "photo: few rbc, sharp"


def test_chunks_cover_the_jobs_and_the_last_may_be_short() -> None:
    assert list(chunk_ranges(4, 10)) == [range(4), range(4, 8), range(8, 10)]
    assert list(islice(chunk_ranges(4, None), 2)) == [range(4), range(4, 8)]


@pytest.mark.parametrize("parts", [1, 2, 3, 7])
def test_shards_share_out_the_same_chunks(parts: int) -> None:
    dealt = [chunk for part in range(1, parts + 1) for chunk in chunk_ranges(4, 18, (part, parts))]
    assert sorted(dealt, key=lambda chunk: chunk.start) == list(chunk_ranges(4, 18))
