"""What the proof tries beside its arms: other images, other trainings, and bars that are held against them."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest
from fake_proof import PLAN, Fake, make_place, start, write_dataset

from benchmarks.proof.order import build
from benchmarks.proof.plan import Plan, Way


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_dataset(tmp_path_factory.mktemp("proof") / "voc")


@pytest.fixture
def place(tmp_path: Path, dataset: Path, monkeypatch: pytest.MonkeyPatch) -> Fake:
    return make_place(tmp_path, dataset, monkeypatch)


def after(words: Sequence[str], option: str) -> str:
    return words[list(words).index(option) + 1]


def test_other_images_are_painted_and_labelled_by_the_adapter_that_learned_most(place: Fake) -> None:
    start(place, "generated-10-1-light", "generated-full-light")
    ran = {stage: [words for one, words in place.ran if one == stage] for stage, _ in place.ran}
    painted, labelled = ran["generated-10-1-light"]
    assert Path(after(painted, "--bundle")).name == "bundle-10-1-third"
    assert Path(after(painted, "--reference")).name == "train-images"
    assert (after(painted, "--strength"), after(painted, "--uncertain")) == ("0.1:0.3", "0")
    assert labelled[3:] == ["finalize", after(painted, "--out"), "--score", "matched"]
    painted, labelled = ran["generated-full-light"]
    assert Path(after(painted, "--bundle")).name == "blood-cells"
    assert (after(painted, "--reference-split"), after(painted, "--guidance")) == ("train", "3.0")
    assert labelled[3] == "finalize"


def test_a_longer_training_is_held_against_one_on_real_images_as_long(place: Fake) -> None:
    start(place, "rt_detr-10-1-light-long-generated")
    steps = {stage: after(words, "--steps") for stage, words in place.ran if "evaluate" in words}
    assert steps == {"rt_detr-10-1-long-real": "24", "rt_detr-10-1-light-long-generated": "24"}
    taken = place.folder("rt_detr-10-1-light-long-generated") / "trainings" / "real-seed1" / "result.json"
    assert (
        taken.read_bytes()
        == (place.folder("rt_detr-10-1-long-real") / "trainings" / "real-seed1" / "result.json").read_bytes()
    )


def test_bars_are_held_against_the_arms_that_the_plan_names(place: Fake) -> None:
    plan = replace(PLAN, judged={"generated": "light", "pseudo": "third-sure", "adapter": "third", "full": "light"})
    judged = replace(place, plan=plan)
    first = "| 10% of the labels: generated over real | rt_detr | 5 |"
    start(judged, *(f"rt_detr-{name}-generated" for name in plan.lists))
    assert f"{first} - | not run yet |" in (place.results.parent / "proof.md").read_text()
    start(judged, *(f"rt_detr-{name}-light-generated" for name in plan.lists))
    text = (place.results.parent / "proof.md").read_text()
    assert f"{first} +" in text
    assert "labels of adapters that learned a third time, by scores matched, and strengths 0.1 to 0.3" in text


def test_bars_on_what_no_stage_makes_are_refused() -> None:
    with pytest.raises(ValueError, match="'generated': 'lighter'"):
        Plan(judged={"generated": "lighter"})
    with pytest.raises(ValueError, match="one length"):
        Plan(ways_full={"long": Way("light", longer=2)})


def test_every_stage_has_a_name_of_its_own_and_comes_after_what_it_reads() -> None:
    seen: set[str] = set()
    for stage in build(Plan()):
        assert stage.name not in seen
        assert {*stage.needs, *stage.reads} <= seen, stage.name
        seen.add(stage.name)
