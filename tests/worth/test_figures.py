"""What generated data is worth: matching, intervals, the table and the picture."""

import sys
from pathlib import Path

import numpy as np
import pytest
from made_worth import make_arms
from PIL import Image

from engines.common.rng import generator
from engines.labels.average_precision import mean_average_precision
from engines.labels.boxes import Instances
from engines.labels.matching import average_precision, figures, match
from engines.worth.figures import Arm, Difference, Result, arm_name, compare, gains, table
from engines.worth.plot import plot

NAMES = ("a", "b")


def random_truth(number: int, crowds: bool = True) -> Instances:
    rng = generator(11, number)
    count = int(rng.integers(0, 7))
    corners = rng.uniform(0, 60, size=(count, 2))
    boxes = np.concatenate([corners, corners + rng.uniform(5, 40, size=(count, 2))], axis=1).astype(np.float32)
    crowd = rng.random(count) < (0.3 if crowds else 0.0)
    return Instances.of(boxes, rng.integers(0, 2, size=count), crowd=crowd)


def random_found(truth: Instances, number: int, noise: float) -> Instances:
    """The boxes of `truth`, moved about, some twice, and a few more."""
    rng = generator(12, number)
    boxes = np.concatenate([truth.boxes, truth.boxes[::2], rng.uniform(0, 90, size=(4, 4)).astype(np.float32)])
    boxes = (boxes + rng.normal(0, noise, size=boxes.shape)).astype(np.float32)
    boxes = np.concatenate([np.minimum(boxes[:, :2], boxes[:, 2:] - 1), boxes[:, 2:]], axis=1)
    labels = np.concatenate([truth.labels, truth.labels[::2], rng.integers(0, 2, size=4)])
    scores = np.round(rng.uniform(0.05, 1.0, size=len(boxes)), 2).astype(np.float32)  # rounded, so that some tie
    return Instances.of(boxes, labels, scores)


def scene(images: int, noise: float, seed: int = 0, crowds: bool = True) -> tuple[list[Instances], list[Instances]]:
    truths = [random_truth(number, crowds) for number in range(images)]
    return truths, [random_found(truth, 100 * seed + number, noise) for number, truth in enumerate(truths)]


@pytest.mark.parametrize("noise", [0.5, 3.0, 8.0])
def test_the_matching_gives_the_measures_own_figures(noise: float) -> None:
    truths, found = scene(40, noise)
    expected = mean_average_precision(truths, found, NAMES)
    own = figures(average_precision(match(truths, found, 2), np.ones(40, dtype=np.int64)), NAMES)
    assert own == pytest.approx(expected, abs=1e-6)
    assert 0.0 < own["AP"] < 1.0


def test_an_image_that_counts_twice_is_there_twice() -> None:
    truths, found = scene(12, 3.0)
    weights = generator(5).integers(0, 3, size=12)
    chosen = np.repeat(np.arange(12), weights)
    expected = mean_average_precision([truths[i] for i in chosen], [found[i] for i in chosen], NAMES)
    own = figures(average_precision(match(truths, found, 2), weights), NAMES)
    assert own == pytest.approx(expected, abs=5e-3)  # ties between copies fall differently


def test_a_class_without_boxes_counts_nowhere() -> None:
    truths, found = scene(10, 1.0)
    only = [truth.take(truth.labels == 0) for truth in truths]
    own = figures(average_precision(match(only, found, 2), np.ones(10, dtype=np.int64)), NAMES)
    assert set(own) == {"AP", "AP50", "AP75", "AP/a", "AP50/a"}
    assert own == pytest.approx(mean_average_precision(only, found, NAMES), abs=1e-6)
    nothing = [truth.take([]) for truth in truths]
    assert figures(average_precision(match(nothing, found, 2), np.ones(10, dtype=np.int64)), NAMES)["AP"] == 0.0


def test_equal_detections_differ_by_nothing() -> None:
    truths, found = scene(15, 3.0)
    arms = compare([Result(g, s, found) for g in (0, 9) for s in (0, 1)], truths, NAMES, resamples=20)
    assert [arm.generated for arm in arms] == [0, 9]
    assert arms[0].differences == {}
    for change in arms[1].differences.values():
        assert (change.mean, change.sd, change.low, change.high) == (0.0, 0.0, 0.0, 0.0)


