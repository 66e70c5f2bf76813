"""How likely a find without a label is an object: by what share of the surest finds is labelled."""

import numpy as np
import pytest

from engines.common.rng import generator
from engines.labels.belief import LEAST_LABELLED, believe


def finds(share: float, mistakes: int, objects: int = 600) -> tuple[np.ndarray, np.ndarray]:
    """Scores, and which of the finds have a label: objects score high, mistakes low, `share` of objects is labelled."""
    rng = generator(3, round(1000 * share), mistakes)
    scores = np.concatenate([rng.uniform(0.5, 0.9, objects), rng.uniform(0.05, 0.6, mistakes)])
    labelled = np.concatenate([rng.random(objects) < share, np.zeros(mistakes, dtype=bool)])
    return scores, labelled


def test_the_share_of_labelled_objects_shows_among_the_surest() -> None:
    for share in (0.3, 0.5, 0.9):
        assert believe(*finds(share, 400)).completeness == pytest.approx(share, abs=0.12)


def test_a_sure_find_without_a_label_is_an_object_where_half_of_them_have_none() -> None:
    sure, unsure = believe(*finds(0.5, 400)).of(np.array([0.8, 0.2]))
    assert sure > 0.7
    assert unsure < 0.05


def test_the_same_score_means_less_where_labels_are_complete() -> None:
    half, complete = (believe(*finds(share, 400)).of(np.array([0.57]))[0] for share in (0.5, 1.0))
    assert complete < 0.01 < half


def test_confidence_rises_with_the_score_and_stays_within_0_and_1() -> None:
    sure = believe(*finds(0.4, 300)).of(np.linspace(0, 1, 50))
    assert (np.diff(sure) >= 0).all()
    assert sure.min() >= 0
    assert sure.max() <= 1


def test_too_few_labelled_finds_leave_the_score_as_it_is() -> None:
    labelled = np.arange(100) < LEAST_LABELLED - 1
    belief = believe(np.linspace(0.1, 0.9, 100), labelled)
    assert belief.completeness is None
    assert belief.of(np.array([0.3])).tolist() == [0.3]