def test_a_better_arm_lies_above_with_its_interval() -> None:
    truths, _ = scene(40, 1.0)
    results = [
        Result(generated, seed, scene(40, noise, seed)[1])
        for generated, noise in ((0, 6.0), (50, 1.0))
        for seed in range(3)
    ]
    real, mixed = compare(results, truths, NAMES, resamples=100)
    change = mixed.differences["AP"]
    assert 0 < change.low < change.mean < change.high
    values = [mean_average_precision(truths, result.detections, NAMES)["AP"] for result in results]
    assert real.figures["AP"].values == pytest.approx(values[:3])
    assert real.figures["AP"].mean == pytest.approx(np.mean(values[:3]))
    assert real.figures["AP"].sd == pytest.approx(np.std(values[:3], ddof=1))
    assert change.values == pytest.approx(np.subtract(values[3:], values[:3]))
    assert change.mean == pytest.approx(np.mean(np.subtract(values[3:], values[:3])))


def test_the_interval_is_that_of_pairs_and_repeats() -> None:
    """Two arms whose figures rise and fall together from image to image differ by little, whatever is drawn."""
    truths, good = scene(30, 1.0, crowds=False)
    nearly = [Instances.none(), *good[1:]]
    results = [Result(0, 0, good), Result(5, 0, nearly)]
    one, again, other = (compare(results, truths, NAMES, resamples=60, seed=seed)[1] for seed in (0, 0, 1))
    change = one.differences["AP"]
    assert change == again.differences["AP"] != other.differences["AP"]
    assert change.sd is None
    classes, alone = match(truths, good, 2), []
    for number in range(60):
        weights = np.bincount(generator(0, 50, number + 1).integers(30, size=30), minlength=30)
        alone.append(figures(average_precision(classes, weights), NAMES)["AP"])
    assert change.high - change.low < (np.quantile(alone, 0.975) - np.quantile(alone, 0.025)) / 2


def test_the_table_has_a_row_a_figure_and_a_column_an_arm() -> None:
    header, rows = table(make_arms()[:2], real=10)
    assert header == ["figure", "real", "real + 20 generated (2x)", "difference"]
    assert rows[0] == ["AP", "0.500 ± 0.010", "0.500 ± 0.010", "+0.021 [-0.010, +0.050]"]
    assert table(make_arms(None)[:2], real=10)[1][0][1] == "0.500"
    assert arm_name(7, 30) == "real + 7 generated"


@pytest.mark.slow
@pytest.mark.parametrize("arms", [2, 3])
def test_the_picture_is_a_png_and_repeats(tmp_path: Path, arms: int) -> None:
    for name in ("a.png", "b.png"):
        assert plot(tmp_path / name, {"val": make_arms(None if arms == 2 else 0.02)[:arms]}, 10)
    with Image.open(tmp_path / "a.png") as picture:
        assert picture.format == "PNG"
        assert picture.width == (1000 if arms > 2 else 600)
    assert (tmp_path / "a.png").read_bytes() == (tmp_path / "b.png").read_bytes()


def test_without_matplotlib_there_is_no_picture(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    assert not plot(tmp_path / "a.png", {"val": make_arms()}, 10)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("interval", "said"),
    [((-0.055, 0.045), "no gain measurable: -0.4 AP"), ((0.01, 0.05), "real + 8 generated (2x): -0.4 AP, 95% interval"),
     ((-0.05, -0.01), "a loss: -0.4 AP")],
)  # fmt: skip
def test_an_arm_ends_in_a_sentence(interval: tuple[float, float], said: str) -> None:
    arms = [Arm(0, {}, {}), Arm(8, {}, {"AP": Difference(-0.004, None, (-0.004,), *interval)})]
    (sentence,) = gains(arms, 4)
    assert said in sentence
    assert sentence.endswith(f"{100 * interval[0]:+.1f} to {100 * interval[1]:+.1f}")
